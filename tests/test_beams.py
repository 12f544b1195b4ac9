"""Searching for likely continuations, scoring texts, and continuations of many prompts at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import CHAR, LETTERS, make_lstm_model, token_model
from onnx import TensorProto, helper, load_from_string, numpy_helper

import lstm_engine as le

SMALL = 4


@pytest.fixture(scope="module")
def model() -> le.Model:
    return le.load(token_model())


@pytest.fixture(scope="module")
def small() -> le.Model:
    return le.load(token_model(metadata={}, tokens=SMALL, scale=1.5))


def log_probabilities(loaded: le.Model, ids: list[int]) -> np.ndarray:
    """After each token, of every next one: by a whole sequence."""
    (scores,) = loaded.run(np.array(ids)[:, None]).values()
    logits = scores[:, 0].astype(np.float64)
    normalised: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalised


# --- beam search ------------------------------------------------------------------------------------------------------


def everything(
    loaded: le.Model, prompt: list[int], longest: int, penalty: float, stop: set[int]
) -> list[tuple[Any, ...]]:
    """Every continuation there is, best first."""
    found = {}
    for ids in itertools.product(range(SMALL), repeat=longest):
        end = next((k for k, token in enumerate(ids) if token in stop), longest)
        length = min(end + 1, longest)
        rows = log_probabilities(loaded, [*prompt, *ids])[len(prompt) - 1 :]
        total = sum(rows[k, ids[k]] for k in range(length))
        key = ids[:length]
        found[key] = (total / length**penalty, total, ids[:end])
    return sorted(found.values(), key=lambda entry: -entry[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("stop", [set(), {1}, {0, 3}], ids=str)
def test_a_wide_search_finds_what_trying_everything_finds(small: le.Model, penalty: float, stop: set[int]) -> None:
    expected = everything(small, [2, 1], 4, penalty, stop)
    width = SMALL**3
    found = le.beam_search(small.stream(), [2, 1], width=width, max_tokens=4, length_penalty=penalty, stop=sorted(stop))
    assert len(found) == min(width, len(expected))
    for beam, (score, total, ids) in zip(found, expected, strict=False):
        assert (beam.score, beam.log_probability) == (pytest.approx(score), pytest.approx(total))
        assert (beam.tokens, beam.text) == (ids, None)


def by_definition(loaded: le.Model, prompt: list[int], width: int, longest: int, stop: int) -> list[tuple[int, ...]]:
    """The search as it is told, over whole sequences: all beams go on to the end."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, longest + 1):
        extended = [
            (total + row[token], (*ids, token))
            for total, ids in beams
            for row in [log_probabilities(loaded, [*prompt, *ids])[-1]]
            for token in range(len(row))
        ]
        beams = []
        for total, ids in sorted(extended, key=lambda entry: -entry[0]):
            if ids[-1] == stop:
                ended.append((total / length, ids[:-1]))
            else:
                beams.append((total, ids))
            if len(beams) == width:
                break
    ended += [(total / longest, ids) for total, ids in beams]
    return [ids for _, ids in sorted(ended, key=lambda entry: -entry[0])][:width]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_narrow_search_is_the_one_that_is_told(model: le.Model, width: int) -> None:
    stream = model.stream()
    before = stream.state
    found = le.beam_search(stream, "ab", width=width, max_tokens=7)
    assert [beam.tokens for beam in found] == by_definition(model, [2, 3], width, 7, stop=1)
    assert [beam.text for beam in found] == ["".join(LETTERS[i] for i in beam.tokens) for beam in found]
    assert stream.state == before


def test_a_search_goes_on_from_where_the_stream_is(model: le.Model) -> None:
    stream = model.stream()
    stream.feed(np.array([2, 3, 4]))
    found = le.beam_search(stream, [5], width=3, max_tokens=5)
    assert found == le.beam_search(model.stream(), [2, 3, 4, 5], width=3, max_tokens=5)
    greedy = list(le.generate(model.stream(), [2, 3, 4, 5], max_tokens=5, sampler=le.Sampler(0), stop=()))
    (only,) = le.beam_search(stream, [5], width=1, max_tokens=5, stop=())
    assert list(only.tokens) == greedy


def test_constants_of_the_stream_are_those_of_the_search() -> None:
    changed = load_from_string(token_model())
    (output,) = changed.graph.output
    changed.graph.node.append(helper.make_node("Add", [output.name, "favour"], ["favoured"]))
    output.name = "favoured"
    changed.graph.input.append(helper.make_tensor_value_info("favour", TensorProto.FLOAT, [len(LETTERS)]))
    loaded = le.load(changed.SerializeToString())
    favour = np.zeros(len(LETTERS), np.float32)
    favour[7] = 50
    stream = loaded.stream(constants={"favour": favour})
    (beam,) = le.beam_search(stream, "ab", width=1, max_tokens=3)
    assert beam.tokens == (7, 7, 7)
    assert list(le.generate(stream.fork(), [2, 3], max_tokens=3, sampler=le.Sampler(0))) == [7, 7, 7]
    assert le.score(stream, [7, 7], prompt="ab").perplexity == pytest.approx(1)


def test_a_beam_may_end_at_once(small: le.Model) -> None:
    likeliest = int(log_probabilities(small, [2])[-1].argmax())
    (beam,) = le.beam_search(small.stream(), [2], width=1, max_tokens=9, stop=likeliest, length_penalty=0)
    assert beam.tokens == ()
    assert beam.log_probability == pytest.approx(log_probabilities(small, [2])[-1].max())


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 0}, {"width": 1.5}, {"max_tokens": 0}, {"max_tokens": None}, {"length_penalty": math.nan},
        {"length_penalty": "long"}, {"stop": "a"}, {"stop": -1},
    ],
)  # fmt: skip
def test_searches_that_cannot_be(model: le.Model, settings: dict[str, Any]) -> None:
    with pytest.raises(le.InputError, match=next(iter(settings))):
        le.beam_search(model.stream(), "a", **{"max_tokens": 3, **settings})


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_a_text_is_scored_by_what_follows_what(model: le.Model) -> None:
    text = "abcabdabc\nhg"
    ids = [LETTERS.index(c) for c in text]
    rows = log_probabilities(model, [1, *ids])
    expected = rows[np.arange(len(ids)), ids]
    found = le.score(model, text)
    assert found.tokens == tuple(ids)
    assert found.log_probabilities == pytest.approx(expected, abs=1e-12)
    assert found.log_likelihood == pytest.approx(expected.sum())
    assert found.perplexity == pytest.approx(math.exp(-expected.mean()))
    assert found.bits_per_token == found.bits_per_character == pytest.approx(-expected.mean() / math.log(2))
    by_ids = le.score(model, ids)
    assert np.array_equal(by_ids.log_probabilities, found.log_probabilities)
    assert by_ids.characters == len(text)


def test_a_stream_scores_what_follows_and_stays(model: le.Model) -> None:
    whole = le.score(model, "abcdef")
    stream = model.stream()
    stream.feed(np.array([1, 2]))
    before = stream.state
    rest = le.score(stream, "cdef", prompt="b")
    assert np.array_equal(rest.log_probabilities, whole.log_probabilities[2:])
    first_unscored = le.score(stream, "bcdef")
    assert np.array_equal(first_unscored.log_probabilities, whole.log_probabilities[2:])
    assert (first_unscored.characters, first_unscored.tokens) == (4, rest.tokens)
    assert stream.state == before


def test_a_long_text_is_scored_in_parts(model: le.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).integers(0, 12, 301)
    expected = le.score(model, ids, prompt=[3, 4, 5]).log_probabilities
    for most in (1, 2, 3, 4, 7, 100, 303):
        monkeypatch.setattr("lstm_engine.generation.tokens._MOST_SCORES", most * 12)
        assert np.array_equal(le.score(model, ids, prompt=[3, 4, 5]).log_probabilities, expected)


@pytest.mark.parametrize("final", ["Softmax", "LogSoftmax"])
def test_probabilities_score_alike(model: le.Model, final: str) -> None:
    found = le.score(le.load(token_model(final)), "abcdefgh")
    assert found.log_probabilities == pytest.approx(le.score(model, "abcdefgh").log_probabilities, abs=1e-5)


def test_what_cannot_be_is_infinitely_surprising(small: le.Model) -> None:
    changed = load_from_string(token_model("Softmax", metadata={}, tokens=SMALL))
    (head,) = (tensor for tensor in changed.graph.initializer if tensor.name == "head")
    values = numpy_helper.to_array(head).copy()
    values[:, 0] = 1e30 * np.sign(values[:, 0])
    head.CopyFrom(numpy_helper.from_array(values, "head"))
    found = le.score(le.load(changed.SerializeToString()), [1, 2, 3, 2, 1, 0, 1, 0])
    assert found.log_likelihood == -math.inf
    assert (found.perplexity, found.bits_per_token, found.bits_per_character) == (math.inf, math.inf, None)
    assert le.score(small, [1, 2]).perplexity < 1000


def test_texts_that_cannot_be_scored(model: le.Model, small: le.Model) -> None:
    for text in ("", []):
        with pytest.raises(le.InputError, match="no token to score"):
            le.score(model, text)
    with pytest.raises(le.InputError, match="no token to score"):
        le.score(small, [3])
    with pytest.raises(le.InputError, match="no vocabulary"):
        le.score(small, "abc")
    for ids in ([1, 2, SMALL], [SMALL, 1, 2]):
        with pytest.raises(le.InputError, match="out of range"):
            le.score(small, ids)
    with pytest.raises(le.InputError, match="one token id"):
        le.score(le.load(make_lstm_model(3, 2).SerializeToString()), [1, 2])


def test_the_character_model_knows_its_language() -> None:
    loaded = le.load(CHAR)
    english = le.score(loaded, "Return a list of the names of all the files in the given directory.\n")
    noise = le.score(loaded, "Rxqrun z lfst ob tqe namks ok ald thx fimes ip tje gihen dirvctosy.\n")
    assert english.bits_per_character is not None
    assert noise.bits_per_character is not None
    assert 0 < english.bits_per_character < 2.5 < noise.bits_per_character


# --- many prompts -----------------------------------------------------------------------------------------------------

PROMPTS: list[Any] = ["a", "abc", [2, 3, 4], "", "hgfedcba" * 4, [5], "ab\n", "d"]


def one_by_one(loaded: le.Model, prompts: list[Any], chosen: dict[str, Any], **settings: Any) -> list[Any]:
    results = []
    for number, prompt in enumerate(prompts):
        sampler = le.Sampler(**chosen, seed=7 + number)
        made = list(le.generate(loaded.stream(), prompt, sampler=sampler, **settings))
        results.append("".join(made) if isinstance(prompt, str) else made)
    return results


@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize(
    "chosen",
    [{"temperature": 0}, {"temperature": 1.5, "top_k": 6}, {"repetition_penalty": 1.3, "repetition_window": 5}],
    ids=str,
)
def test_many_prompts_give_what_each_gives_alone(model: le.Model, width: int, chosen: dict[str, Any]) -> None:
    for settings in ({"stop": None}, {"stop": ()}, {"stop": [4]}):
        expected = one_by_one(model, PROMPTS, chosen, max_tokens=25, **settings)
        found = le.generate_many(
            model, iter(PROMPTS), max_tokens=25, sampler=le.Sampler(**chosen, seed=7), width=width, **settings
        )
        assert found == expected


def test_stop_texts_end_each_for_itself(model: le.Model) -> None:
    texts = ["a", "abc", "", "hg", "d", "e"]
    chosen = {"temperature": 2.0}
    whole = one_by_one(model, texts, chosen, max_tokens=60, stop=())
    stops = [whole[0][5:8], whole[1][3], whole[2][10:12] + "§", whole[4][:4]]
    expected = one_by_one(model, texts, chosen, max_tokens=60, stop=stops)
    found = le.generate_many(model, texts, max_tokens=60, sampler=le.Sampler(**chosen, seed=7), stop=stops, width=4)
    assert found == expected
    assert any(len(short) < len(long) for short, long in zip(found, whole, strict=True))


@pytest.mark.parametrize("final", ["", "Softmax"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_pool_is_given_back_as_it_was(final: str, precision: str) -> None:
    loaded = le.load(token_model(final), precision=precision)
    pool = loaded.pool(capacity=2)
    kept = pool.open()
    pool.step([kept], np.array([3]))
    before = pool.state(kept)
    found = le.generate_many(pool, PROMPTS, max_tokens=9, sampler=le.Sampler(seed=7), width=5)
    assert found == one_by_one(loaded, PROMPTS, {}, max_tokens=9)
    assert (len(pool), pool.state(kept)) == (1, before)


def test_prompts_are_taken_as_they_come_in(model: le.Model) -> None:
    taken = []

    def prompts() -> Any:
        for number in range(6):
            taken.append(number)
            yield 3.5 if number == 4 else "ab"

    with pytest.raises(le.InputError, match="prompt 4"):
        le.generate_many(model, prompts(), max_tokens=4, width=2, sampler=le.Sampler(seed=1), stop=())
    assert taken == [0, 1, 2, 3, 4]


def test_a_fault_names_its_prompts_and_closes_all(model: le.Model) -> None:
    pool = model.pool(capacity=4)
    with pytest.raises(le.InputError, match=r"prompts 0, 1: .*out of range"):
        le.generate_many(pool, ["a", [99]], max_tokens=4)
    assert len(pool) == 0


def test_no_prompts_and_no_tokens(model: le.Model) -> None:
    assert le.generate_many(model, [], max_tokens=3) == []
    assert le.generate_many(model, ["a", [2]], max_tokens=0) == ["", []]


@pytest.mark.parametrize(
    "settings", [{"width": 0}, {"max_tokens": None}, {"max_tokens": -1}, {"sampler": 0.5}, {"stop": ""}]
)
def test_settings_that_cannot_be(model: le.Model, settings: dict[str, Any]) -> None:
    with pytest.raises(le.InputError, match=next(iter(settings))):
        le.generate_many(model, ["a"], **{"max_tokens": 3, **settings})


def test_models_that_do_not_generate(model: le.Model) -> None:
    floats = le.load(make_lstm_model(3, 2).SerializeToString())
    uses: list[Callable[[], Any]] = [
        lambda: le.generate_many(floats, ["a"], max_tokens=3),
        lambda: le.beam_search(floats.stream(), [1], max_tokens=3),
    ]
    for use in uses:
        with pytest.raises(le.InputError, match="one token id"):
            use()
