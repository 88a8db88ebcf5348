"""A stand-in for fastxent.gpu.engine that computes with the CPU's: shows what the Python half of the GPU path does.

Rows of a bad label, probability or weight get NaN and gradient 0, and the first of them is recorded, as the kernels do.
"""

from types import SimpleNamespace

import numpy as np
from gpu.fake_cupy import asarray, host, ndarray

from fastxent.cpu import engine

BAD_WEIGHT, BAD_TARGET, BAD_DIVISOR = range(3)
ARRAYS = ("grad", "hess", "loss", "target", "sample_weight", "class_weight", "pos_weight")
_state = SimpleNamespace(call=0, flaw=None)


class Job:
    """Arrays [outer, inner, class] of one call."""

    def __init__(self, task, logits, **arguments):
        self.arrays = {"logits": logits} | {name: arguments.pop(name, None) for name in ARRAYS}
        assert all(a is None or isinstance(a, ndarray) for a in self.arrays.values()), "an array of the CPU"
        assert len({a.device.id for a in self.arrays.values() if a is not None}) == 1, "more than one device"
        self.task, self.options = task, arguments

    def bound(self, **others):
        arrays = {name: host(a) for name, a in self.arrays.items()} | others
        return engine.Job(self.task, arrays.pop("logits"), **arrays, **self.options)

    def bad(self):
        """(kind, [outer, inner, class or 0] of what is bad), one after the other."""
        weights, target = host(self.arrays["sample_weight"]), host(self.arrays["target"])
        if weights is not None:
            yield BAD_WEIGHT, weights.reshape(*weights.shape, *[1] * (3 - weights.ndim)), lambda w: w >= 0
        if target is None:
            return
        target = target.reshape(*target.shape, *[1] * (3 - target.ndim))
        ignored, k = self.options.get("ignore_index"), self.arrays["logits"].shape[-1]
        real = np.float64 if self.arrays["logits"].dtype == np.float64 else np.float32
        largest = float(np.finfo(real).max)
        most = 1 if self.task.startswith("binary") else k - 1 if target.dtype.kind in "biu" else largest

        def is_good(t):
            good = (t >= 0) & (t <= most)
            return good if ignored is None or (most != 1 and target.dtype.kind not in "biu") else good | (t == ignored)

        yield BAD_TARGET, target, is_good

    def cleaned(self, call):
        """Record what is bad, and leave it without weight: (a job of the CPU, elements that have no loss)."""
        found, shape = [], self.arrays["logits"].shape
        is_bad = np.zeros(shape if self.task.startswith("binary") else shape[:2], bool)
        for kind, values, is_good in self.bad():
            wide = values if values.dtype.kind in "biu" else values.astype(float)
            bad = ~(is_good(wide) & np.isfinite(wide))
            if bad.any():
                position = int(np.argmax(bad))
                found.append((kind, position, values.reshape(-1)[position].item()))
            is_bad |= bad.any(-1) if is_bad.ndim == 2 else bad
        if not found:
            return self.bound(), is_bad
        if _state.flaw is None:
            kind, position, value = min(found)
            _state.flaw = SimpleNamespace(call=call, kind=kind, position=position, value=value)
        target, weights = host(self.arrays["target"]).copy(), host(self.arrays["sample_weight"])
        weights = np.ones(is_bad.shape) if weights is None else weights.copy()
        weights[is_bad] = 0
        target[is_bad] = 0
        return self.bound(target=target, sample_weight=weights), is_bad


def numbers(n):
    first, _state.call = _state.call + 1, _state.call + n  # a number for each job
    return first


def evaluate(jobs, *, reduction=None, first=None):
    first = numbers(len(jobs)) if first is None else first
    if jobs[0].arrays["target"] is None:
        for job in jobs:
            job.bound().compute(1.0)
        return None
    cleaned = [job.cleaned(first + i) for i, job in enumerate(jobs)]
    divisor = sum(job.survey()[0] for job, _ in cleaned) if reduction == "mean" else 1.0
    if np.isinf(divisor) and _state.flaw is None:
        _state.flaw = SimpleNamespace(call=first, kind=BAD_DIVISOR, position=0, value=divisor)
    total = 0.0
    for job, (on_cpu, is_bad) in zip(jobs, cleaned, strict=True):
        # Where nothing counts, all is 0 whatever it is divided by.
        total += on_cpu.compute(divisor or 1.0) if not is_bad.any() else on_cpu.compute(divisor or 1.0) + np.nan
        if job.arrays["loss"] is not None:
            host(job.arrays["loss"])[is_bad] = np.nan
    return None if reduction == "none" else asarray(total / (divisor or 1.0))


def last_call():
    return _state.call


def flaws():
    flaw, _state.flaw = _state.flaw, None
    return flaw
