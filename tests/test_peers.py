"""Other libraries as oracles, where they mean the same; each is skipped where it is not installed.

They are compared at scales where they are accurate themselves, with an absolute tolerance: their gradients are p - 1.
"""

import warnings

import numpy as np
import pytest
from arrays import random_logits, random_probabilities
from tolerances import OPTIONS, REORDERED, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer warns about when imported is its own affair
        return pytest.importorskip("torch")


def assert_close(actual, expected, dtype, scale=1.0):
    atol = REORDERED * eps(dtype) * scale
    np.testing.assert_allclose(actual, expected, rtol=REORDERED * eps(dtype), atol=atol)


def torch_result(torch, module, x, target):
    leaf = torch.tensor(x, requires_grad=True)
    value = module(leaf, torch.tensor(target))
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("seed", range(30))
def test_torch_cross_entropy_with_indices(torch, dtype, seed):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 40))
    # torch has the classes second: (N, C) or (N, C, d1, d2).
    shape = (int(rng.integers(1, 20)), n_classes, *rng.integers(1, 5, rng.integers(0, 3)))
    logits = random_logits(rng, shape, dtype, 3.0)
    target = rng.integers(0, n_classes, shape[:1] + shape[2:])
    ignore = int(rng.choice([-100, 0, 1]))
    target[rng.random(target.shape) < 0.2] = ignore
    target.flat[0] = n_classes - 1  # torch's mean of nothing is NaN
    ignore = -100 if ignore == n_classes - 1 else ignore
    weight = rng.uniform(0.1, 2, n_classes).astype(dtype) if rng.random() < 0.5 else None
    smoothing = float(rng.choice([0, 0.1, 1]))
    for reduction in ("none", "sum", "mean"):
        peer = torch.nn.CrossEntropyLoss(
            weight=None if weight is None else torch.tensor(weight),
            ignore_index=ignore,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        expected_value, expected_grad = torch_result(torch, peer, logits, target)
        loss = fx.CrossEntropy(weight, smoothing, ignore, reduction, axis=1)
        value, grad = loss.value_and_grad(logits, target)
        # Values are sums of up to `size` terms of size about 10.
        size = target.size if reduction == "sum" else 1
        assert_close(value, expected_value, dtype, 10 * size)
        assert_close(grad, expected_grad, dtype, 2)


@pytest.mark.parametrize("seed", range(10))
def test_torch_cross_entropy_with_probabilities(torch, dtype, seed):
    # The means differ by design: torch divides by N whatever the weights are.
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 40))
    logits = random_logits(rng, (7, n_classes, 3), dtype, 3.0)
    target = random_probabilities(rng, logits.shape, dtype, axis=1)
    weight = rng.uniform(0.1, 2, n_classes).astype(dtype)
    smoothing = float(rng.choice([0, 0.1]))
    for reduction in ("none", "sum"):
        peer = torch.nn.CrossEntropyLoss(torch.tensor(weight), label_smoothing=smoothing, reduction=reduction)
        expected_value, expected_grad = torch_result(torch, peer, logits, target)
        value, grad = fx.CrossEntropy(weight, smoothing, None, reduction, axis=1).value_and_grad(logits, target)
        assert_close(value, expected_value, dtype, 10 * (21 if reduction == "sum" else 1))
        assert_close(grad, expected_grad, dtype, 2)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_negative_log_likelihood(torch, dtype, reduction):
    rng = np.random.default_rng(0)
    log_p = fx.log_softmax(random_logits(rng, (9, 5, 4), dtype), axis=1)
    target = rng.integers(0, 5, (9, 4))
    target[0, :2] = 3
    weight = rng.uniform(0.1, 2, 5).astype(dtype)
    peer = torch.nn.NLLLoss(torch.tensor(weight), ignore_index=3, reduction=reduction)
    expected_value, expected_grad = torch_result(torch, peer, log_p, target)
    loss = fx.CrossEntropy(weight, ignore_index=3, reduction=reduction, axis=1, inputs="log_probs")
    value, grad = loss.value_and_grad(log_p, target)
    assert_close(value, expected_value, dtype, 36 if reduction == "sum" else 1)
    assert_close(grad, expected_grad, dtype)


@pytest.mark.parametrize("n_classes", [3, 10, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_half_multinomial_loss(dtype, n_classes, weighted):
    losses = pytest.importorskip("sklearn._loss.loss")
    rng = np.random.default_rng(n_classes)
    logits = random_logits(rng, (50, n_classes), dtype, 3.0)
    target = rng.integers(0, n_classes, 50)
    sample_weight = rng.uniform(0.1, 2, 50).astype(dtype) if weighted else None
    peer = losses.HalfMultinomialLoss(n_classes=n_classes)
    expected_value, expected_grad = peer.loss_gradient(target.astype(dtype), logits, sample_weight)
    _, expected_hess = peer.gradient_hessian(target.astype(dtype), logits, sample_weight)
    value, grad, hess = fx.CrossEntropy(reduction="none").value_grad_hess(logits, target, sample_weight)
    assert_close(value, expected_value, dtype, 20)
    assert_close(grad, expected_grad, dtype, 2)
    assert_close(hess, expected_hess, dtype, 2)
    mean = peer(target.astype(dtype), logits, sample_weight)
    assert fx.CrossEntropy()(logits, target, sample_weight) == pytest.approx(mean, rel=REORDERED * eps(dtype))


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_scikit_learn_log_loss(weights):
    metrics = pytest.importorskip("sklearn.metrics")
    utils = pytest.importorskip("sklearn.utils")
    rng = np.random.default_rng(1)
    p = fx.softmax(random_logits(rng, (50, 4), np.float64))
    target = np.concatenate([np.arange(4), rng.integers(0, 4, 46)])
    sample_weight = utils.class_weight.compute_sample_weight(weights, target)
    expected = metrics.log_loss(target, p, sample_weight=sample_weight)
    value = fx.CrossEntropy(class_weight=weights, inputs="probs")(p, target)
    assert value == pytest.approx(expected, rel=REORDERED * eps(np.float64))
    expected = utils.class_weight.compute_class_weight("balanced", classes=np.arange(4), y=target)
    np.testing.assert_allclose(fx.balanced_class_weight(target, 4), expected, rtol=2 * eps(np.float64))


@pytest.mark.parametrize("shape", [(20, 3), (20, 100), (4, 5, 6)], ids=str)
def test_scipy_special(dtype, shape):
    special = pytest.importorskip("scipy.special")
    x = random_logits(np.random.default_rng(2), shape, dtype, 3.0)
    for axis in range(-len(shape), len(shape)):
        assert_close(fx.softmax(x, axis=axis), special.softmax(x, axis=axis), dtype)
        assert_close(fx.log_softmax(x, axis=axis), special.log_softmax(x, axis=axis), dtype, OPTIONS)
        assert_close(fx.logsumexp(x, axis=axis), special.logsumexp(x, axis=axis), dtype, OPTIONS)
