"""The command line, as its users meet it: arguments, pipes, signals, a terminal, broken files."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from builders import make_lstm_model, make_model, make_tagger, token_model
from html_pages import arrays_of, parsed
from onnx import helper

import lstm_engine as le
from lstm_engine import cli, terminal
from lstm_engine.cli import generating, streaming

ROOT = Path(__file__).resolve().parents[1]
CHAR = ROOT / "models" / "char" / "char.onnx"
AGREEMENT = ROOT / "models" / "agreement" / "agreement.onnx"
MAIN = [sys.executable, "-c", "from lstm_engine.cli import main; main()"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command line in this process."""

    def run(*arguments: Any, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["lstm-engine", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}


@contextmanager
def started(environment: dict[str, str], *arguments: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command line in a process of its own, with pipes."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*MAIN, *map(str, arguments)], env=environment, **{**pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model files: 'lstm' X [time, batch, 3] → Y, 'tagger' and 'tokens' of token ids, 'double' in float64, 'both' directions."""
    made = tmp_path_factory.mktemp("models")
    models = {
        "lstm": make_lstm_model(outputs=("Y",)),
        "pair": make_lstm_model(initial_states=True),
        "lengths": make_lstm_model(sequence_lens=True),
        "double": make_lstm_model(dtype=np.float64),
        "both": make_lstm_model(direction="bidirectional"),
        "tagger": make_tagger(),
        "tokens": onnx.load_from_string(token_model(metadata={}, tokens=9)),
    }
    for name, model in models.items():
        onnx.save(model, made / f"{name}.onnx")
    return made


@pytest.fixture(scope="module")
def readings() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)


def csv(rows: np.ndarray) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def predictions(folder: Path, rows: np.ndarray) -> np.ndarray:
    stream = le.load(folder / "lstm.onnx").stream()
    return np.array([stream.step(row).ravel() for row in rows])


def numbers(text: str) -> np.ndarray:
    return np.array([[np.float32(field) for field in line.split(",")] for line in text.splitlines()], np.float32)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_importing_the_command_line_imports_nothing_heavy(environment: dict[str, str]) -> None:
    program = "import sys, lstm_engine.cli; print([m for m in ('numba', 'onnx', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_version(call: Callable[..., Done]) -> None:
    assert call("--version") == Done(0, f"lstm-engine {le.__version__}\n", "")


@pytest.mark.parametrize(
    "command", [[], ["inspect"], ["run"], ["stream"], ["generate"], ["convert"], ["verify"], ["explain"]]
)
def test_help(call: Callable[..., Done], command: Sequence[str]) -> None:
    done = call(*command, "--help")
    assert done.code == 0
    assert "Usage" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"], ["inspect"], ["inspect", CHAR, "--batch", "0"], ["run", CHAR], ["stream", CHAR, "--format", "xml"],
        ["generate", "--temperature", "-1"], ["generate", "--ids", "--prompt", "a b"], ["convert", CHAR, "out.onnx"],
        ["inspect", CHAR, "--html", "page.html", "--json"], ["explain"], ["explain", CHAR, "--text", "a", "--prompt", "b"], ["explain", CHAR, "--length", "0"],
        ["generate", "--endless", "--stop", "x"], ["inspect", CHAR, "--constants", "{"], ["inspect", CHAR, "--layers", "@none"],
        ["verify", CHAR, "--precision", "half"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(call: Callable[..., Done], arguments: Sequence[Any]) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["inspect", "stream", "verify", "generate", "explain"])
def test_files_that_are_no_models_take_one_line(call: Callable[..., Done], command: str, tmp_path: Path) -> None:
    contents = {
        "empty.onnx": b"",
        "text.onnx": b"not a model, but text\n" * 20,
        "broken.npz": b"PK\x03\x04" + b"\0" * 99,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing.onnx", "."):
        done = call(command, tmp_path / name)
        assert done.code == 1
        assert done.out == ""
        assert done.err.startswith("lstm-engine: ")
        assert done.err.count("\n") == 1


def test_unexpected_errors_take_one_line_too(call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstm_engine.model.load", lambda *a, **k: 1 // 0)
    done = call("inspect", CHAR)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "ZeroDivisionError" in done.err


def test_load_options_reach_load(call: Callable[..., Done], tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "bare.npz"
    shapes = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}
    np.savez(path, **{f"net.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()})
    done = call("inspect", path, "--prefix", "net", "--batch-first", "--json")
    assert json.loads(done.out)["inputs"][0]["shape"][2] == 3
    assert call("inspect", path, "--prefix", "other").code == 1
    assert call("inspect", folder / "lstm.onnx", "--prefix", "net").code == 1
    (tmp_path / "layers.json").write_text('[{"name": "lstm", "kind": "lstm"}]')
    assert call("inspect", folder / "lstm.onnx", "--layers", f"@{tmp_path / 'layers.json'}").code == 1
    constants = json.dumps({"initial_h": np.zeros((1, 1, 4)).tolist(), "initial_c": np.zeros((1, 1, 4)).tolist()})
    done = call("inspect", folder / "pair.onnx", "--constants", constants, "--json")
    assert [spec["name"] for spec in json.loads(done.out)["inputs"]] == ["X"]


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_shows_model_and_program(call: Callable[..., Done]) -> None:
    done = call("inspect", CHAR)
    assert (done.code, done.err) == (0, "")
    for expected in (
        "h0 ← hn, c0 ← cn",
        "tokens: int64[batch, time]",
        "boundary '<doc>'",
        "LSTM",
        "EMBED",
        "DENSE",
        "%",
    ):
        assert expected in done.out
    assert "\x1b" not in done.out


def test_inspect_says_the_same_as_json(call: Callable[..., Done]) -> None:
    described = json.loads(call("inspect", CHAR, "--json", "--batch", 3).out)
    assert described["streams"] is True
    assert described["program"]["batch"] == 3
    assert described["vocabulary"]["scores"] == {"logits": "logits"}
    assert [row["opcode"] for row in described["program"]["instructions"]].count("LSTM") == 2
    assert sum(row["share"] for row in described["program"]["instructions"]) == pytest.approx(1)
    assert described["parameters"] == sum(c.size for c in le.load(CHAR).graph.constants.values() if c.dtype.kind == "f")


def test_inspect_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from lstm_engine.report.inspect import described, printed

    description = described(le.load(AGREEMENT))
    printed(description, Console(width=80))
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    for instruction in description["program"]["instructions"]:
        assert any(instruction["opcode"] in line and instruction["node"] in line for line in shown)


def test_inspect_measures(call: Callable[..., Done], folder: Path) -> None:
    for name in ("lstm", "both", "tagger"):
        program = json.loads(call("inspect", folder / f"{name}.onnx", "--time", "--json").out)["program"]
        assert program["measured"]
        assert sum(row["share"] for row in program["instructions"]) == pytest.approx(1)


def test_inspect_says_why_a_model_does_not_stream(call: Callable[..., Done], folder: Path) -> None:
    done = call("inspect", folder / "both.onnx")
    assert done.code == 0
    assert "runs both ways" in done.out
    assert "Program for a whole sequence" in done.out


def test_inspect_names_host_calls(call: Callable[..., Done], tmp_path: Path) -> None:
    model = make_lstm_model(outputs=("Y",))
    model.graph.node.append(helper.make_node("CumSum", ["Y", "axis"], ["Z"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3), "axis"))
    model.graph.output[0].name = "Z"
    onnx.save(model, tmp_path / "host.onnx")
    done = call("inspect", tmp_path / "host.onnx", "--json")
    if done.code == 0 and (hosts := json.loads(done.out)["program"]["host_calls"]):
        assert all(host["reason"] for host in hosts)
        assert "host call" in call("inspect", tmp_path / "host.onnx").out


def test_inspect_shows_what_it_can(call: Callable[..., Done], tmp_path: Path) -> None:
    model = make_lstm_model(outputs=("Y",))
    helper.set_model_props(model, {"vocabulary": "no json", "author": "somebody"})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "odd.onnx")
    done = call("inspect", tmp_path / "odd.onnx")
    assert (done.code, done.err) == (0, "")
    for expected in ("its rank is unknown", "unusable: ", "vocabulary, author", "X: float32[?]"):
        assert expected in done.out


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_writes_what_the_model_gives(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    expected = le.load(folder / "lstm.onnx").run(x)["Y"]
    np.savez(tmp_path / "named.npz", X=x)
    np.savez(tmp_path / "one.npz", x)
    np.save(tmp_path / "one.npy", x)
    for name in ("named.npz", "one.npz", "one.npy"):
        done = call("run", folder / "lstm.onnx", "--input", tmp_path / name, "--output", tmp_path / "out.npz")
        assert done == Done(0, "", "")
        with np.load(tmp_path / "out.npz") as written:
            assert written.files == ["Y"]
            np.testing.assert_array_equal(written["Y"], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["named.npz", "one.npy", "one.npz", "out.npz"]


def test_run_leaves_the_output_alone_when_it_fails(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    target.write_bytes(b"before")
    np.savez(tmp_path / "shape.npz", X=np.zeros((4, 2, 5)))
    np.savez(tmp_path / "name.npz", Z=np.zeros((4, 2, 3)), X=np.zeros((4, 2, 3)))
    np.savez(tmp_path / "object.npz", X=np.array([{}], object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shape.npz").read_bytes()[:150])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("shape.npz", "name.npz", "object.npz", "cut.npz", "empty.npz", "missing.npz", "."):
        done = call("run", folder / "lstm.onnx", "-i", tmp_path / name, "-o", target)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
        assert target.read_bytes() == b"before"


def test_run_calls_pickle_what_is_pickle(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_bytes(b"1,2,3\n")
    np.savez(tmp_path / "objects.npz", X=np.array([{}], object))
    for name, pickle in (("text.npz", False), ("objects.npz", True)):
        done = call("run", folder / "lstm.onnx", "-i", tmp_path / name, "-o", tmp_path / "out.npz")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert str(tmp_path / name) in done.err
        assert ("it holds pickle" in done.err) == pickle


def test_run_looks_at_the_output_first(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", X=np.zeros((4, 2, 3)))
    for target in (tmp_path / "none" / "out.npz", tmp_path):
        done = call("run", folder / "lstm.onnx", "-i", tmp_path / "in.npz", "-o", target)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert str(target) in done.err


@POSIX
def test_run_replaces_no_device_and_no_link(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", X=np.zeros((4, 2, 3)))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "real.npz")
    assert call("run", folder / "lstm.onnx", "-i", tmp_path / "in.npz", "-o", tmp_path / "pipe").code == 1
    assert call("run", folder / "lstm.onnx", "-i", tmp_path / "in.npz", "-o", tmp_path / "link").code == 0
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.npz").is_file()


# --- stream -----------------------------------------------------------------------------------------------------------


def test_a_line_in_a_line_out(call: Callable[..., Done], folder: Path, readings: np.ndarray) -> None:
    done = call("stream", folder / "lstm.onnx", stdin=csv(readings))
    assert (done.code, done.err) == (0, "")
    np.testing.assert_array_equal(numbers(done.out), predictions(folder, readings))


def test_frames_of_any_size(call: Callable[..., Done], tmp_path: Path) -> None:
    """A model of whole frames whose size its file leaves open takes as many numbers as a line has."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "one"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "level"], ["level_out"]),
        helper.make_node("Tanh", ["level_out"], ["y"]),
    ]
    inputs = [("x", np.float32, ["batch", "samples"]), ("level", np.float32, ["batch", 1])]
    outputs = [("y", np.float32, ["batch", 1]), ("level_out", np.float32, ["batch", 1])]
    model = make_model(nodes, inputs, outputs, {"one": np.array([1])}, 17)
    path = tmp_path / "frames.onnx"
    onnx.save(model, path)
    done = call("stream", path, "--states", '{"level": "level_out"}', stdin=b"0.25,0.25\n0.5\n-0.5,-0.25,-0.25\n")
    assert done.code == 0, done.err
    np.testing.assert_allclose([float(line) for line in done.out.splitlines()], np.tanh([0.5, 1.0, 0.0]), atol=1e-6)


def test_json_lines(call: Callable[..., Done], folder: Path, readings: np.ndarray) -> None:
    lines = [readings[0].tolist(), [readings[1].tolist()], {"X": readings[2].tolist()}, {"X": [readings[3].tolist()]}]
    done = call("stream", folder / "lstm.onnx", "--format", "json", stdin="\n".join(map(json.dumps, lines)).encode())
    answers = [json.loads(line) for line in done.out.splitlines()]
    got = np.array([np.ravel(answer) for answer in answers]).astype(np.float32)
    np.testing.assert_array_equal(got, predictions(folder, readings[:4]))


def test_json_objects_for_several_inputs_and_outputs(call: Callable[..., Done], folder: Path) -> None:
    done = call("stream", folder / "both.onnx", stdin=b"1,2,3\n")
    assert (done.code, done.out) == (1, "")
    assert "runs both ways" in done.err
    done = call("stream", folder / "pair.onnx", "--format", "json", stdin=b"[1, 2, 3]\n")
    assert done.code == 0
    json.loads(done.out)


def test_what_is_not_finite_is_null_in_json(call: Callable[..., Done], folder: Path) -> None:
    done = call("stream", folder / "lstm.onnx", "--format", "json", stdin=b"[NaN, 1, 1]\n")
    assert set(np.ravel(json.loads(done.out)).tolist()) == {None}
    assert set(call("stream", folder / "lstm.onnx", stdin=b"nan,1,1\n").out.strip().split(",")) == {"nan"}


def test_rows_of_a_batch_share_a_line(call: Callable[..., Done], folder: Path, readings: np.ndarray) -> None:
    done = call("stream", folder / "lstm.onnx", "--batch", 2, stdin=csv(readings[:4].reshape(2, 6)))
    stream = le.load(folder / "lstm.onnx").stream(batch=2)
    expected = [stream.step(pair).ravel() for pair in readings[:4].reshape(2, 2, 3)]
    np.testing.assert_array_equal(numbers(done.out), expected)


def test_token_ids_are_whole_numbers(call: Callable[..., Done], folder: Path) -> None:
    assert call("stream", folder / "tagger.onnx", stdin=b"3\n4\n").out.count("\n") == 2
    for line in (b"3.5\n", b"11\n", b"99999999999999999999999999\n"):
        done = call("stream", folder / "tagger.onnx", stdin=b"3\n" + line)
        assert (done.code, done.out.count("\n"), done.err.count("\n")) == (1, 1, 1)
        assert "line 2" in done.err


@pytest.mark.parametrize("text", [b"", b"\n\n  \n"])
def test_no_lines_no_answers(call: Callable[..., Done], folder: Path, text: bytes) -> None:
    assert call("stream", folder / "lstm.onnx", stdin=text) == Done(0, "", "")


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("csv", b"1,2"), ("csv", b"1,2,3,4"), ("csv", b"1,2,"), ("csv", b"1,,3"), ("csv", b"a,b,c"), ("csv", b"1_0,2,3"),
        ("csv", b"\xff\xfe,1,2"), ("csv", b"[1,2,3]"), ("csv", b"\0" * 40),
        ("json", b"1,2,3"), ("json", b"[1,2]"), ("json", b'["1","2","3"]'), ("json", b"[[1,2],[3]]"), ("json", b'{"Z": [1]}'),
        ("json", b"{}"), ("json", b"null"), ("json", b"[" * 100_000), ("json", b'[{"a": 1}, 2, 3]'), ("json", b'"abc"'),
        ("json", b"[1, 2, " + b"9" * 5000 + b"]"), ("json", b"[true, null, 3]"),
    ],
)  # fmt: skip
def test_bad_lines(call: Callable[..., Done], folder: Path, form: str, line: bytes) -> None:
    good = b"[1,2,3]" if form == "json" else b"1,2,3"
    text = b"\n".join([good, b"", line, good]) + b"\n"
    done = call("stream", folder / "lstm.onnx", "--format", form, stdin=text)
    assert (done.code, done.out.count("\n"), done.err.count("\n")) == (1, 1, 1), done
    assert done.err.startswith("lstm-engine: line 3: ")
    skipping = call("stream", folder / "lstm.onnx", "--format", form, "--skip-bad", stdin=text)
    assert (skipping.code, skipping.out.count("\n"), skipping.err) == (0, 2, done.err)
    assert skipping.out == call("stream", folder / "lstm.onnx", "--format", form, stdin=(good + b"\n") * 2).out


def test_windows_lines_and_a_missing_last_end(call: Callable[..., Done], folder: Path, readings: np.ndarray) -> None:
    text = b"\xef\xbb\xbf" + csv(readings).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    np.testing.assert_array_equal(
        numbers(call("stream", folder / "lstm.onnx", stdin=text).out), predictions(folder, readings)
    )


def test_lines_without_end_are_not_kept_whole(
    call: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_LONGEST_LINE", 64)
    text = b"1,2,3\n" + b"7" * 1000 + b"\n1,2,3\n"
    done = call("stream", folder / "lstm.onnx", "--skip-bad", stdin=text)
    assert (done.code, done.out.count("\n")) == (0, 2)
    assert "line 2: longer than 64 bytes" in done.err
    assert call("stream", folder / "lstm.onnx", stdin=b"7" * 1000).code == 1


def test_state_is_kept_in_a_file(call: Callable[..., Done], folder: Path, readings: np.ndarray, tmp_path: Path) -> None:
    kept = tmp_path / "kept.state"
    first = call("stream", folder / "lstm.onnx", "--state", kept, stdin=csv(readings[:2]))
    broken = call("stream", folder / "lstm.onnx", "--state", kept, stdin=csv(readings[2:4]) + b"bad\n")
    last = call("stream", folder / "lstm.onnx", "--state", kept, stdin=csv(readings[4:]))
    assert (first.code, broken.code, last.code) == (0, 1, 0)
    np.testing.assert_array_equal(numbers(first.out + broken.out + last.out), predictions(folder, readings))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.state"]


def test_states_that_do_not_fit(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.state"
    call("stream", folder / "lstm.onnx", "--state", kept, stdin=b"1,2,3\n")
    content = kept.read_bytes()
    for arguments in ([folder / "tagger.onnx"], [folder / "lstm.onnx", "--batch", "2"]):
        done = call("stream", *arguments, "--state", kept, stdin=b"1\n")
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert kept.read_bytes() == content
    kept.write_bytes(b"junk")
    done = call("stream", folder / "lstm.onnx", "--state", kept, stdin=b"1,2,3\n")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert str(kept) in done.err
    assert kept.read_bytes() == b"junk"
    assert call("stream", folder / "lstm.onnx", "--state", tmp_path / "none" / "kept", stdin=b"1,2,3\n").out == ""


def test_answers_come_at_once(environment: dict[str, str], folder: Path) -> None:
    with started(environment, "stream", folder / "lstm.onnx") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            process.stdin.write(b"1,2,3\n")
            process.stdin.flush()
            assert process.stdout.readline().count(b",") == 3
        process.stdin.close()
        assert process.wait(20) == 0


@POSIX
def test_a_reader_that_leaves(environment: dict[str, str], folder: Path) -> None:
    for arguments in (["stream", folder / "lstm.onnx"], ["generate", "-n", "100000", "--endless"]):
        with started(environment, *arguments) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            if arguments[0] == "stream":
                process.stdin.write(b"1,2,3\n" * 5000)
                process.stdin.flush()
            process.stdout.read(20)
            process.stdout.close()
            assert process.wait(20) == 0
            assert process.stderr.read() == b""


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_stream_between_two_lines(
    environment: dict[str, str], folder: Path, readings: np.ndarray, tmp_path: Path, number: int
) -> None:
    kept = tmp_path / "kept.state"
    with started(environment, "stream", folder / "lstm.onnx", "--state", kept) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(csv(readings[:2]))
        process.stdin.flush()
        process.stdout.readline(), process.stdout.readline()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert process.stderr.read() == b""
    stream = le.load(folder / "lstm.onnx").stream()
    stream.state = le.State.from_bytes(kept.read_bytes())
    np.testing.assert_array_equal(stream.step(readings[2]).ravel(), predictions(folder, readings[:3])[2])


@POSIX
def test_killing_a_stream_leaves_the_state_file_whole(
    environment: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.state"
    stream = le.load(folder / "lstm.onnx").stream()
    kept.write_bytes(stream.state.to_bytes())
    with started(environment, "stream", folder / "lstm.onnx", "--state", kept) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1,2,3\n")
        process.stdin.flush()
        process.stdout.readline()
        process.kill()
        process.wait(20)
    assert le.State.from_bytes(kept.read_bytes()) == stream.state


@POSIX
@pytest.mark.parametrize("closed", ["stdin", "stdout"])
def test_closed_files(environment: dict[str, str], folder: Path, closed: str) -> None:
    operator = {"stdin": "<&-", "stdout": ">&-"}[closed]
    command = ["sh", "-c", f'exec "$@" {operator}', "sh", *MAIN, "stream", str(folder / "lstm.onnx")]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        timeout=60,
        **({} if closed == "stdin" else {"input": b"1,2,3\n"}),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(environment: dict[str, str], folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        for arguments in (["inspect", folder / "lstm.onnx"], ["stream", folder / "lstm.onnx"]):
            done = subprocess.run(
                [*MAIN, *map(str, arguments)], env=environment, input=b"1,2,3\n", stdout=full, stderr=subprocess.PIPE
            )
            assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
            assert b"No space left" in done.stderr


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_without_arguments_shows_the_shipped_model(call: Callable[..., Done]) -> None:
    done = call("generate", "-n", "40", "--seed", "1")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("def ")
    assert done.out == call("generate", CHAR, "--prompt", "def ", "--max-tokens", "40", "--seed", "1").out
    assert done.out.removeprefix("def ") == call("generate", "-n", "40", "--seed", "1", "--no-echo").out


def test_generate_says_what_the_library_says(call: Callable[..., Done], tmp_path: Path) -> None:
    sampler = le.Sampler(0.9, top_k=20, top_p=0.95, seed=3)
    pieces = list(le.generate(le.load(CHAR).stream(), "The ", max_tokens=60, sampler=sampler, stop=()))
    settings = ["-n", "60", "-t", "0.9", "--top-k", "20", "--top-p", "0.95", "--seed", "3", "--endless"]
    text = "".join(pieces)
    expected = "The " + text + ("" if text.endswith("\n") else "\n")
    assert call("generate", "--prompt", "The ", *settings).out == expected
    (tmp_path / "prompt.txt").write_text("The ", "utf-8")
    assert call("generate", "--prompt-file", tmp_path / "prompt.txt", *settings).out == expected
    assert call("generate", "--prompt-file", "-", *settings, stdin=b"The ").out == expected
    stop = pieces[20]
    until = text[: text.index(stop)]
    assert call("generate", "--prompt", "The ", *settings[:-1], "--stop", stop).out.removesuffix(
        "\n"
    ) == f"The {until}".removesuffix("\n")


def test_generate_takes_every_setting_of_a_sampler(call: Callable[..., Done]) -> None:
    sampler = le.Sampler(1.2, seed=3, min_p=0.02, repetition_penalty=1.5, repetition_window=30)
    text = "".join(le.generate(le.load(CHAR).stream(), "The ", max_tokens=60, sampler=sampler, stop=()))
    settings = ["-t", "1.2", "--seed", "3", "--min-p", "0.02", "--repetition-penalty", "1.5"]
    done = call("generate", "--prompt", "The ", "-n", "60", "--endless", *settings, "--repetition-window", "30")
    assert done.out.removesuffix("\n") == f"The {text}".removesuffix("\n")


def test_generate_says_its_speed_on_stderr_alone(call: Callable[..., Done]) -> None:
    done, quiet = (call("generate", "-n", "40", "--seed", "1", *more) for more in (["--speed"], []))
    assert (done.out, quiet.err) == (quiet.out, "")
    assert re.fullmatch(r"\[40 tokens, [\d,]+ a second; the first took [\d,.]+ ms\]\n", done.err)


def test_generate_with_a_vocabulary_of_its_own(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps([f"word{k} " for k in range(9)]), "utf-8")
    done = call("generate", folder / "tokens.onnx", "--prompt", "word1 word2 ", "-n", "5", "--vocabulary", path)
    assert done.code == 0, done
    assert re.fullmatch(r"word1 word2 (word\d ){5}\n", done.out)
    path.write_text("[1]", "utf-8")
    assert call("generate", folder / "tokens.onnx", "--vocabulary", path).code == 1


def test_generate_ids(call: Callable[..., Done]) -> None:
    ids = list(le.generate(le.load(CHAR).stream(), [3, 4], max_tokens=5, sampler=le.Sampler(0)))
    done = call("generate", "--ids", "--prompt", "3, 4", "-n", "5", "-t", "0")
    assert done.out == " ".join(map(str, [3, 4, *ids])) + "\n"


def test_generate_without_a_prompt_begins_a_text(call: Callable[..., Done]) -> None:
    settings = ["-n", "8", "--seed", "3"]
    done = call("generate", AGREEMENT, *settings)
    assert done.code == 0
    assert done == call("generate", AGREEMENT, "--prompt", "", *settings)
    assert call("generate", *settings) == call("generate", CHAR, "--prompt", "def ", *settings)


def test_generate_refuses(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    cases = [
        [folder / "lstm.onnx"],
        [folder / "tagger.onnx", "--prompt", "abc"],
        ["--prompt-file", tmp_path / "none"],
        ["--prompt-file", tmp_path / "latin.txt"],
        ["--ids", "--prompt", "100000"],
    ]
    for arguments in cases:
        done = call("generate", *arguments)
        assert (done.code, done.err.count("\n")) == (1, 1), done


def test_a_missing_shipped_model_is_named(
    call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generating, "__file__", str(tmp_path / "lstm_engine" / "cli" / "generating.py"))
    done = call("generate")
    assert done.code == 1
    assert "name a MODEL" in done.err
    (tmp_path / "lstm_engine" / "data").mkdir(parents=True)
    (tmp_path / "lstm_engine" / "data" / "char.onnx").write_bytes(CHAR.read_bytes())
    assert call("generate", "-n", "3").code == 0


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [("char", ["--text", "def f(x):"]), ("char", ["--prompt", "class ", "--length", "20"]), ("clipper", []), ("digits", []), ("agreement", [])],
)  # fmt: skip
def test_explain_the_shipped_models(
    call: Callable[..., Done], name: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("explain", ROOT / "models" / name / f"{name}.onnx", *options)
    page = tmp_path / f"{name}.explain.html"
    assert (done.code, done.out) == (0, "")
    assert done.err == f"wrote {page.name}: {page.stat().st_size:,} bytes\n"
    assert parsed(page.read_text(encoding="utf-8")).data["layers"]


@pytest.mark.parametrize("kind", ["csv", "npy", "npz"])
def test_explain_readings(
    call: Callable[..., Done], kind: str, folder: Path, readings: np.ndarray, tmp_path: Path
) -> None:
    source, page = tmp_path / f"in.{kind}", tmp_path / "page.html"
    if kind == "csv":
        source.write_bytes(csv(readings))
    elif kind == "npy":
        np.save(source, readings)
    else:
        np.savez(source, X=readings[:, None])
    assert call("explain", folder / "lstm.onnx", "--input", source, "-o", page).code == 0
    data = parsed(page.read_text(encoding="utf-8")).data
    (layer,) = le.load(folder / "lstm.onnx").trace(readings[:, None]).values()
    values, digits = arrays_of(data["layers"][0], 1, 5)["c"]
    assert np.array_equal(values, np.round(layer.c.astype(np.float64), digits))


def test_explain_says_in_a_line_what_is_wrong(call: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("1,2\n3,4\n", encoding="utf-8")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for options, told in (
        (["--text", "abc"], "carries no vocabulary"),
        (["--input", tmp_path / "bad.csv"], "expected 3 numbers a step, got 2"),
        (["--input", tmp_path / "bad.npz"], "not a readable"),
        (["--input", tmp_path / "none.npz"], "none.npz: No such file"),
        (["-o", tmp_path / "none" / "page.html"], "there is no folder"),
        (["--layer", "none"], "there is no layer 'none'"),
    ):
        done = call("explain", folder / "lstm.onnx", "-o", tmp_path / "page.html", *options)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
        assert told in done.err
        assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["lstm", "tagger", "double", "both", "lengths"])
def test_inspect_as_a_page(call: Callable[..., Done], folder: Path, name: str, tmp_path: Path) -> None:
    done = call("inspect", folder / f"{name}.onnx", "--html", tmp_path / "page.html")
    assert (done.code, done.out) == (0, "")
    page = parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "LSTM" in page.text("text")
    assert call("inspect", folder / f"{name}.onnx", "--html", tmp_path / "none" / "page.html").code == 1


# --- convert, verify, warm-up -----------------------------------------------------------------------------------------


def test_convert_keeps_everything(call: Callable[..., Done], tmp_path: Path) -> None:
    target = tmp_path / "char.npz"
    assert call("convert", CHAR, target).code == 0
    original, converted = le.load(CHAR), le.load(target)
    assert converted.fingerprint == original.fingerprint
    assert converted.metadata == original.metadata
    settings = ["-n", "20", "--seed", "1"]
    assert call("generate", target, *settings).out == call("generate", CHAR, *settings).out
    assert call("convert", CHAR, tmp_path / "none" / "char.npz").code == 1


@pytest.mark.parametrize("name", ["lstm", "pair", "lengths", "double", "both", "tagger"])
def test_verify_agrees(call: Callable[..., Done], folder: Path, name: str) -> None:
    done = call("verify", folder / f"{name}.onnx", "--seed", "4")
    assert done.code == 0, done
    assert "agrees" in done.out
    assert "DIFFERS" not in done.out


def test_verify_finds_a_difference(call: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = le.Model.run
    wrong = {
        "off": lambda y: y + np.float32(1e-4),
        "nan": lambda y: np.where(y == y.max(), np.nan, y),
        "shape": lambda y: y[:-1],
    }
    for change in wrong.values():
        monkeypatch.setattr(le.Model, "run", lambda *a, _c=change: {n: _c(y) for n, y in right(*a).items()})
        done = call("verify", folder / "lstm.onnx")
        assert (done.code, done.err.count("differs")) == (1, 1)
        assert "DIFFERS" in done.out


def test_warm_up(call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("warm-up")
    assert done.code == 0
    assert "float32: ready in" in done.out
    monkeypatch.setenv("LSTM_ENGINE_CACHE", "off")
    done = call("warm-up")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "LSTM_ENGINE_CACHE" in done.err


def test_a_cache_that_cannot_be_written(
    call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LSTM_ENGINE_CACHE", str(tmp_path / "file" / "cache"))
    done = call("warm-up")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)


@pytest.mark.nightly
def test_after_warm_up_nothing_is_compiled(fresh_environment: dict[str, str]) -> None:
    cache = Path(fresh_environment["LSTM_ENGINE_CACHE"])
    subprocess.run([*MAIN, "warm-up"], env=fresh_environment, check=True, timeout=300)
    ready = sorted(path.name for path in cache.iterdir())
    for arguments in (["generate", "-n", "10"], ["verify", str(CHAR)]):
        subprocess.run([*MAIN, *arguments], env=fresh_environment, check=True, timeout=300)
    assert sorted(path.name for path in cache.iterdir()) == ready


# --- terminals --------------------------------------------------------------------------------------------------------


def in_terminal(
    environment: dict[str, str], *arguments: Any, keys: Sequence[tuple[bytes | int, bytes]] = ()
) -> tuple[int, bytes]:
    """Run in a pseudo-terminal; ``keys``: what to type once something, or so much, has been shown. Exit code and what was shown."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(MAIN[0], [*MAIN, *map(str, arguments)], environment)
    shown, waiting, end = b"", list(keys), time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # how Linux says that nobody is there any more
                break
            if not data:
                break
            shown += data
        if waiting and (len(shown) >= sign if isinstance(sign := waiting[0][0], int) else sign in shown):
            os.write(terminal, waiting.pop(0)[1])
    else:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, shown


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestTerminal:
    @pytest.fixture
    def terminal(self, environment: dict[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in environment.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        return {**kept, "TERM": "xterm-256color", "COLUMNS": "120"}

    def test_generate_tells_its_speed(self, terminal: dict[str, str]) -> None:
        code, shown = in_terminal(terminal, "generate", "-n", "30", "--seed", "1")
        assert code == 0
        assert re.search(rb"\[30 tokens, [\d,]+ a second; the first took [\d,.]+ ms\]", shown)

    def test_generate_can_be_interrupted(self, terminal: dict[str, str]) -> None:
        code, shown = in_terminal(terminal, "generate", "-n", "10000000", "--endless", keys=[(100, b"\x03")])
        assert code == 130
        assert b"a second; the first" in shown
        assert b"Traceback" not in shown

    def test_a_stream_ends_with_the_end_of_file_or_an_interruption(
        self, terminal: dict[str, str], folder: Path
    ) -> None:
        for key, expected in ((b"\x04", 0), (b"\x03", 130)):
            keys = [(0, b"1,2,3\n"), (b".", key)]
            code, shown = in_terminal(terminal, "stream", folder / "lstm.onnx", keys=keys)
            assert code == expected, shown
            assert b"Traceback" not in shown

    def test_colours_only_where_wanted(self, terminal: dict[str, str], folder: Path) -> None:
        colour = re.compile(rb"\x1b\[[\d;]*3\dm")
        assert colour.search(in_terminal(terminal, "verify", folder / "lstm.onnx")[1])
        assert not colour.search(in_terminal({**terminal, "NO_COLOR": "1"}, "verify", folder / "lstm.onnx")[1])

    def test_compiling_shows_a_bar(self, terminal: dict[str, str], tmp_path: Path) -> None:
        program = (
            "import time, lstm_engine.terminal as terminal\n"
            "with terminal.waiting('running'):\n"
            "    with terminal.compile_bar() as progress:\n"
            "        for i in range(3):\n"
            "            progress(f'part {i}', i, 3)\n"
            "            time.sleep(0.15)\n"
            "    time.sleep(0.3)\n"
        )
        (tmp_path / "bar.py").write_text(program)
        import pty

        shown = b""

        def read(terminal_file: int) -> bytes:
            nonlocal shown
            data = os.read(terminal_file, 65536)
            shown += data
            return b""

        pid, file = pty.fork()
        if pid == 0:
            os.execve(sys.executable, [sys.executable, str(tmp_path / "bar.py")], terminal)
        try:
            while True:
                read(file)
        except OSError:
            pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(file)
        assert b"compiling" in shown
        assert b"part 2" in shown
        assert b"running" in shown.rpartition(b"part 2")[2]


def test_what_a_model_writes_does_not_command_the_terminal() -> None:
    assert terminal.shown_safely("a\x1b[2Jb\r\n\tc\x9b") == "a�[2Jb�\n\tc�"


def test_other_encodings_are_no_reason_to_fail(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*MAIN, "inspect", str(CHAR)], env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert b"h0 ? hn" in done.stdout


@POSIX
def test_an_interrupt_that_python_forgets_still_ends_a_generation(environment: dict[str, str]) -> None:
    """An exception raised within a callback from C is dropped; that the interrupt came is not."""
    program = (
        "import os, signal, sys\n"
        "from lstm_engine.signals import remembered_interrupts\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "class Callback:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        for _ in range(1000): pass\n"
        "with remembered_interrupts() as noted:\n"
        "    Callback()\n"
        "print(noted == [signal.SIGINT], signal.getsignal(signal.SIGINT) == before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_scoring_says_what_it_lacks(call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    done = call("score", "model.onnx", "in.parquet", "out")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("lstm-engine: lstm_engine.ray needs ray")
    assert done.err.endswith("pip install 'lstm_engine[ray]'\n")
