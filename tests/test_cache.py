"""Compiled code on disk: damaged, unwritable, shared, killed half-way. It may cost time, never correctness."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).resolve().parent.parent / "lstm_engine"
MAGIC: Final = b"lstm_engine compiled code 2\n"

#: One small entry point through the cache: prints its result and whether it came from there.
PROBE = """
import logging, sys
logging.basicConfig(level="INFO", stream=sys.stderr)
from lstm_engine.image import Export, Image
exports = {"seven_times": Export("seven_times", "i", nogil=True)}
def compiled(progress):
    from lstm_engine.jit import compile_image, kernel
    @kernel
    def seven_times(x):
        return 7 * x
    return compile_image("probe", exports, lambda: {"seven_times": seven_times})
image = Image("probe", exports, compiled)
print(image.function("seven_times")(6), image.from_cache)
"""


def start(environment: dict[str, str], code: str = PROBE, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environment, **more},
        cwd=os.sep,  # not the repository: Python would look for the package there first
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: int = 400) -> tuple[str, str]:
    """What a process printed, and what it logged."""
    out, log = process.communicate(timeout=timeout)
    assert process.returncode == 0, log
    return out.strip(), log


def probe(environment: dict[str, str], **more: str) -> tuple[str, str]:
    return finish(start(environment, **more))


COMPILED, CACHED = "42 False", "42 True"


@pytest.fixture
def environment(fresh_environment: dict[str, str]) -> dict[str, str]:
    return fresh_environment


@pytest.fixture
def folder(environment: dict[str, str]) -> Path:
    return Path(environment["LSTM_ENGINE_CACHE"])


@pytest.fixture(scope="module")
def compiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as the probe leaves it."""
    folder = tmp_path_factory.mktemp("compiled") / "cache"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LSTM_ENGINE_", "NUMBA_"))}
    assert probe({**kept, "PYTHONPATH": str(PACKAGE.parent), "LSTM_ENGINE_CACHE": str(folder)})[0] == COMPILED
    return folder


@pytest.fixture
def filled(compiled_folder: Path, folder: Path) -> Path:
    """This test's own cache with what the probe compiles in it."""
    return Path(shutil.copytree(compiled_folder, folder))


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_the_second_process_compiles_nothing(environment: dict[str, str], folder: Path) -> None:
    assert probe(environment)[0] == COMPILED
    file = only_file(folder)
    content = file.read_bytes()
    assert whole(content)
    assert folder.stat().st_mode & 0o077 == 0
    assert file.stat().st_mode & 0o077 == 0
    assert probe(environment)[0] == CACHED
    assert only_file(folder) == file
    assert file.read_bytes() == content


def flipped(content: bytes, at: int) -> bytes:
    damaged = bytearray(content)
    damaged[at] ^= 0x10
    return bytes(damaged)


def sealed(payload: bytes) -> bytes:
    """Bytes with a right checksum, as another release might have written them."""
    return MAGIC + hashlib.sha256(payload).digest() + payload


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in the magic": lambda content: content[:10],
    "cut in the checksum": lambda content: content[: len(MAGIC) + 7],
    "cut in half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "a byte long": lambda content: content + b"\0",
    "bit flipped in the magic": lambda content: flipped(content, 3),
    "bit flipped in the checksum": lambda content: flipped(content, len(MAGIC) + 3),
    "bit flipped in the code": lambda content: flipped(content, len(content) * 2 // 3),
    "bit flipped at the end": lambda content: flipped(content, len(content) - 1),
    "zeros": lambda content: bytes(len(content)),
    "another program's": lambda content: b"\x7fELF" + content,
    "sealed nonsense": lambda content: sealed(b"nonsense"),
    "sealed nothing": lambda content: sealed(b""),
    "sealed other object": lambda content: sealed(b"\x80\x04]\x94."),
    "sealed for another": lambda content: sealed(b"other " + content[len(MAGIC) + 32 :].split(b" ", 1)[1]),
    "sealed half": lambda content: sealed(content[len(MAGIC) + 32 :][:500]),
}


MEND = f"""{PROBE}
import test_cache
def load():
    image = Image("probe", exports, compiled)
    return image.function("seven_times")(6), image.from_cache
path = image.path
good = path.read_bytes()
for name, damage in test_cache.DAMAGE.items():
    path.write_bytes(damage(good))
    assert load() == (42, False), name
    assert test_cache.whole(path.read_bytes()), name
    assert load() == (42, True), name
"""


def whole(content: bytes) -> bool:
    """Whether a cache file carries its own checksum."""
    head, rest = content[: len(MAGIC)], content[len(MAGIC) :]
    return head == MAGIC and hashlib.sha256(rest[32:]).digest() == rest[:32]


def test_a_damaged_file_is_compiled_anew(environment: dict[str, str]) -> None:
    """Every kind of damage: the right result, and a whole file again afterwards."""
    assert finish(start(environment, MEND))[0] == COMPILED


def test_a_folder_in_the_place_of_the_file(environment: dict[str, str], folder: Path) -> None:
    probe(environment)
    file = only_file(folder)
    file.unlink()
    file.mkdir()
    assert probe(environment)[0] == COMPILED


@pytest.mark.parametrize("place", ["a file", "below a file", "proc", "off", "empty", "name too long", "dangling link"])
def test_no_place_to_write(environment: dict[str, str], tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    where = {
        "a file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file" / "cache"),
        "proc": "/proc/lstm_engine",
        "off": "off",
        "empty": "",
        "name too long": str(tmp_path / ("x" * 300)),
        "dangling link": str(tmp_path / "link"),
    }[place]
    assert probe(environment, LSTM_ENGINE_CACHE=where)[0] == COMPILED
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_read_only_folder_is_read(environment: dict[str, str], folder: Path) -> None:
    probe(environment)
    only_file(folder).chmod(0o400)
    folder.chmod(0o500)
    try:
        assert probe(environment)[0] == CACHED
    finally:
        folder.chmod(0o700)


def test_no_home_is_no_reason_to_fail(environment: dict[str, str]) -> None:
    bare = {k: v for k, v in environment.items() if k not in ("LSTM_ENGINE_CACHE", "HOME", "XDG_CACHE_HOME")}
    assert probe(bare, HOME="/proc/nowhere")[0] == COMPILED


def test_the_users_cache_folder_is_the_default(environment: dict[str, str], tmp_path: Path) -> None:
    bare = {k: v for k, v in environment.items() if k != "LSTM_ENGINE_CACHE"}
    if sys.platform != "linux":
        pytest.skip("elsewhere the folder has another name")
    assert probe(bare, XDG_CACHE_HOME=str(tmp_path / "own"))[0] == COMPILED
    assert list((tmp_path / "own" / "lstm_engine").glob("probe-*.code"))


# --- trust ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_is_used(environment: dict[str, str], filled: Path) -> None:
    """What the tests below change one thing of."""
    assert only_file(filled)
    assert probe(environment)[0] == CACHED


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(environment: dict[str, str], filled: Path, mode: int) -> None:
    """What lies in it could be anybody's code: neither read nor added to."""
    file = only_file(filled)
    marker = file.read_bytes()
    filled.chmod(mode)
    out, log = probe(environment)
    assert out == COMPILED
    assert "writable by other" in log
    assert only_file(filled).read_bytes() == marker


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_not_used(environment: dict[str, str], filled: Path, mode: int) -> None:
    only_file(filled).chmod(mode)
    assert probe(environment)[0] == COMPILED


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_belongs_to_another_user_is_not_used(environment: dict[str, str], filled: Path, which: str) -> None:
    os.chown(only_file(filled) if which == "file" else filled, 12345, 12345)
    assert probe(environment)[0] == COMPILED


# --- at the same time, and cut short ----------------------------------------------------------------------------------


def test_several_processes_at_once(environment: dict[str, str], folder: Path) -> None:
    running = [start(environment) for _ in range(4)]
    for process in running:
        assert finish(process)[0] in (COMPILED, CACHED)
    assert only_file(folder).suffix == ".code"
    assert probe(environment)[0] == CACHED


FLOAT32, FLOAT64 = (
    "from lstm_engine import images; print('compiling', flush=True)\n"
    f"for image in images.needed({element!r}): image.load()\n"
    f"print('done', image.from_cache)"
    for element in ("float32", "float64")
)
TOGETHER = """
import cases, test_parity, test_properties
from lstm_engine import images
few = [case for case in cases.FEW if not getattr(case, "vocabulary", 0)]
few.sort(key=lambda case: case.dtype, reverse=REVERSE)
for case in few:
    test_parity.assert_parity(cases.model_of(case), case.feeds())
    if case.streams:
        model = cases.model_of(case)
        feeds = test_properties.without_states(case, case.feeds(0, 9, 1))
        expected = test_properties.whole(case, model.stream(), feeds)
        cases.assert_same_bits(test_properties.chunked(case, model.stream(), feeds, [3], 255), expected)
print({image.from_cache for element in ("float32", "float64") for image in images.needed(element) if image.loaded})
"""


def test_killed_while_compiling_and_compiled_apart(environment: dict[str, str], folder: Path) -> None:
    """kill -9 amid the executor: the next start works. And the two executors, each compiled by a process of its own,
    live in one process afterwards: their machine code shares no name.
    """
    other = start(environment, FLOAT64)
    process = start(environment, FLOAT32)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "compiling"
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / ".writing-cut").write_bytes(MAGIC + b"half")
    assert finish(start(environment, FLOAT32))[0].endswith("done False")
    assert finish(other)[0].endswith("done False")
    running = [start(environment, TOGETHER.replace("REVERSE", order)) for order in ("True", "False")]
    for process in running:
        assert finish(process)[0] == "{True}"


def test_abandoned_pieces_are_swept(environment: dict[str, str], folder: Path) -> None:
    """Half-written files of long ago go; recent ones may be somebody's work."""
    folder.mkdir(mode=0o700)
    old, recent = folder / ".writing-old", folder / ".writing-recent"
    for piece in (old, recent):
        piece.write_bytes(b"half")
    os.utime(old, (1, 1))
    probe(environment)
    assert not old.exists()
    assert recent.exists()


def test_old_generations_are_swept(environment: dict[str, str], folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for n in range(100):
        file = folder / f"executor-{n:03}.code"
        file.write_bytes(b"old")
        os.utime(file, (1000 + n, 1000 + n))
    foreign = folder / "notes.txt"
    foreign.write_text("not ours")
    assert probe(environment)[0] == COMPILED
    left = sorted(folder.glob("*.code"))
    assert len(left) <= 64
    assert folder / "executor-000.code" not in left
    assert any(file.name.startswith("probe-") for file in left)
    assert foreign.exists()


# --- what decides machine code ----------------------------------------------------------------------------------------

DIGEST = "from lstm_engine.image import digest; print(digest())"
SOURCES: Final = [
    *("codegen.py", "encoding.py", "image.py", "images.py", "jit.py", "machine.py", "vocabulary.py"),
    *(f"kernels/{p.name}" for p in (PACKAGE / "kernels").glob("*.py")),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package in another place."""
    shutil.copytree(PACKAGE, tmp_path / "copy" / "lstm_engine", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def digest_of(tree: Path, environment: dict[str, str], **more: str) -> str:
    return finish(start({**environment, "PYTHONPATH": str(tree)}, DIGEST, **more))[0]


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_the_digest_sees_every_source(source: str) -> None:
    """Whatever the kernels are compiled from is part of what their code is kept under."""
    from lstm_engine import image

    seen: list[str] = []
    original = Path.read_bytes

    def reading(self: Path) -> bytes:
        seen.append(str(self))
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", reading)
        image.digest.__wrapped__()
    assert str(PACKAGE / source) in seen


def test_the_digest_changes_with_a_source_and_nothing_else(tree: Path, environment: dict[str, str]) -> None:
    same = digest_of(tree, environment)
    assert same == digest_of(PACKAGE.parent, environment)
    (tree / "lstm_engine" / "model.py").write_text("# no kernel is made of this\n")
    assert digest_of(tree, environment) == same
    kernel = tree / "lstm_engine" / "kernels" / "lstm.py"
    kernel.write_text(kernel.read_text() + "\n# another comment\n")
    assert digest_of(tree, environment) != same


def test_the_digest_changes_with_the_target(environment: dict[str, str]) -> None:
    here = digest_of(PACKAGE.parent, environment)
    assert digest_of(PACKAGE.parent, environment, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") != here
    assert digest_of(PACKAGE.parent, environment, NUMBA_OPT="1") != here
