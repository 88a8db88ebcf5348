"""`BinaryCrossEntropy` and the sigmoids beside torch, scikit-learn, SciPy and optax, as far as they are installed.

They are compared at scales where they are accurate themselves, with an absolute tolerance: their gradients are p - t.
Where the meanings differ on purpose, the difference is asserted: the README lists them.
"""

import numpy as np
import pytest
from arrays import random_logits
from peers import assert_close, import_torch, torch_result
from tolerances import BASE, REORDERED, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

# Logits of scale 3 reach about 13, so that a loss is at most about that.
LARGEST = 20


@pytest.fixture
def torch():
    return import_torch()


def random_shape(rng):
    return tuple(int(n) for n in rng.integers(1, 8, rng.integers(0, 4)))


def random_targets(rng, shape, dtype):
    """Hard or soft, as floats: torch knows no others."""
    return (rng.integers(0, 2, shape) if rng.random() < 0.5 else rng.random(shape)).astype(dtype)


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_torch_bce_with_logits(torch, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng)
    logits, target = random_logits(rng, shape, dtype, 3.0), random_targets(rng, shape, dtype)
    weight = rng.uniform(0.1, 2, shape).astype(dtype) if rng.random() < 0.5 else None
    # One for all, or one per label.
    pos_weight = rng.uniform(0.1, 4, shape[-1:] if rng.random() < 0.5 else ()).astype(dtype)
    pos_weight = pos_weight if rng.random() < 0.7 else None
    for reduction in ("none", "sum", "mean"):
        peer = torch.nn.BCEWithLogitsLoss(
            weight=None if weight is None else torch.tensor(weight),
            pos_weight=None if pos_weight is None else torch.tensor(pos_weight),
            reduction=reduction,
        )
        expected_value, expected_grad = torch_result(torch, peer, logits, target)
        if reduction == "mean" and weight is not None:
            # Ours is the mean of the weighted elements; torch divides by their number.
            share = weight.size / weight.sum(dtype=np.float64)
            expected_value, expected_grad = expected_value * share, expected_grad * share
        loss = fx.BinaryCrossEntropy(pos_weight, reduction=reduction)
        value, grad = loss.value_and_grad(logits, target, weight)
        assert_close(value, expected_value, dtype, LARGEST * (logits.size if reduction == "sum" else 1))
        assert_close(grad, expected_grad, dtype, 8)  # pos_weight * weight <= 8


@pytest.mark.parametrize("seed", range(10))
def test_torch_bce(torch, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng)
    # Closer to 0 and 1 torch's 1 - p loses what ours keeps.
    p, target = rng.uniform(0.01, 0.99, shape).astype(dtype), random_targets(rng, shape, dtype)
    weight = rng.uniform(0.1, 2, shape).astype(dtype) if rng.random() < 0.5 else None
    for reduction in ("none", "sum", "mean"):
        peer = torch.nn.BCELoss(weight=None if weight is None else torch.tensor(weight), reduction=reduction)
        expected_value, expected_grad = torch_result(torch, peer, p, target)
        if reduction == "mean" and weight is not None:
            share = weight.size / weight.sum(dtype=np.float64)
            expected_value, expected_grad = expected_value * share, expected_grad * share
        loss = fx.BinaryCrossEntropy(reduction=reduction, inputs="probs")
        value, grad = loss.value_and_grad(p, target, weight)
        assert_close(value, expected_value, dtype, 10 * (p.size if reduction == "sum" else 1))
        # 1 / (p (1 - p)) is about 100 at the ends, and so is the rounding of 1 - p there.
        assert_close(grad, expected_grad, dtype, 200, allowed=100 * REORDERED)


def test_torch_sigmoids(torch, dtype):
    x = random_logits(np.random.default_rng(0), (20, 7), dtype, 3.0)
    assert_close(fx.sigmoid(x), torch.sigmoid(torch.tensor(x)).numpy(), dtype)
    assert_close(fx.log_sigmoid(x), torch.nn.functional.logsigmoid(torch.tensor(x)).numpy(), dtype, LARGEST)


def test_torch_has_the_same_weights_per_label_for_every_row(torch, dtype):
    # pos_weight of shape (n_labels,) belongs to the last axis in both, whatever comes before it.
    rng = np.random.default_rng(1)
    logits, target = random_logits(rng, (4, 3, 2), dtype), rng.integers(0, 2, (4, 3, 2))
    peer = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(np.array([1, 5], dtype)))
    expected_value, expected_grad = torch_result(torch, peer, logits, target.astype(dtype))
    value, grad = fx.BinaryCrossEntropy([1, 5]).value_and_grad(logits, target)
    assert_close(value, expected_value, dtype, LARGEST)
    assert_close(grad, expected_grad, dtype)


# --- torch: what differs on purpose -----------------------------------------------------------------------------------


def test_probabilities_are_not_clamped(torch, dtype):
    # BCELoss clamps log at -100 and the divisor of its gradient at 1e-12: wrong and certain costs 100 there, inf here.
    p, target = np.array([0, 1, 1, 0], dtype), np.array([1, 0, 1, 0], dtype)
    expected_value, expected_grad = torch_result(torch, torch.nn.BCELoss(reduction="none"), p, target)
    np.testing.assert_array_equal(expected_value, [100, 100, 0, 0])
    steepest = 1 / np.float64(np.float32(1e-12))
    assert_close(expected_grad, [-steepest, steepest, 0, 0], dtype)
    value, grad = fx.BinaryCrossEntropy(reduction="none", inputs="probs").value_and_grad(p, target)
    np.testing.assert_array_equal(value, [np.inf, np.inf, 0, 0])
    # A certain and right probability still has a slope: the loss is -log p, whose derivative at 1 is -1.
    np.testing.assert_array_equal(grad, [-np.inf, np.inf, -1, 1])


def test_targets_are_checked(torch, dtype):
    # torch's loss of logits goes below 0 for targets beyond 1.
    logits, target = np.array([1.0, 1.0], dtype), np.array([1.0, 1.5], dtype)
    expected, _ = torch_result(torch, torch.nn.BCEWithLogitsLoss(reduction="none"), logits, target)
    assert expected[1] < 0
    with pytest.raises(ValueError, match=r"target must be in \[0, 1\]; got 1\.5 at index 1"):
        fx.BinaryCrossEntropy()(logits, target)


def test_infinite_logits(torch, dtype):
    # NaN in torch, also where the answer is certain and right.
    logits, target = np.array([np.inf, -np.inf, -np.inf, np.inf], dtype), np.array([1, 0, 1, 0], dtype)
    expected, _ = torch_result(torch, torch.nn.BCEWithLogitsLoss(reduction="none"), logits, target)
    assert np.isnan(expected[:3]).all()
    value, grad = fx.BinaryCrossEntropy(reduction="none").value_and_grad(logits, target)
    np.testing.assert_array_equal(value, [0, 0, np.inf, np.inf])
    np.testing.assert_array_equal(grad, [0, 0, -1, 1])


def test_an_empty_binary_mean(torch, dtype):
    empty = np.zeros(0, dtype)
    expected, _ = torch_result(torch, torch.nn.BCEWithLogitsLoss(), empty, empty)
    assert np.isnan(expected)
    assert fx.BinaryCrossEntropy()(empty, empty) == 0.0
    # torch has no ignore_index here.
    assert fx.BinaryCrossEntropy(ignore_index=-1)(np.ones(3, dtype), np.full(3, -1)) == 0.0


def test_confident_elements_keep_their_digits(torch):
    # torch's loss is 0 for the sure negative, and its gradient for the sure positive.
    logits, target = np.float32([17, -17]), np.float32([1, 0])
    expected, expected_grad = torch_result(torch, torch.nn.BCEWithLogitsLoss(reduction="none"), logits, target)
    assert expected[1] == expected_grad[0] == 0
    value, grad = fx.BinaryCrossEntropy(reduction="none").value_and_grad(logits, target)
    np.testing.assert_allclose(value, [4.1399376e-08] * 2, rtol=(BASE + 17) * eps(np.float32))
    np.testing.assert_allclose(grad, [-4.1399374e-08, 4.1399374e-08], rtol=(BASE + 17) * eps(np.float32))


# --- scikit-learn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_scikit_learn_half_binomial_loss(dtype, weighted, soft):
    losses = pytest.importorskip("sklearn._loss.loss")
    rng = np.random.default_rng(2)
    logits = random_logits(rng, 100, dtype, 3.0)
    target = rng.random(100).astype(dtype) if soft else rng.integers(0, 2, 100).astype(dtype)
    sample_weight = rng.uniform(0.1, 2, 100).astype(dtype) if weighted else None
    peer = losses.HalfBinomialLoss()
    expected_value, expected_grad = peer.loss_gradient(target, logits, sample_weight)
    _, expected_hess = peer.gradient_hessian(target, logits, sample_weight)
    value, grad, hess = fx.BinaryCrossEntropy(reduction="none").value_grad_hess(logits, target, sample_weight)
    assert_close(value, expected_value, dtype, LARGEST)
    assert_close(grad, expected_grad, dtype, 2)
    assert_close(hess, expected_hess, dtype, 2)
    mean = peer(target, logits, sample_weight)
    assert fx.BinaryCrossEntropy()(logits, target, sample_weight) == pytest.approx(mean, rel=REORDERED * eps(dtype))


def test_scikit_learn_infinite_logits(dtype):
    losses = pytest.importorskip("sklearn._loss.loss")
    logits, target = np.array([np.inf, -np.inf], dtype), np.array([1, 0], dtype)
    with np.errstate(invalid="ignore"):
        assert np.isnan(losses.HalfBinomialLoss().loss(target, logits)).all()
    np.testing.assert_array_equal(fx.BinaryCrossEntropy(reduction="none")(logits, target), [0, 0])


@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_log_loss(weighted):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    p, target = rng.uniform(0.01, 0.99, 50), rng.integers(0, 2, 50)
    sample_weight = rng.uniform(0.1, 2, 50) if weighted else None
    close = {"rel": REORDERED * eps(np.float64)}
    expected = metrics.log_loss(target, p, sample_weight=sample_weight)
    assert fx.BinaryCrossEntropy(inputs="probs")(p, target, sample_weight) == pytest.approx(expected, **close)
    expected = metrics.log_loss(target, p, sample_weight=sample_weight, normalize=False)
    value = fx.BinaryCrossEntropy(reduction="sum", inputs="probs")(p, target, sample_weight)
    assert value == pytest.approx(expected, **close)


# --- SciPy and optax --------------------------------------------------------------------------------------------------


def test_scipy_expit(dtype):
    special = pytest.importorskip("scipy.special")
    x = random_logits(np.random.default_rng(4), (4, 5, 6), dtype, 30.0)
    distance = np.abs(x).max()  # what rounding x costs an exponential
    assert_close(fx.sigmoid(x), special.expit(x), dtype, 0, allowed=REORDERED + 2 * distance)
    assert_close(fx.log_sigmoid(x), special.log_expit(x), dtype, 0, allowed=REORDERED + 2 * distance)


def test_optax_sigmoid_binary_cross_entropy():
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(5)
    logits, target = random_logits(rng, (9, 5), np.float32, 3.0), rng.random((9, 5), np.float32)
    expected = optax.sigmoid_binary_cross_entropy(logits, target)
    assert_close(fx.BinaryCrossEntropy(reduction="none")(logits, target), expected, np.float32, LARGEST)
