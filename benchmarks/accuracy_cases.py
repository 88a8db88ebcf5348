"""What everyone is asked for in the accuracy table, what is right, and how far from it the contract allows to be.

Everything is elementwise: a `Batch` holds rows of logits with a target each, `truth` maps each quantity to the `Exact`
results of a batch, and `judge` measures an answer against them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# No formula below subtracts numbers that are nearly equal, so 60 digits are 60 right digits at any gap.
DIGITS = 60
GAMMAS = (2.0, 0.5)
PARTS = ("value", "gradient", "Hessian")
GROUPS = ("ordinary", "confident", "offset", "huge", "subnormal")

# At 17 (float32) and 40 (float64) a sum that includes the largest term loses all others; the last are near to where the
# second probability becomes subnormal.
GAPS = {"float32": (5, 17, 25, 40, 80), "float64": (5, 17, 25, 40, 80, 200, 400, 650)}
OFFSETS = (1e4, -1e4, 1e6, -1e6, 1e8, -1e8)
# exp of minus these is the smallest normal number, and the smallest number.
SUBNORMAL_FROM = {"float32": 87.34, "float64": 708.4}
SUBNORMAL_TO = {"float32": 103.27, "float64": 744.4}
# A gap this wide and more leaves nothing of the second logit, so it magnifies no error.
LARGEST_GAP = {"float32": 104.0, "float64": 746.0}


def with_gamma(loss: str, gamma: float) -> str:
    """Return the name of a focal loss in the tables."""
    return f"{loss}(gamma={gamma:g})"


SOFTMAX_LOSSES = ("CrossEntropy", *(with_gamma("FocalLoss", gamma) for gamma in GAMMAS))
BINARY_LOSSES = ("BinaryCrossEntropy", *(with_gamma("BinaryFocalLoss", gamma) for gamma in GAMMAS))
SOFTMAX_QUANTITIES = (*(f"{loss} {part}" for loss in SOFTMAX_LOSSES for part in PARTS), "softmax", "log_softmax")
BINARY_QUANTITIES = (*(f"{loss} {part}" for loss in BINARY_LOSSES for part in PARTS), "sigmoid", "log_sigmoid")
QUANTITIES = (*SOFTMAX_QUANTITIES, *BINARY_QUANTITIES)


@dataclass(frozen=True)
class Batch:
    """Rows of logits ``(n, classes)`` or single logits ``(n,)``, with the target and the group of each."""

    logits: Array
    target: NDArray[np.intp]
    group: NDArray[np.str_]

    @property
    def is_binary(self) -> bool:
        """Whether each logit is a question of its own."""
        return self.logits.ndim == 1


@dataclass(frozen=True)
class Exact:
    """Exact results as ``(high + low) 2**exponent``: no float64 holds enough digits or range.

    ``terms 2**exponent``, with 0.5 <= terms < 1, is the sum of the absolute values of the terms of the result: nearly
    always the result's own, and otherwise what it cancels to less than. `allowed` is the error in eps that the contract
    allows, relative to that sum.
    """

    high: NDArray[np.float64]
    low: NDArray[np.float64]
    exponent: NDArray[np.int64]
    terms: NDArray[np.float64]
    allowed: NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """Of one answer: errors in eps, NaN where the exact result is small and therefore judged apart."""

    error: NDArray[np.float64]
    excess: NDArray[np.float64]  # error / allowed
    is_small: NDArray[np.bool_]  # the exact result is subnormal, underflows, or is nearly so
    is_small_and_wrong: NDArray[np.bool_]


def batches(dtype: str, n_classes: Sequence[int], n_random: int, seed: int = 0) -> Iterator[Batch]:
    """Yield one batch for each number of classes, and a binary one; `n_random` is how many rows of each random kind."""
    rng = np.random.default_rng(seed)
    for k in n_classes:
        rows = list(_softmax_rows(rng, dtype, k, n_random))
        # Digits take time: of rows of a thousand classes every twentieth pair will do.
        step = max(1, k // 50)
        yield _batch(dtype, [row for i, row in enumerate(rows) if i // 2 % step == 0])
    yield _batch(dtype, list(_binary_rows(rng, dtype, n_random)))


def _batch(dtype: str, rows: list[tuple[str, Any, int]]) -> Batch:
    group, logits, target = zip(*rows, strict=True)
    return Batch(np.array(logits).astype(dtype), np.array(target, np.intp), np.array(group))


def _softmax_rows(rng: np.random.Generator, dtype: str, k: int, n_random: int) -> Iterator[tuple[str, Array, int]]:
    """Yield ``(group, logits, target)``, in turns with the surest class as target and with another."""

    def with_targets(group: str, row: Array) -> Iterator[tuple[str, Array, int]]:
        top = int(row.astype(dtype).argmax())
        yield group, row, top
        yield group, row, (top + int(rng.integers(1, k))) % k

    def confident(gap: float) -> Array:
        row = rng.standard_normal(k)
        row[rng.integers(k)] = row.max() + gap
        return row

    def alone(top: float, others: float) -> Array:
        row = np.full(k, others)
        row[rng.integers(k)] = top
        return row

    for scale in (1e-3, 0.3, 1.0, 3.0, 10.0):
        for _ in range(n_random):
            yield from with_targets("ordinary", scale * rng.standard_normal(k))
    yield from with_targets("ordinary", np.zeros(k))
    for gap in (*GAPS[dtype], *rng.uniform(0, SUBNORMAL_FROM[dtype], n_random)):
        yield from with_targets("confident", confident(gap))
        yield from with_targets("confident", alone(gap, 0.0))
    for offset in OFFSETS:
        for row in (np.zeros(k), 3 * rng.standard_normal(k), confident(17), confident(40)):
            yield from with_targets("offset", row + offset)
    for size in (800.0, 1e30):
        yield from with_targets("huge", alone(size, -size))
        yield from with_targets("huge", alone(-size, size))
        yield from with_targets("huge", alone(0.0, -size))
        yield from with_targets("huge", rng.permutation(np.resize([size, -size, 0.0, size], k)))
        yield from with_targets("huge", confident(17) + size)
    # A focal loss is the product of 1 + gamma small factors.
    for power in (1.0, *(1 + gamma for gamma in GAMMAS)):
        for gap in np.linspace(SUBNORMAL_FROM[dtype], SUBNORMAL_TO[dtype], 2 + n_random):
            yield from with_targets("subnormal", alone(gap / power, 0.0))


def _binary_rows(rng: np.random.Generator, dtype: str, n_random: int) -> Iterator[tuple[str, float, int]]:
    def spread(group: str, z: Iterable[float]) -> Iterator[tuple[str, float, int]]:
        for magnitude in z:
            yield from ((group, sign * magnitude, target) for sign in (1, -1) for target in (0, 1))

    for scale in (1e-3, 0.3, 1.0, 3.0, 10.0):
        yield from spread("ordinary", scale * rng.standard_normal(4 * n_random))
    yield from spread("ordinary", [0.0, 1.0, float(np.finfo(dtype).tiny)])
    yield from spread("confident", GAPS[dtype])
    yield from spread("confident", rng.uniform(0, SUBNORMAL_FROM[dtype], 20 * n_random))
    yield from spread("huge", [800.0, 1e4, 1e30])
    for power in (1.0, *(1 + gamma for gamma in GAMMAS)):
        edges = SUBNORMAL_FROM[dtype] / power, SUBNORMAL_TO[dtype] / power
        yield from spread("subnormal", np.linspace(*edges, 4 + n_random))


def truth(batch: Batch, gammas: Sequence[float] = GAMMAS) -> Mapping[str, Exact]:
    """Return the exact results of a batch."""
    dtype = batch.logits.dtype.name
    of_row = _binary if batch.is_binary else _softmax
    results: dict[str, list[_Term]] = {}
    with mpmath.workdps(DIGITS):
        for z, target in zip(batch.logits.tolist(), batch.target.tolist(), strict=True):
            for quantity, terms in of_row(z, target, dtype, gammas):
                results.setdefault(quantity, []).extend(terms)
        shapes = {len(batch.target): batch.target.shape, batch.logits.size: batch.logits.shape}
        return {quantity: _exact(terms, shapes[len(terms)]) for quantity, terms in results.items()}


@dataclass(frozen=True)
class _Term:
    """An exact number, the error allowed, and the sum of the absolute values of its terms if they may cancel."""

    value: Any
    allowed: float
    absolute: Any = None


def _exact(terms: Sequence[_Term], shape: tuple[int, ...]) -> Exact:
    def array(numbers: Iterable[float], dtype: type) -> Array:
        return np.fromiter(numbers, dtype, len(terms)).reshape(shape)

    split = [mpmath.frexp(abs(term.value) if term.absolute is None else term.absolute) for term in terms]
    scaled = [mpmath.ldexp(term.value, -exponent) for term, (_, exponent) in zip(terms, split, strict=True)]
    high = [float(number) for number in scaled]
    return Exact(
        array(high, float),
        array((float(number - h) for number, h in zip(scaled, high, strict=True)), float),
        # exp(-1e30) has an exponent of its own kind; anything below the smallest number is as good.
        array((max(exponent, -10_000) for _, exponent in split), np.int64),
        array((float(mantissa) for mantissa, _ in split), float),
        array((term.allowed for term in terms), float),
    )


def _softmax(row: Any, y: int, dtype: str, gammas: Sequence[float]) -> Iterator[tuple[str, list[_Term]]]:
    """Yield the exact results of a row, every one a sum of positive terms but for the focal Hessian."""
    z = [mpmath.mpf(number) for number in row]
    classes = range(len(z))
    top = max(classes, key=row.__getitem__)
    e = [mpmath.exp(z_c - z[top]) for z_c in z]
    others = mpmath.fsum(e[c] for c in classes if c != top)
    total = 1 + others
    p = [e_c / total for e_c in e]
    # At most half of the total is taken away, but for the largest, which is left out of the sum.
    q = [others / total if c == top else (total - e[c]) / total for c in classes]
    minus_log_p = [z[top] - z[c] + mpmath.log1p(others) for c in classes]

    # Rounding z_c - max z once is magnified by the exponential that many times, in any implementation.
    distance = [min(float(z[top] - z_c), LARGEST_GAP[dtype]) for z_c in z]
    gap = min(distance[c] for c in classes if c != top)
    # The target's gradient is a sum over the other classes, of which the first is `gap` below a sure target.
    far = [max(distance[c], gap) if c == y else distance[c] for c in classes]

    yield "softmax", [_Term(p[c], 4 + distance[c]) for c in classes]
    yield "log_softmax", [_Term(-minus_log_p[c], 4 + gap) for c in classes]
    yield "CrossEntropy value", [_Term(minus_log_p[y], 4 + gap)]
    yield "CrossEntropy gradient", [_Term(-q[y] if c == y else p[c], 4 + far[c]) for c in classes]
    # A product of two probabilities.
    yield "CrossEntropy Hessian", [_Term(p[c] * q[c], 8 + distance[c] + gap) for c in classes]
    for gamma in gammas:
        loss = with_gamma("FocalLoss", gamma)
        modulation = q[y] ** gamma
        # On top of the cross-entropy: the power, which multiplies the relative error of q by gamma, and a product.
        more = 4 + gamma * (4 + gap)
        a = modulation * (gamma * p[y] * minus_log_p[y] / q[y] + 1)
        yield f"{loss} value", [_Term(modulation * minus_log_p[y], 4 + gap + more)]
        yield f"{loss} gradient", [_Term(a * (-q[y] if c == y else p[c]), 4 + far[c] + more) for c in classes]
        hessian = [_focal_hessian(p, q, minus_log_p, c, y, gamma) for c in classes]
        yield (
            f"{loss} Hessian",
            [_Term(h, 8 + distance[c] + gap + more, terms) for c, (h, terms) in enumerate(hessian)],
        )


def _binary(z: Any, target: int, dtype: str, gammas: Sequence[float]) -> Iterator[tuple[str, list[_Term]]]:
    """Yield the exact results of a logit, with p = p_t the probability of the target and q that of the other."""
    sign = 1 if target == 1 else -1
    u = sign * mpmath.mpf(z)
    e, inverse = mpmath.exp(u), mpmath.exp(-u)
    p, q, minus_log_p = 1 / (1 + inverse), 1 / (1 + e), mpmath.log1p(inverse)
    magnified = min(abs(z), LARGEST_GAP[dtype])

    yield "sigmoid", [_Term(p if target == 1 else q, 4 + magnified)]
    yield "log_sigmoid", [_Term(-minus_log_p if target == 1 else -mpmath.log1p(e), 4 + magnified)]
    yield "BinaryCrossEntropy value", [_Term(minus_log_p, 4 + magnified)]
    yield "BinaryCrossEntropy gradient", [_Term(-sign * q, 4 + magnified)]
    yield "BinaryCrossEntropy Hessian", [_Term(p * q, 8 + magnified)]
    for gamma in gammas:
        loss = with_gamma("BinaryFocalLoss", gamma)
        allowed = 8 + gamma * (4 + magnified)
        a = q**gamma * (gamma * p * minus_log_p / q + 1)
        yield f"{loss} value", [_Term(q**gamma * minus_log_p, allowed)]
        yield f"{loss} gradient", [_Term(-sign * q * a, allowed)]
        hessian, terms = _focal_curvature(p, q, minus_log_p, gamma)
        # Both probabilities are factors, as in the Hessian without gamma.
        yield f"{loss} Hessian", [_Term(hessian, 4 + magnified + allowed, terms)]


def _focal_hessian(p: list[Any], q: list[Any], minus_log_p: list[Any], c: int, y: int, gamma: float) -> tuple[Any, Any]:
    """Return the second derivative of ``q_y**gamma L_y`` by z_c, and the sum of the absolute values of its terms."""
    if c == y:
        return _focal_curvature(p[y], q[y], minus_log_p[y], gamma)
    ratio = minus_log_p[y] / q[y]
    modulation = q[y] ** gamma
    first = p[c] * q[c] * modulation * (gamma * p[y] * ratio + 1)
    factor = p[c] ** 2 * modulation * gamma * p[y] / q[y]
    second = factor * (ratio * (1 - gamma * p[y]) - 2)
    return first - second, first + factor * (ratio * (1 + gamma * p[y]) + 2)


def _focal_curvature(p: Any, q: Any, minus_log_p: Any, gamma: float) -> tuple[Any, Any]:
    """Return the second derivative of ``q**gamma L`` by the target's own logit, and the sum of its absolute terms."""
    factor = q**gamma * p
    plus = q * (1 + 2 * gamma) + gamma**2 * minus_log_p * p
    minus = gamma * minus_log_p * q
    return factor * (plus - minus), factor * (plus + minus)


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def judge(actual: Array, exact: Exact, margin: int = 0) -> Verdict:
    """Measure an answer: relative errors where the exact result is normal, sign and size where it is smaller.

    `margin` powers of two above the smallest normal number count as small: a factor of the result may be subnormal.
    """
    dtype = np.finfo(actual.dtype)
    wide = actual.astype(np.float64)
    scaled = np.ldexp(wide, -exact.exponent)
    is_small = exact.exponent <= dtype.minexp + margin
    error = np.abs((scaled - exact.high) - exact.low) / (exact.terms * dtype.eps)
    # 0 and the wrong sign have lost everything, whatever 1 / eps is; only what cancels may do that.
    cancels = np.abs(exact.high) < exact.terms / 2
    error[(np.sign(scaled) != np.sign(exact.high)) & ~cancels] = np.inf
    error[is_small] = np.nan
    error[~np.isfinite(wide)] = np.inf

    right = np.ldexp(exact.high, exact.exponent)
    ratio = np.divide(wide, right, out=np.zeros_like(wide), where=right != 0)
    is_near = (ratio > 0.1) & (ratio < 10) | (np.abs(wide - right) <= 2 * float(dtype.smallest_subnormal))
    is_near |= cancels & (np.abs(wide) < 10 * np.ldexp(exact.terms, exact.exponent))
    return Verdict(error, error / exact.allowed, is_small, is_small & ~is_near)
