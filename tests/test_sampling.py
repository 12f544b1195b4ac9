"""The sampler by itself: its machine code against its definition, settings, histories, states."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import sampling_twin as twin
from hypothesis import given, settings
from hypothesis import strategies as st

import lstm_engine as le
from lstm_engine import images
from lstm_engine.encoding import Context
from lstm_engine.generation.sampling import ScoreTable
from lstm_engine.kernels.draws import Draw

SPECIAL = [0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e-310, 1e308, -1e308, -np.inf, 700.0, -700.0, -745.2]


def test_the_random_numbers_are_splitmix64s() -> None:
    source = twin.SplitMix64(1234567)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [source.uniform() for _ in published] == [(z >> 11) * 2.0**-53 for z in published]
    sampler = le.Sampler(seed=1234567)
    flat = np.zeros(1 << 16)
    assert [sampler.choose(flat) for _ in published] == [z >> 48 for z in published]


def drawn(sampler: le.Sampler, scores: np.ndarray) -> int | None:
    try:
        return sampler.choose(scores)
    except le.InputError:
        return None


settings_drawn = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 5e-324, 0.3, 0.7, 1.0, 2.5, 1e300]),
        "top_k": st.none() | st.integers(1, 40),
        "top_p": st.none() | st.sampled_from([1e-300, 0.1, 0.25, 0.5, 0.9, 1 - 2**-53, 1.0]),
        "min_p": st.none() | st.sampled_from([0.0, 1e-6, 0.05, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.2, 1.0000001, 1e300]),
        "repetition_window": st.none() | st.integers(1, 5),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    settings_drawn,
    st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 97, 102, 256, 1009]),
    st.sampled_from(["normal", "ties", "special", "flat", "peaked"]),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_the_machine_code_draws_what_the_definition_says(
    chosen: dict[str, Any], count: int, kind: str, seed: int, single: bool
) -> None:
    dice = np.random.default_rng(seed)
    sampler, random = le.Sampler(**chosen, seed=seed), twin.SplitMix64(seed)
    window = chosen.pop("repetition_window")
    read: list[int] = []
    for _ in range(6):
        scores = {
            "normal": lambda: dice.normal(0, 3, count),
            "ties": lambda: dice.integers(-2, 3, count).astype(float),
            "special": lambda: dice.choice(SPECIAL, count),
            "flat": lambda: np.full(count, dice.normal()),
            "peaked": lambda: dice.normal(0, 300, count),
        }[kind]()
        if single:
            with np.errstate(over="ignore"):
                scores = scores.astype(np.float32)
        counted = frozenset(read if window is None else read[-window:])
        got = drawn(sampler, scores)
        assert got == twin.choose(scores, random, read=counted, **chosen)
        following = int(dice.integers(0, count))
        sampler.read([following])
        read.append(following)


#: From scores that every machine rounds alike, with seed 2026.
EVERYWHERE = [
    44, 22, 31, 30, 25, 38, 48, 37, 14, 12, 10, 43, 15, 3, 31, 11, 9, 22, 30, 25, 39, 28, 23, 3, 12, 31, 32, 47, 41, 34,
    28, 20, 10, 33, 28, 5, 21, 25, 48, 34,
]  # fmt: skip


def test_a_seed_draws_these_tokens_on_every_machine() -> None:
    sampler = le.Sampler(0.8, top_k=30, top_p=0.9, seed=2026, min_p=0.01, repetition_penalty=1.25, repetition_window=8)
    tokens = []
    for k in range(1, 41):
        tokens.append(sampler.choose((k * np.arange(50) * 7919 + k * k) % 101 / 16.0))
        sampler.read(tokens[-1:])
    assert tokens == EVERYWHERE


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 7, 16, 33])
def test_probabilities_are_taken_by_their_logarithms(dtype: type, count: int) -> None:
    dice = np.random.default_rng(count)
    table = ScoreTable(count, np.dtype(dtype), True)
    for seed in range(200):
        sampler, reference = (le.Sampler(0.8, top_p=0.9, seed=seed) for _ in range(2))
        table.place[...] = dice.dirichlet(np.full(count, 0.3)).astype(dtype)
        with np.errstate(divide="ignore"):
            scores = np.log(table.place.astype(np.float64))
        assert sampler.choose_after(table, None) == reference.choose(scores)


@pytest.mark.parametrize("bad", [np.nan, -0.5])
def test_what_is_no_probability_draws_nothing(bad: float) -> None:
    table = ScoreTable(20, np.dtype(np.float32), True)
    table.place[...] = 0.05
    table.place[13] = bad
    with pytest.raises(le.InputError, match="greatest of 20 scores is nan"):
        le.Sampler(seed=1).choose_after(table, None)


def test_log_probabilities_are_the_models_own() -> None:
    dice = np.random.default_rng(5)
    for count in (1, 5, 16, 102):
        table = ScoreTable(count, np.dtype(np.float32), False, tell=True)
        for seed in range(20):
            table.place[...] = dice.normal(0, 4, count)
            sampler = le.Sampler(0.3, top_k=3, repetition_penalty=1.5, seed=seed)
            sampler.make_room(count)
            sampler.read(range(0, count, 2))
            token = sampler.choose_after(table, None)
            scores = table.place.astype(np.float64)
            expected = scores[token] - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
            assert table.log_probability == pytest.approx(expected, abs=1e-12)


def test_a_failed_draw_leaves_the_sampler_as_it_was() -> None:
    for window in (None, 1, 3):
        sampler = le.Sampler(repetition_penalty=1.3, repetition_window=window, seed=3)
        sampler.read([1, 2, 1, 4, 0])
        table = ScoreTable(6, np.dtype(np.float64), False)
        before = sampler.state
        for bad in (np.nan, np.inf):
            table.place[...] = [0, 1, bad, 2, 3, 4]
            for token in (5, 1, 2):
                with pytest.raises(le.InputError, match="no token"):
                    sampler.choose_after(table, token)
                assert sampler.state == before
        table.place[...] = 1.0
        sampler.choose_after(table, 5)
        assert sampler.state != before


def test_rows_are_drawn_as_each_would_be_alone() -> None:
    dice = np.random.default_rng(1)
    rows = dice.normal(0, 2, (9, 21)).astype(np.float32)
    together = [le.Sampler(0.9, top_k=7, repetition_penalty=1.4, repetition_window=4, seed=s) for s in range(9)]
    alone = [pickle.loads(pickle.dumps(sampler)) for sampler in together]
    table = ScoreTable(21, rows.dtype, False)
    for sampler in (*together, *alone):
        sampler.make_room(21)
    tokens = np.arange(9)
    addresses = np.array([0 if k == 4 else s.address for k, s in enumerate(together)], np.int64)
    for _ in range(5):
        before = tokens.copy()
        arguments = addresses.ctypes.data, table.address, rows.ctypes.data, rows.strides[0], 9, tokens.ctypes.data
        assert images.sampling().function("draw_rows")(*arguments) == 9
        for k, sampler in enumerate(alone):
            table.place[...] = rows[k]
            expected = before[k] if k == 4 else sampler.choose_after(table, int(before[k]))
            assert tokens[k] == expected


def test_temperature_0_takes_the_first_of_the_greatest() -> None:
    sampler = le.Sampler(temperature=0)
    assert sampler.choose(np.array([1.0, 3.0, 3.0, -np.inf])) == 1


def test_tokens_come_as_often_as_their_probability() -> None:
    scores = np.log([0.5, 0.25, 0.2, 0.05])
    sampler = le.Sampler(seed=11)
    counts = np.bincount([sampler.choose(scores) for _ in range(20_000)], minlength=4)
    assert counts / 20_000 == pytest.approx([0.5, 0.25, 0.2, 0.05], abs=0.01)


def test_temperature_sharpens_and_flattens() -> None:
    scores = np.log([0.6, 0.4])
    for temperature in (0.5, 2.0):
        sampler = le.Sampler(temperature, seed=5)
        part = sum(sampler.choose(scores) for _ in range(20_000)) / 20_000
        weights = np.array([0.6, 0.4]) ** (1 / temperature)
        assert part == pytest.approx(weights[1] / weights.sum(), abs=0.012)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_temperatures_at_the_ends_of_the_range(temperature: float) -> None:
    sampler = le.Sampler(temperature, seed=1)
    found = {sampler.choose(np.array([1.0, 2.0, -np.inf], np.float32)) for _ in range(64)}
    assert found == ({1} if temperature < 1 else {0, 1})


def kept(scores: np.ndarray, **chosen: Any) -> set[int]:
    sampler = le.Sampler(**chosen, seed=2)
    return {sampler.choose(scores) for _ in range(400)}


def test_top_k_keeps_the_k_greatest_and_of_equals_the_first() -> None:
    scores = np.array([0.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    for k, expected in ((1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (4, {1, 2, 3, 4}), (99, set(range(6)))):
        assert kept(scores, top_k=k) == expected


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    scores = np.log([0.1, 0.4, 0.2, 0.3])
    for p, expected in ((1e-9, {1}), (0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        assert kept(scores, top_p=p) == expected


def test_min_p_keeps_those_that_are_likely_enough_beside_the_likeliest() -> None:
    scores = np.log([0.1, 0.4, 0.2, 0.3])
    for p, expected in ((0, {0, 1, 2, 3}), (0.26, {1, 2, 3}), (0.6, {1, 3}), (1.0, {1})):
        assert kept(scores, min_p=p) == expected


def test_the_penalty_is_for_tokens_that_were_read_within_the_window() -> None:
    scores = np.array([3.0, 2.0, -1.0, -1.1])
    sampler = le.Sampler(0, repetition_penalty=2.0, repetition_window=2)
    assert sampler.choose(scores) == 0
    sampler.read([0])
    assert sampler.choose(scores) == 1  # 1.5 against 2
    sampler.read([1, 1])
    assert sampler.choose(scores) == 0  # 3 against 1: the 0 has left the window
    endless = le.Sampler(0, repetition_penalty=2.0)
    endless.read([0, 1, 1, 1])
    assert endless.choose(scores) == 0  # 1.5 against 1
    endless.read([2])
    assert endless.choose(scores[2:]) == 0  # ids 0 and 1 are worth -2 and -2.2 now
    with pytest.raises(le.InputError, match="token ids"):
        sampler.read([-1])


def test_impossible_tokens_never_come() -> None:
    sampler = le.Sampler(temperature=100.0, seed=3)
    scores = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    assert {sampler.choose(scores) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("scores", [[], [np.nan, 1.0], [1.0, np.nan], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_scores_that_choose_nothing_are_refused(scores: list[float]) -> None:
    for sampler in (le.Sampler(), le.Sampler(0), le.Sampler(top_p=0.5), le.Sampler(repetition_penalty=2.0)):
        with pytest.raises(le.InputError, match="no token can be chosen"):
            sampler.choose(np.array(scores))


@pytest.mark.parametrize(
    "chosen",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": True},
        {"top_k": 0}, {"top_k": 1.5}, {"top_k": True}, {"top_p": 0}, {"top_p": 1.1}, {"top_p": float("nan")},
        {"seed": -1}, {"seed": 1 << 64}, {"seed": 1.0}, {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": "x"},
        {"repetition_penalty": 0}, {"repetition_penalty": float("inf")}, {"repetition_penalty": None},
        {"repetition_window": 0}, {"repetition_window": 1.5}, {"repetition_window": 1 << 40},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(chosen: dict[str, Any]) -> None:
    with pytest.raises(le.InputError, match=next(iter(chosen))):
        le.Sampler(**chosen)


def test_all_settings_out_of_range_are_named_at_once() -> None:
    with pytest.raises(le.InputError, match=r"(?s)5 faults.*temperature.*top_k.*top_p.*min_p.*seed"):
        le.Sampler(-1, 0, 2, -3, min_p=7)


# --- where a sampler is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen", [{}, {"repetition_penalty": 1.5}, {"repetition_penalty": 1.5, "repetition_window": 6}]
)
def test_a_sampler_goes_on_from_its_state(chosen: dict[str, Any]) -> None:
    scores = np.zeros(50)

    def go_on(sampler: le.Sampler, count: int) -> list[int]:
        tokens = []
        for _ in range(count):
            tokens.append(sampler.choose(scores))
            sampler.read(tokens[-1:])
        return tokens

    sampler = le.Sampler(**chosen, seed=9)
    go_on(sampler, 10)
    kept_state = sampler.state
    copies = [copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    following = go_on(sampler, 20)
    other = le.Sampler(**chosen, seed=1)
    go_on(other, 30)
    other.restore(kept_state)
    assert [go_on(each, 20) for each in (other, *copies)] == [following] * 4
    assert dataclasses.replace(sampler, temperature=0.5).temperature == 0.5


def test_states_of_other_samplers_are_refused() -> None:
    plain, counting = le.Sampler(seed=1), le.Sampler(repetition_penalty=2.0, repetition_window=2)
    counting.read([1, 2, 3])
    assert (len(plain.state), len(counting.state)) == (8, 16)
    for wrong in (b"", b"123456789", "12345678", counting.state, bytearray(8)):
        with pytest.raises(le.InputError, match="8 bytes"):
            plain.restore(wrong)  # type: ignore[arg-type]
    for wrong in (b"1234567", counting.state + b"....", counting.state[:-4] + b"\xff" * 4):
        with pytest.raises(le.InputError, match="Sampler"):
            counting.restore(wrong)


def test_without_a_seed_every_sampler_is_another() -> None:
    assert le.Sampler().state != le.Sampler().state


def test_a_sampler_at_work_is_not_disturbed() -> None:
    assert int(Draw.BUSY) == int(Context.BUSY)
    sampler = le.Sampler(repetition_penalty=1.1, seed=1)
    sampler.read([1])
    before = sampler.state
    acquire, give_up = images.guards()
    assert acquire(sampler.address)
    for use in (
        lambda: sampler.choose(np.zeros(3)),
        lambda: sampler.read([0]),
        lambda: sampler.make_room(1000),
        lambda: sampler.restore(before),
    ):
        with pytest.raises(le.StateError, match="in use"):
            use()
    give_up(sampler.address)
    assert sampler.state == before
    assert 0 <= sampler.choose(np.zeros(3)) < 3


def test_drawing_stays_in_its_tables() -> None:
    """Scores of any number, each table with a guard behind it."""
    for count in (1, 15, 16, 17, 100):
        table = ScoreTable(count, np.dtype(np.float64), False)
        padded = -(-count // 16) * 16
        guarded = np.full((4, padded + 16), 1234.5)
        for k in range(4):
            table.words[6 + k] = guarded[k].ctypes.data
        table.place[...] = np.random.default_rng(count).normal(size=count)
        sampler = le.Sampler(top_k=9, top_p=0.9, min_p=0.1, repetition_penalty=1.2, seed=1)
        sampler.make_room(count)
        for token in range(count):
            sampler.choose_after(table, token)
        assert (guarded[:, padded:] == 1234.5).all()


def test_drawing_allocates_nothing() -> None:
    table = ScoreTable(102, np.dtype(np.float32), False)
    table.place[...] = np.random.default_rng(0).normal(size=102)
    sampler = le.Sampler(0.8, top_k=40, top_p=0.9, repetition_penalty=1.1, repetition_window=64, seed=1)
    sampler.make_room(102)
    call = images.sampling().function("draw_one")
    arguments = sampler.address, table.address, table.place.ctypes.data
    for _ in range(1000):
        call(*arguments, 5)
    blocks = sys.getallocatedblocks()
    tracemalloc.start()
    start, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(1000):
        call(*arguments, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sys.getallocatedblocks() - blocks <= 20
    assert peak - start < 4096
