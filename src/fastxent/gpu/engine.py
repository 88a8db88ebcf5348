"""The GPU engine: binds CuPy arrays to jobs, has their kernels compiled, and launches them on the current stream.

Design
a) Like the CPU's it neither checks nor computes. Nothing here waits for the GPU but the first call on a device, once, and
   ``flaws`` where there is one.
b) A job goes to its kernel by value, as one structure (``Job`` of ``numbers.cuh``). So arrays may be given back to
   CuPy's pool as soon as the launch is queued: the pool hands memory on in the order of the stream.
c) Modules are compiled when first wanted, and kept for every variant and device; CuPy keeps their machine code on disk.
d) A flaw is the call's number, its kind and its position, in memory of the device; a word of the host's own memory
   tells, at no cost, whether there is one.
e) Clusters of blocks are tried once on a device; where one cannot be launched, plans do without from then on.
f) Several Python threads: one at a time takes numbers, launches, or reads what is wrong.
"""

from __future__ import annotations

import sys
import threading
from importlib.resources import files
from itertools import chain
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastxent.gpu import plan as planning
from fastxent.gpu.plan import FLOAT16, FLOAT64, ITEM_SIZES, TASKS, TYPES, Plan

BAD_WEIGHT, BAD_TARGET, BAD_DIVISOR = range(3)
CALL_BITS, KIND_BITS, POSITION_BITS = 22, 2, 40
# Without contraction all variants of a kernel round alike; formulas say where they multiply and add at once.
OPTIONS = ("-std=c++17", "-fmad=false")

_ARRAYS = ("logits", "target", "sample_weight", "pos_weight", "loss", "grad", "hess")
_ALL_ABSENT = ((0, 0, 0, 0),) * len(_ARRAYS)
_type_of_dtype: dict[np.dtype[Any], int] = {}


class Fields:
    """The struct Job of numbers.cuh: address and strides of each array, then the rest in its order."""

    _packed = Struct("28q 5q 4q 4d Q 8i")
    _by_value = np.dtype(f"V{_packed.size}")

    def __init__(self) -> None:
        self.arrays: dict[str, tuple[int, int, int, int]] = {}
        self.class_weight = self.divisor = self.partial = self.flaws = self.flagged = 0
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.ignore_index: int | None = None
        self.options: tuple[float, float, float] = (0.0, 0.0, -1.0)  # label_smoothing, gamma, alpha
        self.scale: float = 1.0
        self.call = self.target_type = self.sample_weight_type = 0
        # tile_rows, tiles_per_block, stage_bytes, stages, group
        self.geometry: tuple[int, int, int, int, int] = (1, 1, 0, 0, 1)

    def by_value(self) -> npt.NDArray[np.void]:
        """The bytes, as CuPy passes structures to kernels: an array of size one."""
        packed = self._packed.pack(
            *chain.from_iterable(map(self.arrays.get, _ARRAYS, _ALL_ABSENT)),
            *(self.class_weight, self.divisor, self.partial, self.flaws, self.flagged),
            *self.shape,
            self.ignore_index or 0,
            *self.options,
            self.scale,
            self.call,
            self.ignore_index is not None,
            *(self.target_type, self.sample_weight_type),
            *self.geometry,
        )
        return np.frombuffer(packed, self._by_value)


def type_of(dtype: np.dtype[Any]) -> int:
    """The number that the kernels know a type by; looking up its name takes longer than all else."""
    number = _type_of_dtype.get(dtype)
    if number is None:
        number = _type_of_dtype[dtype] = TYPES[dtype.name]
    return number


class Flaw(NamedTuple):
    """What is wrong first: number of the job's call, kind, flat position in the job's array, and the number there."""

    call: int
    kind: int
    position: int
    value: int | float


class _Device:
    """What is kept for a device."""

    def __init__(self, cupy: Any) -> None:
        self.capability = int(cupy.cuda.Device().compute_capability)
        if self.capability < planning.OLDEST:
            needed, got = (f"{c // 10}.{c % 10}" for c in (planning.OLDEST, self.capability))
            raise RuntimeError(f"device must have compute capability {needed} or later; got {got}")
        self.has_clusters: bool | None = None if self.capability >= planning.BULK_COPIES else False
        self.kernels: dict[tuple[str, tuple[tuple[str, int], ...]], Any] = {}
        self.flaws = cupy.zeros(4, np.uint64)
        # Another stream must find those zeros.
        cupy.cuda.get_current_stream().synchronize()
        self.pinned = cupy.cuda.alloc_pinned_memory(8)
        self.flagged = np.frombuffer(self.pinned, np.int32, 1)
        self.flagged[0] = 0
        self.addresses: tuple[int, int] = self.flaws.data.ptr, self.flagged.ctypes.data

    def launch(self, cupy: Any, plan: Plan, *arguments: Any) -> None:
        """Queue a kernel on the current stream."""
        key = plan.kernel, plan.defines
        kernel = self.kernels.get(key)
        if kernel is None:
            module = cupy.RawModule(code=source(plan), options=OPTIONS)
            kernel = module.get_function(plan.kernel)
            if plan.kernel == "rows":  # whose other shapes may need more than the 48 KiB that need no asking
                kernel.max_dynamic_shared_size_bytes = planning.shared_memory_of(self.capability)[0]
            self.kernels[key] = kernel
        kernel((plan.grid,), (plan.threads,), arguments, shared_mem=plan.shared_memory)


_lock = threading.RLock()
_devices: dict[int, _Device] = {}
_sources: dict[str, str] = {}
_calls = 0


def source(plan: Plan) -> str:
    """The program of a plan: its defines, then its files."""
    for name in plan.sources:
        if name not in _sources:
            _sources[name] = files("fastxent.gpu").joinpath(name).read_text("utf-8")
    defines = "".join(f"#define {name} {value}\n" for name, value in plan.defines)
    return defines + "".join(_sources[name] for name in plan.sources)


def _device(cupy: Any) -> _Device:
    """The current device."""
    number = cupy.cuda.Device().id
    with _lock:
        device = _devices.get(number)
        if device is None:
            device = _devices[number] = _Device(cupy)
    return device


class Job:
    """One call over arrays [outer, inner, class] (labels, losses and weights of rows: [outer, inner])."""

    def __init__(
        self,
        task: str,
        logits: Any,
        *,
        grad: Any = None,
        hess: Any = None,
        loss: Any = None,
        target: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        pos_weight: Any = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        inputs: str = "logits",
        gamma: float = 0.0,
        alpha: float | None = None,
    ) -> None:
        self.task: str = task
        self.inputs: str = inputs
        self.label_smoothing: float = label_smoothing
        self.type: int = type_of(logits.dtype)
        real = np.float64 if self.type == FLOAT64 else np.float32
        if class_weight is not None:
            class_weight = sys.modules["cupy"].ascontiguousarray(class_weight, real)
        if pos_weight is not None and pos_weight.dtype != real:
            pos_weight = pos_weight.astype(real)
        arrays = zip(_ARRAYS, (logits, target, sample_weight, pos_weight, loss, grad, hess), strict=True)
        self.arrays: dict[str, Any] = {name: array for name, array in arrays if array is not None}
        self.class_weight = class_weight
        self.fields: Fields = Fields()
        fields = self.fields
        n_outer, n_inner, n_classes = logits.shape
        # An axis of length 1 becomes the outer one.
        swap = n_inner == 1
        self.shape: tuple[int, int, int] = (1, n_outer, n_classes) if swap else (n_outer, n_inner, n_classes)
        fields.shape = self.shape
        for name, array in self.arrays.items():
            outer, inner, *klass = array.strides
            klass_or_none = klass[0] if klass else 0
            fields.arrays[name] = (
                (array.data.ptr, inner, outer, klass_or_none) if swap else (array.data.ptr, outer, inner, klass_or_none)
            )
        fields.class_weight = 0 if class_weight is None else class_weight.data.ptr
        fields.ignore_index = ignore_index
        fields.options = label_smoothing, gamma, -1 if alpha is None else alpha
        self.target_type: int = planning.INT64 if target is None else type_of(target.dtype)
        fields.target_type = self.target_type
        fields.sample_weight_type = 0 if sample_weight is None else type_of(sample_weight.dtype)

    @property
    def is_elementwise(self) -> bool:
        """Whether every logit has a loss, or a result, of its own."""
        return TASKS[self.task] >= TASKS["binary_cross_entropy"]

    def _strides(self, name: str) -> tuple[int, int]:
        return self.fields.arrays[name][2:]

    def layout(self) -> str:
        """How the rows of the logits lie; see ``plan.Rows``. How the results lie must not change their bits."""
        _, n_inner, n_classes = self.shape
        size = ITEM_SIZES[self.type]
        inner, klass = self._strides("logits")
        if klass == size or n_classes == 1:
            return "packed" if n_inner == 1 or inner == n_classes * size else "rows"
        return "inner" if abs(inner) < abs(klass) and n_inner > 1 else "classes"

    def is_flat(self) -> bool:
        """Whether all arrays are runs without gaps; weights may be repeated."""
        return self.shape[:2] == (1, 1) and all(
            self._strides(name)[1] == array.dtype.itemsize
            for name, array in self.arrays.items()
            if name in ("logits", "target", "loss", "grad", "hess")
        )

    def plan(self, capability: int, has_clusters: bool) -> Plan:
        """Which kernel computes it."""
        hessian = "hess" in self.arrays
        n_outer, n_inner, n_classes = self.shape
        if self.is_elementwise:
            return planning.elements(
                self.task,
                self.type,
                n_outer * n_inner * n_classes,
                target_type=self.target_type,
                inputs=self.inputs,
                hessian=hessian,
                flat=self.is_flat(),
            )
        call = planning.Rows(
            self.task,
            self.type,
            n_outer,
            n_inner,
            n_classes,
            self.inputs,
            self.target_type >= FLOAT16 or self.label_smoothing > 0,
            self.target_type,
            hessian,
            self.layout(),
        )
        return planning.rows(call, capability, has_clusters)

    def divisor_on_host(self) -> int | None:
        """Return what this job adds to the divisor of the mean, where no array has to be looked at."""
        has_labels = self.is_elementwise or self.target_type < FLOAT16
        weighted = "sample_weight" in self.arrays or (self.class_weight is not None and not self.is_elementwise)
        if not has_labels or weighted or self.fields.ignore_index is not None:
            return None
        n_outer, n_inner, n_classes = self.shape
        return int(n_outer * n_inner * (n_classes if self.is_elementwise else 1))

    def divisor_plan(self) -> Plan:
        """Which kernel finds that out."""
        n_outer, n_inner, n_classes = self.shape
        inner, klass = self._strides("target")
        counted = "elements" if self.is_elementwise else "labels" if self.target_type < FLOAT16 else "distributions"
        return planning.divisor(
            counted,
            self.type,
            n_outer * n_inner * (n_classes if self.is_elementwise else 1),
            n_classes,
            classes_are_neighbours=n_inner == 1 or abs(klass) <= abs(inner),
        )


def _bind_flaws(fields: Fields, device: _Device, call: int) -> None:
    fields.flaws, fields.flagged = device.addresses
    fields.call = call % (1 << CALL_BITS)


def _launch_jobs(cupy: Any, device: _Device, launches: list[tuple[Job, Plan]], partials: Any) -> bool:
    """Launch a kernel for each job; its partial sums go where those of the jobs before end.

    Returns False, and remembers it, if the device refuses the clusters of the first: that is, before anything ran. The
    plans of a call's jobs are alike, so the others are not refused.
    """
    address = 0 if partials is None else partials.data.ptr
    for job, plan in launches:
        job.fields.partial = address
        job.fields.geometry = plan.tile_rows, plan.tiles_per_block, plan.stage_bytes, plan.stages, plan.group
        try:
            device.launch(cupy, plan, job.fields.by_value())
        except Exception:  # the driver's, whatever its class
            if plan.cluster == 1 or job is not launches[0][0]:
                raise
            device.has_clusters = False
            return False
        address += 8 * plan.partials if address else 0
    return True


def _add_up(
    cupy: Any, device: _Device, partials: Any, divisor: Any, host_divisor: float, *, is_divisor: bool, call: int
) -> Any:
    """Return the sum of the partial sums, over the divisor, as an array of no dimension."""
    result = cupy.empty((), np.float64)
    fields = Fields()
    _bind_flaws(fields, device, call)
    fields.partial = partials.data.ptr
    fields.divisor = 0 if divisor is None else divisor.data.ptr
    arguments = partials.size, float(host_divisor), np.int32(is_divisor), result
    device.launch(cupy, planning.total(), fields.by_value(), *arguments)
    return result


def _plans(cupy: Any, device: _Device, jobs: list[Job]) -> list[tuple[Job, Plan]]:
    """Return which kernel computes each job, after trying the largest cluster once if there are clusters among them.

    Some devices, and some ways to share one, refuse clusters, or large ones.
    """
    launches = [(job, job.plan(device.capability, device.has_clusters is not False)) for job in jobs]
    if device.has_clusters is None and any(plan.cluster > 1 for _, plan in launches):
        device.has_clusters = True
        row = cupy.empty((1, 1, planning.most_classes_of_cluster(device.capability)), np.float32)
        trial = Job("softmax", row, grad=row)
        if not _launch_jobs(cupy, device, [(trial, trial.plan(device.capability, True))], None):
            return _plans(cupy, device, jobs)
    return launches


def numbers(n: int) -> int:
    """Return the first of n numbers in a row, for the jobs of a call."""
    global _calls
    with _lock:
        _calls += n
        return _calls - n + 1


def evaluate(jobs: list[Job], *, reduction: str = "none", first: int | None = None) -> Any:
    """Queue all that the jobs of one call need; ``first`` is the first of their numbers.

    Returns their sum or mean as an array of no dimension, None for "none". What is wrong in their targets and weights
    makes those rows NaN, with gradient 0, and is found by ``flaws``.
    """
    with _lock:
        cupy = sys.modules["cupy"]
        return _evaluate(cupy, _device(cupy), jobs, reduction, numbers(len(jobs)) if first is None else first)


def _evaluate(cupy: Any, device: _Device, jobs: list[Job], reduction: str, first: int) -> Any:
    divisor, host_divisor = None, 1.0
    for number, job in enumerate(jobs, first):
        _bind_flaws(job.fields, device, number)
    if reduction == "mean":
        known = [job.divisor_on_host() for job in jobs]
        if None in known:
            counts = [(job, job.divisor_plan()) for job in jobs]
            partials = cupy.empty(sum(plan.partials for _, plan in counts), np.float64)
            _launch_jobs(cupy, device, counts, partials)
            divisor = _add_up(cupy, device, partials, None, 1.0, is_divisor=True, call=first)
        else:
            host_divisor = float(sum(n for n in known if n is not None))
    for job in jobs:
        job.fields.divisor = 0 if divisor is None else divisor.data.ptr
        job.fields.scale = 1 / host_divisor
    launched = False
    while not launched:
        launches = _plans(cupy, device, jobs)
        sums = None if reduction == "none" else cupy.empty(sum(plan.partials for _, plan in launches), np.float64)
        launched = _launch_jobs(cupy, device, launches, sums)
    if sums is None:
        return None
    return _add_up(cupy, device, sums, divisor, host_divisor, is_divisor=False, call=first)


def last_call() -> int:
    """Return the number of the last job that was evaluated."""
    return _calls


def pending() -> bool:
    """Whether a flaw has been found on the current device; costs nothing, and what is still running may find more."""
    device = _devices.get(sys.modules["cupy"].cuda.Device().id)
    return device is not None and bool(device.flagged[0])


def flaws() -> Flaw | None:
    """Return the first flaw on the current device since the last time, and forget all; waits only if there is one."""
    cupy = sys.modules["cupy"]
    device = _devices.get(cupy.cuda.Device().id)
    if device is None or not device.flagged[0]:
        return None
    with _lock:
        cupy.cuda.Device().synchronize()
        rest, value, integer, _ = (int(word) for word in device.flaws.get())
        device.flagged[0] = 0
        device.flaws.fill(0)
        cupy.cuda.get_current_stream().synchronize()
    if rest == 0:  # another thread has had it in the meantime
        return None
    key = rest ^ (2**64 - 1)
    number = key >> (KIND_BITS + POSITION_BITS)
    kind = key >> POSITION_BITS & ((1 << KIND_BITS) - 1)
    words = np.array([value, integer], np.uint64)
    found: float = words.view(np.float64)[0].item()
    label: int = words.view(np.int64)[1].item()
    return Flaw(
        _calls - (_calls - number) % (1 << CALL_BITS),
        kind,
        key & ((1 << POSITION_BITS) - 1),
        label or found,  # no integer that is wrong is 0
    )
