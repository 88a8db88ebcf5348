"""One table of tolerances, in eps of the dtype of the arithmetic, each with its reason.

The terms are those of DESIGN 2.5: `gap` is the distance of the two largest logits, `distance` that of a logit from the
largest. Rounding ``z - max z`` once is magnified that many times by the exponential, in any implementation.
"""

import numpy as np

# exp, log1p, a sum, a division: about one eps each.
BASE = 4
# Index targets, no options: the promise of DESIGN 2.5 as it stands.
VALUE = {"base": BASE, "per_gap": 1}
ELEMENT = {"base": BASE, "per_distance": 1}
# p (1 - p) is a product of two such elements.
HESSIAN = {"base": 2 * BASE, "per_distance": 1, "per_gap": 1}
# w t~ s / divisor: up to four more roundings, and the sum of w t~ over the classes.
OPTIONS = 2 * BASE
# (1 - p_t)^gamma magnifies the error of 1 - p_t gamma times.
FOCAL = {"base": OPTIONS, "per_gamma": BASE}
# LSE = max + log1p(others) can cancel to 0 for every implementation: relative to the larger of the two terms.
LOG_SUM_EXP = BASE
# Central differences of a float64 loss with step h: truncation h^2, rounding eps / h; h = eps^(1/3), 10 times over.
FINITE_DIFFERENCE = 10 * float(np.finfo(np.float64).eps) ** (2 / 3)
STEP = float(np.finfo(np.float64).eps) ** (1 / 3)
# The same sums in another order (permuted, split, repeated): twice what one of them may be wrong.
REORDERED = 2 * OPTIONS
# Published figures carry four or five digits: half a unit of the last one printed, plus the rounding of their inputs.
PRINTED = 0.51

# A gap this wide and more leaves nothing of the second logit, so it magnifies nothing.
LARGEST_GAP = {np.dtype(np.float32): 104.0, np.dtype(np.float64): 746.0}


# Set where results come from a GPU: CuPy compiles with -ftz=true, which takes subnormal float32 numbers for 0.
flushes_float32 = False


def eps(dtype):
    """The distance of 1 and the next number, as a Python float."""
    return float(np.finfo(dtype).eps)


def subnormal_slack(dtype):
    """Below the normal numbers a result may lose bits (DESIGN 2.5), never its order of magnitude."""
    info = np.finfo(dtype)
    if flushes_float32:  # the GPU's exp and log1p may both be one unit off their rounded results, here one of these
        return 2 * info.tiny if info.bits == 32 else 4 * info.smallest_subnormal
    return 2 * info.smallest_subnormal


def assert_same_bits(actual, expected):
    """Arrays or tuples of arrays that differ in no element; NaN is NaN, and zeros may differ in sign."""
    if not isinstance(actual, tuple):
        actual, expected = (actual,), (expected,)
    for a, b in zip(actual, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype.kind == "V":  # bfloat16, which NumPy's own comparisons do not know
            a, b = a.astype(np.float32), b.astype(np.float32)
        np.testing.assert_array_equal(a, b)


def assert_within(actual, expected, bound, what):
    """``|actual - expected| <= bound`` elementwise; NaN in the same places, inf where the dtype holds nothing larger."""
    actual, expected, bound = (np.asarray(a) for a in (actual, expected, bound))
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    wide = np.result_type(expected.dtype, np.float64)
    a, e = actual.astype(wide), expected.astype(wide)
    e = np.where(np.abs(e) > np.finfo(actual.dtype).max, np.copysign(np.inf, e), e)
    with np.errstate(invalid="ignore", over="ignore"):
        special = ~np.isfinite(e)
        wrong = np.where(special, ~((a == e) | (np.isnan(a) & np.isnan(e))), ~(np.abs(a - e) <= bound))
    if wrong.any():
        i = tuple(int(k) for k in np.argwhere(wrong)[0])
        limit = np.broadcast_to(bound, e.shape)[i]
        raise AssertionError(
            f"{what}: {np.count_nonzero(wrong)} of {wrong.size} wrong, first at {i}: {a[i]!r}, expected {e[i]!r}, "
            f"error {np.abs(a[i] - e[i]):.3g}, allowed {limit:.3g}"
        )
