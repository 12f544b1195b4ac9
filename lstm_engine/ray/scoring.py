"""Data sets scored: every row is a sequence, and what a model makes of it becomes new columns of that row.

Ray Data reads, schedules, retries and writes; a Scorer is what its actors hold. Tables go in and out as they are, row
for row: rows of one length run together within a table (``run_ragged()``).
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from ..errors import InputError, LstmEngineError, listed
from ..machine import target
from ..model import Model, load
from .parcels import Parcel
from .tables import array_of, column_of

Table: TypeAlias = Any  # pa.Table
Columns: TypeAlias = str | Mapping[str, str]

MOST_KEYS: Final = 4  # columns shown of a row that is at fault


@dataclass(frozen=True)
class Shared:
    """A model in the object store: its network, and its weights as they are packed for CPUs of one kind."""

    parcel: Parcel
    packed: Mapping[Hashable, np.ndarray]
    machine: str

    @staticmethod
    def of(model: Model) -> Shared:
        """A model as all processes of a node will see it."""
        model.columns.prepare()
        return Shared(Parcel.of(model), model.store.packed, repr(target()))

    def model(self, threads: int) -> Model:
        """The model, looking at the object store's memory."""
        model = self.parcel.model(threads)
        if self.machine == repr(target()):
            model.store.take(self.packed)
        return model


@dataclass(frozen=True)
class Plan:
    """Which columns go in and come out: by input, by output; of numbers of steps; of rows that are kept (None: all)."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    lengths: str | None
    kept: tuple[str, ...] | None

    @staticmethod
    def of(
        model: Model, column: Columns, output: Columns | None, lengths: str | None, kept: Sequence[str] | None
    ) -> Plan:
        """Raises InputError listing names that are none of the model's."""
        required = [spec.name for spec in model.inputs if not spec.optional]
        names = [spec.name for spec in model.outputs]
        faults: list[str] = []
        if isinstance(column, str) and len(required) != 1:
            faults.append(f"column={column!r}: the model has inputs {', '.join(required)}; give {{input: column}}")
        inputs = {required[0]: column} if isinstance(column, str) else dict(column)
        if isinstance(output, str):
            if len(names) != 1:
                faults.append(f"output={output!r}: the model has outputs {', '.join(names)}; give {{output: column}}")
            output = {names[0]: output}
        outputs = dict(output) if output is not None else {name: name for name in names}
        faults += [f"'{name}' is not an input" for name in inputs if name not in {s.name for s in model.inputs}]
        faults += [f"'{spec}' has no column" for spec in model.inputs if spec.name in set(required) - set(inputs)]
        faults += [f"'{name}' is not an output" for name in outputs if name not in names]
        if len(set(outputs.values())) < len(outputs):
            faults.append(f"several outputs for one column: {outputs}")
        if faults:
            raise InputError(listed(f"score() with {model.graph.origin}", faults))
        return Plan(inputs, outputs, lengths, None if kept is None else tuple(kept))

    def check(self, names: Sequence[str]) -> None:
        """Raise InputError for columns that are missing, or there already."""
        wanted = [*self.inputs.values(), *([self.lengths] if self.lengths else []), *(self.kept or ())]
        faults = [f"there is no column '{name}'" for name in dict.fromkeys(wanted) if name not in names]
        carried = self.carried(names)
        faults += [
            f"column '{name}' is there already; name another with output="
            for name in self.outputs.values()
            if name in carried
        ]
        if faults:
            raise InputError(listed(f"score(): a table with columns {', '.join(names)}", faults))

    def carried(self, names: Sequence[str]) -> list[str]:
        """The columns that come out as they went in."""
        taken = {*self.inputs.values(), self.lengths}
        return [name for name in names if (name not in taken if self.kept is None else name in self.kept)]


class Scorer:
    """A model in an actor of Ray Data: tables in, the same rows with results out."""

    def __init__(self, shared: Any, plan: Plan, threads: int) -> None:
        """``shared``: a reference to a Shared in the object store."""
        self.model: Model = ray.get(shared).model(threads)
        self.plan = plan

    def __call__(self, table: Table) -> Table:
        """Raises InputError naming the row, by its number in the table and its other columns."""
        names = table.column_names
        self.plan.check(names)
        try:
            results = self.model.run_ragged(self._columns(table), list(self.plan.outputs))
        except LstmEngineError as fault:
            if fault.row is None:
                raise
            raise type(fault)(f"{_row_of(table, fault.row)}: {fault.__cause__}") from fault
        scored = table.select(self.plan.carried(names))
        for name, column in self.plan.outputs.items():
            scored = scored.append_column(column, array_of(results[name]))
        return scored

    def _columns(self, table: Table) -> dict[str, Any]:
        columns: dict[str, Any] = {name: column_of(table[column], column) for name, column in self.plan.inputs.items()}
        if self.plan.lengths is None:
            return columns
        lengths = column_of(table[self.plan.lengths], self.plan.lengths)
        forms = self.model.columns.inputs
        return {
            name: forms[name].in_steps(column).shortened(lengths) if forms[name].steps is not None else column
            for name, column in columns.items()
        }


def score(
    dataset: Dataset,
    model: Model | str | os.PathLike[str] | bytes,
    *,
    column: Columns,
    output: Columns | None = None,
    length_column: str | None = None,
    keep: Sequence[str] | None = None,
    precision: str | None = None,
    concurrency: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    num_cpus: float = 1,
    **options: Any,
) -> Dataset:
    """A data set whose rows have, besides their other columns, what a model makes of a column of sequences.

    ``column``: that of the sequences, or {input: column}. A row is a list of steps, a list of numbers (T·I of them, or
    token ids), or a tensor [T, …]; of inputs without steps a list or tensor of their size, or a number.
    ``output``: the new column, or {output: column}; without, all outputs by their own names. Outputs with steps become
    lists of steps, others lists of a fixed size. ``length_column``: how many steps of each row count, where they are
    padded. ``keep``: columns that stay; without, all but those that were fed.
    ``model``: a Model, or what load() takes, with its ``precision``. Each row's results are those of Model.run() on
    its sequence, bit for bit in float32 and int8, wherever it runs.
    ``concurrency``: actors, or (fewest, most) of them; without, from one to as many as there are CPUs for. ``num_cpus``
    of each, and as many threads. ``batch_size``: rows of a call; without, blocks as they come. ``options`` are those of
    Ray Data's map_batches().

    Rows stay in order. Nothing is run or read before the result is consumed, and nothing is gathered then. An error
    names the row by its other columns (its file too, read with include_paths=True).

    Raises InputError for columns and outputs that are none.
    """
    if not isinstance(model, Model):
        model = load(model, precision=precision, threads=1)
    elif precision is not None:
        raise InputError(f"score(): precision={precision!r} is load()'s; this model is loaded, in {model.precision}")
    plan = Plan.of(model, column, output, length_column, keep)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        plan.check(schema.names)
    if not ray.is_initialized():
        ray.init()
    shared = ray.put(Shared.of(model))
    scored = dataset.map_batches(
        Scorer,
        batch_format="pyarrow",
        batch_size=batch_size,
        zero_copy_batch=True,
        fn_constructor_args=(shared, plan, max(1, int(num_cpus))),
        compute=_actors(concurrency, num_cpus),
        num_cpus=num_cpus,
        **options,
    )
    scored = Dataset.copy(scored, _deep_copy=True)  # with a context of its own: the source's stays as it is
    scored.context.execution_options.preserve_order = True
    scored.context.raise_original_map_exception = True
    return scored


def _actors(concurrency: int | tuple[int, int] | None, num_cpus: float) -> ActorPoolStrategy:
    if isinstance(concurrency, int):
        return ActorPoolStrategy(size=concurrency)
    most = int(ray.cluster_resources().get("CPU", 1) // max(num_cpus, 1))
    fewest, most = concurrency or (1, max(1, most))
    return ActorPoolStrategy(min_size=fewest, max_size=most)


def _row_of(table: Table, row: int) -> str:
    """How a message calls a row: its number, and what its plain columns say."""
    plain = [
        name
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
        if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ]
    said = ", ".join(f"{name}={table[name][row].as_py()!r}" for name in plain[:MOST_KEYS])
    return f"row {row} of a block of {len(table)}{f' ({said})' if said else ''}"
