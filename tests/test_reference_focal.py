"""The oracle of the softmax focal loss, and of half precision: `_reference` against plain definitions in mpmath."""

from dataclasses import replace
from functools import cache

import mpmath
import numpy as np
import pytest
from arrays import one_hot, random_logits, random_probabilities
from tolerances import BASE, OPTIONS, eps, subnormal_slack

from fastxent import _reference as reference
from fastxent._reference import CrossEntropy, FocalLoss

INF, NAN = np.inf, np.nan
LOG_2 = np.log(2)
DTYPES = [np.float32, np.float64, np.longdouble]
DTYPE_IDS = ["float32", "float64", "longdouble"]
GAMMAS = (0.0, 0.5, 1.0, 2.0, 3.5, 5.0)
# The largest logit first, second and last; equal; confident; on a common offset. Exact in float32.
ROWS = [
    (0.5, 0.0, -1.25),
    (0.0, 0.0),
    (0.0, 17.0, -3.0, 1.0),
    (-40.0, 0.0, 1.5, 40.0),
    (1e4 + 5, 1e4, 1e4 - 1),
    (-80.0, 0.0, -79.0),
]
WIDE_ROWS = [*ROWS, (1e8, 1e8 + 40.5, 1e8 - 7), (0.0, -650.0, -649.5)]
# Dyadic masses, some 0, not summing to 1; as long as the longest row.
MASSES = [(0.25, 0.5, 0.125, 0.0), (0.0, 2.0**-20, 1.0, 0.5)]


def bits(z):
    """60 digits of the second derivative, although 1 - p costs |z| / log 2 bits, and a far larger loss as many again."""
    return 200 + 3 * int(max(z) - min(z)) + 20


@cache
def exact(z, u, gamma):
    """Loss ``sum_c u_c (1 - p_c)**gamma (-log p_c)`` and, for each class, its two derivatives: nothing but diff."""

    def loss(c, x):
        e = [mpmath.exp((x if k == c else mpmath.mpf(a)) - z[0]) for k, a in enumerate(z)]
        p = [a / mpmath.fsum(e) for a in e]
        return mpmath.fsum(a * (1 - b) ** mpmath.mpf(gamma) * -mpmath.log(b) for a, b in zip(u, p, strict=True) if a)

    with mpmath.workprec(bits(z)):
        return loss(0, z[0]), [[mpmath.diff(lambda x, c=c: loss(c, x), z[c], n) for n in (1, 2)] for c in range(len(z))]


@cache
def terms(z, u, gamma):
    """For each class the absolute values of what gradient and Hessian are sums of: rounding is relative to these."""
    with mpmath.workprec(bits(z)):
        e = [mpmath.exp(mpmath.mpf(x) - z[0]) for x in z]
        total = mpmath.fsum(e)
        p, q = [a / total for a in e], [mpmath.fsum(e[:c] + e[c + 1 :]) / total for c in range(len(z))]
        ratio = [-mpmath.log(p[c]) / q[c] for c in range(len(z))]
        strength = [u[c] * q[c] ** mpmath.mpf(gamma) for c in range(len(z))]
        a = [strength[c] * (1 + gamma * p[c] * ratio[c]) for c in range(len(z))]
        b = [strength[c] / q[c] * gamma * p[c] * (ratio[c] * (1 + gamma * p[c]) + 2) for c in range(len(z))]
        a_other, b_other = [sum(a) - x for x in a], [sum(b) - x for x in b]
        own = [
            strength[c] * ((1 + 2 * gamma) * p[c] + gamma * p[c] * ratio[c] * (gamma * p[c] + q[c]))
            for c in range(len(z))
        ]
        return [
            (p[c] * a_other[c] + a[c] * q[c], p[c] * q[c] * a_other[c] + p[c] ** 2 * b_other[c] + q[c] * own[c])
            for c in range(len(z))
        ]


def assert_as_exact(dtype, loss, row, target, u, gamma):
    """Every number of `loss` for one row, whose masses are `u`, to the digits the arithmetic of `dtype` allows."""
    z = np.array(row, dtype)
    results = loss.value_grad_hess(z, target)
    assert all(r.dtype == dtype for r in results)
    value, derivatives = exact(row, u, gamma)
    spread = max(row) - min(row)
    per_class = zip(*results[1:], derivatives, terms(row, u, gamma), strict=True)
    pairs = [(results[0], value, value)]
    pairs += [pair for grad, hess, d, t in per_class for pair in zip((grad, hess), d, t, strict=True)]
    with mpmath.workprec(bits(row)):
        for number, expected, scale in pairs:
            if dtype is np.longdouble:  # as oracle: good to float64's last digit, whatever cancels
                allowed = (1 + gamma) * eps(np.float64) * abs(expected) + float(subnormal_slack(np.float64))
            else:
                allowed = (OPTIONS + (1 + gamma) * (BASE + spread)) * eps(dtype) * scale + float(subnormal_slack(dtype))
            error = abs(mpmath.mpf(float(number)) - expected)
            assert error <= allowed, (row, u, float(number), mpmath.nstr(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_index_targets_against_mpmath(dtype, gamma):
    loss = FocalLoss(gamma=gamma, reduction="none")
    for row in ROWS if dtype is np.float32 else WIDE_ROWS:
        for y in range(len(row)):
            u = tuple(one_hot(y, len(row), float))
            assert_as_exact(dtype, loss, row, y, u, gamma)
            assert_as_exact(dtype, loss, row, np.array(u), u, gamma)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("masses", MASSES)
def test_probability_targets_against_mpmath(dtype, gamma, masses):
    loss = FocalLoss(gamma=gamma, reduction="none")
    for row in ROWS if dtype is np.float32 else WIDE_ROWS:
        u = masses[: len(row)]
        assert_as_exact(dtype, loss, row, np.array(u), u, gamma)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_smoothing_and_class_weights_against_mpmath(dtype):
    row, class_weight = ROWS[2], np.array([0.5, 2.0, 0.0, 3.0])
    loss = FocalLoss(gamma=2.0, class_weight=class_weight, label_smoothing=0.125, reduction="none")
    for y in range(4):
        u = tuple(class_weight * (0.875 * one_hot(y, 4, float) + 0.125 / 4))
        assert_as_exact(dtype, loss, row, y, u, 2.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=DTYPE_IDS[:2])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_confident_rows_keep_every_digit(dtype, gamma):
    # DESIGN 2.5: nothing cancels where the target is the largest logit, not in the Hessian either.
    for gap in (5.0, 17.0, 40.0, 80.0 if dtype is np.float32 else 650.0):
        row = (0.0, gap)
        results = FocalLoss(gamma=gamma, reduction="none").value_grad_hess(np.array(row, dtype), 1)
        value, derivatives = exact(row, (0.0, 1.0), gamma)
        allowed = (OPTIONS + (1 + gamma) * (BASE + gap)) * eps(dtype)
        for actual, expected in zip(
            [results[0], *results[1], *results[2]], [value, *(d[n] for n in (0, 1) for d in derivatives)], strict=True
        ):
            error = abs(mpmath.mpf(float(actual)) - expected)
            assert error <= allowed * abs(expected) + float(subnormal_slack(dtype))


# --- infinities -------------------------------------------------------------------------------------------------------

# (logits of three classes, target, value, gradient, Hessian) of any gamma: those of CrossEntropy.
TABLE = [
    ([-INF, 5, -INF], 1, 0, [0, 0, 0], [0, 0, 0]),
    ([-INF, 0, 0], 0, INF, [-1, 0.5, 0.5], [0, 0.25, 0.25]),
    ([-INF, 0, -INF], 0, INF, [-1, 1, 0], [0, 0, 0]),
    ([INF, 0, 1], 0, 0, [0, 0, 0], [0, 0, 0]),
    ([-INF, 0, INF], 2, 0, [0, 0, 0], [0, 0, 0]),
    ([0, INF, 1], 0, INF, [-1, 1, 0], [0, 0, 0]),
    ([-INF, INF, 1], 0, INF, [-1, 1, 0], [0, 0, 0]),
    ([INF, INF, 0], 0, NAN, [NAN] * 3, [NAN] * 3),
    ([-INF, -INF, -INF], 0, NAN, [NAN] * 3, [NAN] * 3),
    ([0, NAN, 0], 0, NAN, [NAN] * 3, [NAN] * 3),
    ([NAN, 0, INF], 2, NAN, [NAN] * 3, [NAN] * 3),
    ([1e30, -1e30, 0], 1, 2e30, [1, -1, 0], [0, 0, 0]),
    ([1e30, -1e30, 0], 0, 0, [0, 0, 0], [0, 0, 0]),
]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target_kind", ["index", "one_hot"])
def test_infinities(dtype, gamma, target_kind):
    for logits, y, *expected in TABLE:
        target = y if target_kind == "index" else one_hot(y, 3, dtype)
        # A good row beside it stays as it is.
        rows = np.array([logits, [0.5, 0, 1]], dtype)
        targets = np.array([target, target])
        results = FocalLoss(gamma=gamma, reduction="none").value_grad_hess(rows, targets)
        alone = FocalLoss(gamma=gamma, reduction="none").value_grad_hess(rows[1], targets[1])
        for result, number, good in zip(results, expected, alone, strict=True):
            np.testing.assert_allclose(result[0], number, rtol=BASE * eps(dtype), err_msg=str(logits))
            np.testing.assert_array_equal(result[1], good)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target_kind", ["index", "one_hot", "soft"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.25])
def test_a_masked_class_is_as_if_absent(dtype, gamma, target_kind, label_smoothing):
    rng = np.random.default_rng(0)
    present = random_logits(rng, (8, 3), dtype, 5.0)
    masked = np.insert(present, 1, -INF, axis=1)
    y = rng.integers(0, 3, 8)
    t = one_hot(y, 3, dtype) if target_kind == "one_hot" else random_probabilities(rng, (8, 3), dtype)
    targets = (y, y + (y >= 1)) if target_kind == "index" else (t, np.insert(t, 1, 0, axis=1))
    loss = FocalLoss(gamma=gamma, label_smoothing=label_smoothing)
    expected, results = loss.value_grad_hess(present, targets[0]), loss.value_grad_hess(masked, targets[1])
    close = {"rtol": OPTIONS * (1 + gamma) * eps(dtype), "atol": eps(dtype)}
    assert results[0] == pytest.approx(expected[0], rel=close["rtol"])
    for a, b in zip(results[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(a[:, 1], 0)
        np.testing.assert_allclose(np.delete(a, 1, axis=1), b, **close)


# --- shared with CrossEntropy -----------------------------------------------------------------------------------------

OPTIONS_OF_BOTH = [
    {},
    {"label_smoothing": 0.1, "class_weight": [0.5, 2.0, 0.0, 3.0]},
    {"class_weight": "balanced", "ignore_index": 2, "reduction": "sum"},
    {"class_weight": {1: 4.0}, "reduction": "none", "label_smoothing": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS_OF_BOTH, ids=str)
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_gamma_0_is_cross_entropy_bit_for_bit(dtype, options, target_kind):
    rng = np.random.default_rng(1)
    logits = random_logits(rng, (9, 4), dtype, 20.0)
    logits[1, 0], logits[2, 1], logits[3, 2] = -INF, INF, NAN
    target = rng.integers(0, 4, 9) if target_kind == "index" else random_probabilities(rng, (9, 4), dtype)
    sample_weight = rng.random(9)
    focal = FocalLoss(gamma=0, **options).value_grad_hess(logits, target, sample_weight)
    for a, b in zip(focal, CrossEntropy(**options).value_grad_hess(logits, target, sample_weight), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("options", OPTIONS_OF_BOTH, ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_reductions_weights_and_axis(gamma, options, axis):
    rng = np.random.default_rng(2)
    logits, sample_weight = random_logits(rng, (9, 4), np.float64), rng.random(9)
    y = rng.integers(0, 4, 9)
    one_by_one = replace(FocalLoss(gamma=gamma, **options), reduction="none").value_grad_hess(logits, y)
    cross_entropy = CrossEntropy(**options)
    # The divisor of the mean is that of the cross-entropy, whatever gamma.
    weight = sample_weight
    if options.get("reduction", "mean") == "mean":
        unreduced = replace(cross_entropy, reduction="sum")(logits, y, sample_weight)
        weight = weight * cross_entropy(logits, y, sample_weight) / unreduced
    turned = np.moveaxis(logits, -1, axis)
    out = np.empty_like(turned)
    value, grad, hess = FocalLoss(gamma=gamma, **options, axis=axis).value_grad_hess(turned, y, sample_weight, out)
    assert grad is out
    close = {"rtol": 2 * OPTIONS * eps(np.float64)}
    expected = weight * one_by_one[0]
    np.testing.assert_allclose(value, expected if options.get("reduction") == "none" else expected.sum(), **close)
    np.testing.assert_allclose(np.moveaxis(grad, axis, -1), weight[:, None] * one_by_one[1], **close)
    np.testing.assert_allclose(np.moveaxis(hess, axis, -1), weight[:, None] * one_by_one[2], **close)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_rows_that_do_not_count_are_never_looked_at(gamma, reduction):
    rng = np.random.default_rng(3)
    good = random_logits(rng, (6, 3), np.float64)
    bad = good.copy()
    bad[1], bad[4] = NAN, [INF, INF, 0]
    y, weight = np.array([0, 2, 1, 0, 2, 1]), np.array([1.0, 0, 2, 1, 0, 3])
    loss = FocalLoss(gamma=gamma, reduction=reduction)
    ways = [
        (loss, y, weight),
        (replace(loss, class_weight=[1, 2, 0]), y, None),
        (replace(loss, ignore_index=2), y, None),
    ]
    ways += [(a, one_hot(b, 3, float), c) for a, b, c in ways]
    for chosen, target, sample_weight in ways:
        results = chosen.value_grad_hess(bad, target, sample_weight)
        expected = chosen.value_grad_hess(good, target, sample_weight)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(results[1][[1, 4]], 0)
        np.testing.assert_array_equal(results[2][[1, 4]], 0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_one_class(dtype, gamma):
    logits = np.array([[3.0], [-1e30], [INF], [-INF], [NAN]], dtype)
    for target in (np.zeros(5, int), np.ones((5, 1), dtype)):
        for result in FocalLoss(gamma=gamma, reduction="none").value_grad_hess(logits, target):
            np.testing.assert_array_equal(np.ravel(result), [0, 0, 0, NAN, NAN])


# --- half precision of the softmax losses and activations -------------------------------------------------------------

HALF = [
    CrossEntropy(),
    CrossEntropy(class_weight="balanced", label_smoothing=0.125),
    FocalLoss(),
    FocalLoss(gamma=0.5, label_smoothing=0.125, ignore_index=1),
]


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    if request.param == "float16":
        return np.dtype(np.float16)
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.mark.parametrize("loss", HALF, ids=str)
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_half_losses_are_float32_losses_rounded(half, loss, target_kind):
    rng = np.random.default_rng(4)
    logits = random_logits(rng, (9, 4), half, 5.0)
    target = rng.integers(0, 4, 9) if target_kind == "index" else random_probabilities(rng, (9, 4), half)
    wide_target = target if target_kind == "index" else target.astype(np.float32)
    for reduction in ("none", "mean"):
        chosen = replace(loss, reduction=reduction)
        results = chosen.value_grad_hess(logits, target, None, np.empty_like(logits), np.empty_like(logits))
        value, grad, hess = chosen.value_grad_hess(logits.astype(np.float32), wide_target)
        assert results[1].dtype == results[2].dtype == half
        np.testing.assert_array_equal(results[1], grad.astype(half))
        np.testing.assert_array_equal(results[2], hess.astype(half))
        np.testing.assert_array_equal(results[0], value.astype(half) if reduction == "none" else value)
        in_place = logits.copy()
        assert chosen.value_and_grad(in_place, target, None, in_place)[1] is in_place
        np.testing.assert_array_equal(in_place, results[1])


@pytest.mark.parametrize("inputs", ["log_probs", "probs"])
def test_half_probabilities(half, inputs):
    x = np.array([[0.5, 0.25, 0.25], [0.125, 0.875, 0.0]], half)
    loss = CrossEntropy(inputs=inputs, reduction="none")
    expected = loss.value_grad_hess(x.astype(np.float32), [0, 1])
    for a, b in zip(loss.value_grad_hess(x, [0, 1]), expected, strict=True):
        assert a.dtype == half
        np.testing.assert_array_equal(a, b.astype(half))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_half_activations_are_float32_activations_rounded(half, name):
    f = getattr(reference, name)
    x = random_logits(np.random.default_rng(5), (4, 5, 3), half, 5.0)
    for axis in (0, 1, -1):
        result = f(x, axis=axis)
        assert result.dtype == half
        np.testing.assert_array_equal(result, f(x.astype(np.float32), axis=axis).astype(half))
        if name != "logsumexp":
            copy = x.copy()
            assert f(copy, axis=axis, out=copy) is copy
            np.testing.assert_array_equal(copy, result)


def test_half_sums_do_not_overflow(half):
    # Rows and classes beyond the largest float16, 65504.
    rows, classes = np.zeros((70_000, 2), half), np.zeros((1, 70_000), half)
    for loss, value, factor in ((CrossEntropy(), LOG_2, 1), (FocalLoss(), LOG_2 / 4, (1 - 1 / 70_000) ** 2)):
        assert loss(rows, np.zeros(70_000, int)) == pytest.approx(value, rel=OPTIONS * eps(np.float32))
        exact_value = factor * np.log(70_000)
        assert loss(classes, [3]) == pytest.approx(exact_value, rel=OPTIONS * eps(np.float32))
