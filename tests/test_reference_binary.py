"""The oracle of the binary losses and of sigmoid: `_reference` against plain definitions in mpmath, and its limits."""

from dataclasses import replace
from functools import cache

import mpmath
import numpy as np
import oracle
import pytest
from tolerances import BASE, OPTIONS, eps, subnormal_slack

from fastxent._reference import BinaryCrossEntropy, BinaryFocalLoss, log_sigmoid, sigmoid

INF, NAN = np.inf, np.nan
DTYPES = [np.float32, np.float64, np.longdouble]
DTYPE_IDS = ["float32", "float64", "longdouble"]
GAMMAS = (0.0, 0.5, 1.0, 2.0, 3.5, 5.0)
# Through 0, the places where 1 - sigmoid returns 0 (17 in float32, 40 in float64), and close to the end of the range.
Z = {np.float32: (0, 1e-3, 0.7, 5, 17, 40, 80), np.float64: (0, 1e-3, 0.7, 17, 40, 650)}
Z[np.longdouble] = Z[np.float64]
TARGETS = (0.0, 1.0, 0.25, 0.9375, 2.0**-20)  # exact in every dtype, as is 1 - t


def logits_of(dtype):
    positive = np.array(Z[dtype], dtype=np.float32 if dtype is np.float32 else np.float64)
    return np.concatenate([-positive[::-1], positive]).astype(dtype)


def bits(z):
    """60 digits of the second derivative, although 1 - p costs |z| / log 2 bits, and a far larger loss as many again."""
    return 200 + 3 * int(abs(z))


@cache
def exact(z, t, gamma=0.0, alpha=None, pos_weight=1.0, label_smoothing=0.0):
    """Loss and its derivatives along z as DESIGN 2.2 has them, for a `t` that rounding does not change."""
    t = (1 - mpmath.mpf(label_smoothing)) * t + mpmath.mpf(label_smoothing) / 2
    alpha_t = 1 if alpha is None else alpha * t + (1 - mpmath.mpf(alpha)) * (1 - t)

    def loss(x):
        p = 1 / (1 + mpmath.exp(-x))
        p_t = t * p + (1 - t) * (1 - p)
        cross_entropy = -pos_weight * t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)
        return alpha_t * (1 - p_t) ** mpmath.mpf(gamma) * cross_entropy

    with mpmath.workprec(bits(z)):
        return loss(mpmath.mpf(z)), mpmath.diff(loss, z), mpmath.diff(loss, z, 2)


@cache
def terms(z, t, gamma=0.0, alpha=None, pos_weight=1.0, label_smoothing=0.0):
    """The absolute values of what gradient and Hessian are sums of: rounding is relative to these, not to the sums."""
    z, t = mpmath.mpf(z), (1 - mpmath.mpf(label_smoothing)) * t + mpmath.mpf(label_smoothing) / 2
    p, q = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
    positive, negative = pos_weight * t, 1 - t
    value = positive * mpmath.log1p(mpmath.exp(-z)) + negative * mpmath.log1p(mpmath.exp(z))
    r = t * q + (1 - t) * p
    rho = p * q * max(t, 1 - t) / r
    scale = (1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)) * r ** mpmath.mpf(gamma)
    slope = negative * p + positive * q
    curvature = (positive + negative) * p * q
    hess = gamma * value * (abs(gamma - 1) * rho**2 + rho) + 2 * gamma * rho * slope + curvature
    return scale * (gamma * rho * value + slope), scale * hess


def assert_as_exact(dtype, loss, z, t, options):
    """Every element of `loss` at `z` and `t`, to the digits the arithmetic of `dtype` allows."""
    results = loss.value_grad_hess(z, np.full(z.shape, t, z.dtype))
    assert all(r.dtype == dtype for r in results)
    gamma = options.get("gamma", 0.0)
    for i, x in enumerate(map(float, z)):
        with mpmath.workprec(bits(x)):
            expected = exact(x, t, **options)
            grad_terms, hess_terms = terms(x, t, **options)
            for name, result, number, scale in zip(
                ("value", "gradient", "Hessian"), results, expected, (expected[0], grad_terms, hess_terms), strict=True
            ):
                if dtype is np.longdouble:  # as oracle: good to float64's last digit, whatever cancels
                    allowed = (1 + gamma) * eps(np.float64) * abs(number) + float(subnormal_slack(np.float64))
                else:
                    allowed = (OPTIONS + gamma * (BASE + abs(x))) * eps(dtype) * scale + float(subnormal_slack(dtype))
                error = abs(mpmath.mpf(float(result[i])) - number)
                assert error <= allowed, (name, x, t, float(result[i]), mpmath.nstr(number))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("t", TARGETS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_binary_losses_against_mpmath(dtype, gamma, t):
    loss = BinaryFocalLoss(gamma=gamma, reduction="none") if gamma else BinaryCrossEntropy(reduction="none")
    assert_as_exact(dtype, loss, logits_of(dtype), t, {"gamma": gamma})


OPTION_CASES = [
    {"pos_weight": 3.0},
    {"label_smoothing": 0.125},
    {"label_smoothing": 2.0**-30},  # 1 - P would be 0 in float32
    {"pos_weight": 0.25, "label_smoothing": 0.5},
    {"gamma": 2.0, "alpha": 0.25},
    {"gamma": 0.5, "alpha": 0.75, "label_smoothing": 0.125},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("options", OPTION_CASES, ids=str)
def test_options_against_mpmath(dtype, options):
    loss = BinaryFocalLoss if "gamma" in options else BinaryCrossEntropy
    for t in (0.0, 1.0, 0.25):
        assert_as_exact(dtype, loss(**options, reduction="none"), logits_of(dtype), t, options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=DTYPE_IDS[:2])
def test_hard_targets_keep_every_digit(dtype):
    # DESIGN 2.5, gradient included: nothing cancels where the target is 0 or 1.
    for gamma in GAMMAS:
        z = logits_of(dtype)
        value, grad, _ = BinaryFocalLoss(gamma=gamma, reduction="none").value_grad_hess(z, z > 0)
        for i, x in enumerate(map(float, z)):
            exact_value, exact_grad, _ = exact(x, float(x > 0), gamma=gamma)
            allowed = OPTIONS + gamma * (BASE + abs(x))
            assert oracle.error_in_eps(value[i], exact_value, dtype) <= allowed
            assert oracle.error_in_eps(grad[i], exact_grad, dtype) <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_sigmoids_against_mpmath(dtype):
    z = logits_of(dtype)
    eps_dtype = np.float64 if dtype is np.longdouble else dtype
    for x, p, log_p in zip(z, sigmoid(z), log_sigmoid(z), strict=True):
        with mpmath.workprec(oracle.MPMATH_BITS):
            exact_p = 1 / (1 + mpmath.exp(-mpmath.mpf(float(x))))
            exact_log_p = mpmath.log(exact_p)
        assert oracle.error_in_eps(p, exact_p, eps_dtype) <= BASE
        assert oracle.error_in_eps(log_p, exact_log_p, eps_dtype) <= BASE


def test_sigmoids_at_their_ends_and_outputs(dtype):
    x = np.array([[-INF, INF, NAN], [0, -1e30, 1e30]], dtype)
    np.testing.assert_array_equal(sigmoid(x), [[0, 1, NAN], [0.5, 0, 1]])
    np.testing.assert_allclose(log_sigmoid(x), [[-INF, 0, NAN], [-np.log(2), -1e30, 0]], rtol=BASE * eps(dtype))
    for f in (sigmoid, log_sigmoid):
        assert f(1).dtype == np.float64
        assert f(1).shape == ()
        out = np.empty_like(x)
        assert f(x, out=out) is out
        np.testing.assert_array_equal(out, f(x))
        copy = x.copy()
        np.testing.assert_array_equal(f(copy, out=copy), out)


# --- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("options", [{}, {"pos_weight": 3.0, "label_smoothing": 0.125}], ids=str)
def test_probs_against_mpmath(dtype, options):
    x = np.array([1e-18, 2.0**-9, 0.3, 0.5, 0.99, 1 - 2.0**-20], np.float32).astype(dtype)
    eps_dtype = np.float64 if dtype is np.longdouble else dtype
    for t in TARGETS[:3]:
        results = BinaryCrossEntropy(**options, reduction="none", inputs="probs").value_grad_hess(x, np.full(6, t))
        for i in range(len(x)):
            with mpmath.workprec(oracle.MPMATH_BITS):
                p = mpmath.mpf(float(x[i]))
                soft = (1 - mpmath.mpf(options.get("label_smoothing", 0))) * t + options.get("label_smoothing", 0) / 2
                positive, negative = options.get("pos_weight", 1) * soft, 1 - soft
                value = -positive * mpmath.log(p) - negative * mpmath.log(1 - p)
                pull, push = positive / p, negative / (1 - p)
                expected = (value, push - pull, pull / p + push / (1 - p))
                for result, number, scale in zip(results, expected, (value, push + pull, expected[2]), strict=True):
                    error = abs(mpmath.mpf(float(result[i])) - number)
                    assert error <= OPTIONS * eps(eps_dtype) * scale + float(subnormal_slack(eps_dtype))


def test_probs_at_their_ends(dtype):
    loss = BinaryCrossEntropy(inputs="probs", reduction="none")
    x = np.array([0, 1, 0, 1, -0.0, -0.1, 1.5, NAN, INF, 0.5], dtype)
    t = np.array([1, 0, 0, 1, 1, 0, 1, 1, 0, 1])
    value, grad, hess = loss.value_grad_hess(x, t)
    close = BASE * eps(dtype)
    np.testing.assert_allclose(value, [INF, INF, 0, 0, INF, NAN, NAN, NAN, NAN, np.log(2)], rtol=close)
    np.testing.assert_array_equal(grad, [-INF, INF, 1, -1, -INF, NAN, NAN, NAN, NAN, -2])
    np.testing.assert_array_equal(hess, [INF, INF, 1, 1, INF, NAN, NAN, NAN, NAN, 4])
    value, grad, hess = replace(loss, label_smoothing=0.5).value_grad_hess(x[:2], t[:2])
    np.testing.assert_array_equal([value, grad, hess], [[INF, INF], [-INF, INF], [INF, INF]])


# --- infinities -------------------------------------------------------------------------------------------------------

# (logit, target, value, gradient) of any gamma: DESIGN 2.3.
ENDS = [
    (INF, 1, 0, 0),
    (-INF, 0, 0, 0),
    (-INF, 1, INF, -1),
    (INF, 0, INF, 1),
    (NAN, 0, NAN, NAN),
    (NAN, 1, NAN, NAN),
    (1e30, 1, 0, 0),
    (-1e30, 0, 0, 0),
    (-1e30, 1, 1e30, -1),
    (1e30, 0, 1e30, 1),
]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_infinities(dtype, gamma, alpha):
    z, t, value, grad = np.array(ENDS).T
    factor = 1 if alpha is None else np.where(t == 1, alpha, 1 - alpha)
    results = BinaryFocalLoss(gamma=gamma, alpha=alpha, reduction="none").value_grad_hess(z.astype(dtype), t)
    np.testing.assert_allclose(results[0], factor * value, rtol=BASE * eps(dtype))
    np.testing.assert_allclose(results[1], factor * grad, rtol=BASE * eps(dtype))
    np.testing.assert_array_equal(results[2], np.where(np.isnan(z), NAN, 0))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_infinities_with_soft_targets(dtype, gamma):
    # Nobody is right here: r is the mass of the other class.
    loss = BinaryFocalLoss(gamma=gamma, reduction="none")
    value, grad, hess = loss.value_grad_hess(np.array([INF, -INF], dtype), [0.75, 0.75])
    np.testing.assert_array_equal(value, [INF, INF])
    np.testing.assert_allclose(grad, [0.25 ** (1 + gamma), -(0.75 ** (1 + gamma))], rtol=OPTIONS * eps(dtype))
    np.testing.assert_array_equal(hess, [0, 0])
    # Not 0 times inf, although r**gamma underflows.
    assert BinaryFocalLoss(gamma=1000)(np.array(INF, dtype), 0.75) == INF


# --- elements that do not count, weights, shapes, outputs -------------------------------------------------------------

LOSSES = [BinaryCrossEntropy(), BinaryFocalLoss(), BinaryFocalLoss(gamma=0.5, alpha=0.25, label_smoothing=0.125)]


@pytest.mark.parametrize("loss", [*LOSSES, BinaryCrossEntropy(inputs="probs")], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("target_dtype", [np.int8, np.int64, np.float16, np.float64], ids=str)
def test_elements_that_do_not_count_are_never_looked_at(loss, reduction, target_dtype):
    rng = np.random.default_rng(0)
    good = rng.uniform(0.1, 0.9, (5, 4))
    target = rng.integers(0, 2, (5, 4)).astype(target_dtype)
    bad = good.copy()
    bad[1, 2], bad[3, 0] = NAN, INF
    with_ignored = target.copy()
    with_ignored[1, 2] = with_ignored[3, 0] = -1
    weight = rng.uniform(1, 2, (5, 4))
    weightless = weight.copy()
    weightless[1, 2] = weightless[3, 0] = 0
    loss = replace(loss, reduction=reduction, ignore_index=-1)
    expected = loss.value_grad_hess(good, target, weightless)
    for results in (
        loss.value_grad_hess(bad, target, weightless),
        loss.value_grad_hess(bad, with_ignored, weight),
    ):
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        for result in results[0 if reduction == "none" else 1 :]:
            assert result[1, 2] == result[3, 0] == 0
    nothing = loss.value_and_grad(np.full((3, 2), NAN), np.full((3, 2), -1))
    np.testing.assert_array_equal(nothing[0], 0)
    np.testing.assert_array_equal(nothing[1], 0)


def test_an_element_whose_class_has_no_weight_is_not_looked_at():
    z = np.array([NAN, INF, -INF, 0.0])
    for loss, t in (
        (BinaryCrossEntropy(pos_weight=0), 1),
        (BinaryFocalLoss(alpha=0), 1),
        (BinaryFocalLoss(alpha=1), 0),
    ):
        for result in replace(loss, reduction="none").value_grad_hess(z, np.full(4, t)):
            np.testing.assert_array_equal(result, 0)
        assert loss(z, np.full(4, t)) == 0


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_reductions_and_sample_weights(loss):
    rng = np.random.default_rng(1)
    z, t = rng.standard_normal((6, 4)), rng.random((6, 4))
    elements = replace(loss, reduction="none")
    value, grad, hess = elements.value_grad_hess(z, t)
    close = {"rtol": OPTIONS * eps(np.float64)}
    for weight in (None, rng.random(6), rng.random((6, 4))):
        s = np.broadcast_to(1.0 if weight is None else weight if weight.ndim == 2 else weight[:, None], z.shape)
        for reduction, divisor in (("sum", 1.0), ("mean", s.sum())):
            results = replace(loss, reduction=reduction).value_grad_hess(z, t, weight)
            assert type(results[0]) is float
            np.testing.assert_allclose(results[0], (s * value).sum() / divisor, **close)
            np.testing.assert_allclose(results[1], s * grad / divisor, **close)
            np.testing.assert_allclose(results[2], s * hess / divisor, **close)


def test_pos_weight_is_per_last_axis():
    rng = np.random.default_rng(2)
    z, t = rng.standard_normal((2, 5, 3)), rng.random((2, 5, 3))
    together = BinaryCrossEntropy(pos_weight=np.array([0.5, 2.0, 0.0]), reduction="none").value_grad_hess(z, t)
    for c, pos_weight in enumerate((0.5, 2.0, 0.0)):
        alone = BinaryCrossEntropy(pos_weight=pos_weight, reduction="none").value_grad_hess(z[..., c], t[..., c])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[..., c], b)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (0, 3), (2, 3, 4)], ids=str)
def test_shapes_and_outputs(loss, shape):
    rng = np.random.default_rng(3)
    z = np.asarray(rng.standard_normal(shape))
    t = np.asarray(rng.random(shape))
    value, grad, hess = replace(loss, reduction="none").value_grad_hess(z, t)
    assert value.shape == grad.shape == hess.shape == shape
    in_place, hess_out = z.copy(order="F"), np.empty_like(z)
    results = replace(loss, reduction="none").value_grad_hess(in_place, t, None, in_place, hess_out)
    assert results[1] is in_place
    assert results[2] is hess_out
    for a, b in zip(results, (value, grad, hess), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loss(z, t) == pytest.approx(value.mean() if value.size else 0, rel=OPTIONS * eps(np.float64))


def test_gamma_0_is_binary_cross_entropy():
    z, t = logits_of(np.float64), np.linspace(0, 1, 12)
    options = {"label_smoothing": 0.1, "reduction": "sum"}
    focal = BinaryFocalLoss(gamma=0, **options).value_grad_hess(z, t)
    for a, b in zip(focal, BinaryCrossEntropy(**options).value_grad_hess(z, t), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [-1, 2, 1.5, NAN, -0.1])
def test_targets_outside_the_range_are_refused(bad):
    with pytest.raises(AssertionError):
        BinaryCrossEntropy()([0.0, 1.0], [0, bad])


# --- half precision ---------------------------------------------------------------------------------------------------


def half_dtypes():
    yield np.dtype(np.float16)
    yield np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def test_half_results_are_float32_results_rounded():
    rng = np.random.default_rng(4)
    for half in half_dtypes():
        z = (5 * rng.standard_normal((7, 3))).astype(half)
        t = rng.random((7, 3)).astype(half)
        for f in (sigmoid, log_sigmoid):
            result = f(z)
            assert result.dtype == half
            np.testing.assert_array_equal(result, f(z.astype(np.float32)).astype(half))
            assert f(z, out=result) is result
        for loss in LOSSES:
            for reduction in ("none", "mean"):
                chosen = replace(loss, reduction=reduction)
                results = chosen.value_grad_hess(z, t, None, np.empty_like(z), np.empty_like(z))
                expected = chosen.value_grad_hess(z.astype(np.float32), t.astype(np.float32))
                assert results[1].dtype == results[2].dtype == half
                for a, b in zip(results, expected, strict=True):
                    np.testing.assert_array_equal(a, np.asarray(b).astype(half) if np.ndim(b) else b)
        # Counts and sums beyond the range of the dtype.
        assert BinaryCrossEntropy()(np.zeros(70_000, half), np.zeros(70_000, half)) == pytest.approx(
            np.log(2), rel=1e-6
        )
