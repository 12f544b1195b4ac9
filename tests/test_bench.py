"""The benchmark suite measures what it says, checks what it measures, and shows what it lost."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is no part of the installed package

from typer.testing import CliRunner  # noqa: E402

from bench import __main__ as command  # noqa: E402
from bench import cold, goals, limits, report, timing, workloads  # noqa: E402
from bench.engines import ENGINES, MismatchError, check  # noqa: E402
from bench.measure import SCHEMA, available  # noqa: E402
from bench.workloads import WORKLOADS, Workload, make_task  # noqa: E402

TINY = {
    "step": Workload("tiny-step", "step", 3, 5),
    "sequence": Workload("tiny-sequence", "sequence", 3, 5, B=2, T=4),
    "character": WORKLOADS["character"],
}
BRIEF = timing.Settings(batch=1e-5, budget=1.0, least_rounds=4, most_rounds=4, tail=50, tail_budget=1.0, starts=1)


# --- workloads -------------------------------------------------------------------------------------------------------


def test_names_say_kind_and_size() -> None:
    for name, workload in WORKLOADS.items():
        assert name == workload.name
        assert workload.kind in workloads.KINDS
        assert name.startswith(workload.kind)


def test_patterns_choose_workloads() -> None:
    assert {w.name for w in workloads.chosen("h64-b")} == {"sequence-h64-b1", "sequence-h64-b16"}
    assert [w.name for w in workloads.chosen("step-h?")] == ["step-h8"]
    assert len(workloads.chosen(None)) == len(WORKLOADS)
    with pytest.raises(ValueError, match="no workload matches 'nothing'"):
        workloads.chosen("nothing")


def test_bytes_and_operations_of_a_step_and_a_sequence() -> None:
    weights = 4 * 64 * (64 + 64 + 1)
    step = WORKLOADS["step-h64"]
    assert (step.bytes, step.footprint, step.flops) == (4 * weights, 4 * weights, 2 * weights)
    sequence = WORKLOADS["sequence-h64-b16"]
    assert sequence.footprint == 4 * 4 * 64 * 65
    assert sequence.bytes == 100 * sequence.footprint + 4 * 4 * 64 * 64
    assert sequence.flops == 100 * 16 * step.flops


def test_the_character_workload_is_the_character_model() -> None:
    weights = workloads._character_weights()
    size = sum(array.size for name, array in weights.items() if name != "embedding")
    biases = 2 * 4 * 256  # the file keeps two biases a gate, a step reads their sum
    assert WORKLOADS["character"].bytes == 4 * (size - biases)


def test_models_are_the_same_every_time(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    tasks = [make_task(TINY["step"], folder) for folder in (first, again)]
    assert tasks[0].path.read_bytes() == tasks[1].path.read_bytes()
    assert np.abs(tasks[0].weights["R0"]).max() <= 1 / np.sqrt(5)


# --- engines ---------------------------------------------------------------------------------------------------------


def _cases() -> list:
    return [
        pytest.param(name, kind, marks=pytest.mark.torch if name == "torch" else (), id=f"{name}-{kind}")
        for name, engine in ENGINES.items()
        for kind in engine.kinds
    ]


@pytest.mark.parametrize(("name", "kind"), _cases())
def test_every_adapter_gives_the_oracles_outputs(name: str, kind: str, tmp_path: Path) -> None:
    engine = ENGINES[name]
    if engine.missing():
        pytest.skip(engine.missing())
    task = make_task(TINY[kind], tmp_path)
    run = engine.prepare(task)
    first = check(run, task)
    run.loop(3)
    assert check(run, task) == first  # a reset brings back the beginning, however many calls were made


class _Wrong:
    """An engine that is off by a hundredth, or makes nothing but NaN."""

    def __init__(self, run: object, error: float) -> None:
        self.run, self.error = run, error

    def __getattr__(self, name: str) -> object:
        return getattr(self.run, name)

    def read(self) -> dict[str, np.ndarray]:
        return {name: value + np.float32(self.error) for name, value in self.run.read().items()}


@pytest.mark.parametrize("error", [0.01, np.nan])
@pytest.mark.parametrize("kind", ["step", "sequence"])
def test_a_wrong_output_is_an_error(kind: str, error: float, tmp_path: Path) -> None:
    task = make_task(TINY[kind], tmp_path)
    run = ENGINES["numpy"].prepare(task)
    with pytest.raises(MismatchError, match="is off by"):
        check(_Wrong(run, error), task)


def test_engines_are_chosen_by_name() -> None:
    assert list(available(["numpy"])) == ["numpy"]
    with pytest.raises(ValueError, match="unknown engines abacus"):
        available(["numpy", "abacus"])


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back_and_forth", [False, True])
def test_a_sweep_reads_every_word(back_and_forth: bool) -> None:
    sweep = limits.Sweep(limits.swept_buffer(10_000), back_and_forth)
    assert sweep.bytes >= 10_000
    sweep.buffer[...] = np.random.default_rng(0).integers(0, 256, sweep.bytes)
    words = int(np.bitwise_xor.reduce(sweep.buffer.view(np.int32)))
    for n in (1, 1, 3):
        sweep.sum = 0
        sweep.loop(n)
        assert sweep.sum == n * words
    assert sweep.swept == 5


def test_the_multiplier_multiplies() -> None:
    multiplier = limits.Multiplier()
    multiplier.loop(1)
    lanes = multiplier.flops // (2 * limits.CHAINS * limits.UNROLLED * limits.BLOCK)
    assert multiplier.sum == pytest.approx(2.0 * limits.CHAINS * lanes)  # a ← a/2 + 1 ends at 2


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    one, many = WORKLOADS["sequence-h64-b1"], WORKLOADS["sequence-h64-b16"]
    assert limits.limit_of(one, 100e9, 100e9).bound == "memory"
    found = limits.limit_of(many, 100e9, 100e9)
    assert (found.bound, found.seconds) == ("arithmetic", many.flops / 100e9)


# --- timing ----------------------------------------------------------------------------------------------------------


def test_a_summary_is_median_and_quartiles() -> None:
    summary = timing.summarise([5.0, 1.0, 4.0, 2.0, 3.0], 7, 2, 1)
    assert summary == timing.Summary(3.0, 1.0, 2.0, 4.0, 5, 7, 2, 1)
    assert timing.summarise([2.0], 1).q3 == 2.0


def test_a_tail_is_quantiles_less_the_clock() -> None:
    tail = timing.tail_of(np.arange(1, 10_002, dtype=np.int64) + 50, 50.0)
    assert (tail.p50, tail.p99, tail.p999) == pytest.approx((5001e-9, 9901e-9, 9991e-9))
    assert tail.worst == pytest.approx(10_001e-9)
    assert timing.tail_of(np.array([10, 60]), 50.0).p999 is None


def test_every_loop_runs_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    loops = {name: lambda n, name=name: order.append(name) or sum(range(200 * n)) for name in "abc"}
    monkeypatch.setattr(timing, "switches", lambda: 0)
    monkeypatch.setattr(timing, "_warming", lambda loop, calls, seconds: 0)
    found = timing.interleave(loops, BRIEF)
    assert {name: summary.rounds for name, summary in found.items()} == dict.fromkeys("abc", 4)
    assert sorted(order[-12:]) == sorted(4 * "abc")
    assert [order[-12 + 3 * k] for k in range(4)] == ["a", "b", "c", "a"]


def test_a_disturbed_batch_is_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0, 1, 1, 1])  # disturbed once, then calm
    monkeypatch.setattr(timing, "switches", lambda: next(readings))
    calls = []
    _, broken = timing._undisturbed(calls.append, 5, 2)
    assert (calls, broken) == ([2, 5, 2, 5], False)


def test_a_batch_never_calm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(range(1000))
    monkeypatch.setattr(timing, "switches", lambda: next(readings))
    calls = []
    _, broken = timing._undisturbed(calls.append, 1, 0)
    assert broken
    assert len(calls) == timing.RETAKES + 1


def test_a_long_batch_is_not_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(range(1000))
    monkeypatch.setattr(timing, "switches", lambda: next(readings))
    monkeypatch.setattr(timing, "_batch", lambda loop, calls: 1.0)
    assert timing._undisturbed(lambda n: None, 1, 0) == (1.0, True)
    assert next(readings) == 2


@pytest.mark.parametrize(
    ("calm_of_four", "rounds", "dropped", "disturbed"), [(4, 4, 0, 0), (3, 3, 1, 0), (2, 2, 2, 0), (1, 4, 0, 3)]
)
def test_disturbed_rounds_are_dropped_or_told(
    monkeypatch: pytest.MonkeyPatch, calm_of_four: int, rounds: int, dropped: int, disturbed: int
) -> None:
    taken = iter([(1e-6, number >= calm_of_four) for number in range(4)])
    monkeypatch.setattr(timing, "_undisturbed", lambda loop, calls, warm: next(taken))
    summary = timing.interleave({"a": lambda n: sum(range(100 * n))}, BRIEF)["a"]
    assert (summary.rounds, summary.dropped, summary.disturbed) == (rounds, dropped, disturbed)


def test_tails_clock_every_loop() -> None:
    found = timing.tails({"a": lambda n: None, "b": lambda n: sum(range(2000))}, BRIEF)
    assert found["a"].calls == found["b"].calls == BRIEF.tail
    assert found["a"].p50 < found["b"].p50


# --- reports ---------------------------------------------------------------------------------------------------------


def _result(median: float) -> dict:
    tail = {"p50": median, "p99": 2 * median, "p999": None, "worst": 9 * median, "calls": 100, "clock": 1e-7}
    summary = timing.summarise([median * 0.9, median, median * 1.1], 10).as_json()
    return summary | {"error": 1e-7, "tail": tail}


def _row(workload: Workload) -> dict:
    """A row in which all goals are met with room to spare."""
    row = {"workload": workload.name, "kind": workload.kind, "shape": workload.shape}
    if workload.kind == "memory":
        return row | {"bytes": {"state": 64, "arena": 4096, "resident": None, "weights": 8192, "streams": 4}}
    if workload.kind == "cold":
        parts = dict.fromkeys(("interpreter", "imports", "load", "first_output"), 0.1)
        engines = {name: _result(0.4) | parts for name in cold.TITLES}
        return row | {"limit": {"seconds": 0.2, "bound": "interpreter"}, "engines": engines}
    limit = {"seconds": workload.flops * 1e-11, "bound": "memory"}
    ours = limit["seconds"] + 0.3e-6
    engines = {name: _result(ours) for name, e in ENGINES.items() if workload.kind in e.kinds and e.ours}
    engines |= {name: _result(20 * ours) for name, e in ENGINES.items() if workload.kind in e.kinds and not e.ours}
    return row | {"limit": limit, "engines": engines}


@pytest.fixture
def document() -> dict:
    machine = {
        "cpu": "A processor", "family": "1 2 3", "flags": [], "cores": 2, "core": 1, "caches": {"L1": 32768, "L2": 1 << 20},
        "system": "Linux", "python": "3.12", "packages": {"lstm_engine": "0.1.0", "numpy": "2.0"},
        "code": {"kernels": "0", "variant": "avx2", "llvm_cpu": "x"}, "date": "2026-01-02T03:04:05", "load_at_start": [0.1],
    }  # fmt: skip
    titles = {name: engine.title for name, engine in ENGINES.items()}
    rows = [_row(workload) for workload in WORKLOADS.values()]
    return {"schema": SCHEMA, "machine": machine, "settings": {}, "engines": titles, "rows": rows}


def _named(document: dict, name: str) -> dict:
    return next(row for row in document["rows"] if row["workload"] == name)


def test_every_row_is_shown(document: dict) -> None:
    text = report.markdown(document)
    shown = [w.name for w in WORKLOADS.values() if w.kind != "cold"]
    assert [name for name in shown if f"| {name} |" not in text] == []
    assert "faster (its figure is bold): no row." in text
    assert "A processor" in text


def test_a_lost_row_is_marked(document: dict) -> None:
    _named(document, "step-h64")["engines"]["numpy"] = _result(1e-9)
    text = report.markdown(document)
    assert f"| step-h64 {report.LOST} |" in text
    assert "**0.001 ±5% 0.00×**" in text
    assert "bold): step-h64." in text


def test_a_lost_cold_start_is_marked(document: dict) -> None:
    _named(document, "cold-h64")["engines"]["onnxruntime"]["median"] = 0.25
    text = report.markdown(document)
    assert f"| lstm_engine {report.LOST} | 400 |" in text
    assert "| onnxruntime | **250** |" in text


def test_a_disturbed_row_is_marked(document: dict) -> None:
    _named(document, "step-h64")["engines"]["numpy"]["disturbed"] = 3
    text = report.markdown(document)
    assert f"| step-h64 {report.BUSY} |" in text
    assert "the machine was busy" in text


def test_part_of_the_limit(document: dict) -> None:
    row = _named(document, "step-h64")
    row["limit"]["seconds"] = 1e-6
    row["engines"]["lstm_engine"] = _result(1.25e-6)
    line = next(line for line in report.timed_table([row]).splitlines() if "step-h64" in line)
    assert line.endswith("| 1.00 M | 80 % |")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: _named(d, "step-h8").update(workload="step-h9"), "unknown row 'step-h9'"),
        (lambda d: _named(d, "step-h8")["engines"].update(abacus=_result(1.0)), "unknown engine 'abacus'"),
        (lambda d: _named(d, "cold-h64")["engines"].update(abacus=_result(1.0)), "unknown engine 'abacus'"),
        (lambda d: _named(d, "step-h8")["shape"].update(H=9), "another workload"),
        (lambda d: d.update(schema=0), "schema 0"),
    ],
)
def test_what_is_unknown_is_an_error(document: dict, spoil, message: str) -> None:
    spoil(document)
    with pytest.raises(report.ReportError, match=message):
        report.markdown(document)
    with pytest.raises(report.ReportError, match=message):
        goals.verdicts(document)


def test_a_page_is_rewritten_between_its_marks(document: dict, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nyesterday\n{report.END}\nafter\n", encoding="utf-8")
    report.rewrite(page, document)
    once = page.read_text(encoding="utf-8")
    report.rewrite(page, document)
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "yesterday" not in once


@pytest.mark.parametrize("content", ["no marks", f"{report.END}{report.BEGIN}", f"{report.BEGIN}" * 2 + report.END])
def test_a_page_without_marks_is_left_alone(document: dict, tmp_path: Path, content: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(content, encoding="utf-8")
    with pytest.raises(report.ReportError, match="expected one"):
        report.rewrite(page, document)
    assert page.read_text(encoding="utf-8") == content


# --- goals -----------------------------------------------------------------------------------------------------------


def test_all_goals_are_judged(document: dict) -> None:
    found = goals.verdicts(document)
    assert all(verdict.passed for verdict in found), [v for v in found if not v.passed]
    judged = {verdict.row for verdict in found}
    assert judged == {name for name, w in WORKLOADS.items() if w.kind in ("step", "sequence")}


def _failed(document: dict) -> list[tuple[str, str]]:
    return [(verdict.row, verdict.goal) for verdict in goals.verdicts(document) if verdict.passed is False]


def test_a_missed_goal_is_told(document: dict) -> None:
    missed = copy.deepcopy(document)
    row = _named(missed, "step-h128")
    ours = row["engines"]["lstm_engine"]["median"]
    row["engines"]["onnxruntime_bound"] = _result(2.2 * ours)
    assert _failed(missed) == [("step-h128", "2.3× faster than onnxruntime with I/O binding")]

    missed = copy.deepcopy(document)
    row = _named(missed, "step-h64")
    row["limit"]["seconds"] = 0.8e-6
    row["engines"] = {name: _result(1.7e-6 if ENGINES[name].ours else 1e-3) for name in row["engines"]}
    assert _failed(missed) == [("step-h64", "a step is at the limit")]

    missed = copy.deepcopy(document)
    row = _named(missed, "step-h8")
    row["engines"]["lstm_engine_fresh"] = _result(row["engines"]["lstm_engine"]["median"] + 0.4e-6)
    assert _failed(missed) == [("step-h8", "a fresh result is cheap")]

    missed = copy.deepcopy(document)
    row = _named(missed, "sequence-h64-b1")
    row["engines"]["onnxruntime"] = _result(1.4 * row["engines"]["lstm_engine"]["median"])
    assert _failed(missed) == [("sequence-h64-b1", "1.5× faster than onnxruntime")]


def test_what_was_not_measured_is_not_met(document: dict) -> None:
    document["rows"] = [row for row in document["rows"] if row["workload"] != "step-h8"]
    del _named(document, "step-h16")["engines"]["onnxruntime_bound"]
    found = {(v.row, v.passed) for v in goals.verdicts(document)}
    assert ("step-h8", None) in found
    assert ("step-h16", None) in found
    assert ("step-h16", True) in found


# --- command ---------------------------------------------------------------------------------------------------------


def _invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_commands_read_results(document: dict, tmp_path: Path) -> None:
    results, page, picture = tmp_path / "results.json", tmp_path / "README.md", tmp_path / "steps.svg"
    results.write_text(json.dumps(document), encoding="utf-8")
    page.write_text(f"{report.BEGIN}{report.END}", encoding="utf-8")
    code, text = _invoke("table", results)
    assert code == 0
    assert "step-h1024" in text
    assert _invoke("readme", results, page)[0] == 0
    assert "step-h1024" in page.read_text(encoding="utf-8")
    code, text = _invoke("check", results)
    assert code == 0
    assert "31 of 31 goals met" in text
    pytest.importorskip("matplotlib")
    assert _invoke("plot", results, picture)[0] == 0
    assert "the machine" in picture.read_text(encoding="utf-8")


def test_commands_fail_loudly(document: dict, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text("{", encoding="utf-8")
    assert _invoke("table", results)[0] == 1
    document["rows"] = []
    results.write_text(json.dumps(document), encoding="utf-8")
    assert _invoke("check", results)[0] == 1


def test_a_run_writes_what_table_reads(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    arguments = ["run", "--quick", "--only", "step-h8", "--engine", "numpy", "--out", str(results)]
    path = os.pathsep.join([*sys.path, str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(results.read_text(encoding="utf-8"))
    row = _named(document, "step-h8")
    assert row["engines"]["numpy"]["median"] > row["limit"]["seconds"] > 0
    assert document["machine"]["packages"]["numpy"] == np.__version__
    code, text = _invoke("table", results)
    assert code == 0
    assert "| step-h8 |" in text
    unknown = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--only", "nothing"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert unknown.returncode == 2
    assert "no workload matches" in unknown.stderr
