"""Sampling tokens: the sampler by itself, text and ids, and generating from a stream."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_lstm_model, make_model, make_tagger, random_weights, rng
from onnx import helper

import lstm_engine as le
from lstm_engine.generation import SplitMix64, Vocabulary, _text_until, score_meaning

CHAR = Path(__file__).resolve().parents[1] / "models" / "char" / "char.onnx"
LETTERS = ["<unk>", "<end>", *"abcdefgh \n"]
TEXT = {"vocabulary": json.dumps(LETTERS), "unit": "character", "unknown": "<unk>", "boundary": "<end>"}


def token_model(
    final: str = "", metadata: Mapping[str, str] = TEXT, tokens: int = len(LETTERS), scale: float = 3.0
) -> bytes:
    """Token ids [T, B] → embedding → LSTM → one score a token, through ``final``."""
    draw = rng(7)
    constants = {
        "table": draw.normal(size=(tokens, 5)).astype(np.float32),
        **random_weights(5, 8, seed=3),
        "head": (scale * draw.normal(size=(8, tokens))).astype(np.float32),
        "one": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=8),
        helper.make_node("Squeeze", ["y", "one"], ["h"]),
        helper.make_node("MatMul", ["h", "head"], ["logits"]),
        *([helper.make_node(final, ["logits"], ["scores"], axis=-1)] if final else []),
    ]
    outputs = [("scores" if final else "logits", np.float32, ["time", "batch", tokens])]
    model = make_model(nodes, [("ids", np.int64, ["time", "batch"])], outputs, constants, metadata=metadata)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def model() -> le.Model:
    return le.load(token_model())


# --- the sampler ------------------------------------------------------------------------------------------------------


def test_the_random_numbers_are_splitmix64s() -> None:
    source = SplitMix64(1234567)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [source.uniform() for _ in published] == [(z >> 11) * 2.0**-53 for z in published]


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
    drawn = {sampler.choose(np.array([1.0, 2.0, -np.inf], np.float32)) for _ in range(64)}
    assert drawn == ({1} if temperature < 1 else {0, 1})


def test_top_k_keeps_the_k_greatest_and_of_equals_the_first() -> None:
    scores = np.array([0.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    for k, expected in ((1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (4, {1, 2, 3, 4}), (99, set(range(6)))):
        sampler = le.Sampler(top_k=k, seed=2)
        assert {sampler.choose(scores) for _ in range(400)} == expected


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    scores = np.log([0.1, 0.4, 0.2, 0.3])
    for p, expected in ((1e-9, {1}), (0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        sampler = le.Sampler(top_p=p, seed=2)
        assert {sampler.choose(scores) for _ in range(400)} == expected


def test_impossible_tokens_never_come() -> None:
    sampler = le.Sampler(temperature=100.0, seed=3)
    scores = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    assert {sampler.choose(scores) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("scores", [[], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_scores_that_choose_nothing_are_refused(scores: list[float]) -> None:
    for sampler in (le.Sampler(), le.Sampler(0)):
        with pytest.raises(le.InputError, match="no token can be chosen"):
            sampler.choose(np.array(scores))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": True},
        {"top_k": 0}, {"top_k": 1.5}, {"top_k": True}, {"top_p": 0}, {"top_p": 1.1}, {"top_p": float("nan")},
        {"seed": -1}, {"seed": 1 << 64}, {"seed": 1.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(le.InputError, match=next(iter(settings))):
        le.Sampler(**settings)


def test_all_settings_out_of_range_are_named_at_once() -> None:
    with pytest.raises(le.InputError, match=r"(?s)4 faults.*temperature.*top_k.*top_p.*seed"):
        le.Sampler(-1, 0, 2, -3)


def test_a_sampler_goes_on_from_its_state() -> None:
    scores = np.zeros(1000)
    sampler = le.Sampler(seed=9)
    for _ in range(10):
        sampler.choose(scores)
    kept = sampler.state
    following = [sampler.choose(scores) for _ in range(20)]
    other = le.Sampler(seed=1)
    other.restore(kept)
    assert [other.choose(scores) for _ in range(20)] == following
    for wrong in (b"", b"123456789", "12345678"):
        with pytest.raises(le.InputError, match="8 bytes"):
            sampler.restore(wrong)  # type: ignore[arg-type]


def test_without_a_seed_every_sampler_is_another() -> None:
    assert le.Sampler().state != le.Sampler().state


# --- text and ids -----------------------------------------------------------------------------------------------------


def test_text_becomes_ids_and_back() -> None:
    vocabulary = Vocabulary(["?", "a", "b", "ab", "abc", "d"], unknown="?")
    assert vocabulary.encode("abcabdbx?") == [4, 3, 5, 2, 0, 0]
    assert vocabulary.decode([4, 3, 5]) == "abcabd"
    with pytest.raises(le.InputError, match="0 to 5"):
        vocabulary.text(6)


def test_characters_are_read_one_by_one() -> None:
    vocabulary = Vocabulary(["<doc>", "a", "ab", "<", "d", "o", "c", ">"], "character", boundary="<doc>")
    assert vocabulary.encode("a<doc>") == [1, 3, 4, 5, 6, 7]


def test_characters_that_no_token_stands_for_are_named() -> None:
    vocabulary = Vocabulary(["a", "b"], "character")
    with pytest.raises(le.InputError, match="'é', '€'"):
        vocabulary.encode("aéb€é")
    with pytest.raises(le.InputError, match="and 16 more"):
        vocabulary.encode("cdefghijklmnopqrstuvwxyzab12")


@pytest.mark.parametrize(
    "metadata",
    [
        {"vocabulary": "no json"}, {"vocabulary": '{"a": 0}'}, {"vocabulary": "[1, 2]"}, {"vocabulary": "[" * 100_000},
        {"vocabulary": '["a"]', "unknown": "?"}, {"vocabulary": '["a"]', "boundary": "."},
    ],
)  # fmt: skip
def test_vocabularies_that_contradict_themselves(metadata: dict[str, str]) -> None:
    loaded = le.load(token_model(metadata=metadata))
    with pytest.raises(le.ModelFormatError, match="metadata"):
        Vocabulary.of(loaded)


def test_a_vocabulary_of_another_size_than_the_scores() -> None:
    loaded = le.load(token_model(metadata={"vocabulary": '["a", "b"]'}))
    with pytest.raises(le.ModelFormatError, match="2 tokens"):
        le.generate(loaded.stream(), "a")


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

    shown = _text_until(pieces(), ["abd", "cd"])
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


def test_the_prompt_costs_one_call(model: le.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("feed", "step"):
        original = getattr(le.Stream, name)
        monkeypatch.setattr(le.Stream, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1])
    list(le.generate(model.stream(), "abcdefgh" * 40, max_tokens=3, sampler=le.Sampler(0), stop=()))
    assert calls == ["feed", "step", "step", "step"]


def test_a_long_prompt_is_read_in_pieces(model: le.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [2 + i % 9 for i in range(101)]
    expected = greedy(model, prompt, 2)
    monkeypatch.setattr("lstm_engine.generation._MOST_SCORES", 7 * len(LETTERS))
    assert list(le.generate(model.stream(), prompt, max_tokens=2, sampler=le.Sampler(0), stop=())) == expected


def test_it_goes_on_where_it_was(model: le.Model) -> None:
    whole = list(le.generate(model.stream(), [2, 3], max_tokens=30, sampler=le.Sampler(seed=6), stop=()))
    stream, sampler = model.stream(), le.Sampler(seed=6)
    first = list(le.generate(stream, [2, 3], max_tokens=10, sampler=sampler, stop=()))
    kept = le.State.from_bytes(replace(stream.state, sampler=sampler.state).to_bytes())
    other, again = model.stream(), le.Sampler(seed=99)
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
