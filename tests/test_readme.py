"""README and guides: their code runs as it stands there, says what they say it says, and no link leads nowhere."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CHAR
from cases import NetCase
from markdown import COMPILED, Block, anchors, as_said, blocks, links
from typer.testing import CliRunner

import lstm_engine as le
from lstm_engine.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "guides").glob("*.md"))
PAGES = [README, *GUIDES]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("models/**/README.md"))]
#: What pages use of packages that are not needed for anything else: given by stand-ins.
STOOD_IN = ["sounddevice"]


class SoundCard(types.ModuleType):
    """sounddevice, as far as the pages know it: a card that plays what it hears for some blocks."""

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.played: list[np.ndarray] = []

    def Stream(  # noqa: N802 (its own name)
        self, *, samplerate: int, blocksize: int, channels: int, dtype: str, callback: Any
    ) -> Any:
        assert samplerate > 0
        for number in range(3):
            heard = np.full((blocksize, channels), 0.1 * (number + 1), dtype)
            sent = np.full_like(heard, np.nan)
            callback(heard, sent, blocksize, None, None)
            assert not np.isnan(sent).any()
            self.played.append(sent)
        return contextlib.nullcontext(self)

    def sleep(self, milliseconds: int) -> None:
        assert milliseconds > 0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SoundCard:
    card = SoundCard()
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    return card


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The folder that the code runs in: that of a clone with files of the reader's beside."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "model.onnx").write_bytes(NetCase(hidden=(8,), head="dense", batch_first=False).model())
    (tmp_path / "char.onnx").write_bytes(CHAR.read_bytes())
    (tmp_path / "readings.csv").write_text("0.1\n0.2\n-0.3\n", encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "lstm-engine").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lstm_engine "$@"\n', "utf-8")
    (commands / "lstm-engine").chmod(0o755)
    here = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(here)


@pytest.fixture
def given(place: Path) -> dict[str, Any]:
    """What the README takes as given: readings for a model."""
    draw = np.random.default_rng(0)

    def readings(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    width = 3
    return {
        "x": readings(5, 1, width),
        "x_t": readings(width),
        "chunk": readings(4, 1, width),
        "sequences": [readings(steps, width) for steps in (4, 2, 4)],
        "X": readings(2, width),
        "chunk_a": readings(3, width),
        "chunk_b": readings(5, width),
        "INPUT": le.load("model.onnx").inputs[0].name,
    }


def run_python(block: Block, page: Path, names: dict[str, Any]) -> str:
    """What it prints, and the error that it ends in where the page says that it does."""
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(code, names)
        except le.LstmEngineError as error:
            if block.said is None:
                raise
            return f"{printed.getvalue()}{type(error).__name__}: {error}"
    return printed.getvalue()


def run_shell(block: Block, place: Path, environment: dict[str, str]) -> str:
    """What the lines that run the engine say; what installs or downloads is left out, and files do not grow."""
    said = []
    for line in block.code.replace("\\\n", " ").replace("tail -f", "cat").splitlines():
        commands = [part.split()[:1] for part in line.split("|")]
        if ["lstm-engine"] not in commands:
            continue
        alone = len(commands) == 1
        code, output = run_command(line) if alone else run_pipe(line, place, environment)
        assert code == 0 or block.said is not None, f"{line}\n{output}"
        said.append(output)
    return "".join(said)


def run_command(line: str) -> tuple[int, str]:
    """A command in this process, which has loaded what it needs."""
    ended = CliRunner(env={"COLUMNS": "100"}).invoke(app, shlex.split(line, comments=True)[1:])
    return ended.exit_code, ended.output


def run_pipe(line: str, place: Path, environment: dict[str, str]) -> tuple[int, str]:
    path = os.pathsep.join([str(place / "bin"), environment.get("PATH", "")])
    done = subprocess.run(
        ["sh", "-c", line],
        env={**environment, "PATH": path},
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )
    return done.returncode, done.stdout


def run_compiled(block: Block, place: Path) -> str | None:
    """What a program of a page prints, built as its first line says; None where this machine has no tools for it."""
    if block.language == "cmake":
        return None if shutil.which("cmake") is None else built_by_cmake(block, place)
    line = block.code.splitlines()[0].strip("/* ")
    words = line.split()
    source = next(word for word in words if word.endswith(COMPILED[block.language]))
    (place / source).write_text(block.code, encoding="utf-8")
    if shutil.which(words[0]) is None or sys.platform == "win32":
        return None
    strict = [words[0], "-Wall", "-Wextra", "-Werror", "-pedantic", *words[1:]]
    subprocess.run(strict, cwd=place, check=True, timeout=120)
    return said_by(place / words[words.index("-o") + 1], place)


def built_by_cmake(block: Block, place: Path) -> str:
    (place / "CMakeLists.txt").write_text(block.code, encoding="utf-8")
    for words in (["-S", ".", "-B", "build"], ["--build", "build"]):
        subprocess.run(["cmake", *words], cwd=place, check=True, timeout=120, stdout=subprocess.DEVNULL)
    program = block.code.partition("add_executable(")[2].split()[0]
    return said_by(place / "build" / program, place)


def said_by(program: Path, place: Path) -> str:
    done = subprocess.run([program], cwd=place, timeout=120, capture_output=True, text=True, check=True)
    return done.stdout


def check(block: Block, said: str, page: Path) -> None:
    assert block.said is None or as_said(block.said, said), f"{page.name}:{block.line}: it says\n{said}"


def run_page(page: Path, names: dict[str, Any], place: Path, environment: dict[str, str]) -> None:
    """Run what stands on it in order, but for what needs packages of its own."""
    for block in blocks(page):
        if set(block.packages) - set(STOOD_IN):
            continue
        if block.language == "python":
            check(block, run_python(block, page, names), page)
        elif block.language in COMPILED:
            said = run_compiled(block, place)
            if said is not None:
                check(block, said, page)
        elif shutil.which("sh"):
            check(block, run_shell(block, place, environment), page)


def test_the_readme_runs(given: dict[str, Any], place: Path, warm_environment: dict[str, str]) -> None:
    names = dict(given)
    assert blocks(README)
    for block in blocks(README):
        if block.language == "python":
            exec(compile(block.code.replace('"input"', "INPUT"), str(README), "exec"), names)
        elif shutil.which("sh"):
            check(block, run_shell(block, place, warm_environment), README)
    assert isinstance(names["model"], le.Model)
    assert len(list(names["pieces"])) > 0
    assert 0 < names["surprise"] < 8


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs(page: Path, place: Path, card: SoundCard, warm_environment: dict[str, str]) -> None:
    run_page(page, {"__name__": page.stem}, place, warm_environment)
    if "sounddevice" in page.read_text(encoding="utf-8"):
        assert any(np.ptp(block) > 0 for block in card.played)


OPTIONAL = [
    pytest.param(page, block, id=f"{page.stem}:{'+'.join(block.packages)}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if set(block.packages) - set(STOOD_IN)
]


@pytest.mark.parametrize(("page", "block"), OPTIONAL)
def test_a_block_that_needs_a_package_runs(page: Path, block: Block, place: Path) -> None:
    for package in block.packages:
        pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own
        check(block, run_python(block, page, {"__name__": page.stem}), page)


def test_the_guides_are_listed() -> None:
    assert GUIDES
    assert {f"guides/{guide.name}" for guide in GUIDES} <= set(links(README))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_what_is_said_is_held_to() -> None:
    assert as_said("a b\n c", "a  b c\n")
    assert as_said("of …: 3", "of a model: 3")
    assert not as_said("a b", "a b c")
    assert not as_said("of …: 3", "of a model: 4")
