"""The guide's program for WAV files: what the model gives, faster than real time, and an error for what is no such file."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import lstm_engine as le

ROOT = Path(__file__).resolve().parents[1]
CLIPPER = ROOT / "models" / "clipper" / "clipper.onnx"
SOURCE = ROOT / "guides" / "library" / "wav.c"
COMPILER = next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
RATE = 48_000
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform == "win32", reason="no C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wav")
    le.export(le.load(CLIPPER), folder)
    assert COMPILER is not None
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-O2"]
    parts = [str(SOURCE), str(folder / "clipper.o"), "-lm"]
    subprocess.run([COMPILER, *strict, f"-I{folder}", *parts, "-o", str(folder / "wav")], check=True, timeout=120)
    return folder / "wav"


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav(samples: np.ndarray, before: Sequence[bytes] = (), code: int = 0) -> bytes:
    """Samples [T, channels], int16 or float32, as a WAV file; ``before``: chunks before the data."""
    form = PCM if samples.dtype == np.int16 else FLOAT
    channels, width = samples.shape[1], samples.itemsize
    head = struct.pack("<HHIIHH", code or form, channels, RATE, RATE * channels * width, channels * width, 8 * width)
    if code == EXTENSIBLE:
        head += struct.pack("<HHIH14x", 22, 8 * width, 0, form)
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    body = b"WAVE" + chunk(b"fmt ", head) + b"".join(before) + chunk(b"data", data)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sound(dtype: str, steps: int, channels: int) -> np.ndarray:
    times = np.arange(steps)[:, None] / RATE
    wave = np.sin(2 * np.pi * times * np.array([220, 330, 550])[:channels]) * np.linspace(0.1, 1, steps)[:, None]
    return (wave * 32767).astype(np.int16) if dtype == "int16" else wave.astype(np.float32)


def played(program: Path, content: bytes, samples: int) -> tuple[bytes, str]:
    heard, sent = program.with_name("in.wav"), program.with_name("out.wav")
    heard.write_bytes(content)
    done = subprocess.run([program, heard, sent, str(samples)], capture_output=True, text=True, timeout=60, check=True)
    return sent.read_bytes(), done.stdout


def expected(samples: np.ndarray) -> np.ndarray:
    """What the engine makes of each channel."""
    floats = samples.astype(np.float32) / np.float32(32768) if samples.dtype == np.int16 else samples
    results = le.load(CLIPPER).stream(samples.shape[1]).feed(floats[:, :, None])[:, :, 0]
    if samples.dtype != np.int16:
        return np.asarray(results)
    scaled = results * np.float32(32768)
    return (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize("samples", [1, 64])
@pytest.mark.parametrize(("dtype", "channels"), [("float32", 1), ("int16", 2), ("float32", 3)])
def test_a_sound_through_the_model(program: Path, dtype: str, channels: int, samples: int) -> None:
    given = sound(dtype, 6_001, channels)
    got, said = played(program, wav(given), samples)
    assert got == wav(expected(given))
    assert re.fullmatch(rf"{samples} samples a call: 0\.13 s of sound in .*\n", said)


def test_it_is_faster_than_real_time(program: Path) -> None:
    for samples in (1, 64):
        _, said = played(program, wav(sound("float32", 5 * RATE, 1)), samples)
        found = re.search(r"(\d+) times faster than real time", said)
        assert found, said
        assert int(found[1]) > 5, said  # of processor time


def test_chunks_and_forms_that_files_have(program: Path) -> None:
    given = sound("int16", 500, 2)
    notes = [chunk(b"LIST", b"odd"), chunk(b"fact", b"\0" * 4)]
    plain = played(program, wav(given), 1)[0]
    assert played(program, wav(given, notes), 1)[0] == plain
    assert played(program, wav(given, code=EXTENSIBLE), 1)[0] == plain
    cut = wav(given)[:-1000]
    assert played(program, cut, 7)[0] == wav(expected(given)[:250])
    assert played(program, wav(given[:0]), 1)[0] == wav(given[:0])


def test_what_is_no_such_file(program: Path, tmp_path: Path) -> None:
    good = wav(sound("int16", 10, 1))
    for name, content, said in (
        ("empty", b"", "is no WAV file"),
        ("text", b"not a sound at all", "is no WAV file"),
        ("bare", good[:12], "does not say its format"),
        ("short", good[:12] + chunk(b"fmt ", b"\1\0"), "does not say its format"),
        ("silent", good[:36], "has no data"),
        ("bytes", good[:34] + b"\x08" + good[35:], "is neither PCM"),
        ("many", good[:22] + b"\xff\xff" + good[24:], "has no channel, or too many"),
        ("none", good[:22] + b"\0\0" + good[24:], "has no channel, or too many"),
        ("still", good[:24] + b"\0\0\0\0" + good[28:], "has no sample rate"),
    ):
        (tmp_path / name).write_bytes(content)
        done = subprocess.run([program, tmp_path / name, tmp_path / "out"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, ""), name
        assert said in done.stderr
        assert not (tmp_path / "out").exists()
    for words in ([], ["in"], ["in", "out", "x"], ["in", "out", "0"], ["nowhere", "out"], ["in", "out", "1", "2"]):
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == (1 if words == ["nowhere", "out"] else 2)
        assert done.stderr
