"""Losses through ``fastxent.gpu.engine`` on the emulator: NumPy arrays in, NumPy arrays out, no checks in between."""

import contextlib
import sys

import numpy as np

from fastxent.cpu.rows import element_views, row_views
from fastxent.gpu import engine

from . import device

TASKS = {
    "CrossEntropy": "cross_entropy",
    "FocalLoss": "focal",
    "BinaryCrossEntropy": "binary_cross_entropy",
    "BinaryFocalLoss": "binary_focal",
}
GUARD, POISON = 64, 77


@contextlib.contextmanager
def gpu(capability=90, has_clusters=True):
    """Within, calls go to an emulated GPU of a compute capability."""
    before = sys.modules.get("cupy"), dict(engine._devices)
    sys.modules["cupy"] = device.cupy(capability)
    engine._devices.clear()
    engine._device(sys.modules["cupy"]).has_clusters = has_clusters
    try:
        yield
    finally:
        engine._devices.clear()
        engine._devices.update(before[1])
        if before[0] is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before[0]


class Output:
    """An array like another, of poison, with guard bytes around."""

    def __init__(self, like, offset=0):
        span = sum((n - 1) * abs(s) for n, s in zip(like.shape, like.strides, strict=True)) + like.itemsize
        self.bytes = np.full(span + 2 * GUARD + 64, POISON, np.uint8)
        first = -self.bytes.ctypes.data % 64 + GUARD + offset
        backwards = sum((n - 1) * -s for n, s in zip(like.shape, like.strides, strict=True) if s < 0)
        self.array = np.ndarray(like.shape, like.dtype, self.bytes, first + backwards, like.strides)
        self.mine = np.zeros(len(self.bytes), bool)
        mine = np.ndarray(like.shape, f"V{like.itemsize}", self.mine, first + backwards, like.strides)
        mine[...] = np.ones(like.itemsize, bool).view(f"V{like.itemsize}")[0]

    def check(self):
        """Nothing else has been written."""
        assert (self.bytes[~self.mine] == POISON).all(), "written outside the array"


def jobs_of(name, options, logits, target, sample_weight=None, *, grad=None, hess=None, loss=None):
    """The jobs of a call."""
    options = dict(options)
    options.pop("reduction", None)
    axis = options.pop("axis", -1) % max(logits.ndim, 1)
    task = TASKS[name]
    defaults = {"focal": {"gamma": 2.0}, "binary_focal": {"gamma": 2.0}}
    options = defaults.get(task, {}) | options
    real = np.float64 if logits.dtype.itemsize == 8 else np.float32
    if sample_weight is not None:
        shape = logits.shape[:axis] + logits.shape[axis + 1 :] if task in ("cross_entropy", "focal") else logits.shape
        sample_weight = np.asarray(sample_weight)
        if sample_weight.shape != shape:
            sample_weight = np.broadcast_to(sample_weight.reshape(-1, *(1,) * (len(shape) - 1)), shape)
    if task in ("cross_entropy", "focal"):
        class_weight = options.pop("class_weight", None)
        if class_weight is not None:
            class_weight = np.asarray(class_weight, real)
        soft = np.asarray(target).dtype.kind not in "iub"
        views = row_views(
            axis, [logits, grad, hess, target if soft else None], [None if soft else target, sample_weight, loss]
        )
        names = ("logits", "grad", "hess", "target", "labels", "sample_weight", "loss")
        options["class_weight"] = device.on_device(class_weight)
    else:
        pos_weight = options.pop("pos_weight", None)
        if pos_weight is not None:
            pos_weight = np.broadcast_to(np.asarray(pos_weight, real), logits.shape)
        views = element_views([logits, grad, hess, target, sample_weight, pos_weight, loss])
        names = ("logits", "grad", "hess", "target", "sample_weight", "pos_weight", "loss")
    jobs = []
    for view in views:
        arrays = {n: device.on_device(a) for n, a in zip(names, view, strict=True) if a is not None}
        if "labels" in arrays:
            arrays["target"] = arrays.pop("labels")
        jobs.append(engine.Job(task, arrays.pop("logits"), **arrays, **options))
    return jobs


def evaluate(name, options, logits, target, sample_weight=None, *, n_derivatives=2, in_place=False, offset=0):
    """(value, gradient, Hessian), as many as wanted; nothing but these is written."""
    outputs = [Output(logits, offset) for _ in range(n_derivatives)]
    reduction = options.get("reduction", "mean")
    axis = options.get("axis", -1)
    arrays = [o.array for o in outputs]
    before = np.array(logits)
    if in_place:
        arrays[0] = logits
    loss = None
    if reduction == "none":
        rows = np.take(logits, 0, axis) if name in ("CrossEntropy", "FocalLoss") else logits
        loss = Output(np.array(rows))
    grad, hess = (*arrays, None, None)[:2]
    jobs = jobs_of(
        name, options, logits, target, sample_weight, grad=grad, hess=hess, loss=None if loss is None else loss.array
    )
    value = engine.evaluate(jobs, reduction=reduction)
    for output in [*outputs, *([loss] if loss else [])]:
        output.check()
    if not in_place:
        assert before.tobytes() == np.array(logits).tobytes(), "the logits have changed"
    return (float(value) if loss is None else loss.array, *arrays)
