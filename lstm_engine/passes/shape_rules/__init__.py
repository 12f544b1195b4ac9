"""The shape rule of each operator: shapes and types in, shapes and types out.

A rule is called as the operator's definition in ``reference`` is: inputs by position, attributes by name.
It says what does not fit, and raises UnsupportedModelError where a shape depends on data.
"""

from __future__ import annotations

from . import basic as basic
from . import bridge as bridge
from . import causal as causal
from . import microsoft as microsoft
from . import quantised as quantised
from . import transforms as transforms
from . import windows as windows
from .known import (
    RULES,
    DataDependentError,
    DType,
    Known,
    Size,
    axis_of,
    broadcast,
    one_type,
    optional_value,
    replaced,
    rule,
    value_of,
)

__all__ = [
    "RULES",
    "DType",
    "DataDependentError",
    "Known",
    "Size",
    "axis_of",
    "broadcast",
    "one_type",
    "optional_value",
    "replaced",
    "rule",
    "value_of",
]
