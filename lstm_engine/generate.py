"""Keeps ``lstm_engine.generate`` the function, whatever was imported first.

Loading a submodule makes it an attribute of its package: ``le.Sampler`` before ``le.generate`` would leave the module
in the function's place. So the module can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .generation import Sampler, generate

__all__ = ["Sampler", "generate"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
