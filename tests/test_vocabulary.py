"""Text and ids: how text is cut into tokens, and where a model's vocabulary comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import TEXT, token_model
from hypothesis import given, settings
from hypothesis import strategies as st

import lstm_engine as le

BYTES = [chr(byte) for byte in range(256)]


# --- cutting and spelling ---------------------------------------------------------------------------------------------


def test_text_becomes_ids_and_back() -> None:
    vocabulary = le.Vocabulary(["?", "a", "b", "ab", "abc", "d"], unknown="?")
    assert vocabulary.encode("abcabdbx?") == [4, 3, 5, 2, 0, 0]
    assert vocabulary.decode([4, 3, 5]) == "abcabd"
    with pytest.raises(le.InputError, match="0 to 5"):
        vocabulary.text(6)


def test_characters_are_read_one_by_one() -> None:
    vocabulary = le.Vocabulary(["<doc>", "a", "ab", "<", "d", "o", "c", ">"], "character", boundary="<doc>")
    assert vocabulary.encode("a<doc>") == [1, 3, 4, 5, 6, 7]


def test_characters_that_no_token_stands_for_are_named() -> None:
    vocabulary = le.Vocabulary(["a", "b"], "character")
    with pytest.raises(le.InputError, match="'é', '€'"):
        vocabulary.encode("aéb€é")
    with pytest.raises(le.InputError, match="and 16 more"):
        vocabulary.encode("cdefghijklmnopqrstuvwxyzab12")


def test_bytes_are_those_of_utf_8() -> None:
    vocabulary = le.Vocabulary([*BYTES, "<end>"], "byte", boundary="<end>")
    assert (len(vocabulary), vocabulary.boundary) == (257, 256)
    assert vocabulary.encode("aé€") == [0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert vocabulary.encode("<end>") == list(b"<end>")
    assert list(map(vocabulary.speller(), [0x61, 0xC3, 0xA9, 0xE2, 256, 0x62])) == ["a", "", "é", "", "�<end>", "b"]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_goes_through_bytes(text: str) -> None:
    vocabulary = le.Vocabulary(BYTES, "byte")
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_words_are_cut_at_space_and_signs() -> None:
    tokens = ["<unk>", "<s>", "the", "cat", "can't", ",", "sat", ".", "(", ")", "\n"]
    vocabulary = le.Vocabulary(tokens, "word", unknown="<unk>", boundary="<s>")
    ids = vocabulary.encode("the  cat can't,\tthe (dog) sat.\nthe")
    assert ids == [2, 3, 4, 5, 2, 8, 0, 9, 6, 7, 10, 2]
    assert vocabulary.decode(ids) == "the cat can't, the (<unk>) sat.\nthe"
    assert vocabulary.decode([2, 1, 3]) == "the <s>cat"
    assert "".join(map(vocabulary.speller([2]), [3, 7])) == " cat."
    assert "".join(map(vocabulary.speller([1]), [3, 7])) == "cat."
    assert le.Vocabulary(["the", "cat"], "word").encode("the\ncat") == [0, 1]  # a newline is space without a token
    with pytest.raises(le.InputError, match=r"'dog', '\.'"):
        le.Vocabulary(["the", "cat"], "word").encode("the dog.")


# --- where it comes from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        {"vocabulary": "no json"}, {"vocabulary": '{"a": 1}'}, {"vocabulary": "[1, 2]"}, {"vocabulary": "[" * 100_000},
        {"vocabulary": '["a"]', "unknown": "?"}, {"vocabulary": '["a"]', "boundary": "."},
        {"vocabulary": '["a", "b", "a"]'}, {"vocabulary": '{"a": 0, "a": 1}'}, {"vocabulary": '["a"]', "unit": "page"},
        {"vocabulary": '["a"]', "unit": "byte"}, {"vocabulary": "3"}, {"vocabulary": '{"a": 0, "b": true}'},
    ],
)  # fmt: skip
def test_vocabularies_that_contradict_themselves(metadata: dict[str, str]) -> None:
    loaded = le.load(token_model(metadata=metadata))
    with pytest.raises(le.ModelFormatError, match="metadata"):
        le.Vocabulary.of(loaded)


def test_a_vocabulary_of_another_size_than_the_scores() -> None:
    loaded = le.load(token_model(metadata={"vocabulary": '["a", "b"]'}))
    with pytest.raises(le.ModelFormatError, match="2 tokens"):
        le.generate(loaded.stream(), "a")


def test_a_unit_of_bytes_needs_no_list() -> None:
    loaded = le.load(token_model(metadata={"unit": "byte"}, tokens=256))
    vocabulary = le.Vocabulary.of(loaded)
    assert vocabulary is not None
    assert vocabulary.tokens == tuple(BYTES)
    text = "".join(le.generate(loaded.stream(), "é", max_tokens=40, sampler=le.Sampler(seed=1)))
    assert len(text.encode()) <= 3 * 40


FORMS: list[Any] = [
    ["a", "b", "c"],
    {"a": 0, "c": 2, "b": 1},
    {"vocabulary": ["a", "b", "c"]},
    {"vocabulary": {"b": 1, "a": 0, "c": 2}, "unit": "character", "unknown": "c", "boundary": None},
]


@pytest.mark.parametrize("content", FORMS, ids=str)
def test_a_file_is_a_list_or_an_object(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content), "utf-8")
    assert le.Vocabulary.load(path).tokens == ("a", "b", "c")
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert le.Vocabulary.load(str(path)).tokens == ("a", "b", "c")


def test_tokens_may_be_called_like_entries(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text('{"unit": 1, "vocabulary": 0}', "utf-8")
    assert le.Vocabulary.load(path).tokens == ("vocabulary", "unit")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"7", b'"abc"', b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"[NaN]", b'{"a": 1e400}',
        b'{"a": 0, "b": 0}', b'{"a": 1}', b'{"a": -1}', b'{"a": 123456789012345678901234567890}', b'{"a": 0.0}',
        b'{"a": false}', b'{"a": 0, "a": 1}', b'["a", "a"]', b'["a", null]', b'["a", ["b"]]', b'[{"a": 0}]',
        b'{"vocabulary": ["a"], "vocabulary": ["b"]}', b'{"vocabulary": ["a"], "unit": 3}',
        b'{"vocabulary": ["a"], "unit": "page"}', b'{"vocabulary": ["a"], "more": 1}', b'{"vocabulary": "a"}',
        b'{"vocabulary": ["a"], "unknown": "b"}', b'{"vocabulary": ["a"], "boundary": ["a"]}',
        b'{"unit": "byte", "boundary": "<end>"}', b'{"unit": "byte", "vocabulary": ["a"]}', b'{"unit": "word"}',
    ],
)  # fmt: skip
def test_files_that_are_no_vocabulary(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(content)
    with pytest.raises(le.ModelFormatError, match=r"v\.json"):
        le.Vocabulary.load(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(["a", "b", "c"]), "utf-8")
    monkeypatch.setattr("lstm_engine.generation.vocabulary._MOST_BYTES", 5)
    with pytest.raises(le.ModelFormatError, match="more than 5 bytes"):
        le.Vocabulary.load(path)
    monkeypatch.undo()
    monkeypatch.setattr("lstm_engine.generation.vocabulary._MOST_TOKENS", 2)
    with pytest.raises(le.ModelFormatError, match="3 tokens are more"):
        le.Vocabulary.load(path)


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["vocabulary", "unit", "unknown", "boundary", "a", "b"]), x), max_leaves=8))  # fmt: skip
def test_any_json_is_a_vocabulary_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.mktemp("v") / "v.json"
    path.write_text(json.dumps(content), "utf-8")
    try:
        vocabulary = le.Vocabulary.load(path)
    except le.ModelFormatError:
        return
    assert all(isinstance(token, str) for token in vocabulary.tokens)


def test_the_file_beside_a_model_or_one_that_is_named(tmp_path: Path) -> None:
    letters = json.loads(TEXT["vocabulary"])
    (tmp_path / "model.onnx").write_bytes(token_model(metadata={}))
    loaded = le.load(tmp_path / "model.onnx")
    assert le.Vocabulary.of(loaded) is None
    sampler = {"temperature": 1.0, "seed": 5}

    def text(**more: Any) -> str:
        return "".join(
            le.generate(loaded.stream(), "ab", max_tokens=20, sampler=le.Sampler(**sampler), stop=(), **more)
        )

    (tmp_path / "named.json").write_text(json.dumps(letters), "utf-8")
    named = text(vocabulary=tmp_path / "named.json")
    assert named == text(vocabulary=le.Vocabulary(letters, "character"))
    with pytest.raises(le.InputError, match="no vocabulary"):
        text()
    (tmp_path / "model.vocab.json").write_text(json.dumps({**TEXT, "vocabulary": letters}), "utf-8")
    assert text() == named
    with pytest.raises(FileNotFoundError):
        text(vocabulary=tmp_path / "none.json")
    carrying = tmp_path / "carrying.onnx"
    carrying.write_bytes(token_model())
    (tmp_path / "carrying.vocab.json").write_text("[]", "utf-8")  # what a model carries itself comes first
    assert le.Vocabulary.of(le.load(carrying)) is not None
    assert le.load(carrying.read_bytes()).path is None
