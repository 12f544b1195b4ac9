"""Generating from a stream: one token after another."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import CHAR, LETTERS, TEXT, make_lstm_model, make_tagger, token_model
from sampling_twin import SplitMix64, choose

import lstm_engine as le
from lstm_engine import images
from lstm_engine.engine import Runner
from lstm_engine.generation import Vocabulary, score_meaning
from lstm_engine.generation.stops import text_until
from lstm_engine.image import Image


@pytest.fixture(scope="module")
def model() -> le.Model:
    return le.load(token_model())


# --- generating -------------------------------------------------------------------------------------------------------


def greedy(loaded: le.Model, prompt: list[int], count: int) -> list[int]:
    """By whole sequences: the definition of what generating is."""
    ids = list(prompt)
    for _ in range(count):
        (scores,) = loaded.run(np.array(ids)[:, None]).values()
        ids.append(int(scores[-1, 0].argmax()))
    return ids[len(prompt) :]


def test_greedy_generation_is_that_of_whole_sequences(model: le.Model) -> None:
    expected = greedy(model, [2, 3, 4], 12)
    tokens = list(le.generate(model.stream(), [2, 3, 4], max_tokens=12, sampler=le.Sampler(0), stop=()))
    assert tokens == expected
    assert all(type(token) is int for token in tokens)


def test_text_in_text_out(model: le.Model) -> None:
    ids = le.generate(model.stream(), [2, 3], max_tokens=40, sampler=le.Sampler(seed=4), stop=())
    pieces = list(le.generate(model.stream(), "ab", max_tokens=40, sampler=le.Sampler(seed=4), stop=()))
    assert pieces == [LETTERS[i] for i in ids]


@pytest.mark.parametrize(
    "prompt", [[2, 3, 4], (2, 3, 4), np.array([2, 3, 4], np.int32), np.array([2, 3, 4], np.uint8), range(2, 5)]
)
def test_ids_may_come_in_any_row(model: le.Model, prompt: Any) -> None:
    assert list(le.generate(model.stream(), prompt, max_tokens=3, sampler=le.Sampler(0), stop=())) == greedy(
        model, [2, 3, 4], 3
    )


def test_one_id_is_a_prompt(model: le.Model) -> None:
    assert list(le.generate(model.stream(), 5, max_tokens=2, sampler=le.Sampler(0), stop=())) == greedy(model, [5], 2)


@pytest.mark.parametrize("prompt", [[[1, 2]], [1.5], [[1], [2, 3]], None, b"ab", [-1], [True]])
def test_prompts_that_are_neither_text_nor_ids(model: le.Model, prompt: Any) -> None:
    with pytest.raises(le.InputError, match="prompt"):
        le.generate(model.stream(), prompt)


def test_an_id_out_of_range_is_refused(model: le.Model) -> None:
    with pytest.raises(le.InputError, match="out of range"):
        list(le.generate(model.stream(), [3, 99, 3], max_tokens=1))


def test_the_same_seed_gives_the_same_text_and_another_another(model: le.Model) -> None:
    texts = [
        "".join(le.generate(model.stream(), "a", max_tokens=60, sampler=le.Sampler(seed=s), stop=())) for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_logits_log_probabilities_and_probabilities_give_the_same_tokens() -> None:
    loaded = {final: le.load(token_model(final)) for final in ("", "LogSoftmax", "Softmax")}
    meanings = [score_meaning(m.graph, m.outputs[0].name) for m in loaded.values()]
    assert meanings == ["logits", "log-probabilities", "probabilities"]
    for settings in ({"temperature": 1.7}, {"temperature": 0.3, "top_p": 0.9}, {"temperature": 0}):
        texts = {
            "".join(le.generate(m.stream(), "abc", max_tokens=80, sampler=le.Sampler(**settings, seed=8), stop=()))
            for m in loaded.values()
        }
        assert len(texts) == 1


def test_a_model_of_its_last_step_generates() -> None:
    loaded = le.load(make_tagger(vocabulary=9, classes=9).SerializeToString())
    ids = list(le.generate(loaded.stream(), [1, 2, 3], max_tokens=8, sampler=le.Sampler(0)))
    expected = [1, 2, 3]
    for _ in range(8):
        expected.append(int(loaded.run(np.array(expected)[:, None])["probabilities"].argmax()))
    assert ids == expected[3:]


def written(loaded: le.Model, prompt: Any, seed: int, stop: Any, max_tokens: int = 400) -> list[Any]:
    return list(
        le.generate(loaded.stream(), prompt, max_tokens=max_tokens, sampler=le.Sampler(2.0, seed=seed), stop=stop)
    )


@pytest.fixture(scope="module")
def seed(model: le.Model) -> int:
    """One whose text has 30 to 300 tokens before the boundary."""
    return next(s for s in range(1000) if 30 <= len(written(model, "a", s, None)) <= 300)


def test_the_boundary_ends_it_unless_nothing_shall(model: le.Model, seed: int) -> None:
    whole, until = written(model, "a", seed, ()), written(model, "a", seed, None)
    assert until == whole[: whole.index("<end>")]
    assert written(model, [2], seed, None) == [LETTERS.index(text) for text in until]


def test_stop_texts_end_it_and_are_not_part_of_it(model: le.Model, seed: int) -> None:
    pieces = written(model, "a", seed, None)
    before = "".join(pieces)
    for stop in (before[3:5], before[4:9], before[-1], before[-4:]):
        expected = before[: before.index(stop)]
        assert "".join(written(model, "a", seed, stop)) == expected
        assert "".join(written(model, "a", seed, ["§§", stop, stop + stop])) == expected
    assert "".join(written(model, "a", seed, "§§")) == before
    assert written(model, "a", seed, LETTERS.index(pieces[5])) == pieces[: pieces.index(pieces[5])]


def test_beginnings_of_a_stop_text_come_once_it_is_decided(model: le.Model, seed: int) -> None:
    pieces = written(model, "a", seed, None)
    stop = "".join(pieces[20:23]) + "§"
    assert written(model, "a", seed, [stop]) == pieces
    assert written(model, "a", seed, [stop], max_tokens=22) == pieces[:22]


def test_text_is_held_back_only_as_long_as_needed() -> None:
    taken: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("x", "ab", "ac", "aba", "bc", "de"):
            taken.append(piece)
            yield piece

    shown = text_until(pieces(), ["abd", "cd"])
    assert [(next(shown), len(taken)) for _ in range(4)] == [("x", 1), ("ab", 3), ("ac", 4), ("aba", 5)]
    assert list(shown) == ["b"]


def test_stop_ids_end_it(model: le.Model, seed: int) -> None:
    whole = written(model, [2], seed, None)
    for stop in (whole[7], [whole[7]], np.int64(whole[7])):
        assert written(model, [2], seed, stop) == whole[: whole.index(whole[7])]


@pytest.mark.parametrize("stop", ["", [""], [1.5], [-1], [None]])
def test_stops_that_are_none(model: le.Model, stop: Any) -> None:
    with pytest.raises(le.InputError, match="stop"):
        le.generate(model.stream(), "a", stop=stop)


def test_stop_texts_need_a_prompt_of_text(model: le.Model) -> None:
    with pytest.raises(le.InputError, match="token ids"):
        le.generate(model.stream(), [2], stop="a")


@pytest.mark.parametrize("max_tokens", [-1, 1.5, True, "3"])
def test_max_tokens_is_a_whole_number(model: le.Model, max_tokens: Any) -> None:
    with pytest.raises(le.InputError, match="max_tokens"):
        le.generate(model.stream(), "a", max_tokens=max_tokens)


def test_no_tokens_are_none(model: le.Model) -> None:
    assert list(le.generate(model.stream(), "a", max_tokens=0)) == []


def test_any_number_of_tokens_is_a_limit(model: le.Model) -> None:
    assert len(list(islice(le.generate(model.stream(), "a", max_tokens=10**30, stop=()), 7))) == 7


def test_an_empty_prompt_begins_at_the_boundary(model: le.Model) -> None:
    by_id = le.generate(model.stream(), [1], max_tokens=20, sampler=le.Sampler(seed=1), stop=())
    expected = [LETTERS[i] for i in by_id]
    assert list(le.generate(model.stream(), "", max_tokens=20, sampler=le.Sampler(seed=1), stop=())) == expected


def test_an_empty_prompt_without_a_boundary() -> None:
    loaded = le.load(token_model(metadata={"vocabulary": TEXT["vocabulary"]}))
    for prompt in ("", []):
        with pytest.raises(le.InputError, match="boundary"):
            le.generate(loaded.stream(), prompt)


def test_text_needs_a_vocabulary() -> None:
    loaded = le.load(token_model(metadata={}))
    with pytest.raises(le.InputError, match="no vocabulary"):
        le.generate(loaded.stream(), "a")
    assert list(le.generate(loaded.stream(), [2], max_tokens=3, sampler=le.Sampler(0))) == greedy(loaded, [2], 3)


def short_way_of(stream: le.Stream) -> Runner:
    """What a token's one call runs, where there is one."""
    if stream.short_way is None:
        pytest.skip("canaries are checked after each step: a step is more than one call")
    return stream.short_way


def counted(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Have every way into machine code from a stream noted."""
    for name in ("feed", "step"):
        original = getattr(le.Stream, name)
        monkeypatch.setattr(le.Stream, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1])
    function = Image.function

    def noted(self: Image, export: str) -> Any:
        made = function(self, export)
        return (lambda *a: (calls.append(export), made(*a))[1]) if self is images.sampling() else made

    monkeypatch.setattr(Image, "function", noted)


def test_a_token_costs_one_call_and_the_prompt_another(model: le.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    short_way_of(model.stream())
    counted(monkeypatch, calls)
    sampler = le.Sampler(0.8, top_k=5, top_p=0.9, seed=1)
    assert len(list(le.generate(model.stream(), "abcdefgh" * 40, max_tokens=3, sampler=sampler, stop=()))) == 3
    assert calls == ["feed", *["step_and_draw"] * 3]


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 1.3}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
    {"min_p": 0.1, "repetition_penalty": 1.4}, {"repetition_penalty": 1.4, "repetition_window": 4},
]  # fmt: skip


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_one_call_draws_what_a_step_and_the_definition_would(model: le.Model, chosen: dict[str, Any]) -> None:
    window = chosen.get("repetition_window")
    settings = {name: value for name, value in chosen.items() if name != "repetition_window"}
    stream, random = model.stream(), SplitMix64(5)
    read, expected = [2, 3, 4], []
    stream.feed(np.array(read[:-1]))
    for _ in range(60):
        counts = frozenset(read if window is None else read[-window:])
        token = choose(stream.step(read[-1]), random, read=counts, **settings)
        assert token is not None
        expected.append(token)
        read.append(token)
    sampler = le.Sampler(**chosen, seed=5)
    assert list(le.generate(model.stream(), [2, 3, 4], max_tokens=60, sampler=sampler, stop=())) == expected


def as_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no stream's step be short."""
    monkeypatch.setattr(le.Stream, "short_way", property(lambda self: None))


@pytest.mark.parametrize("final", ["", "Softmax"])
@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_where_a_step_is_longer_the_tokens_are_the_same(
    final: str, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = le.load(token_model(final))

    def tokens() -> list[int]:
        return list(le.generate(loaded.stream(), [2, 3], max_tokens=50, sampler=le.Sampler(**chosen, seed=2), stop=()))

    expected = tokens()
    as_stepped(monkeypatch)
    assert tokens() == expected


def spoilt(at: int) -> bytes:
    """A token model whose scores are NaN after one token."""
    changed = onnx.load_from_string(token_model())
    (table,) = (tensor for tensor in changed.graph.initializer if tensor.name == "table")
    values = onnx.numpy_helper.to_array(table).copy()
    values[at] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(values, "table"))
    data: bytes = changed.SerializeToString()
    return data


@pytest.mark.parametrize("stepped", [False, True])
def test_a_token_that_cannot_be_drawn_leaves_everything_as_it_was(
    stepped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stepped:
        as_stepped(monkeypatch)
    stream = le.load(spoilt(5)).stream()
    stream.feed(np.array([2, 3]))
    for window in (None, 2):
        sampler = le.Sampler(repetition_penalty=1.2, repetition_window=window, seed=1)
        sampler.read([2, 3])
        for prompt in ([5], [4, 5], [4, 5, 2], [4, 4, 99]):
            before, drawn = stream.state, sampler.state
            with pytest.raises(le.InputError, match=r"no token can be chosen|out of range"):
                next(iter(le.generate(stream, prompt, sampler=sampler)))
            assert (stream.state, sampler.state) == (before, drawn)


def test_a_failing_token_leaves_the_state_before_it() -> None:
    loaded = le.load(spoilt(5))
    stream, sampler, came = loaded.stream(), le.Sampler(1.5, seed=0), []
    before = None
    tokens = le.generate(stream, [2], sampler=sampler, stop=())
    with suppress(le.InputError):
        for token in tokens:
            before = stream.state, sampler.state
            came.append(token)
    assert came[-1] == 5
    assert (stream.state, sampler.state) == before


def test_a_stream_or_a_sampler_in_use_is_refused(model: le.Model) -> None:
    stream, sampler = model.stream(), le.Sampler(seed=1)
    tokens = le.generate(stream, [2, 3], sampler=sampler, stop=())
    next(tokens)
    acquire, give_up = images.guards()
    for address, who in ((short_way_of(stream).address, "stream"), (sampler.address, "sampler")):
        assert acquire(address)
        again = le.generate(model.stream() if who == "sampler" else stream, [2], sampler=sampler)
        with pytest.raises(le.StateError, match=f"this {who} is in use"):
            next(again)
        give_up(address)


def test_two_generations_may_take_turns(model: le.Model) -> None:
    def alone(seed: int) -> list[int]:
        return list(le.generate(model.stream(), [2], max_tokens=30, sampler=le.Sampler(seed=seed), stop=()))

    stream = model.stream()
    first = le.generate(stream, [2], max_tokens=30, sampler=le.Sampler(seed=1), stop=())
    second = le.generate(model.stream(), [2], max_tokens=30, sampler=le.Sampler(seed=2), stop=())
    other = np.empty(len(LETTERS), np.float32)
    pairs = []
    for pair in zip(first, second, strict=True):
        pairs.append(pair)
        stream.fork().step(3, out=other)
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == [alone(1), alone(2)]


def test_generations_in_many_threads_are_each_their_own() -> None:
    loaded = le.load(token_model(hidden=64))

    def tokens(seed: int) -> list[int]:
        sampler = le.Sampler(1.2, top_k=6, repetition_penalty=1.1, seed=seed)
        return list(le.generate(loaded.stream(), [2], max_tokens=400, sampler=sampler, stop=()))

    alone = [tokens(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokens, range(8))) == alone


def test_steps_between_tokens_go_their_own_way(model: le.Model) -> None:
    stream = model.stream()
    tokens = le.generate(stream, [2], sampler=le.Sampler(seed=1), stop=())
    next(tokens)
    state = stream.state
    expected = model.stream()
    expected.state = state
    assert np.array_equal(stream.step(4), expected.step(4))
    assert np.array_equal(stream.feed(np.array([4, 5])), expected.feed(np.array([4, 5])))
    stream.state = state
    whole = list(le.generate(model.stream(), [2], max_tokens=5, sampler=le.Sampler(seed=1), stop=()))
    assert list(islice(tokens, 4)) == whole[1:]


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
def test_other_precisions_draw_from_their_own_scores(precision: str) -> None:
    loaded = le.load(CHAR, precision=precision)
    stream, random, token, expected = loaded.stream(), SplitMix64(3), 7, []
    for _ in range(40):
        drawn = choose(stream.step(token), random, temperature=0.8, top_k=20, top_p=0.9)
        assert drawn is not None
        expected.append(token := drawn)
    sampler = le.Sampler(0.8, top_k=20, top_p=0.9, seed=3)
    assert list(le.generate(loaded.stream(), [7], max_tokens=40, sampler=sampler, stop=())) == expected


def test_several_threads_draw_the_same() -> None:
    wide = token_model(hidden=384)
    texts = [
        list(le.generate(le.load(wide, threads=n).stream(), [1], max_tokens=60, sampler=le.Sampler(seed=4), stop=()))
        for n in (1, 2)
    ]
    assert texts[0] == texts[1]


def test_a_token_allocates_nothing(model: le.Model) -> None:
    stream = model.stream()
    sampler = le.Sampler(0.9, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.1, repetition_window=16, seed=1)
    tokens = le.generate(stream, [2, 3], sampler=sampler, stop=())
    gc.collect()
    gc.disable()
    try:
        for _ in range(2000):
            next(tokens)
        blocks = sys.getallocatedblocks()
        tracemalloc.start()
        start, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(2000):
            next(tokens)
        end, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert sys.getallocatedblocks() - blocks <= 20
    assert peak - start < 4096
    assert end - start < 2048


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_pieces_carry_what_they_are_and_how_long_they_took(model: le.Model) -> None:
    sampler = {"temperature": 0.7, "top_k": 4, "seed": 6}
    texts = list(le.generate(model.stream(), "ab", max_tokens=30, sampler=le.Sampler(**sampler), stop=()))
    began = time.perf_counter()
    pieces = list(le.stream_generate(model.stream(), "ab", max_tokens=30, sampler=le.Sampler(**sampler), stop=()))
    took = time.perf_counter() - began
    assert [piece.text for piece in pieces] == texts
    stream, token = model.stream(), LETTERS.index("b")
    stream.step(LETTERS.index("a"))
    for piece in pieces:
        scores = stream.step(token).astype(np.float64)
        token = piece.token
        assert LETTERS[token] == piece.text
        expected = scores[token] - np.log(np.exp(scores).sum())
        assert piece.log_probability == pytest.approx(expected, abs=1e-12)
    assert len({piece.first_token_seconds for piece in pieces}) == 1
    assert 0 < pieces[0].first_token_seconds < took
    assert pieces[0].tokens_per_second == 0
    assert all(piece.tokens_per_second > 28 / took for piece in pieces[-1:])
    ids = [piece.token for piece in pieces]
    without = le.load(token_model(metadata={}))
    found = le.stream_generate(without.stream(), [2, 3], max_tokens=30, sampler=le.Sampler(**sampler), stop=())
    assert [(piece.token, piece.text) for piece in found] == [(token, None) for token in ids]


def test_pieces_end_before_a_stop_text(model: le.Model, seed: int) -> None:
    pieces = written(model, "a", seed, None)
    stop = "".join(pieces[20:23]) + "§"
    ends = "".join(pieces[10:13])
    found = list(
        le.stream_generate(model.stream(), "a", max_tokens=400, sampler=le.Sampler(2.0, seed=seed), stop=[stop, ends])
    )
    assert [piece.text for piece in found] == written(model, "a", seed, [stop, ends])


def test_a_long_prompt_is_read_in_pieces(model: le.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [2 + i % 9 for i in range(101)]
    expected = greedy(model, prompt, 2)
    monkeypatch.setattr("lstm_engine.generation.tokens._MOST_SCORES", 7 * len(LETTERS))
    assert list(le.generate(model.stream(), prompt, max_tokens=2, sampler=le.Sampler(0), stop=())) == expected


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_it_goes_on_where_it_was(model: le.Model, chosen: dict[str, Any]) -> None:
    whole = list(le.generate(model.stream(), [2, 3], max_tokens=30, sampler=le.Sampler(**chosen, seed=6), stop=()))
    stream, sampler = model.stream(), le.Sampler(**chosen, seed=6)
    first = list(le.generate(stream, [2, 3], max_tokens=10, sampler=sampler, stop=()))
    kept = le.State.from_bytes(replace(stream.state, sampler=sampler.state).to_bytes())
    other, again = model.stream(), le.Sampler(**chosen, seed=99)
    other.state = kept
    again.restore(kept.sampler)
    assert first + list(le.generate(other, first[-1], max_tokens=20, sampler=again, stop=())) == whole


def test_streams_that_do_not_generate(model: le.Model) -> None:
    with pytest.raises(le.InputError, match="2 rows"):
        le.generate(model.stream(batch=2), "a")
    floats = make_lstm_model(3, 2)
    with pytest.raises(le.InputError, match="one token id"):
        le.generate(le.load(floats.SerializeToString()).stream(), [1])
    with pytest.raises(le.InputError, match="Sampler"):
        le.generate(model.stream(), "a", sampler=0.7)  # type: ignore[arg-type]


def test_a_saved_model_keeps_its_vocabulary(model: le.Model, tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    model.save(path)
    texts = [
        "".join(le.generate(m.stream(), "ab", max_tokens=30, sampler=le.Sampler(seed=2)))
        for m in (model, le.load(path))
    ]
    assert texts[0] == texts[1]


def test_the_character_model_writes_text() -> None:
    loaded = le.load(CHAR)
    vocabulary = Vocabulary.of(loaded)
    assert vocabulary is not None
    pieces = list(le.generate(loaded.stream(), "def é", max_tokens=50, sampler=le.Sampler(seed=1), stop=()))
    assert len(pieces) == 50
    assert set(pieces) <= set(vocabulary.tokens)


@pytest.mark.parametrize("first", ["le.Sampler", "le.generate", "importlib.import_module('lstm_engine.generation')"])
def test_generate_is_callable_whatever_was_used_first(first: str, fresh_environment: dict[str, str]) -> None:
    program = f"import importlib, lstm_engine as le; {first}; le.Sampler; assert callable(le.generate)"
    subprocess.run([sys.executable, "-c", program], check=True, env=fresh_environment, timeout=60)
