"""The GPU engine: binds CuPy arrays to jobs, has their kernels compiled, and launches them on the current stream.

Design
a) Like the CPU's it neither checks nor computes. Nothing here waits for the GPU but the first call on a device, once, and
   ``flaws`` where there is one.
b) A job goes to its kernel by value, as one structure (``Job`` of ``numbers.cuh``). So arrays may be given back to
   CuPy's pool as soon as the launch is queued: the pool hands memory on in the order of the stream.
c) Modules are compiled when first wanted, and kept for every variant and device; CuPy keeps their machine code on disk.
d) A flaw is the call's number, its kind and its position, in memory of the device; a word of the host's own memory
   tells, at no cost, whether there is one.
e) Clusters of blocks are tried once on a device; where they cannot be launched, plans do without.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from fastxent.gpu import plan as planning
from fastxent.gpu.plan import FLOAT16, FLOAT64, ITEM_SIZES, TASKS, TYPES, Plan

BAD_WEIGHT, BAD_TARGET, BAD_DIVISOR = range(3)
CALL_BITS, KIND_BITS, POSITION_BITS = 22, 2, 40
OPTIONS = ("-std=c++17",)

_ARRAY = np.dtype([(name, np.int64) for name in ("data", "outer", "inner", "klass")])
_ARRAYS = ("logits", "target", "sample_weight", "pos_weight", "loss", "grad", "hess")
# The struct Job of numbers.cuh.
_JOB = np.dtype(
    [(name, _ARRAY) for name in _ARRAYS]
    + [(name, np.int64) for name in ("class_weight", "divisor", "partial", "flaws", "flagged")]
    + [(name, np.int64) for name in ("n_outer", "n_inner", "n_classes", "ignore_index")]
    + [(name, np.float64) for name in ("label_smoothing", "gamma", "alpha", "scale")]
    + [("call", np.uint64)]
    + [
        (name, np.int32)
        for name in (
            "has_ignore_index",
            "target_type",
            "sample_weight_type",
            "tile_rows",
            "tiles_per_block",
            "stage_bytes",
        )
    ],
    align=True,
)


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
        self.has_clusters: bool | None = None if self.capability >= planning.BULK_COPIES else False
        self.kernels: dict[tuple[str, tuple[tuple[str, int], ...]], Any] = {}
        self.flaws = cupy.zeros(4, np.uint64)
        # Another stream must find those zeros.
        cupy.cuda.get_current_stream().synchronize()
        self.pinned = cupy.cuda.alloc_pinned_memory(8)
        self.flagged = np.frombuffer(self.pinned, np.int32, 1)
        self.flagged[0] = 0

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
        self.task, self.inputs, self.label_smoothing = task, inputs, label_smoothing
        self.type = TYPES[logits.dtype.name]
        real = np.float64 if self.type == FLOAT64 else np.float32
        if class_weight is not None:
            class_weight = sys.modules["cupy"].ascontiguousarray(class_weight, real)
        if pos_weight is not None and pos_weight.dtype != real:
            pos_weight = pos_weight.astype(real)
        self.arrays = dict(
            zip(_ARRAYS, (logits, target, sample_weight, pos_weight, loss, grad, hess), strict=True),
            class_weight=class_weight,
        )
        self.shape = self._bind()
        self.target_type = planning.INT64 if target is None else TYPES[target.dtype.name]
        job = self.bound
        job["class_weight"] = 0 if class_weight is None else class_weight.data.ptr
        job["n_outer"], job["n_inner"], job["n_classes"] = self.shape
        job["has_ignore_index"], job["ignore_index"] = ignore_index is not None, ignore_index or 0
        job["label_smoothing"], job["gamma"], job["alpha"] = label_smoothing, gamma, -1 if alpha is None else alpha
        job["target_type"] = self.target_type
        job["sample_weight_type"] = 0 if sample_weight is None else TYPES[sample_weight.dtype.name]

    def _bind(self) -> tuple[int, int, int]:
        """Addresses and strides; an axis of length 1 becomes the outer one."""
        logits = self.arrays["logits"]
        self.bound = np.zeros((), _JOB)
        n_outer, n_inner, n_classes = logits.shape
        swap = n_inner == 1
        for name in _ARRAYS:
            array = self.arrays[name]
            if array is not None:
                outer, inner, *klass = array.strides
                if swap:
                    outer, inner = inner, outer
                self.bound[name] = array.data.ptr, outer, inner, klass[0] if klass else 0
        return (1, n_outer, n_classes) if swap else (n_outer, n_inner, n_classes)

    @property
    def is_elementwise(self) -> bool:
        """Whether every logit has a loss, or a result, of its own."""
        return TASKS[self.task] >= TASKS["binary_cross_entropy"]

    def _strides(self, name: str) -> tuple[int, int]:
        return int(self.bound[name]["inner"]), int(self.bound[name]["klass"])

    def layout(self) -> str:
        """How the rows of logits, gradient and Hessian lie; see ``plan.Rows``."""
        _, n_inner, n_classes = self.shape
        size = ITEM_SIZES[self.type]
        strides = [self._strides(name) for name in ("logits", "grad", "hess") if self.arrays[name] is not None]
        if all(klass == size or n_classes == 1 for _, klass in strides):
            return "packed" if n_inner == 1 or all(s == n_classes * size for s, _ in strides) else "rows"
        inner, klass = strides[0]
        return "inner" if abs(inner) < abs(klass) and n_inner > 1 else "classes"

    def is_flat(self) -> bool:
        """Whether all arrays are runs without gaps; weights may be repeated."""
        return self.shape[:2] == (1, 1) and all(
            array is None or self._strides(name)[1] == array.dtype.itemsize
            for name, array in self.arrays.items()
            if name in ("logits", "target", "loss", "grad", "hess")
        )

    def plan(self, capability: int, has_clusters: bool) -> Plan:
        """Which kernel computes it."""
        hessian = self.arrays["hess"] is not None
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
        unweighted = self.arrays["sample_weight"] is None and (
            self.is_elementwise or self.arrays["class_weight"] is None
        )
        if not (has_labels and unweighted) or self.bound["has_ignore_index"]:
            return None
        n_outer, n_inner, n_classes = self.shape
        return n_outer * n_inner * (n_classes if self.is_elementwise else 1)

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
            target_type=self.target_type,
            classes_are_neighbours=n_inner == 1 or abs(klass) <= abs(inner),
        )


def _bind_flaws(job: Any, device: _Device, call: int) -> None:
    job["flaws"], job["flagged"] = device.flaws.data.ptr, device.flagged.ctypes.data
    job["call"] = call % (1 << CALL_BITS)


def _launch_jobs(cupy: Any, device: _Device, launches: list[tuple[Job, Plan]], partials: Any) -> None:
    """Launch a kernel for each job; its partial sums go where those of the jobs before end."""
    begin = 0
    for job, plan in launches:
        bound = job.bound
        bound["partial"] = 0 if partials is None else partials.data.ptr + 8 * begin
        bound["tile_rows"], bound["tiles_per_block"] = plan.tile_rows, plan.tiles_per_block
        bound["stage_bytes"] = plan.stage_bytes
        device.launch(cupy, plan, bound.copy().reshape(1))
        begin += plan.partials


def _add_up(
    cupy: Any, device: _Device, partials: Any, divisor: Any, host_divisor: float, *, is_divisor: bool, call: int
) -> Any:
    """Return the sum of the partial sums, over the divisor, as an array of no dimension."""
    result = cupy.empty((), np.float64)
    job = np.zeros((), _JOB)
    _bind_flaws(job, device, call)
    job["partial"] = partials.data.ptr
    job["divisor"] = 0 if divisor is None else divisor.data.ptr
    arguments = np.int64(partials.size), np.float64(host_divisor), np.int32(is_divisor), np.int64(result.data.ptr)
    device.launch(cupy, planning.total(), job.reshape(1), *arguments)
    return result


def _has_clusters(cupy: Any, device: _Device) -> bool:
    """Whether blocks can be launched in clusters: some devices, and some ways to share one, refuse."""
    if device.has_clusters is None:
        device.has_clusters = True
        job = Job("softmax", cupy.zeros((1, 1, 1 << 14), np.float32), grad=cupy.empty((1, 1, 1 << 14), np.float32))
        job.bound["scale"] = 1
        try:
            _launch_jobs(cupy, device, [(job, job.plan(device.capability, True))], None)
        except Exception:  # noqa: BLE001 - the driver's, whatever its class: plans do without
            device.has_clusters = False
    return device.has_clusters


def evaluate(jobs: list[Job], *, reduction: str = "none") -> Any:
    """Queue all that the jobs of one call need; their numbers end with ``last_call()``.

    Returns their sum or mean as an array of no dimension, None for "none". What is wrong in their targets and weights
    makes those rows NaN, with gradient 0, and is found by ``flaws``.
    """
    global _calls
    cupy = sys.modules["cupy"]
    device = _device(cupy)
    first = _calls + 1
    _calls += len(jobs)
    divisor, host_divisor = None, 1.0
    for number, job in enumerate(jobs, first):
        _bind_flaws(job.bound, device, number)
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
        job.bound["divisor"] = 0 if divisor is None else divisor.data.ptr
        job.bound["scale"] = 1 / host_divisor
    launches = [(job, job.plan(device.capability, has_clusters=True)) for job in jobs]
    if any(dict(plan.defines).get("CLUSTER", 1) > 1 for _, plan in launches) and not _has_clusters(cupy, device):
        launches = [(job, job.plan(device.capability, has_clusters=False)) for job in jobs]
    sums = None if reduction == "none" else cupy.empty(sum(plan.partials for _, plan in launches), np.float64)
    _launch_jobs(cupy, device, launches, sums)
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
    cupy.cuda.Device().synchronize()
    rest, value, integer, _ = (int(word) for word in device.flaws.get())
    device.flagged[0] = 0
    device.flaws.fill(0)
    cupy.cuda.get_current_stream().synchronize()
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
