"""lstm-engine bench MODEL: a user's own file on every engine installed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import lstm_engine as le
from lstm_engine.cli import app
from lstm_engine.report import bench
from lstm_engine.report.engines import Engine, Job

MODELS = Path(__file__).resolve().parent.parent / "models"
CHARACTERS, CLIPPER, DIGITS = (MODELS / name / f"{name}.onnx" for name in ("char", "clipper", "digits"))


def _invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def _document(*arguments: object) -> dict[str, Any]:
    code, out, err = _invoke(*arguments, "--seconds", 0.1, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def _line(case: dict[str, Any], engine: str, precision: str = "float32") -> dict[str, Any]:
    return next(line for line in case["engines"] if (line["engine"], line["precision"]) == (engine, precision))


@pytest.mark.parametrize("path", [CHARACTERS, CLIPPER], ids=lambda path: path.stem)
def test_a_call_and_a_step_are_compared_and_timed(path: Path) -> None:
    pytest.importorskip("onnxruntime")
    document = _document(path)
    call, step = document["cases"]
    assert (call["case"], step["case"]) == ("one call", "one step")
    for case in (call, step):
        for engine in ("lstm_engine", "onnxruntime", "onnxruntime_bound"):
            line = _line(case, engine)
            assert line["reason"] == ""
            assert 0 < line["q1"] <= line["median"] <= line["q3"]
            assert line["error"] < 1e-4
        assert _line(case, "lstm_engine")["ratio"] == 1
        int8 = _line(case, "onnxruntime", "int8")
        assert int8["reason"] == ""
        assert int8["error"] > 1e-4
    assert _line(step, "onnxruntime")["p99"] > 0
    assert set(step["feeds"].values().__iter__().__next__()) == {1}


def test_each_precision_of_this_engine_is_timed_or_told() -> None:
    for case in _document(CLIPPER)["cases"]:
        for precision in bench.PRECISIONS["float32"]:
            line = _line(case, "lstm_engine", precision)
            assert (line["median"] is None) == bool(line["reason"])
    chosen = _document(CLIPPER, "--precision", "float32")["cases"][0]
    assert {line["precision"] for line in chosen["engines"]} == {"float32"}


def test_a_network_that_does_not_stream_says_why() -> None:
    _, step = _document(DIGITS)["cases"]
    assert step["engines"] == []
    assert "runs both ways" in step["reason"]


def test_feeds_are_the_users(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (2, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "feeds.npz", rows=rows)
    np.save(tmp_path / "feeds.npy", rows)
    for name in ("feeds.npz", "feeds.npy"):
        call, _ = _document(DIGITS, "--feeds", tmp_path / name)["cases"]
        assert call["feeds"] == {"rows": [2, 8, 8]}
    np.savez(tmp_path / "wrong.npz", rows=rows[0])
    code, _, err = _invoke(DIGITS, "--feeds", tmp_path / "wrong.npz")
    assert code == 1
    assert "'rows: float32[batch, 8, 8]': expected 3 axes, got 2" in err
    assert _invoke(DIGITS, "--feeds", tmp_path / "none.npz")[:2] == (1, "")


def test_its_own_files_are_for_this_engine_alone(tmp_path: Path) -> None:
    path = tmp_path / "clipper.npz"
    le.load(CLIPPER).save(path)
    code, out, _ = _invoke(path, "--seconds", 0.1)
    assert code == 0
    assert "read .onnx files only" in out
    assert "onnxruntime  " not in out


def test_a_bare_weight_file_is_loaded_as_asked(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": (16,), "bias_hh_l0": (16,)}
    np.savez(
        tmp_path / "bare.npz", **{name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    )
    call, step = _document(tmp_path / "bare.npz", "--batch-first")["cases"]
    for case in (call, step):
        assert _line(case, "lstm_engine")["error"] < 1e-5


def test_what_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Engine("abacus", "Abacus", "no_such_package_at_all", "nowhere", ("float32",))
    monkeypatch.setattr(bench, "ENGINES", (bench.ENGINES[0], absent))
    code, out, _ = _invoke(CLIPPER, "--seconds", 0.1)
    assert code == 0
    assert "Abacus is not installed: pip install no_such_package_at_all" in out
    assert _document(CLIPPER)["not_installed"] == {"Abacus": "pip install no_such_package_at_all"}


class _Wrong:
    def __init__(self, run: Any) -> None:
        self.run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def read(self) -> dict[str, np.ndarray]:
        return {name: -array for name, array in self.run.read().items()}


def test_a_wrong_engine_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoiled(Engine):
        def prepare(self, job: Job) -> Any:
            return _Wrong(super().prepare(job))

    ours = bench.ENGINES[0]
    spoiled = Spoiled("spoiled", "Spoiled", ours.package, ours.module, ("float32",))
    monkeypatch.setattr(bench, "ENGINES", (ours, spoiled))
    call, step = _document(CLIPPER)["cases"]
    for case in (call, step):
        line = _line(case, "spoiled")
        assert line["median"] is None
        assert line["reason"].startswith("WRONG: y is off by")


class _Refusing(_Wrong):
    def reset(self) -> None:
        raise RuntimeError("Got 7, expected 1")

    loop = reset


def test_an_engine_that_fails_on_its_first_call_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Engine):
        def prepare(self, job: Job) -> Any:
            return _Refusing(super().prepare(job))

    ours = bench.ENGINES[0]
    failing = Failing("failing", "Failing", ours.package, ours.module, ("float32",))
    monkeypatch.setattr(bench, "ENGINES", (ours, failing))
    for case in _document(CLIPPER)["cases"]:
        assert _line(case, "failing")["median"] is None
        assert _line(case, "failing")["reason"] == "Got 7, expected 1"
        assert _line(case, "lstm_engine")["median"] > 0


def test_ways_of_this_engine_that_do_not_apply_are_not_told() -> None:
    code, out, _ = _invoke(CLIPPER, "--seconds", 0.1, "--threads", 1)
    assert code == 0
    assert "one thread" not in out


def test_the_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    model = le.load(CHARACTERS)
    request = bench.Request(CHARACTERS, model, seconds=0.1)
    told: list[str] = []
    cases = bench.benched(request, lambda words, part: told.append(words))
    assert any("timing" in words for words in told)
    with (console := Console(width=80, color_system=None)).capture() as captured:
        console.print(bench.shown(request, cases))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.match(r" lstm_engine +float32 +[\d.,]+ +\d+ % +[\d.,]+ +\de-0\d", line) for line in lines)
    assert any(line.startswith(" onnxruntime, I/O binding") and "×" in line for line in lines)


def test_a_plain_pipe_gets_plain_text() -> None:
    code, out, err = _invoke(DIGITS, "--seconds", 0.1)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert _invoke(DIGITS, "--seconds", 0)[0] == 2
    assert _invoke(MODELS / "README.md", "--seconds", 1)[0] == 1
