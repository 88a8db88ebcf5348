"""Losses and activations on CuPy arrays, through kernels that nobody waits for.

a) All calls are made on the device of the arrays and on its current stream; values are arrays of no dimension.
b) What is wrong in targets and weights is recorded by the kernels, and raised by a later call or by ``check``. For its
   text a call leaves behind a few numbers, never its arrays.
c) A call that is captured in a graph writes to the same memory whenever that is launched, and nobody tells when it will
   not be any more. So all memory that such a call takes is kept for good.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent._run import Run
from fastxent.gpu import engine

Array = npt.NDArray[Any]
Result = TypeVar("Result")

# Wait in each call and raise what is wrong there.
CHECK = os.environ.get("FASTXENT_GPU_CHECK", "0") not in ("", "0")
LATE = " (in an earlier call on the GPU; FASTXENT_GPU_CHECK=1 raises in the call itself)"
# Calls whose errors can be put into words, and devices and streams for which the arrays of a loss's options are kept.
MOST_CALLS, MOST_KEPT = 4096, 8
VECTOR = 16
_ARGUMENTS = ("target", "sample_weight")


class _Place(NamedTuple):
    """Where an array lies."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def address_of(self, flat: int) -> int:
        """The address of an element, counted in C order."""
        index = np.unravel_index(flat, self.shape)
        return self.address + sum(int(i) * stride for i, stride in zip(index, self.strides, strict=True))

    def index_of(self, address: int, n_axes: int) -> tuple[int, ...]:
        """The index of the element at an address along the first axes; 0 along an axis of stride 0."""
        backwards = [n - 1 if stride < 0 else 0 for n, stride in zip(self.shape, self.strides, strict=True)]
        rest = address - self.address - sum(n * stride for n, stride in zip(backwards, self.strides, strict=True))
        index = [0] * len(self.shape)
        for d in sorted(range(len(index)), key=lambda d: -abs(self.strides[d])):
            if self.strides[d]:
                steps = min(rest // abs(self.strides[d]), self.shape[d] - 1)
                rest -= steps * abs(self.strides[d])
                index[d] = abs(backwards[d] - steps)
        return tuple(index[:n_axes])


def _place(array: Any) -> _Place | None:
    return None if array is None else _Place(array.data.ptr, array.shape, array.strides)


def _dtype(given: Any) -> np.dtype[Any]:
    """The dtype of an array or a number."""
    return given.dtype if hasattr(given, "dtype") else np.dtype(int if isinstance(given, int) else float)


class _Job(engine.Job):
    """A job that remembers where the arrays lie whose values may be wrong."""

    def __init__(self, task: str, logits: Array, **arguments: Any):
        super().__init__(task, logits, **arguments)
        self.places = _place(arguments.get("target")), _place(arguments.get("sample_weight"))


class _Call(NamedTuple):
    """What it takes to put a flaw of a job into words; places are those of target and sample weights."""

    blamed: str
    expected: _check.Expected
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]
    n_axes: tuple[int, int]
    whole: tuple[_Place | None, _Place | None]
    of_jobs: list[tuple[_Place | None, _Place | None]]

    def fail(self, number: int, flaw: Any) -> NoReturn:
        """Raise what is wrong with job ``number`` of the call, as the CPU does, and say that it is late."""
        which = int(flaw.kind == engine.BAD_WEIGHT)
        whole, of_job = self.whole[which], self.of_jobs[number][which]
        assert whole is not None
        assert of_job is not None
        index = whole.index_of(of_job.address_of(flaw.position), self.n_axes[which])
        dtype, value, (k, ignore_index, scores) = self.dtypes[which], flaw.value, self.expected
        rule = _check.SAMPLE_WEIGHT_RULE if which else _check.target_rule(dtype, k, ignore_index)
        if dtype.kind in "bui":  # integer weights became float64 on their way, labels int64
            value = int(value) % 2**64 if dtype.kind == "u" else int(value)
        elif not which and k is not None and 0 <= value < np.inf:
            rule = _check.finite_in(scores)
        where = index[0] if len(index) == 1 else index
        _check.fail(ValueError, _ARGUMENTS[which], rule, value, where, LATE)


class GpuRun(Run):
    """Values are arrays of no dimension; what is wrong in targets and weights is raised late."""

    job = _Job

    def __init__(self) -> None:
        self._calls: OrderedDict[int, _Call] = OrderedDict()  # by the number of their first job
        self._lock = threading.Lock()
        self._kept: list[Any] = []  # what graphs refer to

    @property
    def xp(self) -> Any:
        """CuPy, which somebody has imported: there are arrays of it."""
        return sys.modules["cupy"]

    def on(self, device: Any, compute: Callable[[Run], Result]) -> Result:
        """Return ``compute`` of this side on a device, after raising what was wrong before."""
        with device:
            if not self._is_capturing():
                self._raise_late()
                return compute(self)
            allocate = self.xp.cuda.get_allocator()

            def allocate_for_good(size: int) -> Any:
                memory = allocate(size)
                self._kept.append(memory)
                return memory

            with self.xp.cuda.using_allocator(allocate_for_good):
                return compute(self)

    def _is_capturing(self) -> bool:
        """Whether the current stream records what it is given; the default stream cannot, and must not be asked."""
        stream = self.xp.cuda.get_current_stream()
        return stream.ptr > 1 and bool(stream.is_capturing())

    def check(self) -> None:
        """Wait, and raise what was wrong in the calls up to here."""
        self.xp.cuda.Device().synchronize()
        self._raise_late()

    def _raise_late(self) -> None:
        flaw = engine.flaws()
        if flaw is None:
            return
        with self._lock:
            first = max((number for number in self._calls if number <= flaw.call), default=0)
            call = self._calls.get(first)
        if call is not None and flaw.call - first >= len(call.of_jobs):
            call = None
        if flaw.kind == engine.BAD_DIVISOR:
            blamed = call.blamed if call else "sample_weight"
            _check.fail(ValueError, blamed, _check.FINITE_SUM, flaw.value, note=LATE)
        if call is None:  # so many calls ago that it has been forgotten
            _check.fail(ValueError, _ARGUMENTS[flaw.kind == engine.BAD_WEIGHT], "be valid", flaw.value, note=LATE)
        call.fail(flaw.call - first, flaw)

    def evaluate(
        self,
        jobs: list[Any],
        *,
        reduction: str,
        loss: Array | None,
        outputs: tuple[Array | None, ...],
        target: Any,
        sample_weight: Array | None,
        given_weight: Any,
        expected: _check.Expected,
        blamed: str,
    ) -> Any:
        """Have the kernels look at targets and weights while they compute."""
        n_axes = target.ndim, getattr(given_weight, "ndim", 0)
        whole = _place(target), _place(sample_weight)
        call = _Call(
            blamed, expected, (target.dtype, _dtype(given_weight)), n_axes, whole, [job.places for job in jobs]
        )
        with self._lock:
            first = engine.numbers(len(jobs))
            self._calls[first] = call
            if len(self._calls) > MOST_CALLS:
                self._calls.popitem(last=False)
        value = engine.evaluate(jobs, reduction=reduction, first=first)
        if CHECK and not self._is_capturing():
            self.xp.cuda.get_current_stream().synchronize()
            flaw = engine.flaws()
            if flaw is not None:
                if flaw.kind == engine.BAD_DIVISOR:
                    _check.fail(ValueError, blamed, _check.FINITE_SUM, flaw.value)
                if flaw.kind == engine.BAD_WEIGHT:
                    _check.explain_sample_weight(_check.on_host(given_weight))
                _check.explain_target(target.get(), *expected)
        return value if loss is None else loss

    def activate(self, job: Any) -> None:
        """Compute a job that is no loss."""
        engine.evaluate([job], reduction="none")

    def zero(self) -> Array:
        """Return the value of nothing."""
        value: Array = self.xp.zeros((), np.float64)
        return value

    def empty_like(self, array: Array) -> Array:
        """Return a new array of the same shape, dtype and memory order.

        It lies as far from a multiple of 16 bytes: only between arrays that lie alike whole vectors can be written.
        """
        phase = array.data.ptr % VECTOR  # type: ignore[attr-defined]
        if phase and array.flags.c_contiguous:
            memory = self.xp.empty(phase + array.nbytes, np.uint8)
            new: Array = memory[phase:].view(array.dtype).reshape(array.shape)
        else:
            new = self.xp.empty_like(array)
        return new

    def writable(self, argument: str, out: Array) -> Array:
        """Return the array itself, as the GPU writes what is aligned and nothing else."""
        return _check.native(argument, out)

    def option(self, loss: Any, key: Hashable, make: Callable[[], Array]) -> Array:
        """Return the array of an option on the device: copied there once, by each stream, so that nobody waits."""
        kept: dict[Hashable, Array] = loss.__dict__.setdefault("_on_gpu", {})
        cuda = self.xp.cuda
        # One handle may stand for the default streams of several threads.
        place = (key, cuda.Device().id, cuda.get_current_stream().ptr, threading.get_ident())
        array, captures = kept.get(place), self._is_capturing()
        if captures:
            if array is None:
                rule = "be called once on this stream before calls are captured"
                _check.fail(RuntimeError, "loss", rule, f"{type(loss).__name__} whose weights are not on the GPU yet")
            self._kept.append(array)
        if array is None:
            if len(kept) >= MOST_KEPT:
                kept.clear()
            array = kept[place] = self.xp.asarray(make())
        return array

    def balanced(
        self, target: Any, n_classes: int, axis: int, ignore_index: int | None, *, survey: bool = False
    ) -> Array:
        """Return balanced class weights in float64, ignored rows left out; it waits only with ``survey``."""
        cupy = self.xp
        if _check.is_floating(target.dtype):
            good = cupy.isfinite(target) & (target >= 0)
            rows = cupy.moveaxis(target, axis, -1).reshape(-1, n_classes).astype(np.float64)
            if ignore_index is not None and 0 <= ignore_index < n_classes:
                on_it, n_used = rows[:, ignore_index] != 0, (rows != 0).sum(axis=1)
                rows = cupy.where((on_it & (n_used == 1))[:, None], 0.0, rows)
            masses = rows.sum(axis=0)
        else:
            labels = target.astype(np.int64).reshape(-1)
            good = (labels >= 0) & (labels < n_classes)
            counted = good if ignore_index is None else good & (labels != ignore_index)
            # What does not count goes to one class more. Whole numbers: the same sums in any order.
            counts = cupy.zeros(n_classes + 1, np.uint64)
            counts.scatter_add(cupy.where(counted, labels, n_classes), 1)
            masses = counts[:n_classes].astype(np.float64)
        if survey and not good.all():
            _check.explain_target(target.get(), n_classes, ignore_index, target.dtype)
        weights: Array = cupy.where(masses > 0, masses.sum() / (n_classes * cupy.maximum(masses, 1e-300)), 0.0)
        return weights


run: GpuRun = GpuRun()
