"""Every check and every error message: ``<argument> must <rule>; got <value>[ at index <i>]``.

The first half checks options, when a loss is made; the second half arrays, when it is called, before anything is
written. Values inside large arrays (targets, weights) are surveyed by the engine, in parallel; what it finds is put
into words here. ``xp`` is the namespace of the arrays of a call, NumPy or CuPy; of the latter nothing but address, shape,
strides and dtype is looked at here, for their elements the CPU would have to wait.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastxent import _dispatch

Array = npt.NDArray[Any]

REDUCTIONS = ("none", "sum", "mean")
INPUTS = ("logits", "log_probs", "probs")
BINARY_INPUTS = ("logits", "probs")
# Overlaps of strided arrays are an integer programming problem; beyond this much work they count as overlapping.
OVERLAP_WORK: Any = 10_000
# What targets must be: in [0, n_classes) or probabilities; in [0, 1], of binary losses, where that is None; or equal to
# ignore_index. The dtype of the logits says where they must be finite.
Expected = tuple[int | None, int | None, np.dtype[Any]]
LARGEST = float(np.finfo(np.float64).max)


def fail(
    error: type[Exception],
    argument: str,
    rule: str,
    got: object,
    index: int | tuple[int, ...] | None = None,
    note: str = "",
) -> NoReturn:
    """Raise ``error`` in the grammar of this library."""
    where = "" if index is None or index == () else f" at index {index}"
    raise error(f"{argument} must {rule}; got {got}{where}{note}")


def plain(value: Any) -> Any:
    """A NumPy scalar as the Python number it is, for messages."""
    return value.item() if isinstance(value, np.generic) else value


def index_of(flat: int, shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """Position ``flat`` of an array as its user would write it."""
    position = tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()
    return position[0] if len(position) == 1 else position


def joined(choices: tuple[str, ...]) -> str:
    """'a', 'b', 'c'."""
    return ", ".join(repr(choice) for choice in choices)


# ---- options ----


def option_among(argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """A string out of a fixed set."""
    if not isinstance(value, str):
        fail(TypeError, argument, f"be one of {joined(choices)}", repr(value))
    if value not in choices:
        fail(ValueError, argument, f"be one of {joined(choices)}", repr(value))
    return value


def option_integer(argument: str, value: Any, *, or_none: bool = False) -> int | None:
    """An integer, or None where that is allowed."""
    if value is None and or_none:
        return None
    rule = "be an integer or None" if or_none else "be an integer"
    if isinstance(value, bool | np.bool_):
        fail(TypeError, argument, rule, value)
    try:
        return operator.index(value)
    except TypeError:
        fail(TypeError, argument, rule, repr(value) if isinstance(value, str) else value)


def option_ignore_index(value: Any) -> int | None:
    """None or an integer that a label can be."""
    number = option_integer("ignore_index", value, or_none=True)
    # 2**63 - 1 is kept free: labels beyond the range of int64 are read as that.
    if number is not None and not -(2**63) <= number < 2**63 - 1:
        fail(ValueError, "ignore_index", "be in [-2**63, 2**63 - 1)", number)
    return number


def option_fraction(argument: str, value: Any) -> float:
    """A real number in [0, 1]."""
    number = _option_real(argument, value)
    if not 0 <= number <= 1:
        fail(ValueError, argument, "be in [0, 1]", number)
    return float(number)


def _option_real(argument: str, value: Any) -> Any:
    real = isinstance(value, numbers.Real) or (isinstance(value, np.generic) and is_floating(value.dtype))
    if isinstance(value, bool | np.bool_) or not real:
        fail(TypeError, argument, "be a real number", repr(value))
    return plain(value)


def option_gamma(value: Any) -> float:
    """The focusing parameter: a finite real number >= 0."""
    return option_nonnegative("gamma", value)


def option_nonnegative(argument: str, value: Any) -> float:
    """A finite real number >= 0."""
    number = _option_real(argument, value)
    if not 0 <= number <= LARGEST:
        fail(ValueError, argument, "be finite and >= 0", number)
    return float(number)


def option_alpha(value: Any) -> float | None:
    """None or a real number in [0, 1]."""
    return None if value is None else option_fraction("alpha", value)


def option_pos_weight(value: Any) -> float | tuple[float, ...] | None:
    """None, a number, or a 1-D array of one weight per label, made immutable."""
    rule = "be None, a number or a 1-D array"
    if value is None:
        return None
    try:
        weights = on_host(value)
    except (TypeError, ValueError):
        fail(TypeError, "pos_weight", rule, repr(value))
    if is_floating(weights.dtype):
        weights = weights.astype(np.float64)
    elif weights.dtype.kind not in "ui" and weights.size:
        fail(TypeError, "pos_weight", rule, _described(value, weights))
    if weights.ndim == 0:
        return _weight("pos_weight", weights.item())
    if weights.ndim != 1:
        fail(ValueError, "pos_weight", rule, f"shape {weights.shape}")
    return tuple(_weight("pos_weight", w, i) for i, w in enumerate(weights.tolist()))


def option_class_weight(value: Any) -> str | Mapping[int, float] | tuple[float, ...] | None:
    """None, 'balanced', a mapping {class: weight} or a 1-D array, made immutable."""
    rule = "be None, 'balanced', a dict or a 1-D array"
    if value is None:
        return None
    if isinstance(value, str):
        if value != "balanced":
            fail(ValueError, "class_weight", rule, repr(value))
        return value
    if isinstance(value, Mapping):
        return MappingProxyType({_class_key(k): _weight("class_weight", w, _class_key(k)) for k, w in value.items()})
    try:
        weights = on_host(value)
    except (TypeError, ValueError):
        fail(TypeError, "class_weight", rule, repr(value))
    if weights.ndim != 1 or (weights.dtype.kind not in "buif" and weights.size):
        if weights.ndim == 0 or weights.dtype.kind not in "buif":
            fail(TypeError, "class_weight", rule, _described(value, weights))
        fail(ValueError, "class_weight", rule, f"shape {weights.shape}")
    return tuple(_weight("class_weight", w, i) for i, w in enumerate(weights.tolist()))


def on_host(value: Any) -> Array:
    """An array of the CPU; CuPy arrays are copied, as those of options are, once."""
    return np.asarray(value.get() if _dispatch.is_cupy(value) else value)


def _described(value: Any, array: Array) -> str:
    return repr(value) if array.ndim == 0 else f"{array.dtype} of shape {array.shape}"


def _class_key(key: Any) -> int:
    try:
        return operator.index(key)
    except TypeError:
        fail(TypeError, "class_weight", "have integer keys", repr(key))


def _weight(argument: str, value: Any, index: int | None = None) -> float:
    if not isinstance(value, numbers.Real | np.number | np.bool_):
        fail(TypeError, argument, "be real numbers", repr(value), index)
    number = plain(value)
    if not 0 <= number <= LARGEST:
        fail(ValueError, argument, "be finite and >= 0", number, index)
    return float(number)


# ---- arrays ----


def native(argument: str, array: Any) -> Array:
    """The array in the machine's byte order and aligned; a copy only where it is not. The GPU can make none."""
    if not isinstance(array, np.ndarray):
        place = array.data.ptr
        for stride in array.strides:
            place |= stride
        if place % array.itemsize or not array.dtype.isnative:
            got = f"{array.dtype} at address {array.data.ptr}"
            fail(ValueError, argument, "be aligned and in native byte order on the GPU", got)
    elif not (array.dtype.isnative and array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="), order="K")
    native_array: Array = array
    return native_array


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of NumPy's floating ones or ml_dtypes.bfloat16 (which need not be installed)."""
    if dtype.kind == "V":
        return dtype.itemsize == 2 and dtype.name == "bfloat16"
    return dtype.kind == "f" and dtype.itemsize > 1  # others add types of one byte


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What is computed in: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def logits(argument: str, values: Any, *, least_ndim: int = 1, xp: Any = np) -> Array:
    """An array of a half, single or double floating type; lists, integers and booleans become float64."""
    array: Array = values if type(values) is xp.ndarray else xp.asarray(values)
    if array.dtype.kind in "bui":
        array = array.astype(np.float64)
    elif not is_floating(array.dtype) or array.dtype.itemsize > 8:
        rule = "be float16, bfloat16, float32 or float64, or integers, booleans or lists of numbers"
        fail(TypeError, argument, rule, array.dtype)
    if array.ndim < least_ndim:
        fail(ValueError, argument, f"have at least {least_ndim} dimension", array.ndim)
    return array


def axis_of(axis: int, ndim: int) -> int:
    """The axis counted from the front."""
    if not -ndim <= axis < ndim:
        fail(ValueError, "axis", f"be in [{-ndim}, {ndim})", axis)
    return axis % ndim


def n_classes(array: Array, axis: int) -> int:
    """The length of the class axis, at least 1."""
    if array.shape[axis] == 0:
        fail(ValueError, "logits", "have at least 1 class", f"shape {array.shape}")
    return int(array.shape[axis])


def target(values: Any, logits_shape: tuple[int, ...], axis: int, xp: Any = np) -> Array:
    """Class indices of the shape of the logits less the class axis, or probabilities of the shape of the logits."""
    array: Array = values if type(values) is xp.ndarray else xp.asarray(values)
    row_shape = logits_shape[:axis] + logits_shape[axis + 1 :]
    kind = array.dtype.kind
    if array.size == 0 and isinstance(values, list) and array.shape == row_shape:
        array = array.astype(np.int64)  # an empty list says nothing about its dtype
    elif kind in "bui" and array.shape == row_shape:
        pass
    elif is_floating(array.dtype) and array.shape == logits_shape:
        array = _at_most_double(array)
    else:
        floating = is_floating(array.dtype)
        wrong_type = not (kind in "bui" or floating) or (floating and array.shape == row_shape)
        rule = f"be integer class indices of shape {row_shape} or probabilities of shape {logits_shape}"
        fail(TypeError if wrong_type else ValueError, "target", rule, f"{array.dtype} of shape {array.shape}")
    return native("target", array)


def _at_most_double(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.itemsize > 8 else array


def binary_target(values: Any, shape: tuple[int, ...], xp: Any = np) -> Array:
    """Numbers of the shape of the logits; that they are in [0, 1] is for the engine to see."""
    array: Array = values if type(values) is xp.ndarray else xp.asarray(values)
    if array.dtype.kind not in "bui" and not is_floating(array.dtype):
        fail(TypeError, "target", "be integers, booleans or floats", f"{array.dtype} of shape {array.shape}")
    if array.shape != shape:
        fail(ValueError, "target", f"have shape {shape}", f"shape {array.shape}")
    return native("target", _at_most_double(array))


def pos_weight(weights: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The option, a number or a tuple of one per label, as an array that can be broadcast to the shape of the logits."""
    exact = np.asarray(weights, np.float64)
    if exact.ndim and exact.shape != shape[-1:]:
        fail(ValueError, "pos_weight", f"have shape {shape[-1:]}", f"shape {exact.shape}")
    return narrowed("pos_weight", exact, dtype)


def narrowed(argument: str, exact: Array, dtype: np.dtype[Any]) -> Array:
    """Finite weights in the dtype of the arithmetic, where they must be finite too."""
    with np.errstate(over="ignore"):
        array = exact.astype(dtype)
    if np.isinf(array).any():
        flat = int(np.argmax(array))
        index = index_of(flat, array.shape) if array.ndim else None
        fail(ValueError, argument, f"be finite in {dtype}", float(exact.reshape(-1)[flat]), index)
    return array


def sample_weight(values: Any, row_shape: tuple[int, ...], xp: Any = np) -> Array | None:
    """One weight per sample or per row, as an array of the shape of the rows (broadcast, not copied)."""
    if values is None:
        return None
    array: Array = values if type(values) is xp.ndarray else xp.asarray(values)
    if array.dtype.kind not in "bui" and not is_floating(array.dtype):
        fail(TypeError, "sample_weight", "be real numbers", array.dtype)
    per_sample = row_shape[:1]
    if array.shape not in (per_sample, row_shape):
        shapes = f"{per_sample} or {row_shape}" if len(row_shape) > 1 else f"{row_shape}"
        fail(ValueError, "sample_weight", f"have shape {shapes}", f"shape {array.shape}")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float64)
    array = native("sample_weight", array)
    if array.shape != row_shape:
        array = xp.broadcast_to(array.reshape(per_sample + (1,) * (len(row_shape) - 1)), row_shape)
    return array


def class_weight(weights: Any, k: int, dtype: np.dtype[Any]) -> Array:
    """The option as an array of one weight per class; ``weights`` is a tuple or a mapping, see option_class_weight."""
    if isinstance(weights, Mapping):
        for key in weights:
            if not 0 <= key < k:
                fail(ValueError, "class_weight", f"have keys in [0, {k})", key)
        exact = np.ones(k)
        for key, weight in weights.items():
            exact[key] = weight
    else:
        if len(weights) != k:
            fail(ValueError, "class_weight", f"have shape ({k},)", f"shape ({len(weights)},)")
        exact = np.asarray(weights, np.float64)
    return narrowed("class_weight", exact, dtype)


def output(argument: str, values: Any, shape: tuple[int, ...], dtype: np.dtype[Any], xp: Any = np) -> Array:
    """A writable array of this shape and dtype that does not overlap itself."""
    if not isinstance(values, xp.ndarray):
        fail(TypeError, argument, f"be a {'NumPy' if xp is np else 'CuPy'} array", type(values).__name__)
    if values.dtype != dtype and values.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        fail(TypeError, argument, f"have dtype {dtype}", values.dtype)
    if values.shape != shape:
        fail(ValueError, argument, f"have shape {shape}", values.shape)
    if not getattr(values.flags, "writeable", True):  # CuPy knows no read-only arrays
        fail(ValueError, argument, "be writable", "a read-only array")
    if overlaps_itself(values):
        fail(ValueError, argument, "not overlap itself", f"strides {values.strides}")
    array: Array = values
    return array


def overlaps_itself(array: Array) -> bool:
    """Whether two elements of one array share memory, as in broadcast or sliding views."""
    if array.flags.c_contiguous or array.flags.f_contiguous:
        return False
    reach = array.itemsize
    steps = sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for stride, length in steps:
        if stride < reach:
            break
        reach += stride * (length - 1)
    else:
        return False
    # The steps are not nested; such an array may yet be free of overlap. Small ones are looked at element by element.
    if array.size > OVERLAP_WORK or any(stride < array.itemsize for stride, _ in steps):
        return bool(array.size)
    places = sum(np.ogrid[tuple(slice(n) for n in array.shape)][d] * s for d, s in enumerate(array.strides))
    gaps = np.diff(np.sort(np.asarray(places).reshape(-1)))
    return bool((gaps < array.itemsize).any())


def _shadow(array: Any) -> Array:
    """Bytes in the place of an array of the GPU, whose values must not be looked at; arrays of the CPU as they are."""
    if isinstance(array, np.ndarray):
        return array
    place = {"data": (array.data.ptr, False), "shape": array.shape, "strides": array.strides}
    return np.asarray(SimpleNamespace(__array_interface__=place | {"typestr": f"|V{array.itemsize}", "version": 3}))


def overlap(a: Any, b: Any) -> bool:
    """Whether two arrays share memory (or it would take too long to find out)."""
    if a is b:
        return bool(a.size > 0)
    if not isinstance(a, np.ndarray):
        if a.flags.c_contiguous and b.flags.c_contiguous:
            first, second = a.data.ptr, b.data.ptr
            return bool(a.size and b.size and first < second + b.nbytes and second < first + a.nbytes)
        a, b = _shadow(a), _shadow(b)
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def same_memory(a: Array, b: Array) -> bool:
    """Whether element for element the two are one."""
    a, b = _shadow(a), _shadow(b)
    place_a, place_b = a.__array_interface__["data"][0], b.__array_interface__["data"][0]
    steps = zip(a.strides, b.strides, a.shape, strict=False)
    return bool(
        place_a == place_b
        and a.shape == b.shape
        and a.dtype == b.dtype
        and all(step_a == step_b or length == 1 for step_a, step_b, length in steps)
    )


def may_be_written(argument: str, out: Array, source: str, inputs: Array) -> None:
    """An output may be the array it is computed from, but not a part of it."""
    if out is not inputs and overlap(out, inputs) and not same_memory(out, inputs):
        fail(ValueError, argument, f"be {source} itself or not overlap it", "a partial overlap")


def apart(argument: str, out: Array, **others: Any) -> None:
    """An output must not overlap any of these."""
    for name, other in others.items():
        if other is not None and overlap(out, other):
            fail(ValueError, argument, f"not overlap {name}", "an overlap")


# ---- what the engine's survey found ----


def _as_doubles(array: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float64)


SAMPLE_WEIGHT_RULE = "be finite and >= 0"
FINITE_SUM = "have a finite sum"


def target_rule(dtype: np.dtype[Any], k: int | None, ignore_index: int | None) -> str:
    """What targets of this dtype must be, see ``Expected``."""
    if k is not None and is_floating(dtype):
        return "be finite and >= 0"
    rule = "be in [0, 1]" if k is None else f"be in [0, {k})"
    return rule if ignore_index is None else f"{rule} or equal to ignore_index"


def finite_in(dtype: np.dtype[Any]) -> str:
    """What probabilities must be, too, with logits of this dtype."""
    return f"be finite in {arithmetic(dtype)}"


def explain_sample_weight(weights: Any) -> NoReturn:
    """The first sample weight that is negative or not finite."""
    array = np.asarray(weights)
    wide = _as_doubles(array)
    flat = int(np.argmin(np.isfinite(wide) & (wide >= 0)))
    value = plain(array.reshape(-1)[flat])
    fail(ValueError, "sample_weight", SAMPLE_WEIGHT_RULE, value, index_of(flat, array.shape))


def explain_target(targets: Array, k: int | None, ignore_index: int | None, dtype: np.dtype[Any]) -> NoReturn:
    """The first target that is out of range, or is not finite."""
    rule = target_rule(targets.dtype, k, ignore_index)
    wide = _as_doubles(targets) if is_floating(targets.dtype) else targets
    if k is not None and wide is not targets:
        good = np.isfinite(wide) & (wide >= 0)
        if good.all():
            with np.errstate(over="ignore"):
                good, rule = np.isfinite(targets.astype(arithmetic(dtype))), finite_in(dtype)
    else:
        good = (wide >= 0) & (wide <= 1 if k is None else wide < k)
        if ignore_index is not None:
            good |= wide == ignore_index
    _fail_at_first_bad(targets, good, rule)


def _fail_at_first_bad(targets: Array, good: Any, rule: str) -> NoReturn:
    if good.all():
        raise ValueError(
            "target must not be changed by another thread during the call; got a value that was bad for a moment"
        )
    flat = int(np.argmin(good))
    fail(ValueError, "target", rule, plain(targets.reshape(-1)[flat]), index_of(flat, targets.shape))
