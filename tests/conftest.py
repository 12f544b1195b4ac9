"""Shared settings of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("nightly", parent=settings.get_profile("default"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--nightly") or "nightly" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="minutes long: run with --nightly")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def fresh_environment(tmp_path: Path) -> dict[str, str]:
    """An environment for a child process: a code cache of its own, none of the engine's or Numba's variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LSTM_ENGINE_", "NUMBA_"))}
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [kept.get("PYTHONPATH", "")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "LSTM_ENGINE_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def warm_environment(fresh_environment: dict[str, str]) -> dict[str, str]:
    """An environment that shares this process's code cache."""
    kept = {k: v for k, v in fresh_environment.items() if k != "LSTM_ENGINE_CACHE"}
    own = os.environ.get("LSTM_ENGINE_CACHE")
    return kept if own is None else {**kept, "LSTM_ENGINE_CACHE": own}
