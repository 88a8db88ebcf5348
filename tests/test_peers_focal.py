"""The focal losses beside the formulas of torchvision and Keras, written out for torch's autograd, and optax.

The formulas are computed in float64, whatever the dtype under test: they lose in the tails what ours keeps.
"""

import numpy as np
import pytest
from arrays import one_hot, random_logits, random_probabilities
from peers import import_torch, torch_result
from tolerances import BASE, OPTIONS, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.5, 5.0]


@pytest.fixture
def torch():
    return import_torch()


def allowed(gamma, logits):
    """DESIGN 2.5 for focal losses, twice for options and a gradient of several terms."""
    return 2 * (OPTIONS + (1 + gamma) * (BASE + float(np.abs(logits).max())))


def assert_near(actual, expected, gamma, logits, cancels=False):
    """Relative to the result, but for the formulas' own errors, which are absolute, and for terms that cancel."""
    n = allowed(gamma, logits)
    absolute = eps(logits.dtype if cancels else np.float64)
    np.testing.assert_allclose(actual, expected, rtol=n * eps(logits.dtype), atol=n * absolute)


def torchvision_sigmoid_focal_loss(torch, alpha=0.25, gamma=2.0, reduction="none"):
    """torchvision.ops.sigmoid_focal_loss (torchvision/ops/focal_loss.py, 0.28), of which fvcore's is the original."""
    functional = torch.nn.functional

    def loss(logits, target):
        p = torch.sigmoid(logits)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p_t = p * target + (1 - p) * (1 - target)
        focal = cross_entropy * (1 - p_t) ** gamma
        if alpha >= 0:
            focal = (alpha * target + (1 - alpha) * (1 - target)) * focal
        return {"none": lambda x: x, "sum": torch.sum, "mean": torch.mean}[reduction](focal)

    return loss


def keras_binary_focal_crossentropy(torch, gamma=2.0, apply_class_balancing=False, alpha=0.25, label_smoothing=0.0):
    """keras.losses.binary_focal_crossentropy of logits (keras/src/losses/losses.py, 3.15) before its mean.

    The mean over the last axis is left out, and the clipping to [1e-7, 1 - 1e-7] is in.
    """

    def loss(logits, target):
        target = target * (1 - label_smoothing) + 0.5 * label_smoothing
        p = torch.sigmoid(logits)
        clipped = torch.clip(p, 1e-7, 1 - 1e-7)
        cross_entropy = -(target * torch.log(clipped) + (1 - target) * torch.log(1 - clipped))
        p_t = target * p + (1 - target) * (1 - p)
        focal = (1 - p_t) ** gamma * cross_entropy
        return (target * alpha + (1 - target) * (1 - alpha)) * focal if apply_class_balancing else focal

    return loss


def keras_categorical_focal_crossentropy(torch, alpha=0.25, gamma=2.0, label_smoothing=0.0):
    """keras.losses.categorical_focal_crossentropy of logits (keras/src/losses/losses.py, 3.15), classes last."""

    def loss(logits, target):
        target = target * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
        p = torch.clip(torch.softmax(logits, -1), 1e-7, 1 - 1e-7)
        return (torch.as_tensor(alpha) * (1 - p) ** gamma * -target * torch.log(p)).sum(-1)

    return loss


def result_in_float64(torch, loss, logits, target):
    return torch_result(torch, loss, logits.astype(np.float64), target.astype(np.float64))


# --- the same ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [-1, 0.25])
@pytest.mark.parametrize("soft", [False, True])
def test_torchvision_sigmoid_focal_loss(torch, dtype, gamma, alpha, soft):
    rng = np.random.default_rng(0)
    logits = random_logits(rng, (11, 5), dtype, 3.0)
    target = (rng.random((11, 5)) if soft else rng.integers(0, 2, (11, 5))).astype(dtype)
    for reduction in ("none", "sum", "mean"):
        peer = torchvision_sigmoid_focal_loss(torch, alpha, gamma, reduction)
        expected_value, expected_grad = result_in_float64(torch, peer, logits, target)
        # "alpha=-1" is None.
        loss = fx.BinaryFocalLoss(gamma, None if alpha < 0 else alpha, reduction=reduction)
        value, grad = loss.value_and_grad(logits, target)
        assert_near(value, expected_value, gamma, logits)
        assert_near(grad, expected_grad, gamma, logits, cancels=soft)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("apply_class_balancing", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_keras_binary_focal_crossentropy(torch, dtype, gamma, apply_class_balancing, label_smoothing):
    rng = np.random.default_rng(1)
    logits = random_logits(rng, (11, 5), dtype, 3.0)
    target = rng.integers(0, 2, (11, 5))
    peer = keras_binary_focal_crossentropy(torch, gamma, apply_class_balancing, 0.25, label_smoothing)
    expected_value, expected_grad = result_in_float64(torch, peer, logits, target)
    loss = fx.BinaryFocalLoss(gamma, 0.25 if apply_class_balancing else None, label_smoothing, reduction="none")
    value, grad = loss.value_and_grad(logits, target)
    assert_near(value, expected_value, gamma, logits)
    assert_near(grad, expected_grad, gamma, logits, cancels=label_smoothing > 0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
@pytest.mark.parametrize("n_classes", [2, 10, 40])
def test_keras_categorical_focal_crossentropy(torch, dtype, gamma, label_smoothing, target_kind, n_classes):
    # With probability targets too each class has the factor of its own probability.
    rng = np.random.default_rng(n_classes)
    logits = random_logits(rng, (7, n_classes), dtype, 2.0)
    alpha = rng.uniform(0.1, 2, n_classes).astype(dtype)
    if target_kind == "index":
        target = rng.integers(0, n_classes, 7)
        distribution = one_hot(target, n_classes, dtype)
    else:
        target = distribution = random_probabilities(rng, logits.shape, dtype)
    peer = keras_categorical_focal_crossentropy(torch, alpha.astype(np.float64), gamma, label_smoothing)
    expected_value, expected_grad = result_in_float64(torch, peer, logits, distribution)
    loss = fx.FocalLoss(gamma, alpha, label_smoothing, reduction="none")
    value, grad = loss.value_and_grad(logits, target)
    assert_near(value, expected_value, gamma, logits)
    assert_near(grad, expected_grad, gamma, logits, cancels=True)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_optax_sigmoid_focal_loss(gamma, alpha):
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(2)
    logits, target = random_logits(rng, (9, 5), np.float32, 3.0), rng.random((9, 5), np.float32)
    expected = optax.sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma)
    value = fx.BinaryFocalLoss(gamma, alpha, reduction="none")(logits, target)
    # It is float32 itself, and as far off.
    np.testing.assert_allclose(value, expected, rtol=2 * allowed(gamma, logits) * eps(np.float32))


# --- what differs on purpose ------------------------------------------------------------------------------------------


def test_alpha_is_off_by_default(torch, dtype):
    # torchvision weighs positives by 0.25 and negatives by 0.75 unless told otherwise, and does not reduce.
    logits, target = np.array([0.7, 0.7], dtype), np.array([1, 0], dtype)
    expected, _ = result_in_float64(torch, torchvision_sigmoid_focal_loss(torch), logits, target)
    value = fx.BinaryFocalLoss(reduction="none")(logits, target)
    assert_near(value * [0.25, 0.75], expected, 2, logits)
    assert fx.BinaryFocalLoss() == fx.BinaryFocalLoss(gamma=2.0, alpha=None, reduction="mean")


def test_keras_weighs_every_class_by_a_quarter(torch, dtype):
    # alpha=0.25 of CategoricalFocalCrossentropy is a plain factor of the loss; here no class weight is the default.
    logits = random_logits(np.random.default_rng(3), (7, 3), dtype)
    target = np.arange(7) % 3
    peer = keras_categorical_focal_crossentropy(torch)
    expected, _ = result_in_float64(torch, peer, logits, one_hot(target, 3, dtype))
    assert_near(fx.FocalLoss(reduction="none")(logits, target) / 4, expected, 2, logits)


def test_the_mean_is_weighted_by_class_weights(torch, dtype):
    # Keras divides by the number of rows, whatever alpha is: a common factor of all classes cancels only here.
    logits = random_logits(np.random.default_rng(4), (7, 3), dtype)
    target = np.arange(7) % 3
    alpha = np.array([1, 2, 4], dtype)
    peer = keras_categorical_focal_crossentropy(torch, alpha.astype(np.float64))
    expected, _ = result_in_float64(torch, peer, logits, one_hot(target, 3, dtype))
    value = fx.FocalLoss(class_weight=alpha)(logits, target)
    assert value == pytest.approx(expected.sum() / alpha[target].sum(), rel=allowed(2, logits) * eps(dtype))
    assert fx.FocalLoss(class_weight=4 * alpha)(logits, target) == pytest.approx(
        value, rel=allowed(2, logits) * eps(dtype)
    )


def test_nothing_is_clipped(torch):
    # Keras clips probabilities at 1e-7, so that no mistake costs more than 16.12; here it costs what it is.
    logits, target = np.array([-50.0]), np.array([1.0])
    expected, expected_grad = torch_result(torch, keras_binary_focal_crossentropy(torch), logits, target)
    assert expected[0] == pytest.approx(-np.log(1e-7), rel=OPTIONS * eps(np.float64))
    assert abs(expected_grad[0]) < 1e-15  # and teaches nothing
    value, grad = fx.BinaryFocalLoss(reduction="none").value_and_grad(logits, target)
    assert value[0] == pytest.approx(50, rel=allowed(2, logits) * eps(np.float64))
    assert grad[0] == pytest.approx(-1, rel=allowed(2, logits) * eps(np.float64))


def test_sure_elements_keep_their_digits(torch):
    # torchvision's 1 - p_t is 0 there: value 0, and with gamma below 1 the gradient is NaN.
    logits, target = np.float32([20]), np.float32([1])
    peer = torchvision_sigmoid_focal_loss(torch, alpha=-1, gamma=0.5)
    expected, expected_grad = torch_result(torch, peer, logits, target)
    assert expected[0] == 0
    assert np.isnan(expected_grad[0])
    value, grad = fx.BinaryFocalLoss(0.5, reduction="none").value_and_grad(logits, target)
    q = np.exp(-20.0)  # and p = 1 - q: q^1.5 is the loss, 1.5 times that its slope, both but for a share q of them
    close = {"rel": allowed(0.5, logits) * eps(np.float32)}
    assert value[0] == pytest.approx(q**1.5, **close)
    assert grad[0] == pytest.approx(-1.5 * q**1.5, **close)
