"""What the benchmark suite makes of its results: tables, pictures, verdicts; and its command."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is no part of the installed package

from typer.testing import CliRunner  # noqa: E402

from bench import __main__ as command  # noqa: E402
from bench import allowance, cold, goals, limits, plots, report  # noqa: E402
from bench.engines import ENGINES  # noqa: E402
from bench.measure import SCHEMA  # noqa: E402
from bench.special import AT  # noqa: E402
from bench.workloads import WORKLOADS, Workload  # noqa: E402
from lstm_engine.report import timing  # noqa: E402

# --- reports ---------------------------------------------------------------------------------------------------------


def _result(median: float) -> dict:
    tail = {
        "p50": median,
        "p99": 2 * median,
        "p999": None,
        "worst": 9 * median,
        "mean": median,
        "calls": 100,
        "clock": 1e-7,
    }
    summary = timing.summarise([median * 0.9, median, median * 1.1], 10).as_json()
    return summary | {"error": 1e-7, "tail": tail}


def _row(workload: Workload) -> dict:
    """A row in which all goals are met with room to spare."""
    row = {"workload": workload.name, "kind": workload.kind, "shape": workload.shape}
    row |= {"precision": workload.precision, "threads": workload.threads}
    if workload.kind == "memory":
        return row | {"bytes": {"state": 64, "arena": 4096, "resident": None, "weights": 8192, "streams": 4}}
    if workload.kind == "cold":
        parts = dict.fromkeys(("interpreter", "imports", "load", "first_output"), 0.1) | {"resident": 1 << 26}
        engines = {name: _result(0.4) | parts for name in cold.TITLES}
        return row | {"limit": {"seconds": 0.2, "bound": "interpreter"}, "engines": engines}
    if workload.kind in ("busy", "paced", "idle"):
        figures = dict.fromkeys(("mean", "p50", "p99"), 1e-5) | {"processor": 1e-5}
        engines = {f"lstm_engine{AT}1": figures, f"lstm_engine{AT}2": figures, f"torch{AT}2": figures}
        return row | {"limit": figures, "engines": engines}
    if workload.kind == "crowd":
        figures = {"alone": 5e-5, "together": 2.5e-5, "gain": 2.0}
        return row | {"engines": {f"lstm_engine{AT}1": figures, f"lstm_engine{AT}2": figures, f"torch{AT}1": figures}}
    speed = workload.threads**2
    rates = {phase.footprint: 2e11 * speed for phase in workload.phases}
    limit = asdict(limits.limit_of(workload, rates, 1e15 * speed))
    ours = limit["seconds"] + 0.3e-6 / speed
    engines = {name: _result(ours if ENGINES[name].ours else 20 * ours) for name in ENGINES}
    engines["lstm_engine_one"], engines["lstm_engine_lone"] = _result(speed * ours), _result(5 * ours)
    for name in ("lstm_engine_one", "lstm_engine_fresh", "lstm_engine_lone"):
        median = engines[name]["median"]
        engines[name]["beside"] = {"ratio": median / ours, "high": 1.01 * median / ours, "difference": median - ours}
    return row | {"limit": limit, "engines": engines}


@pytest.fixture
def document() -> dict:
    machine = {
        "cpu": "A processor", "family": "1 2 3", "flags": [], "cores": 2, "pinned": {"1": [1]}, "caches": {"L1": 32768, "L2": 1 << 20},
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
    assert [name for name in shown if f"| {name} |" not in text and f"| {name}: " not in text] == []
    assert "another engine is faster: no row." in text
    assert "A processor" in text


def test_a_lost_row_is_marked(document: dict) -> None:
    _named(document, "step-h64")["engines"]["numpy"] = _result(1e-9)
    text = report.markdown(document)
    assert f"| step-h64 {report.LOST} |" in text
    assert "**0.001 ±5% 0.00×**" in text
    assert "faster: step-h64." in text


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
    row["limit"] |= {"seconds": 1e-6, "in_turn": 1e-6}
    row["engines"]["lstm_engine"] = _result(1.25e-6)
    line = next(line for line in report.timed_table([row]).splitlines() if "step-h64" in line)
    assert line.endswith("| 1.00 M | 80 % |")
    row["limit"]["in_turn"] = 1.1e-6
    assert "| 1.00 M (1.10) | 80 % |" in report.timed_table([row])


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


def test_the_summary_has_a_line_a_workload(document: dict) -> None:
    _named(document, "step-h64")["engines"]["numpy"] = _result(1e-9)
    text = report.summary(document)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == len(report.SUMMARY) + 2
    assert f"| a step, H = 64 {report.LOST} |" in text
    assert "0.001 NumPy | 0.00×" in text
    assert "| a step, H = 512, int8, 2 threads |" in text
    assert "step-h64." in text  # by name among the lost ones
    document["rows"] = [_named(document, "idle-h256-t2")]
    with pytest.raises(report.ReportError, match="none of the summary's rows"):
        report.summary(document)


def test_wrong_outputs_are_shown(document: dict) -> None:
    row = _named(document, "step-h64")
    del row["engines"]["torch"]
    row["wrong"] = {"torch": "Y is off by 0.5"}
    text = report.markdown(document)
    assert "- step-h64: PyTorch: Y is off by 0.5" in text
    assert f"| {report.WRONG} |" in report.timed_table([row])


def test_a_page_is_rewritten_between_its_marks(document: dict, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nyesterday\n{report.END}\nafter\n", encoding="utf-8")
    report.rewrite(page, "today")
    once = page.read_text(encoding="utf-8")
    report.rewrite(page, "today")
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "today" in once
    assert "yesterday" not in once


@pytest.mark.parametrize("content", ["no marks", f"{report.END}{report.BEGIN}", f"{report.BEGIN}" * 2 + report.END])
def test_a_page_without_marks_is_left_alone(tmp_path: Path, content: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(content, encoding="utf-8")
    with pytest.raises(report.ReportError, match="expected one"):
        report.rewrite(page, "today")
    assert page.read_text(encoding="utf-8") == content


# --- pictures --------------------------------------------------------------------------------------------------------


def test_labels_move_apart_no_further_than_they_must() -> None:
    assert plots._apart([3.0, 0.0, 1.0], 0.5) == [3.0, 0.0, 1.0]
    assert plots._apart([1.0, 1.0], 0.5) == pytest.approx([0.75, 1.25])
    moved = plots._apart([5.0, 1.0, 1.1, 1.05], 0.5)
    assert moved[0] == 5.0
    assert np.diff(sorted(moved)).min() == pytest.approx(0.5)
    assert np.mean(moved[1:]) == pytest.approx(1.05)


def test_pictures_are_for_light_pages_and_dark_ones(document: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = sorted(path.name for path in plots.draw(document, tmp_path, "svg"))
    assert made == ["ratios-dark.svg", "ratios.svg", "step-dark.svg", "step.svg"]
    texts = {name: (tmp_path / name).read_text(encoding="utf-8") for name in made}
    assert plots.DARK.paper in texts["step-dark.svg"]
    assert plots.LIGHT.ours in texts["ratios.svg"]
    assert "the machine" in texts["step.svg"]
    again = tmp_path / "again"
    again.mkdir()
    assert [*plots.draw(document, again, "svg")]
    document["rows"] = []
    with pytest.raises(report.ReportError, match="no rows to draw"):
        list(plots.draw(document, tmp_path, "svg"))


# --- goals -----------------------------------------------------------------------------------------------------------


def test_rows_that_goals_speak_of_are_there() -> None:
    named = goals.spoken_of()
    assert {"step-h256", "step-h256-t2", "paced-h256-t2", "sequence-h256-b16-bfloat16"} <= named
    assert "step-h8-bfloat16" not in named


def test_all_goals_are_judged(document: dict) -> None:
    found = goals.verdicts(document)
    assert all(verdict.passed for verdict in found), [v for v in found if not v.passed]
    judged = {verdict.row for verdict in found}
    assert judged <= set(WORKLOADS)
    assert {
        "step-h1024",
        "step-h512-int8-t2",
        "step-6x320",
        "sequence-h256-b16-t2",
        "busy-h512-t2",
        "crowd-2x256-t2",
        "idle-h256-t2",
    } <= judged


def _failed(document: dict) -> list[tuple[str, str]]:
    return [(verdict.row, verdict.goal) for verdict in goals.verdicts(document) if verdict.passed is False]


def _reaching(document: dict, name: str, part: float) -> dict:
    """The row, with ours at that part of its limit."""
    row = _named(document, name)
    row["engines"]["lstm_engine"] = _result(row["limit"]["seconds"] / part)
    return row


def _slower(document: dict, name: str, engine: str, ratio: float) -> dict:
    """The results with that engine so many times as slow as ours in a row."""
    changed = copy.deepcopy(document)
    row = _named(changed, name)
    ours = row["engines"]["lstm_engine"]["median"]
    row["engines"][engine] = _result(ratio * ours) | {
        "beside": {"ratio": ratio, "high": ratio, "difference": (ratio - 1) * ours}
    }
    return changed


@pytest.mark.parametrize(
    ("row", "engine", "ratio", "goal"),
    [
        ("step-h128", "numpy", 2.7, "2.8 times as fast as the fastest other"),
        ("step-h256-int8", "onnxruntime", 4.9, "5 times as fast as onnxruntime"),
        ("step-3x480", "openvino", 0.99, "not slower than the fastest other"),
        ("sequence-h64-b1", "torch", 1.8, "1.9 times as fast as the fastest other"),
        ("sequence-h512-b64-bfloat16", "openvino", 1.2, "1.3 times as fast as OpenVINO"),
        ("step-h256-t2", "torch", 2.0, "2.1 times as fast as the fastest other"),
        ("step-h8", "lstm_engine_fresh", 100.0, "a fresh result is cheap"),
    ],
)
def test_a_missed_goal_is_told(document: dict, row: str, engine: str, ratio: float, goal: str) -> None:
    assert (row, goal) not in _failed(document)
    _reaching(document, row, 0.5)
    changed = _slower(document, row, engine, ratio)
    assert _failed(changed) == [(row, goal)]
    [verdict] = [v for v in goals.verdicts(changed) if (v.row, v.goal) == (row, goal)]
    assert verdict.sign == "FAIL"
    assert ("ours is at" in verdict.reason) == (engine != "lstm_engine_fresh")


def test_threads_are_held_against_one(document: dict) -> None:
    two = _named(document, "step-h512-t2")
    two["engines"]["lstm_engine_one"]["beside"]["ratio"] = 1.9
    _reaching(document, "step-h512-t2", 0.5)
    assert ("step-h512-t2", "2 times as fast as our one thread") in _failed(document)
    _named(document, "paced-h256-t2")["engines"][f"lstm_engine{AT}2"] = {"p50": 1e-5, "processor": 2e-5}
    assert ("paced-h256-t2", "two threads against one: processor time") in _failed(document)
    _named(document, "crowd-2x256-t2")["engines"][f"lstm_engine{AT}1"]["gain"] = 1.7
    assert ("crowd-2x256-t2", "8 Python threads against one: steps") in _failed(document)
    _named(document, "idle-h256-t2")["engines"][f"lstm_engine{AT}2"]["processor"] = 0.5
    assert ("idle-h256-t2", "no processor time in a second of rest") in _failed(document)


def _judged(document: dict, row: str, goal: str = "") -> goals.Verdict:
    return next(each for each in goals.verdicts(document) if each.row == row and goal in each.goal)


def test_the_machines_limit_is_a_reason_near_it(document: dict) -> None:
    def judged(part: float) -> goals.Verdict:
        _reaching(document, "step-h128", part)
        return _judged(_slower(document, "step-h128", "numpy", 2.75), "step-h128")

    near = judged(0.9)
    assert (near.passed, near.sign) == (False, "edge")
    assert near.reason == (
        "hardly above the limit: at its limit, 526 kB at 200 GB/s, a call would be 3.06×; ours is at 90% of it"
    )
    assert judged(0.8).sign == "FAIL"
    broken = judged(1.1)  # faster than the limit
    assert broken.sign == "FAIL"
    assert "which was disturbed" in broken.reason


def test_a_limit_that_forbids_a_goal_is_a_reason_however_far_ours_is(document: dict) -> None:
    name = "sequence-h256-b16-bfloat16"

    def judged(part: float) -> goals.Verdict:
        _reaching(document, name, part)
        return _judged(_slower(document, name, "openvino", 0.7), name)

    for row in document["rows"]:
        if (row["precision"], row["threads"]) == ("bfloat16", 1):
            row["limit"]["peak"] = 2e12
    [inputs, recurrence] = WORKLOADS[name].phases
    found = limits.limit_of(WORKLOADS[name], {inputs.footprint: 2e11, recurrence.footprint: 2e11}, 2e12)
    _named(document, name)["limit"] = asdict(found)
    beyond = judged(0.5)
    assert (beyond.sign, beyond.passed) == ("edge", False)
    assert beyond.reason == (
        "beyond this machine: at its limit, 1.68 Gflop at 2000 Gflop/s, a call would be 1.40×; ours is at 50% of it"
    )
    assert judged(0.45).sign == "FAIL"  # 1.56 times would be possible


def test_phases_in_turn_are_told_and_excuse_nothing(document: dict) -> None:
    for row in document["rows"]:
        if row["precision"] == "float32" and row["threads"] == 1 and row.get("limit", {}).get("peak"):
            row["limit"]["peak"] = 1.5e11
    workload = WORKLOADS["sequence-h128-b1"]
    found = limits.limit_of(workload, {phase.footprint: 2e11 for phase in workload.phases}, 1.5e11)
    _named(document, workload.name)["limit"] = asdict(found)
    _reaching(document, workload.name, 0.7)
    verdict = _judged(_slower(document, workload.name, "torch", 1.2), workload.name)
    assert found.in_turn > found.seconds
    assert verdict.sign == "FAIL"
    assert f"would be 1.71× ({1.2 / 0.7 * found.seconds / found.in_turn:.2f}× phase by phase)" in verdict.reason


def test_two_threads_are_excused_by_their_own_limit(document: dict) -> None:
    row = _reaching(document, "step-h256-t2", 0.8)
    goal = "2.2 times as fast as our one thread"

    def judged(at_the_limit: float) -> goals.Verdict:
        one = _result(at_the_limit * row["limit"]["seconds"]) | {"beside": {"ratio": 1.7}}
        row["engines"]["lstm_engine_one"] = one
        return _judged(document, row["workload"], goal)

    verdict = judged(2.1)
    assert verdict.sign == "edge"
    assert "would be 2.10×; ours is at 80% of it" in verdict.reason
    assert judged(2.3).sign == "FAIL"


def test_a_disturbed_probe_excuses_nothing(document: dict) -> None:
    row = _reaching(document, "step-h256", 0.5)
    row["engines"]["numpy"] = _result(2.1 * row["engines"]["lstm_engine"]["median"])
    row["limit"] = asdict(
        limits.limit_of(WORKLOADS["step-h256"], {int(f): 1e11 for f in row["limit"]["bandwidths"]}, 1e13)
    )
    assert row["limit"]["seconds"] == pytest.approx(row["engines"]["lstm_engine"]["median"])  # as if at its limit
    assert _judged(document, "step-h256").sign == "FAIL"
    document["rows"] = [row]
    assert _judged(document, "step-h256").sign == "edge"  # where no row knows better


def test_limits_are_held_to_the_best_rates_of_as_many_threads(document: dict) -> None:
    small, large, two = (_named(document, name) for name in ("step-h64", "step-h128", "step-h128-t2"))
    for row, bandwidth in ((small, 1e11), (large, 3e11), (two, 9e11)):
        row["limit"] |= {"peak": 1e15, "bandwidths": dict.fromkeys(row["limit"]["bandwidths"], bandwidth)}
    found = [row["limit"]["bandwidth"] for row in allowance.at_best([small, large, two])]
    assert found == pytest.approx([3e11, 3e11, 9e11])  # the smaller buffer is read as fast as the larger one
    small["limit"]["bandwidths"] = dict.fromkeys(small["limit"]["bandwidths"], 4e11)
    assert [row["limit"]["bandwidth"] for row in allowance.at_best([small, large])] == pytest.approx([4e11, 3e11])


def test_noise_fails_no_goal_of_equal_code_and_a_loss_does(document: dict) -> None:
    row = _named(document, "step-h16-t2")
    row["engines"]["lstm_engine"] = _result(2 * row["engines"]["lstm_engine_one"]["median"])  # medians of other minutes
    beside = row["engines"]["lstm_engine_one"]["beside"]

    def judged(ratio: float, high: float) -> goals.Verdict:
        beside.update(ratio=ratio, high=high)
        return next(v for v in goals.verdicts(document) if (v.row, v.goal[:3]) == ("step-h16-t2", "two"))

    assert judged(1.0, 1.01).passed
    doubtful = judged(0.95, 1.02)
    assert (doubtful.passed, doubtful.measured) == (True, "0.95×, 1.02× at most")
    assert judged(0.9, 0.92).sign == "FAIL"


def test_lost_rows_are_told_with_what_the_limit_allows(document: dict) -> None:
    _reaching(document, "step-h64", 0.5)
    changed = _slower(document, "step-h64", "numpy", 0.8)
    line = "- step-h64: 0.80× NumPy; at its limit, 132 kB at 200 GB/s, a call would be 1.60×; ours is at 50% of it."
    assert line in report.markdown(changed)
    assert line in report.summary(changed)
    assert "phase" not in report.summary(document)
    assert "by the machine's limit" not in report.summary(document)


def test_missed_goals_have_a_table(document: dict) -> None:
    assert goals.missed_table(goals.verdicts(document)).endswith("goals met, 0 more at the machine's limit.")
    found = goals.verdicts(_slower(document, "step-3x480", "openvino", 0.5))
    lines = goals.missed_table(found).splitlines()
    assert lines[0] == f"{len(found) - 1} of {len(found)} goals met, 1 more at the machine's limit."
    [line] = [line for line in lines if line.startswith("| step-3x480 ")]
    assert "| ≥ 1× | 0.50× | beyond this machine: at its limit" in line


def test_published_files_are_held_against_onnxruntime(document: dict) -> None:
    row = _named(document, "sequence-h64-b1") | {"workload": "zoo-mine", "kind": "zoo", "limit": None}
    document["rows"].append(row)
    assert [v.sign for v in goals.verdicts(document) if v.row == "zoo-mine"] == ["pass"]
    slow = _slower(document, "zoo-mine", "onnxruntime", 0.5)
    assert ("zoo-mine", "not slower than onnxruntime") in _failed(slow)


def test_what_was_not_measured_is_not_met(document: dict) -> None:
    document["rows"] = [row for row in document["rows"] if row["workload"] != "step-h8"]
    int8 = _named(document, "step-h256-int8")
    del int8["engines"]["lstm_engine"]
    int8["absent"] = {"lstm_engine": "precision='int8' is not available"}
    found = {(v.row, v.passed, v.measured) for v in goals.verdicts(document)}
    assert ("step-h8", None, "not measured: the row step-h8") in found
    assert ("step-h256-int8", None, "not measured: precision='int8' is not available") in found


# --- command ---------------------------------------------------------------------------------------------------------


def _invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_commands_read_results(document: dict, tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "README.md"
    results.write_text(json.dumps(document), encoding="utf-8")
    page.write_text(f"{report.BEGIN}{report.END}", encoding="utf-8")
    code, text = _invoke("table", results)
    assert code == 0
    assert "step-h1024" in text
    assert _invoke("readme", results, page)[0] == 0
    assert "| a step, H = 1024 |" in page.read_text(encoding="utf-8")
    assert _invoke("readme", results, page, "--full")[0] == 0
    assert "| step-h1024 |" in page.read_text(encoding="utf-8")
    pictures = tmp_path / "plots"
    pictures.mkdir()
    assert _invoke("readme", results, page, "--pictures", pictures)[0] == 1
    for name in ("ratios.svg", "ratios-dark.svg", "step.svg", "step-dark.svg"):
        (pictures / name).touch()
    assert _invoke("readme", results, page, "--pictures", pictures)[0] == 0
    shown = page.read_text(encoding="utf-8")
    assert (
        0
        < shown.index('srcset="plots/step-dark.svg"')
        < shown.index('src="plots/ratios.svg"')
        < shown.index("| a step")
    )
    code, text = _invoke("check", results)
    assert code == 0
    total = len(goals.verdicts(document))
    assert f"{total} of {total} goals met, 0 more" in text


def test_check_excuses_only_the_machines_limit(document: dict, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    _reaching(document, "step-h1024", 1 / 1.1)
    results.write_text(json.dumps(_slower(document, "step-h1024", "numpy", 1.01)), encoding="utf-8")
    code, text = _invoke("check", results)
    assert code == 0
    assert "1 more at the machine's limit" in text
    _reaching(document, "step-h1024", 0.45)
    results.write_text(json.dumps(_slower(document, "step-h1024", "numpy", 1.01)), encoding="utf-8")
    code, text = _invoke("check", results)
    assert code == 1
    assert "ours is at 45% of it" in text
    assert "ours is at 45% of it" in _invoke("table", results)[1]


def test_commands_fail_loudly(document: dict, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text("{", encoding="utf-8")
    assert _invoke("table", results)[0] == 1
    document["rows"] = []
    results.write_text(json.dumps(document), encoding="utf-8")
    assert _invoke("check", results)[0] == 1
    assert _invoke("plot", results, tmp_path)[0] == 1


def test_rows_of_another_schema_are_not_merged(document: dict, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps(document | {"schema": SCHEMA - 1}), encoding="utf-8")
    before = results.read_text(encoding="utf-8")
    code, text = _invoke("run", "--quick", "--only", "step-h8", "--merge", "--out", results)
    assert code == 1
    assert f"this suite reads {SCHEMA}" in text
    assert results.read_text(encoding="utf-8") == before


def test_the_list_names_rows_sets_and_engines() -> None:
    code, text = _invoke("list")
    assert code == 0
    words = text.split()
    assert {*WORKLOADS, *ENGINES, "one-thread", "installed"} <= set(words)


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*sys.path, str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "bench", "run", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_a_run_writes_what_table_reads(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    narrow = ("--only", "step-h8", "--set", "float32", "--engine", "numpy")
    done = _run(tmp_path, "--quick", *narrow, "--out", str(results))
    assert done.returncode == 0, done.stderr
    document = json.loads(results.read_text(encoding="utf-8"))
    row = _named(document, "step-h8")
    assert row["engines"]["numpy"]["median"] > row["limit"]["seconds"] > 0
    assert document["machine"]["packages"]["numpy"] == np.__version__
    assert set(document["machine"]["pinned"]) == {"1", "2"}
    assert {row["workload"] for row in document["rows"]} == {"step-h8", "step-h8-t2"}
    code, text = _invoke("table", results)
    assert code == 0
    assert "| step-h8 |" in text
    again = _run(tmp_path, "--quick", "--only", "memory-h16", "--engine", "numpy", "--merge", "--out", str(results))
    assert again.returncode == 0, again.stderr
    merged = json.loads(results.read_text(encoding="utf-8"))
    assert [row["workload"] for row in merged["rows"]] == [*(r["workload"] for r in document["rows"]), "memory-h16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "no workload matches"),
        (["--set", "fast"], "unknown sets fast"),
        (["--engine", "abacus"], "unknown engines abacus"),
    ],
)
def test_a_run_refuses_what_it_does_not_know(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "results.json").exists()
