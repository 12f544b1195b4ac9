"""Exported libraries from Python, with NumPy alone: no compiler, no network file, nothing to wait for.

    from lstm_engine import runtime
    stream = runtime.load("folder/libname.so").stream()
    y = stream.step(x)

A stream has the face of lstm_engine.Stream, and its states are the same.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy import ndarray

from .errors import InputError, LstmEngineError, ModelFormatError, StateError, TargetError
from .exported import ALIGNMENT, FUNCTIONS, MEANINGS, VERSION, Result
from .feeds import chunk_arrays, lean_shape, step_arrays, target_arrays
from .graph import TensorSpec
from .state import State, check_alike

#: How the shared libraries of this system end, then those of others.
_ENDINGS: Final = {"darwin": (".dylib",), "win32": (".dll",)}.get(sys.platform, (".so",))
_ALL_ENDINGS: Final = (".so", ".dylib", ".dll")
#: How files of machine code begin: those of Linux, of macOS (thin, fat), of Windows.
_MACHINE_CODE: Final = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"MZ")
#: Steps over fewer bytes of weights are too short to give up the interpreter lock for.
_TINY: Final = 256 << 10
_IN_USE: Final = "this stream is in use by another caller; a stream serves one at a time (fork() it, or open another)"


def load(
    path: str | os.PathLike[str], *, name: str | None = None, weights: str | os.PathLike[str] | None = None
) -> Library:
    """An exported library: the shared library itself, or the folder that holds it and no other.

    ``name``: what its functions begin with; None: as its file is called. ``weights``: the file of its weights, where
    they lie in one of their own; None: ``name``.weights beside it. The file is mapped, read-only.

    A library is machine code: load none that you would not run as a program.

    Raises ModelFormatError for what is no such library or not its weights; TargetError for one that this machine
    cannot run; InputError for a folder with several libraries or none; OSError.
    """
    file = _library_file(Path(path))
    made_as = name if name is not None else _name_of(file)
    described = _description(file, made_as)
    missing = _missing(described["target"]["needs"])
    if missing:
        raise TargetError(
            f"{file}: expected a CPU with {', '.join(described['target']['needs'])}, this one lacks "
            f"{', '.join(missing)}; export it on this machine, or for a lesser one (--target)"
        )
    beside = file.parent / f"{made_as}.weights" if weights is None else Path(weights)
    return Library(file, made_as, described, beside)


class Library:
    """One exported model, and the weights that all its streams share.

    ``inputs``, ``outputs``: what a step takes and gives, as TensorSpec (name, dtype, shape); ``batch``: rows of a step;
    ``precision``: of the weights; ``fingerprint``: the model's, as its states have it; ``description``: all that the
    library says of itself.
    """

    def __init__(self, path: Path, name: str, description: Mapping[str, Any], weights: Path) -> None:
        self.path = path
        self.name = name
        self.description = description
        self.inputs = tuple(map(_spec, description["inputs"]))
        self.outputs = tuple(map(_spec, description["outputs"]))
        self.batch = int(description["batch"])
        self.precision = str(description["precision"])
        self.fingerprint = str(description["fingerprint"])
        self._functions = _functions(path, name, ctypes.CDLL)
        held = not description["framed"] and self.batch * description["weights"]["bytes"] < _TINY
        self._step_function = _functions(path, name, ctypes.PyDLL)["step"] if held else self._functions["step"]
        self._weights = (
            _mapped(weights, description["weights"]["file_bytes"]) if description["weights"]["apart"] else b""
        )
        self._weight_array = np.frombuffer(self._weights, np.uint8)
        try:
            self._new_instance()
        except LstmEngineError as fault:
            raise ModelFormatError(f"{weights if len(self._weights) else path}: {fault}") from fault

    def __repr__(self) -> str:
        ends = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"Library('{self.path}': {' → '.join(ends)}; batch {self.batch}, {self.precision})"

    def stream(self) -> Stream:
        """A new stream: an instance of its own, at where the model starts."""
        return Stream(self)

    def _new_instance(self) -> ndarray:
        """Memory of an instance."""
        memory = _aligned(self.description["instance_bytes"])
        given: list[Any] = [_address(memory), ctypes.c_size_t(memory.size)]
        if self.description["weights"]["apart"]:
            given += [_address(self._weight_array), ctypes.c_size_t(self._weight_array.size)]
        _check(self._functions["init"](*given), self.name)
        return memory


class Stream:
    """An exported model running call by call over ``batch`` rows, carrying its state: as lstm_engine.Stream does.

    Belongs to one caller at a time: used by two at once it raises StateError. A call that fails leaves the state as it
    was. ``inputs``, ``outputs``: what a step takes and gives, without time axis.
    """

    __slots__ = (
        "_dtype", "_instance", "_out_dtype", "_run_step", "_self", "_turn", "_views", "_xs", "_ys",
        "batch", "inputs", "library", "outputs",
    )  # fmt: skip

    def __init__(self, library: Library) -> None:
        self.library = library
        self.batch = library.batch
        self.inputs = library.inputs
        self.outputs = library.outputs
        self._instance = library._new_instance()
        self._self = _address(self._instance)
        self._turn = [None]  # whoever takes what is in it has the stream: several times faster than a lock
        self._xs = {spec.name: np.zeros(_shape(spec), spec.dtype) for spec in self.inputs}
        self._ys = {spec.name: np.zeros(_shape(spec), spec.dtype) for spec in self.outputs}
        arrays = (*self._xs.values(), *self._ys.values())
        self._run_step = partial(library._step_function, self._self, *map(_address, arrays))
        self._prepare_short_way()

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(self, x: Any, out: ndarray | None = None) -> Any:
        """One time step, or one call of a file that is made to be called frame by frame.

        ``x``: the input without its time axis (the batch axis may be left out with batch 1, and is then left out of
        the result); a token id as an int; several inputs as {name: array}.
        ``out``: an array to write the result to, which is then returned: nothing is allocated.
        Returns the output without time axis; {name: array} where there are several.

        Raises InputError, StateError; the state is then as it was.
        """
        views = self._views.get(x.shape) if x.__class__ is ndarray and x.dtype is self._dtype else None
        if views is None:
            return self._step_any(x, out)
        place, result = views
        if out is not None and not (
            out.__class__ is ndarray
            and out.dtype is self._out_dtype
            and out.shape == result.shape
            and out.flags.writeable
        ):
            return self._step_any(x, out)
        try:
            self._turn.pop()
        except IndexError:
            raise StateError(_IN_USE) from None
        try:
            place[...] = x
            fault = self._run_step()
            if not fault:
                if out is None:
                    return result.copy()
                out[...] = result
                return out
        finally:
            self._turn.append(None)
        raise _error(fault, "step")

    def _prepare_short_way(self) -> None:
        """The arrays that a step takes as they are: by their shape, views of what the library reads and writes."""
        self._views: dict[tuple[int, ...], tuple[ndarray, ndarray]] = {}
        self._dtype, self._out_dtype = self.inputs[0].dtype if self.inputs else None, self.outputs[0].dtype
        if not len(self.inputs) == len(self.outputs) == 1:
            return
        (x,), (y,) = self._xs.values(), self._ys.values()
        self._views[x.shape] = x, y
        lean = [lean_shape(array.shape, self.batch) for array in (x, y)]
        if lean[0] is not None:
            self._views[lean[0]] = x.reshape(lean[0]), y if lean[1] is None else y.reshape(lean[1])

    def _step_any(self, x: Any, out: ndarray | None) -> Any:
        """A step with whatever it takes to bring x into shape."""
        feeds, lean = step_arrays(self.inputs, self.batch, x)
        shapes = {name: self._result_shape(array.shape, lean) for name, array in self._ys.items()}
        targets = {} if out is None else target_arrays(out, shapes, {spec.name: spec.dtype for spec in self.outputs})
        with self._alone():
            for name, place in self._xs.items():
                place[...] = feeds.get(name, 0)
            _check(self._run_step(), "step")
            results = {name: self._ys[name].reshape(shape) for name, shape in shapes.items()}
            for name, target in targets.items():
                target[...] = results[name]
            if out is not None:
                return out
            fresh = {name: result.copy() for name, result in results.items()}
        return next(iter(fresh.values())) if len(fresh) == 1 else fresh

    def _result_shape(self, shape: tuple[int, ...], lean: bool) -> tuple[int, ...]:
        left_out = lean_shape(shape, self.batch) if lean else None
        return shape if left_out is None else left_out

    # --- many steps --------------------------------------------------------------------------------------------------

    def feed(self, chunk: Any) -> Any:
        """Any number of steps in one call; every step's output, stacked.

        ``chunk``: the input with its own time axis (a new leading axis where the model has none).
        Returns the outputs of all steps along the same axis; the results and the state are those of as many step()s.

        Raises InputError, StateError; the state is then as it was before the whole chunk.
        """
        axes = {end["name"]: end["axis"] for end in self.library.description["inputs"]}
        feeds, steps = chunk_arrays(self.inputs, axes, self.batch, chunk)
        given = [_steps_first(feeds.get(spec.name), spec, axes[spec.name], steps) for spec in self.inputs]
        made, results = [], {}
        for spec, end in zip(self.outputs, self.library.description["outputs"], strict=True):
            axis, shape = end["axis"], _shape(spec)
            made.append(np.zeros(shape if axis is None else (steps, *shape), spec.dtype))
            results[spec.name] = made[-1] if axis is None else np.moveaxis(made[-1], 0, axis)
        with self._alone():
            addresses = map(_address, (*given, *made))
            _check(self.library._functions["feed"](self._self, ctypes.c_size_t(steps), *addresses), "feed")
        return next(iter(results.values())) if len(results) == 1 else results

    @property
    def time_axes(self) -> dict[str, int | None]:
        """Where the steps lie in what feed() gives, by output; None for one that does not go from step to step."""
        return {end["name"]: end["axis"] for end in self.library.description["outputs"]}

    # --- state -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to where the model starts."""
        with self._alone():
            _check(self.library._functions["reset"](self._self), "reset")

    @property
    def state(self) -> State:
        """A snapshot of the state; assigning one continues from there."""
        with self._alone():
            return State.from_bytes(self._saved())

    @state.setter
    def state(self, snapshot: State) -> None:
        with self._alone():
            own = State.from_bytes(self._saved())
            check_alike(snapshot, own)
            self._restore(State(own.fingerprint, own.batch, {name: snapshot.arrays[name] for name in own.arrays}))

    def fork(self) -> Stream:
        """A second stream that continues from here on its own."""
        twin = Stream(self.library)
        twin._restore(self.state)
        return twin

    def _saved(self) -> bytes:
        written = np.empty(self.library.description["state_bytes"], np.uint8)
        save = self.library._functions["save"]
        _check(save(self._self, _address(written), ctypes.c_size_t(written.size)), "state")
        return written.tobytes()

    def _restore(self, snapshot: State) -> None:
        written = snapshot.to_bytes()
        load_state = self.library._functions["load"]
        _check(load_state(self._self, ctypes.c_char_p(written), ctypes.c_size_t(len(written))), "state")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the stream to oneself.

        Raises StateError if another caller has it.
        """
        try:
            self._turn.pop()
        except IndexError:
            raise StateError(_IN_USE) from None
        try:
            yield
        finally:
            self._turn.append(None)


# --- codes -----------------------------------------------------------------------------------------------------------


def _check(code: int, subject: str) -> None:
    if code:
        raise _error(code, subject)


def _error(code: int, subject: str) -> LstmEngineError:
    """What a function's code means."""
    if code not in MEANINGS:
        return LstmEngineError(f"{subject}: the library returned {code}, which interface {VERSION} does not know")
    kinds = {
        Result.BAD_TOKEN: InputError,
        Result.BAD_LENGTH: InputError,
        Result.DAMAGED_STATE: StateError,
        Result.OTHER_STATE: StateError,
    }
    return kinds.get(Result(code), LstmEngineError)(f"{subject}: {MEANINGS[Result(code)]}")


# --- files -----------------------------------------------------------------------------------------------------------


def _library_file(path: Path) -> Path:
    """The library that a path means, as a whole path: the system would look elsewhere for a bare name."""
    if not path.is_dir():
        path.stat()
        return path.resolve()
    found = [file for file in sorted(path.iterdir()) if file.suffix in _ALL_ENDINGS and file.is_file()]
    own = [file for file in found if file.suffix in _ENDINGS] or found
    if len(own) != 1:
        got = f"{', '.join(file.name for file in own)}; name one of them" if own else (
            "none; lstm-engine export says why where it could not link one"
        )  # fmt: skip
        raise InputError(f"{path}: expected a folder with one shared library ({', '.join(_ENDINGS)}), got {got}")
    return own[0].resolve()


def _name_of(file: Path) -> str:
    """What a library of this file name was exported as."""
    return file.stem if file.suffix == ".dll" else file.stem.removeprefix("lib")


def _functions(file: Path, name: str, kind: type[ctypes.CDLL]) -> dict[str, Any]:
    """The functions of a library; ``kind``: whether the interpreter lock is given up meanwhile.

    Raises TargetError, ModelFormatError.
    """
    try:
        library = kind(str(file))
    except OSError as fault:
        with file.open("rb") as opened:
            begins = opened.read(4)
        if begins.startswith(_MACHINE_CODE):
            raise TargetError(
                f"{file}: expected a shared library for this machine ({platform.machine()}, {sys.platform}), got what "
                f"it cannot load ({fault}); export it for this machine, and load lib….so, not the object"
            ) from fault
        raise ModelFormatError(
            f"{file}: expected a shared library that lstm_engine exported, got another file ({fault})"
        ) from fault
    try:
        functions = {each: getattr(library, f"{name}_{each}") for each in FUNCTIONS}
    except AttributeError as fault:
        raise ModelFormatError(
            f"{file}: expected a library that lstm_engine exported as '{name}', got one without its functions "
            f"({fault}); if the file was renamed, say what it was exported as (name=…)"
        ) from fault
    for each, function in functions.items():
        function.restype = ctypes.c_char_p if each == "describe" else ctypes.c_int32
    return functions


def _description(file: Path, name: str) -> Mapping[str, Any]:
    """What a library says of itself."""
    told = _functions(file, name, ctypes.CDLL)["describe"]()
    try:
        described: Mapping[str, Any] = json.loads(told)
        version = described["interface"]
    except (ValueError, TypeError, KeyError) as fault:
        raise ModelFormatError(f"{file}: expected a description of the library, got none ({fault})") from fault
    if version != VERSION:
        raise ModelFormatError(
            f"{file}: expected interface {VERSION}, got {version}; export the model again with this release, or load "
            f"it with the one that made it (lstm_engine {described.get('engine', 'unknown')})"
        )
    return described


def _mapped(file: Path, size: int) -> mmap.mmap:
    """A file of weights, read-only."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: expected the library's weights there; say where they are (weights=…)")
    got = file.stat().st_size
    if got != size:
        raise ModelFormatError(f"{file}: expected the {size} bytes of this library's weights, got {got}")
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _missing(needs: Sequence[str]) -> list[str]:
    """Of a CPU's features, those that this machine lacks, where the system lists them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    except OSError:
        return []
    here = set(flags.replace("_", "").split())
    return [each for each in needs if each not in here] if here else []


# --- memory ----------------------------------------------------------------------------------------------------------


def _spec(end: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(end["name"], np.dtype(end["dtype"]), tuple(end["shape"]), bool(end["optional"]))


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    """A library's shapes have sizes alone."""
    return tuple(size for size in spec.shape or () if isinstance(size, int))


def _steps_first(array: ndarray | None, spec: TensorSpec, axis: int | None, steps: int) -> ndarray:
    """A feed as the library takes it: steps one behind the other; zeros for one that was left out."""
    if array is None:
        return np.zeros(_shape(spec) if axis is None else (steps, *_shape(spec)), spec.dtype)
    return np.ascontiguousarray(array if axis is None else np.moveaxis(array, axis, 0))


def _aligned(size: int) -> ndarray:
    """Zeroed bytes at such an address as instances need."""
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


def _address(array: ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
