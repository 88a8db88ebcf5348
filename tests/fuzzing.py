"""Random calls of everything, checked against the reference, with every byte around every array watched.

A `Case` says all about one call but the numbers, which follow from its seed; so a case that fails can be made simpler
field by field (`simplest`) and written down in one line. Arrays are placed in larger buffers of a fixed pattern: NaN for
floating types, -1 for labels, so that a number read from outside shows in a result, and a byte written outside, or into
an input, in the buffer.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
from arrays import HALVES
from tolerances import BASE, LARGEST_GAP, OPTIONS, eps, subnormal_slack

import fastxent as fx
from fastxent import _config
from fastxent import _reference as reference
from fastxent.cpu import engine

SOFTMAX_LOSSES = ("CrossEntropy", "FocalLoss")
BINARY_LOSSES = ("BinaryCrossEntropy", "BinaryFocalLoss")
ACTIVATIONS = ("softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid")
CLASSLESS = (*BINARY_LOSSES, "sigmoid", "log_sigmoid")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
FLOATS = {"float32": np.float32, "float64": np.float64} | HALVES
# Beside the small sizes, each of which is as likely as the next: the edges of chunks, blocks and pages.
LARGE = (255, 256, 257, 511, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 3000, 4095, 4096, 4097, 8193, 9001)
TYPICAL_SIZE, LARGE_SIZE = 1500, 9100
# Enough for two threads: engine.GRAIN each.
PARALLEL_SIZE = 140_000
PATTERN = 0xFF
MARGIN = 192
_STREAM_BYTES = ctypes.c_int64.from_address(engine.kernel_addresses()[1])
_STREAM_BYTES_BEFORE = _STREAM_BYTES.value


@dataclass(frozen=True)
class Layout:
    """Where an array lies: axes from the innermost on, with gaps in elements, turned round, or not there at all."""

    order: tuple[int, ...]
    gaps: tuple[int, ...]
    reversed: tuple[int, ...] = ()
    broadcast: tuple[int, ...] = ()
    offset: int = 0  # bytes past a multiple of 64
    swapped: bool = False


def plain(ndim: int) -> Layout:
    """C order without gaps."""
    return Layout(tuple(range(ndim))[::-1], (0,) * ndim)


@dataclass(frozen=True)
class Case:
    """One call; the numbers follow from it."""

    seed: int
    function: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    target: str  # a dtype
    options: dict[str, Any]
    layouts: dict[str, Layout]
    logits: str = "normal"
    weight: str = ""  # a dtype, or none
    weight_per_sample: bool = False
    n_derivatives: int = 2
    outputs: str = "new"  # or "given" or "in place"
    fault: str = ""  # of the "target" or the "weight"
    threads: int = 1
    stream: bool = False
    levels: tuple[str, ...] = ()

    @property
    def is_softmax(self) -> bool:
        return self.function in SOFTMAX_LOSSES

    @property
    def has_classes(self) -> bool:
        return self.function not in CLASSLESS

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of the unreduced loss."""
        if not self.has_classes:
            return self.shape
        axis = self.axis % len(self.shape)
        return self.shape[:axis] + self.shape[axis + 1 :]

    @property
    def is_soft(self) -> bool:
        return self.target not in INTEGERS


class Watched:
    """An array in a buffer of its own, every other byte of which must stay as it is."""

    def __init__(self, values: np.ndarray, layout: Layout):
        dtype = values.dtype.newbyteorder() if layout.swapped else values.dtype
        once = tuple(min(n, 1) if d in layout.broadcast else n for d, n in enumerate(values.shape))
        strides, step = [0] * values.ndim, dtype.itemsize
        for d, gap in zip(layout.order, layout.gaps, strict=True):
            # The innermost axis takes its gap between elements, the others between runs.
            strides[d] = step = step + gap * dtype.itemsize
            step *= max(once[d], 1)
        self.buffer = np.full(step + 2 * MARGIN + 128, PATTERN, np.uint8)
        start = MARGIN + -(self.buffer.ctypes.data + MARGIN) % 64 + layout.offset
        for d in layout.reversed:
            if values.size:
                start += strides[d] * (once[d] - 1)
                strides[d] = -strides[d]
        self.base = np.ndarray(once, dtype, self.buffer, start, strides)
        self.base[...] = values[tuple(slice(0, n) for n in once)]
        self.view = np.broadcast_to(self.base, values.shape) if layout.broadcast else self.base
        self.keep()

    def keep(self) -> None:
        """Remember everything as it is now."""
        self.before = self.buffer.copy()
        self.values = self.base.copy()

    def untouched(self) -> bool:
        """Whether no byte has changed."""
        return bool(np.array_equal(self.buffer, self.before))

    def put_back(self) -> bool:
        """Undo what was written to the elements; whether nothing else was."""
        self.base[...] = self.values
        if self.untouched():
            return True
        self.buffer[...] = self.before
        return False


# --- cases ------------------------------------------------------------------------------------------------------------


def random_case(seed: int) -> Case:
    """The case of this seed."""
    r = random.Random(seed)
    function = r.choices((*SOFTMAX_LOSSES, *BINARY_LOSSES, *ACTIVATIONS), (30, 12, 16, 8, 2, 2, 2, 1, 1))[0]
    dtype = r.choices(tuple(FLOATS), [5, 4] + [1.5] * len(HALVES))[0]
    shape, axis = _random_shape(r, function not in CLASSLESS)
    ndim = len(shape)
    parallel = r.random() < 0.003 and dtype == "float32"
    if parallel and ndim:
        d = r.randrange(ndim)
        rest = math.prod(n for i, n in enumerate(shape) if i != d)
        shape = tuple(max(n, PARALLEL_SIZE // max(rest, 1)) if i == d else n for i, n in enumerate(shape))
    inputs = "logits"
    if function == "CrossEntropy":
        inputs = r.choices(("logits", "log_probs", "probs"), (8, 1, 1))[0]
    if function == "BinaryCrossEntropy":
        inputs = r.choices(("logits", "probs"), (4, 1))[0]
    kinds = ("normal", "wide", "nasty", "special", "masked", "huge", "tied")
    case = Case(
        seed=seed,
        function=function,
        dtype=dtype,
        shape=shape,
        axis=axis,
        target=r.choices((*INTEGERS, *FLOATS), [2] * len(INTEGERS) + [3] * len(FLOATS))[0],
        options=_random_options(r, function, inputs, shape, axis),
        layouts={},
        logits=r.choices(kinds, (6, 3, 3, 2, 1, 1, 1))[0],
        weight=r.choice(("", "", "", *FLOATS, "int32")) if function not in ACTIVATIONS else "",
        weight_per_sample=r.random() < 0.5,
        n_derivatives=r.choices((0, 1, 2), (2, 4, 3))[0],
        outputs=r.choices(("new", "given", "in place"), (2, 4, 1))[0],
        threads=r.choice((1, 2)),
        stream=r.random() < 0.3,
    )
    if case.target == "bool" and case.is_softmax and shape[axis] < 2:
        case = dataclasses.replace(case, target="uint8")
    if function not in ACTIVATIONS and math.prod(shape) and r.random() < 0.06:
        case = dataclasses.replace(case, fault="weight" if case.weight in FLOATS and r.random() < 0.5 else "target")
        if case.fault == "target" and case.target == "bool":
            case = dataclasses.replace(case, fault="")
    ordinary = r.random() < 0.3
    together = _random_layout(r, ndim, False) if ndim and r.random() < 0.5 else None
    layouts = {}
    for name, n in _ndims(case).items():
        is_output = name in ("grad", "hess") or (name == "logits" and case.outputs == "in place")
        if ordinary or n == 0:
            layouts[name] = plain(n)
        elif together and n == ndim and r.random() < 0.8:
            layouts[name] = dataclasses.replace(together, offset=r.choice((0, 0, together.offset)))
        else:
            layouts[name] = _random_layout(r, n, not is_output)
    if case.outputs != "new":
        # An output has the byte order of the logits or the machine's; one that is the logits themselves, theirs.
        layouts["grad"] = dataclasses.replace(layouts["grad"], swapped=layouts["grad"].swapped)
    return dataclasses.replace(case, layouts=layouts)


def _ndims(case: Case) -> dict[str, int]:
    """How many axes the arrays of a case have."""
    ndim, n_rows = len(case.shape), len(case.row_shape)
    target = ndim if case.is_soft and case.is_softmax else n_rows
    weight = min(n_rows, 1) if case.weight_per_sample else n_rows
    return {"logits": ndim, "target": target, "weight": weight, "grad": ndim, "hess": ndim}


def _random_shape(r: random.Random, has_classes: bool) -> tuple[tuple[int, ...], int]:
    kind = r.random()
    if has_classes:
        n_classes = r.randint(1, 130) if kind < 0.6 else r.randint(1, 40) if kind < 0.9 else r.choice(LARGE)
        most = max(1, (LARGE_SIZE if n_classes > 200 or r.random() < 0.1 else TYPICAL_SIZE) // n_classes)
        n_rows = min(most, r.choice((r.randint(0, 20), r.randint(1, 130), r.randint(1, most))))
        rows = _factored(r, n_rows)
        axis = r.randrange(len(rows) + 1) if r.random() < 0.4 else len(rows)
        shape = (*rows[:axis], n_classes, *rows[axis:])
        return shape, r.choice((axis, axis - len(shape)))
    n = r.randint(0, 130) if kind < 0.4 else r.randint(1, TYPICAL_SIZE) if kind < 0.9 else r.choice(LARGE)
    return _factored(r, n), -1


def _factored(r: random.Random, n: int) -> tuple[int, ...]:
    """About n elements along 0 to 3 axes."""
    ndim = r.choices((1, 2, 3, 0), (6, 4, 2, 1))[0]
    if ndim == 0:
        return ()
    shape = [n]
    while len(shape) < ndim:
        part = r.randint(1, max(1, min(40, shape[-1])))
        shape = [*shape[:-1], part, shape[-1] // part]
    r.shuffle(shape)
    return tuple(shape)


def _random_options(r: random.Random, function: str, inputs: str, shape: tuple[int, ...], axis: int) -> dict[str, Any]:
    """Options of the loss; arrays of weights are names here, since their lengths follow from the shape."""
    options: dict[str, Any] = {}
    if function in ACTIVATIONS:
        return options
    options["reduction"] = r.choice(("mean", "sum", "none"))
    if r.random() < 0.3:
        options["label_smoothing"] = r.choice((0.1, 0.01, 0.5, 1.0))
    if r.random() < 0.3:
        options["ignore_index"] = r.choice((-100, -1, 0, 1, 5, (shape[axis] if shape else 1) - 1))
    if inputs != "logits":
        options["inputs"] = inputs
    if function in SOFTMAX_LOSSES and r.random() < 0.3:
        options["class_weight"] = r.choice(("balanced", "array", "dict"))
    if function.endswith("FocalLoss"):
        options["gamma"] = r.choice((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0))
    if function == "BinaryCrossEntropy" and r.random() < 0.3:
        options["pos_weight"] = r.choice(("number", "array") if shape else ("number",))
    if function == "BinaryFocalLoss" and r.random() < 0.5:
        options["alpha"] = r.choice((0.0, 0.25, 1.0))
    return options


def _random_layout(r: random.Random, ndim: int, is_input: bool) -> Layout:
    order = list(range(ndim))[::-1]
    if r.random() < 0.4:
        r.shuffle(order)
    gaps = [r.choice((1, 1, 2, 3, 17)) if r.random() < 0.2 else 0 for _ in order]
    each = range(ndim)
    return Layout(
        tuple(order),
        tuple(gaps),
        tuple(d for d in each if r.random() < 0.15),
        tuple(d for d in each if is_input and r.random() < 0.1),
        # Elements of two, four and eight bytes off a line; now and then bytes.
        r.choice((0, 0, 8, 8, 16, 4, 4, 2, 60, 56, 32, 1, 3)),
        r.random() < 0.03,
    )


# --- the numbers of a case --------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A case with its arrays."""

    case: Case
    loss: Any  # or the function
    options: dict[str, Any]
    arrays: dict[str, Watched]

    def copy_of(self, name: str) -> Any:
        """The values as they are, native and without gaps."""
        if name not in self.arrays:
            return None
        view = self.arrays[name].view
        return np.ascontiguousarray(view).astype(view.dtype.newbyteorder("=")).reshape(view.shape)


@np.errstate(over="ignore")
def made(case: Case) -> Call:
    """The arrays and the loss of a case."""
    rng = np.random.default_rng(case.seed)
    dtype = np.dtype(FLOATS[case.dtype])
    arrays = {"logits": Watched(_logits(rng, case).astype(dtype), _layout(case, "logits", dtype))}
    options = {name: value for name, value in case.options.items() if value is not None}
    if case.function in ACTIVATIONS:
        loss: Any = getattr(fx, case.function)
        if case.function != "logsumexp" and case.outputs == "given":
            arrays["grad"] = Watched(np.full(case.shape, 7).astype(dtype), _layout(case, "grad", dtype))
        return Call(case, loss, {"axis": case.axis} if case.has_classes else {}, arrays)
    n_classes = case.shape[case.axis] if case.shape else 1
    if options.get("class_weight") == "array":
        options["class_weight"] = (rng.random(n_classes) * 3 * (rng.random(n_classes) < 0.8)).tolist()
    elif options.get("class_weight") == "dict":
        options["class_weight"] = {int(c): float(rng.random()) for c in rng.integers(0, n_classes, 3)}
    if options.get("pos_weight") == "number":
        options["pos_weight"] = 2.5
    elif options.get("pos_weight") == "array":
        options["pos_weight"] = (rng.random(case.shape[-1]) * 3).tolist()
    if case.has_classes:
        options["axis"] = case.axis
    target = _target(rng, case, options.get("ignore_index"))
    arrays["target"] = Watched(target, _layout(case, "target", target.dtype))
    if case.weight:
        shape = case.row_shape[:1] if case.weight_per_sample else case.row_shape
        weight = rng.random(shape) * 2 * (rng.random(shape) < 0.8)
        weight = np.asarray(weight).astype(FLOATS.get(case.weight, case.weight))
        arrays["weight"] = Watched(weight, _layout(case, "weight", weight.dtype))
    if case.outputs != "new":
        for name in ("grad", "hess")[: case.n_derivatives]:
            if name == "grad" and case.outputs == "in place":
                continue
            arrays[name] = Watched(np.full(case.shape, 7).astype(dtype), _layout(case, name, dtype))
    if case.fault:
        _spoil(rng, case, arrays[case.fault], options.get("ignore_index"))
    loss = getattr(fx, case.function)(**options)
    return Call(case, loss, options, arrays)


def _layout(case: Case, name: str, dtype: np.dtype[Any]) -> Layout:
    layout = case.layouts.get(name) or plain(_ndims(case)[name])
    if layout.swapped and dtype.kind == "V":  # no byte order
        return dataclasses.replace(layout, swapped=False)
    return layout


def _logits(rng: np.random.Generator, case: Case) -> np.ndarray:
    shape, kind = case.shape, case.logits
    inputs = case.options.get("inputs", "logits")
    if inputs == "probs":
        # Far from the subnormal numbers, whose reciprocals overflow: the tests of limits have those.
        p = rng.random(shape) * 0.98 + 0.01
        if kind == "special":
            p = np.where(rng.random(shape) < 0.1, rng.choice([0, 1, np.nan, 1e-12], shape), p)
        return np.asarray(p)
    largest = {"float16": 6e4, "float64": 1e300}.get(case.dtype, 1e34)
    z = np.asarray(rng.standard_normal(shape))
    if inputs == "log_probs":
        z = -np.abs(z) * 5
    if kind == "wide":
        z = z * 30
    elif kind == "nasty":
        # Rows, or whatever the first axis is, of all scales.
        z = z * rng.choice([1e-6, 1e-3, 1, 30, 1e3], shape[:1] + (1,) * (len(shape) - 1)) + rng.choice([0, 0, 100])
    elif kind == "special":
        z = np.where(rng.random(shape) < 0.02, rng.choice([np.nan, np.inf, -np.inf, 0.0], shape), z)
    elif kind == "masked":
        z = np.where(rng.random(shape) < 0.4, -np.inf, z)
    elif kind == "huge":
        z = z * rng.choice([1, largest / 8], shape)
    elif kind == "tied":
        z = np.round(z)
    if case.function == "FocalLoss" and case.options.get("label_smoothing"):
        # A row that is masked as a whole and has no other mass is 0 to the kernels, and NaN in the reference.
        first = np.moveaxis(z, case.axis, 0)[:1]
        first[np.isneginf(first)] = 0
    return np.asarray(z)


def _target(rng: np.random.Generator, case: Case, ignore_index: int | None) -> np.ndarray:
    if case.is_softmax and not case.is_soft:
        dtype = np.dtype(case.target)
        largest = 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)
        target = rng.integers(0, min(case.shape[case.axis], largest + 1), case.row_shape)
        least = 0 if dtype.kind in "bu" else int(np.iinfo(dtype).min)
        if ignore_index is not None and least <= ignore_index <= largest:
            target = np.where(rng.random(case.row_shape) < 0.3, ignore_index, target)
        return np.asarray(target).astype(dtype)
    if not case.is_soft:
        dtype = np.dtype(case.target)
        target = rng.integers(0, 2, case.shape)
        if ignore_index is not None and dtype.kind == "i" and abs(ignore_index) <= np.iinfo(dtype).max:
            target = np.where(rng.random(case.shape) < 0.3, ignore_index, target)
        return np.asarray(target).astype(dtype)
    dtype = np.dtype(FLOATS[case.target])
    soft = np.asarray(rng.random(case.shape))
    soft = np.asarray(np.where(rng.random(case.shape) < 0.3, rng.choice([0, 0, 1], case.shape), soft))
    if case.is_softmax and ignore_index is not None and 0 <= ignore_index < case.shape[case.axis]:
        # Some rows have all their mass on the ignored class.
        last = np.moveaxis(soft, case.axis, -1)
        ignored = rng.random(last.shape[:-1]) < 0.3
        last[ignored] = 0
        last[ignored, ignore_index] = 1
    elif not case.is_softmax and ignore_index is not None and float(dtype.type(ignore_index)) == ignore_index:
        soft = np.asarray(np.where(rng.random(case.shape) < 0.3, ignore_index, soft))
    return soft.astype(dtype)


def _spoil(rng: np.random.Generator, case: Case, array: Watched, ignore_index: int | None) -> None:
    """Put one value somewhere that must not be."""
    dtype = array.base.dtype
    if dtype.kind in "iu":
        n_classes = case.shape[case.axis] if case.is_softmax else 2
        bad = [-1, n_classes, n_classes + 1, 2**15, 2**31, 2**32, 2**63, -(2**63), 127, -128]
        limits = np.iinfo(dtype)
        bad = [b for b in bad if limits.min <= b <= limits.max and b != ignore_index and not 0 <= b < n_classes]
    else:
        bad = [np.nan, np.inf, -np.inf, -1.5]
    if bad:
        array.base[np.unravel_index(rng.integers(array.base.size), array.base.shape)] = bad[rng.integers(len(bad))]
    array.keep()


# --- what is expected -------------------------------------------------------------------------------------------------


def is_faulty(call: Call) -> bool:
    """Whether a value that must not be has found a place: not all types of labels can hold one."""
    case = call.case
    if not case.fault:
        return False
    if case.fault == "target" and not case.is_soft:
        label = call.arrays["target"].base.astype(object)
        n_classes = case.shape[case.axis] if case.is_softmax else 2
        return any(not 0 <= a < n_classes and a != call.options.get("ignore_index") for a in label.ravel())
    return True


@np.errstate(all="ignore")
def expected_of(call: Call) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(what, expected, largest error) of all results of the call, in higher precision."""
    case, logits = call.case, call.copy_of("logits")
    if logits.dtype.itemsize == 2:
        logits = logits.astype(np.float32)
    if case.function in ACTIVATIONS:
        return _activation(case, logits)
    compute = {
        "CrossEntropy": oracle.cross_entropy,
        "FocalLoss": oracle.focal,
        "BinaryCrossEntropy": oracle.binary_cross_entropy,
        "BinaryFocalLoss": oracle.binary_focal,
    }[case.function]
    target = call.copy_of("target")
    if target.dtype == np.float64 and logits.dtype == np.float32:
        # Targets are rounded to the dtype of the arithmetic, as in the reference: 1 - t is that of the rounded t.
        target = target.astype(np.float32)
    e = compute(call.options, logits, target, call.copy_of("weight"))
    results = [("value", e.value, e.value_bound), ("grad", e.grad, e.grad_bound), ("hess", e.hess, e.hess_bound)]
    return results[: case.n_derivatives + 1]


def _activation(case: Case, x: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    name, wide, unit, slack = case.function, oracle.widened(x), eps(x.dtype), subnormal_slack(x.dtype)
    e = getattr(reference, name)(wide, **({"axis": case.axis} if case.has_classes else {}))
    far = LARGEST_GAP[x.dtype]
    if not case.has_classes:
        distance = np.minimum(np.abs(wide), far)
        return [(name, e, (BASE + distance) * unit * np.abs(e) + slack)]
    if x.size == 0:
        return [(name, e, np.zeros(e.shape))]
    largest = wide.max(axis=case.axis, keepdims=True)
    distance = np.minimum(np.where(wide == largest, 0, largest - wide), far)
    gap = np.sort(distance, axis=case.axis).take([min(1, x.shape[case.axis] - 1)], axis=case.axis)
    if name == "softmax":
        return [(name, e, (BASE + distance) * unit * e + slack)]
    if name == "log_softmax":
        return [(name, e, (BASE + gap) * unit * np.abs(e) + slack)]
    terms = np.abs(largest.squeeze(case.axis)) + np.abs(e - largest.squeeze(case.axis))
    return [(name, e, OPTIONS * unit * terms + slack)]


def _numbers(a: np.ndarray) -> np.ndarray:
    """In a dtype that NumPy compares."""
    return a.astype(np.float32) if a.dtype.kind == "V" else a


@np.errstate(all="ignore")
def problem_of(actual: Any, expected: np.ndarray, bound: np.ndarray) -> str:
    """What is wrong with an array, or nothing. Rounding is monotone, so the ends of what is allowed are rounded too."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, expected {expected.shape}"
    dtype = actual.dtype.newbyteorder("=")
    # A bound that is NaN or infinite belongs to a result that is exactly what is expected.
    bound = np.nan_to_num(np.broadcast_to(bound, expected.shape), nan=0.0, posinf=0.0)
    low, high = (_numbers(np.asarray(end).astype(dtype)) for end in (expected - bound, expected + bound))
    a = _numbers(actual.astype(dtype))
    wrong = ~(((low <= a) & (a <= high)) | (np.isnan(a) & np.isnan(expected)))
    if not wrong.any():
        return ""
    i = tuple(int(k) for k in np.argwhere(wrong)[0])
    return f"{np.count_nonzero(wrong)} of {wrong.size} wrong, first at {i}: {a[i]!r} not in [{low[i]!r}, {high[i]!r}]"


# --- running ----------------------------------------------------------------------------------------------------------


def problems(case: Case) -> Iterator[str]:
    """Everything that is wrong with what the library makes of a case, at every level."""
    call = made(case)
    faulty = is_faulty(call)
    expected = None if faulty else expected_of(call)
    before = _config.level()
    _STREAM_BYTES.value = 1 if case.stream else 2**62
    fx.set_num_threads(case.threads)
    try:
        for level in case.levels or _config.usable_levels():
            _config.use_level(level)
            for problem in _problems_of_call(call, expected):
                yield f"{level}: {problem}"
    finally:
        _config.use_level(before)
        _STREAM_BYTES.value = _STREAM_BYTES_BEFORE
        fx.set_num_threads(-1)


def _problems_of_call(call: Call, expected: list[tuple[str, np.ndarray, np.ndarray]] | None) -> Iterator[str]:
    case, arrays = call.case, call.arrays
    view = {name: array.view for name, array in arrays.items()}
    if case.outputs == "in place" and case.n_derivatives and case.function not in ACTIVATIONS:
        view["grad"] = view["logits"]
    raised = None
    try:
        results = _results(call, view)
    except ValueError as error:
        raised = error
    if raised or expected is None:
        if raised is None:
            yield "bad values were accepted"
        elif expected is not None:
            yield f"raised {raised}"
        elif "must" not in str(raised):
            yield f"unclear message: {raised}"
        for name, array in arrays.items():
            if not array.untouched():
                yield f"{name} was changed although the call failed"
                array.put_back()
        return
    for name, result in zip(("value", "grad", "hess"), results, strict=False):
        if name in view and result is not view[name]:
            yield f"{name} is not the array that was given"
    for result, (what, e, bound) in zip(results, expected, strict=True):
        if problem := problem_of(result, e, bound):
            yield f"{what}: {problem}"
    for name, array in arrays.items():
        is_output = name in ("grad", "hess") or view.get("grad") is array.view
        if not (array.put_back() if is_output else array.untouched()):
            yield f"{name}: bytes were changed {'around it' if is_output else 'although it is an input'}"
            array.buffer[...] = array.before


def _results(call: Call, view: dict[str, np.ndarray]) -> tuple[Any, ...]:
    case = call.case
    if case.function in ACTIVATIONS:
        out = {"out": view["grad"]} if "grad" in view else {}
        result = call.loss(view["logits"], **call.options, **out)
        if out and result is not view["grad"]:
            raise AssertionError("the result is not the array that was given")
        return (result,)
    arguments = (view["logits"], view["target"], view.get("weight"))
    if case.n_derivatives == 0:
        return (call.loss(*arguments),)
    if case.n_derivatives == 1:
        return call.loss.value_and_grad(*arguments, grad_out=view.get("grad"))
    return call.loss.value_grad_hess(*arguments, grad_out=view.get("grad"), hess_out=view.get("hess"))


def first_problem(case: Case) -> str:
    """The first thing that is wrong, or nothing; whatever is raised is wrong too."""
    try:
        return next(problems(case), "")
    except Exception as error:  # noqa: BLE001 - a crash of a case is a finding, not the end of the run
        return f"{type(error).__name__}: {error}"


# --- simpler cases ----------------------------------------------------------------------------------------------------


def simplest(case: Case, fails: Callable[[Case], Any] = first_problem) -> Case:
    """A case that still fails, none of whose fields can be made simpler alone."""
    attempts = 0
    changed = True
    while changed and attempts < 400:
        changed = False
        for simpler in _simpler(case):
            attempts += 1
            if simpler != case and fails(simpler):
                case, changed = simpler, True
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    replace = dataclasses.replace
    yield from (replace(case, levels=(level,)) for level in _config.usable_levels() if len(case.levels) != 1)
    for name, value in {
        "weight": "",
        "threads": 1,
        "stream": False,
        "outputs": "new",
        "logits": "normal",
        "fault": "",
    }.items():
        yield replace(case, **{name: value})
    yield replace(case, target="int64", layouts={k: v for k, v in case.layouts.items() if k != "target"})
    for name in case.layouts:
        yield replace(case, layouts={k: v for k, v in case.layouts.items() if k != name})
    for name, layout in case.layouts.items():
        for change in ({"gaps": (0,) * len(layout.gaps)}, {"reversed": ()}, {"broadcast": ()}, {"offset": 0}):
            yield replace(case, layouts=case.layouts | {name: replace(layout, **change)})
    for name in case.options:
        yield replace(case, options={k: v for k, v in case.options.items() if k != name})
    if case.n_derivatives:
        yield replace(case, n_derivatives=case.n_derivatives - 1)
    for d, n in enumerate(case.shape):
        for smaller in (n // 2, n - 1):
            if 0 < smaller < n:
                yield replace(case, shape=(*case.shape[:d], smaller, *case.shape[d + 1 :]))


def report(case: Case) -> str:
    """A case that fails, made as simple as it gets, in one line that can be run."""
    small = simplest(case)
    return (
        f"seed {case.seed}: {first_problem(case)}\n  simplest: {first_problem(small)}\n"
        f'  PYTHONPATH=tests python -c "from fuzzing import *; print(first_problem({small!r}))"'
    )
