"""The benchmark suite measures what it says, checks what it measures, and shows what it lost."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is no part of the installed package


from bench import crowd, environment, library, limits, special, tasks, workloads  # noqa: E402
from bench.engines import ENGINES  # noqa: E402
from bench.measure import available, prepared  # noqa: E402
from bench.tasks import make_task  # noqa: E402
from bench.workloads import WORKLOADS, Workload, varied  # noqa: E402
from lstm_engine.report import timing  # noqa: E402
from lstm_engine.report.engines import (  # noqa: E402
    Engine,
    MismatchError,
    NotServedError,
    checked,
    first_line,
    relative_error,
)

TINY = {
    "step": Workload("tiny-step", "step", 3, 5),
    "stack": Workload("tiny-stack", "step", 3, 5, L=2),
    "streams": Workload("tiny-streams", "step", 3, 5, B=4),
    "gru step": Workload("tiny-gru", "step", 3, 5, cell="GRU"),
    "sequence": Workload("tiny-sequence", "sequence", 3, 5, B=2, T=4),
    "gru": Workload("tiny-gru-sequence", "sequence", 3, 5, B=2, T=4, cell="GRU"),
    "both directions": Workload("tiny-bidirectional", "sequence", 3, 5, D=2, T=4),
    "ragged": Workload("tiny-ragged", "ragged", 3, 5, B=3, T=9),
    "character": WORKLOADS["character"],
    "tokens": Workload("tiny-tokens", "tokens", 3, 5, L=2, O=50),
    "speech": WORKLOADS["speech"],
}
_ALL = frozenset(TINY)
SERVED = {
    "lstm_engine": _ALL,
    "lstm_engine_fresh": {"step", "stack", "streams", "gru step", "character", "speech"},
    "lstm_engine_lone": {"streams"},
    "onnxruntime": _ALL,
    "onnxruntime_bound": _ALL,
    "openvino": _ALL,
    "torch": _ALL - {"speech"},
    "torch_cell": {"step", "stack", "streams"},
    "numpy": {"step", "stack", "streams", "sequence", "character", "tokens"},
}
#: Which lesser precisions an engine has, and for what.
LESSER = {
    ("onnxruntime", "int8"): _ALL - {"gru step", "gru"},
    ("onnxruntime_bound", "int8"): _ALL - {"gru step", "gru"},
    ("openvino", "bfloat16"): _ALL,
    ("torch", "int8"): _ALL - {"speech"},
    ("torch", "bfloat16"): _ALL - {"speech"},
    ("torch_cell", "int8"): {"step", "stack", "streams"},
    ("torch_cell", "bfloat16"): {"step", "stack", "streams"},
}
BRIEF = timing.Settings(
    batch=1e-5, budget=1.0, least_rounds=4, most_rounds=4, tail=50, tail_budget=1.0, starts=1, paced=4
)


# --- workloads -------------------------------------------------------------------------------------------------------


def test_names_say_size_precision_and_threads() -> None:
    for name, workload in WORKLOADS.items():
        assert name == workload.name
        assert workload.kind in workloads.KINDS
        assert (workload.precision in name) == (workload.precision != "float32")
        assert name.endswith(f"-t{workload.threads}") == (workload.threads > 1)
    assert varied(WORKLOADS["step-h64"], "int8", 2) == WORKLOADS["step-h64-int8-t2"]


def test_patterns_choose_workloads() -> None:
    assert {w.name for w in workloads.chosen("sequence-h16-b")} == {"sequence-h16-b1", "sequence-h16-b16"}
    assert [w.name for w in workloads.chosen("step-h?")] == ["step-h8"]
    assert len(workloads.chosen()) == len(WORKLOADS)
    with pytest.raises(ValueError, match="no workload matches 'nothing'"):
        workloads.chosen("nothing")


def test_sets_of_one_group_are_alternatives_and_groups_narrow() -> None:
    steps, stacks = workloads.chosen(sets=["step"]), workloads.chosen(sets=["stacks"])
    assert {w.name for w in workloads.chosen(sets=["step", "stacks"])} == {w.name for w in (*steps, *stacks)}
    narrowed = workloads.chosen("h512", sets=["step", "int8", "threads"])
    assert [w.name for w in narrowed] == ["step-h512-int8-t2"]
    assert {w.precision for w in workloads.chosen(sets=["precision"])} == {"bfloat16", "int8"}
    with pytest.raises(ValueError, match="unknown sets fast"):
        workloads.chosen(sets=["fast"])
    with pytest.raises(ValueError, match="no workload matches the sets zoo"):
        workloads.chosen(sets=["zoo"])


def test_every_set_but_the_zoo_has_rows() -> None:
    assert [
        name for group in workloads.SETS for name, test in group.items() if not any(map(test, WORKLOADS.values()))
    ] == ["zoo"]


def test_a_step_is_one_phase_of_all_its_weights() -> None:
    products, biases = 4 * 64 * (64 + 64), 4 * 64
    step = WORKLOADS["step-h64"]
    assert step.phases == (workloads.Phase("step", 4 * (products + biases), 4 * (products + biases), 2 * products),)
    assert WORKLOADS["step-h64-bfloat16"].bytes == 2 * (products + biases)
    assert WORKLOADS["step-h64-int8-t2"].bytes == products + biases
    assert WORKLOADS["streams-h64-b256"].flops == 256 * step.flops
    assert WORKLOADS["streams-h64-b256"].bytes == step.bytes
    assert WORKLOADS["step-3x256"].flops == 3 * WORKLOADS["step-h256"].flops
    assert WORKLOADS["step-3x256"].phases[0].footprint == 3 * WORKLOADS["step-h256"].bytes
    assert WORKLOADS["step-gru-h64"].flops == 3 * step.flops // 4


def test_a_sequence_reads_what_meets_its_inputs_once_and_the_rest_at_every_step() -> None:
    half, biases = 4 * 64 * 64, 4 * 64
    inputs, recurrence = WORKLOADS["sequence-h64-b16"].phases
    assert inputs == workloads.Phase("inputs", 4 * (half + biases), 4 * (half + biases), 2 * half * 16 * 100)
    assert recurrence == workloads.Phase("recurrence", 100 * 4 * half, 4 * half, 2 * half * 16 * 100)
    ragged = WORKLOADS["ragged-h128-b64"]
    assert (ragged.lengths.min(), ragged.lengths.max(), len(set(ragged.lengths))) == (5, 200, 64)
    assert ragged.flops == int(ragged.lengths.sum()) * WORKLOADS["step-h128"].flops
    assert ragged.phases[1].bytes == 200 * ragged.phases[1].footprint


def test_both_directions_and_upper_layers_have_phases_of_their_own() -> None:
    both, one = WORKLOADS["bidirectional-2x256"], WORKLOADS["sequence-h256-b1"]
    assert (both.flops, both.bytes) == (2 * one.flops, 2 * one.bytes)
    assert [phase.footprint for phase in both.phases] == [phase.footprint for phase in one.phases]
    stack = Workload("stack", "sequence", 3, 5, L=2, D=2, T=7)
    assert [phase.name for phase in stack.phases] == 2 * ["inputs", "recurrence"]
    assert [phase.flops for phase in stack.phases] == [2 * 2 * 20 * width * 7 for width in (3, 5, 10, 5)]


@pytest.mark.parametrize("name", ["character", "tokens-2x64", "speech"])
def test_a_model_has_the_weights_that_its_limit_counts(name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    weights = make_task(workload, tmp_path).weights
    size = sum(array.size for part, array in weights.items() if part != "embedding")
    biases = workload.L * 4 * workload.H  # a file keeps two biases a gate, a step reads their sum
    assert workload.bytes == 4 * (size - biases)


def test_models_are_the_same_every_time(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    made = [make_task(TINY["step"], folder) for folder in (first, again)]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert np.abs(made[0].weights["R0"]).max() <= 1 / np.sqrt(5)


def test_published_files_become_rows(tmp_path: Path) -> None:
    task = make_task(TINY["sequence"], tmp_path)
    names = [*task.feeds]
    arrays = {f"s0_in{k}": task.feeds[name] for k, name in enumerate(names)}
    np.savez(tmp_path / "case.npz", in_names=names, **arrays)
    entry = {
        "id": "mine",
        "file": task.path.name,
        "expect": "run",
        "random_outputs": ["Y_c"],
        "cases": [{"file": "case.npz"}],
    }
    (tmp_path / "index.json").write_text(json.dumps([entry, {"id": "refused", "expect": "refuse"}]))
    [row] = workloads.chosen(sets=["zoo"], zoo=tmp_path)
    assert row.name == "zoo-mine"
    published = make_task(row, tmp_path, tmp_path)
    assert sorted(published.expected) == ["Y", "Y_h"]
    run = ENGINES["lstm_engine"].prepare(published)
    assert checked(run, None, published.expected, published.tolerance) < 1e-5
    with pytest.raises(ValueError, match=r"no index\.json"):
        workloads.chosen(zoo=tmp_path / "nowhere")


# --- engines ---------------------------------------------------------------------------------------------------------


def _marked(name: str, *rest: str) -> object:
    marks = pytest.mark.torch if name.startswith("torch") else ()
    return pytest.param(name, *rest, marks=marks, id="-".join((name, *rest)))


def _ready(name: str, workload: Workload, folder: Path) -> tuple:
    if ENGINES[name].missing():
        pytest.skip(ENGINES[name].missing())
    task = make_task(workload, folder)
    return ENGINES[name].prepare(task), task


def _check(run: object, task: tasks.Task) -> float:
    return checked(run, task.sequence, task.expected, task.tolerance)


@pytest.mark.parametrize(
    ("name", "kind"), [_marked(name, kind) for name, kinds in SERVED.items() for kind in sorted(kinds)]
)
def test_every_adapter_gives_the_definitions_outputs(name: str, kind: str, tmp_path: Path) -> None:
    run, task = _ready(name, TINY[kind], tmp_path)
    first = _check(run, task)
    run.loop(3)
    assert _check(run, task) == first  # a reset brings back the beginning, however many calls were made


@pytest.mark.parametrize(
    ("name", "precision", "kind"),
    [_marked(name, precision, kind) for (name, precision), kinds in LESSER.items() for kind in sorted(kinds)],
)
def test_lesser_precisions_are_lesser_and_near(name: str, precision: str, kind: str, tmp_path: Path) -> None:
    try:
        run, task = _ready(name, varied(TINY[kind], precision, 1), tmp_path)
    except NotServedError as fault:
        if "on this CPU" in str(fault):
            pytest.skip(str(fault))
        raise
    assert tasks.TOLERANCE["float32"] < _check(run, task) <= tasks.TOLERANCE[precision]


def test_what_an_engine_lacks_is_said(tmp_path: Path) -> None:
    task = make_task(varied(TINY["step"], "int8", 1), tmp_path)
    runs, _, reasons = prepared(task, {"numpy": ENGINES["numpy"]})
    assert not runs
    assert reasons == {"absent": {"numpy": "NumPy has no int8 (float32 only)"}, "wrong": {}}


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_this_engine_is_right_or_absent_in_every_precision(precision: str, tmp_path: Path) -> None:
    task = make_task(varied(WORKLOADS["step-h64"], precision, 1), tmp_path)
    runs, errors, reasons = prepared(task, {"lstm_engine": ENGINES["lstm_engine"]})
    assert not reasons["wrong"]
    assert set(runs) == set(errors) != set(reasons["absent"])


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
        _check(_Wrong(run, error), task)


def test_a_wrong_engine_is_shown_and_not_timed(tmp_path: Path) -> None:
    class Spoiled(Engine):
        def prepare(self, job: object) -> object:
            return _Wrong(super().prepare(job), 0.01)

    numpy = ENGINES["numpy"]
    spoiled = Spoiled(numpy.name, numpy.title, numpy.package, numpy.module, numpy.precisions)
    runs, _, reasons = prepared(make_task(TINY["step"], tmp_path), {"numpy": spoiled})
    assert not runs
    assert "is off by" in reasons["wrong"]["numpy"]


def test_errors_are_parts_of_the_range() -> None:
    wanted = np.array([10.0, 12.0])
    assert relative_error(wanted + 0.1, wanted) == pytest.approx(0.05)
    assert relative_error(np.array([10.1]), np.array([10.0])) == pytest.approx(0.1)  # no range: a tenth of the greatest
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), wanted))
    assert relative_error(np.zeros(0), np.zeros(0)) == 0


def test_a_peers_error_is_told_in_a_line() -> None:
    assert (
        first_line(RuntimeError("Exception from src/a.cpp:1:\nCheck 'x' failed:\n\nno such   operator\n"))
        == "no such operator"
    )
    assert first_line(KeyError()) == "KeyError"


def test_engines_are_chosen_by_name() -> None:
    assert list(available(["numpy"])) == ["numpy"]
    with pytest.raises(ValueError, match="unknown engines abacus"):
        available(["numpy", "abacus"])


def test_cores_are_as_many_as_threads() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not pin")
    allowed = os.sched_getaffinity(0)
    assert environment.cores_for(1, min(allowed)) == [min(allowed)]
    several = environment.cores_for(2)
    assert len(several) == min(2, len(allowed))
    assert set(several) <= allowed
    with pytest.raises(ValueError, match="core 99999 is not among"):
        environment.cores_for(1, 99999)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back_and_forth", [False, True])
def test_a_sweep_reads_every_word(back_and_forth: bool) -> None:
    sweep = limits.Sweep(limits.swept_buffer(10_000), back_and_forth)
    assert sweep.amount >= 10_000
    sweep.buffer[...] = np.random.default_rng(0).integers(0, 256, sweep.amount)
    words = int(np.bitwise_xor.reduce(sweep.buffer.view(np.int32)))
    for n in (1, 1, 3):
        sweep.sum = 0
        sweep.loop(n)
        assert sweep.sum == n * words
    assert sweep.swept == 5


def test_the_multiplier_multiplies() -> None:
    multiplier = limits.Multiplier()
    multiplier.loop(1)
    lanes = multiplier.amount // (2 * limits.CHAINS * limits.UNROLLED * limits.BLOCK)
    assert multiplier.sum == pytest.approx(2.0 * limits.CHAINS * lanes)  # a ← a/2 + 1 ends at 2


@pytest.mark.parametrize("precision", sorted(limits.DOTS))
def test_the_dot_probe_makes_dot_products(precision: str) -> None:
    if not limits.has_dot(precision):
        pytest.skip("this CPU multiplies no such numbers")
    dot = limits.Dot(precision)
    products = dot.amount // (2 * limits.BLOCK * limits.UNROLLED * limits.CHAINS)
    assert products == limits.DOTS[precision][2] * 16
    dot.multiply(1)
    if precision == "int8":  # every product is 1 · 1, and the sums begin at 0, 1, 2 …
        chains = [[k + limits.UNROLLED * 4] * 16 for k in range(limits.CHAINS)]
        assert dot.multiply(1) == int(np.bitwise_xor.reduce(np.array(chains), axis=0).sum())


def test_several_threads_probe_at_once() -> None:
    workload = WORKLOADS["step-h64-t2"]
    probes = limits.Probes.of(workload)
    try:
        [sweeps] = probes.sweeps.values()
        [forward, both] = sweeps.values()
        assert forward.amount >= workload.bytes
        forward.loop(3)
        assert [member.swept for member in forward.members] == [3, 3]
        assert [member.back_and_forth for each in (forward, both) for member in each.members] == 2 * [False] + 2 * [
            True
        ]
        found = probes.limit(dict.fromkeys(probes.all, 1e-3))
        assert found.bandwidth == pytest.approx(forward.amount / 1e-3)
    finally:
        probes.close()


def test_each_phase_is_probed_at_its_own_footprint() -> None:
    workload = Workload("stack", "sequence", 8, 64, L=2, T=9)
    probes = limits.Probes.of(workload)
    try:
        assert [*probes.sweeps] == [4 * 256 * 9, 4 * 256 * 64, 4 * 256 * 65]
        seconds = dict.fromkeys(probes.all, 1.0)
        for footprint, sweeps in probes.sweeps.items():
            forward, both = sweeps
            seconds[forward] = sweeps[forward].amount / (footprint * 1e3)  # the slower order
            seconds[both] = sweeps[both].amount / (footprint * 2e3)
        found = probes.limit(seconds)
    finally:
        probes.close()
    assert found.bandwidths == pytest.approx({footprint: footprint * 2e3 for footprint in probes.sweeps})
    assert found.seconds == found.in_turn == pytest.approx((1 + 9 + 1 + 9) / 2e3) or found.bound == "arithmetic"


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    one, many = WORKLOADS["sequence-h64-b1"], WORKLOADS["sequence-h64-b16"]
    rates = {phase.footprint: 100e9 for phase in one.phases}
    assert limits.limit_of(one, rates, 100e9).bound == "memory"
    found = limits.limit_of(many, rates, 100e9)
    assert (found.bound, found.seconds) == ("arithmetic", many.flops / 100e9)


def test_phases_in_turn_take_each_its_own_slower_part() -> None:
    workload = WORKLOADS["sequence-h64-b1"]
    inputs, recurrence = workload.phases
    found = limits.limit_of(workload, {inputs.footprint: 50e9, recurrence.footprint: 100e9}, 100e9)
    reading = inputs.bytes / 50e9 + recurrence.bytes / 100e9
    assert (found.seconds, found.bound) == (reading, "memory")
    assert found.bandwidth == pytest.approx(workload.bytes / reading)
    assert found.in_turn == inputs.flops / 100e9 + recurrence.bytes / 100e9 > found.seconds


# --- timing ----------------------------------------------------------------------------------------------------------


def test_a_summary_is_median_and_quartiles() -> None:
    summary = timing.summarise([5.0, 1.0, 4.0, 2.0, 3.0], 7, 2, 1)
    assert summary == timing.Summary(3.0, 1.0, 2.0, 4.0, 5, 7, 2, 1)
    assert timing.summarise([2.0], 1).q3 == 2.0
    assert "samples" not in summary.as_json()


def test_two_loops_are_compared_round_by_round() -> None:
    noise = [1.0, 3.0, 1.0, 9.0, 1.0]  # which both of a round feel
    one = timing.summarise([1.1 * each for each in noise], 1)
    other = timing.summarise([*noise], 1)
    found = timing.beside(one, other)
    assert (found.ratio, found.low, found.high, found.difference) == pytest.approx((1.1, 1.1, 1.1, 0.1))
    assert found.rounds == 5
    late = timing.beside(timing.summarise([2.2, 2.2, 2.2, 1.1, 1.1], 1), timing.summarise([2.0, 2.0, 1.0, 1.0, 1.0], 1))
    assert late.ratio == pytest.approx(1.1)  # where the medians are 2.2 apart


@pytest.mark.parametrize(
    ("rounds", "low", "high"), [(1, 1, 1), (2, 1, 2), (5, 1, 5), (8, 1, 8), (9, 2, 8), (15, 4, 12), (100, 40, 61)]
)
def test_the_median_of_endless_rounds_is_inside_an_interval(rounds: int, low: int, high: int) -> None:
    ones = timing.summarise([1.0] * rounds, 1)
    found = timing.beside(timing.summarise([*range(rounds, 0, -1)], 1), ones)
    assert (found.low, found.high) == (low, high)  # as tables of the sign test have it


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


def test_engines_settle_before_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []
    monkeypatch.setattr(timing, "sleep", slept.append)
    timing.interleave({name: lambda n: sum(range(200 * n)) for name in "ab"}, BRIEF, settle=0.25)
    assert slept == [0.25] * (2 * BRIEF.most_rounds)


def test_paced_calls_wait_for_their_time() -> None:
    calls = []
    found = timing.paced({"a": calls.append, "b": lambda n: sum(range(20_000))}, 0.002, 6, 3, 0.0)
    assert calls == [1] * 6
    assert {name: each.calls for name, each in found.items()} == {"a": 6, "b": 6}
    assert found["b"].p50 > found["a"].p50
    assert found["b"].processor > 0


def test_tails_clock_every_loop() -> None:
    found = timing.tails({"a": lambda n: None, "b": lambda n: sum(range(2000))}, BRIEF)
    assert found["a"].calls == found["b"].calls == BRIEF.tail
    assert found["a"].p50 < found["b"].p50


# --- special rows ----------------------------------------------------------------------------------------------------


def _own(kind: str, folder: Path) -> tuple:
    """A tiny task of that kind on two threads, for this engine alone."""
    workload = Workload(f"tiny-{kind}", kind, 3, 5, threads=2)
    return make_task(workload, folder), {"lstm_engine": ENGINES["lstm_engine"]}


def test_busy_cores_are_busy_and_left_alone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(special, "TURN", 0.01)
    started = []
    popen = special.subprocess.Popen
    monkeypatch.setattr(special.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    found = special.busy(*_own("busy", tmp_path), BRIEF)
    assert set(found["engines"]) == {"lstm_engine@1", "lstm_engine@2"}
    assert all(figures["mean"] > 0 for figures in found["engines"].values())
    assert started
    assert all(other.returncode is not None for other in started)


def test_paced_steps_tell_latency_and_processor_time(tmp_path: Path) -> None:
    found = special.paced(*_own("paced", tmp_path), BRIEF)
    assert set(found["engines"]) == {"lstm_engine@1", "lstm_engine@2"}
    assert all(figures["calls"] == BRIEF.paced for figures in found["engines"].values())
    assert 0 < found["limit"]["p50"] < 1


def test_a_crowd_is_held_against_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "TURN", 0.01)
    found = crowd.crowd(*_own("crowd", tmp_path), BRIEF)
    assert set(found["engines"]) == {"lstm_engine@1", "lstm_engine@2"}
    for figures in found["engines"].values():
        assert 0 < figures["alone"] < 1
        assert 0 < figures["together"] < 1
        assert figures["gain"] > 0
    assert threading.active_count() < crowd.CROWD


def test_an_idle_process_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(special, "IDLE", 0.05)
    spent = special.use_and_rest("lstm_engine", "idle-h256-t2", tmp_path)
    assert isinstance(spent, float)
    assert 0 <= spent < 2
    assert special.use_and_rest("numpy", "idle-h256-t2", tmp_path) == (
        "written out in NumPy are steps and sequences of LSTMs that look back"
    )


def test_a_library_is_held_against_the_kernels_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cc") is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    brief = timing.Settings(1e-4, 0.01, 1, 3, 1, 0.0, 1, 1)
    network = library.Network("tiny", (3, 5, 2), 123.0)
    monkeypatch.setattr(library, "pin", lambda cores: None)
    (figures,) = library.measure(brief, (network,))
    assert min(figures.library.median, figures.kernels.median, figures.blocks.median) > 0
    line = library.table([figures]).splitlines()[-1]
    assert line.startswith("| tiny |")
    assert line.endswith("| 123 |")
    monkeypatch.setattr(
        library, "_SOURCE", library._SOURCE.replace("fault |= f(self, x + k", "fault |= f(self, x + 0 * k")
    )
    with pytest.raises(RuntimeError, match="what library gives is not what the stream gives"):
        library.measure(brief, (network,))
