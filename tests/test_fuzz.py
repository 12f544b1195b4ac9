"""Malformed files by the hundred (ten thousand with --nightly), each loaded, run and streamed in a child process.

Typed errors only, none above two seconds or a gigabyte; a crash or a hang is a failure like any other. A failure names
its seed: ``fuzzing.exercise(fuzzing.malformed(seed))`` does it again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import fuzzing
import pytest

from lstm_engine import images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds memory as Linux does")


@dataclass
class Campaign:
    """What became of many files."""

    count: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def over(self, first: int, last: int, environment: dict[str, str]) -> Campaign:
        """Children one after another: where one dies, the next goes on behind the file that killed it."""
        while first < last:
            command = [sys.executable, "-X", "faulthandler", fuzzing.__file__, str(first), str(last)]
            child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            lines = [json.loads(line) for line in child.stdout.splitlines()]
            for line in lines:
                self.note(line)
            if child.returncode == 0:
                return self
            assert lines, f"the child never came to the first file: {child.stderr[-2000:]}"
            first = lines[-1]["seed"] + 1
            self.wrong.append(f"seed {first - 1}: the process ended with {child.returncode}: {child.stderr[-1500:]}")
        return self

    def note(self, line: dict[str, str]) -> None:
        became = line.get("became", "")
        if became.startswith("WRONG"):
            self.wrong.append(f"seed {line['seed']}: {became}")
        elif became:
            self.count[became] += 1


@pytest.fixture
def environment(warm_environment: dict[str, str]) -> dict[str, str]:
    """The child's, with all compiled that a model may ask for: that is not what a malformed file's time goes into."""
    for precision in ("float32", "float64"):
        for image in images.needed(precision):
            image.load()
    return warm_environment


def assert_typed_errors_only(campaign: Campaign) -> None:
    assert not campaign.wrong, "\n".join([f"{len(campaign.wrong)} files", *campaign.wrong[:40]])
    assert campaign.count["ModelFormatError"] > 0.2 * campaign.count.total()
    assert campaign.count["UnsupportedModelError"] > 0.02 * campaign.count.total()
    assert campaign.count["loaded"] > 0.05 * campaign.count.total()


def test_hundreds_of_malformed_files(environment: dict[str, str]) -> None:
    assert_typed_errors_only(Campaign().over(0, 600, environment))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(1000, 11_000, 1000))
def test_ten_thousand_malformed_files(first: int, environment: dict[str, str]) -> None:
    assert_typed_errors_only(Campaign().over(first, first + 1000, environment))


def test_a_file_is_its_seed_alone() -> None:
    for seed in range(20):
        assert fuzzing.malformed(seed) == fuzzing.malformed(seed)


CHILDREN = {
    "another error": ("raise KeyError('x')", "WRONG KeyError"),
    "a warning": ("import warnings; warnings.warn('w')", "WRONG UserWarning"),
    "slow": ("e = time.process_time() + 3\nwhile time.process_time() < e: pass", "WRONG took 3"),
    "large": ("bytearray(2 << 30)", "WRONG MemoryError"),
    "a crash": ("import os; os.abort()", "ended with -6"),
    "a hang": ("signal.alarm(1); time.sleep(30)", "ended with -14"),
}


@pytest.mark.parametrize(("act", "verdict"), CHILDREN.values(), ids=CHILDREN)
def test_the_child_tells_what_is_wrong(
    act: str, verdict: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself: one file in three does what none may do."""
    body = "\n".join(f"        {line}" for line in act.splitlines())
    child = tmp_path / "child.py"
    child.write_text(
        "import signal, sys, time\nimport fuzzing\nseen = []\n"
        f"def exercise(content):\n    seen.append(content)\n    if len(seen) == 3:\n{body}\n    return 'loaded'\n"
        "fuzzing.exercise = exercise\nfuzzing.main(*sys.argv[1:])\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(child))
    campaign = Campaign().over(0, 3, environment)
    assert len(campaign.wrong) == 1
    assert verdict in campaign.wrong[0]
    assert campaign.wrong[0].startswith("seed 1:")
