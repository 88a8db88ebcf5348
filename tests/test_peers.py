"""`CrossEntropy` and the activations beside torch, scikit-learn and SciPy; each is skipped where it is not installed.

They are compared at scales where they are accurate themselves, with an absolute tolerance: their gradients are p - 1.
Where the meanings differ on purpose, the difference is asserted: the README lists them.
"""

import numpy as np
import pytest
from arrays import one_hot, random_logits, random_probabilities
from peers import assert_close, import_torch, torch_result
from tolerances import OPTIONS, REORDERED, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture
def torch():
    return import_torch()


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


# --- torch: what differs on purpose -----------------------------------------------------------------------------------


def test_mean_of_probability_targets_with_class_weights(torch, dtype):
    # torch divides the mean of probabilities by N, that of indices by the weights: one-hot data has two means. Here one.
    logits = random_logits(np.random.default_rng(0), (5, 3), dtype)
    index, weight = np.array([0, 1, 2, 2, 1]), np.array([1, 2, 4], dtype)
    distribution = one_hot(index, 3, dtype)
    loss = fx.CrossEntropy(weight)
    peer = torch.nn.CrossEntropyLoss(torch.tensor(weight))
    assert loss(logits, distribution) == pytest.approx(loss(logits, index), rel=REORDERED * eps(dtype))
    by_index, _ = torch_result(torch, peer, logits, index)
    by_distribution, _ = torch_result(torch, peer, logits, distribution)
    assert_close(loss(logits, index), by_index, dtype, 10)
    assert_close(loss(logits, distribution) * weight[index].sum() / 5, by_distribution, dtype, 10)


def test_an_empty_mean(torch, dtype):
    # Nothing counted: NaN in torch, 0 here, and no gradient in either.
    for logits, target in [
        (np.zeros((0, 3), dtype), np.zeros(0, np.int64)),
        (np.ones((2, 3), dtype), np.full(2, -100)),
    ]:
        expected, expected_grad = torch_result(torch, torch.nn.CrossEntropyLoss(), logits, target)
        value, grad = fx.CrossEntropy(ignore_index=-100).value_and_grad(logits, target)
        assert np.isnan(expected)
        assert value == 0.0
        np.testing.assert_array_equal(grad, expected_grad)


def test_ignored_rows_are_not_looked_at(torch, dtype):
    # An ignored row of NaN has a NaN gradient in torch (issue 11551 there), none here.
    logits = np.array([[0, 1], [np.nan, 3]], dtype)
    target = np.array([0, -100])
    expected, expected_grad = torch_result(torch, torch.nn.CrossEntropyLoss(), logits, target)
    value, grad = fx.CrossEntropy(ignore_index=-100).value_and_grad(logits, target)
    assert_close(value, expected, dtype)
    assert np.isnan(expected_grad[1]).all()
    assert_close(grad, [expected_grad[0], [0, 0]], dtype)


def test_masked_classes_get_no_smoothing(torch, dtype):
    # A class of logit -inf shares the smoothing mass in torch, which costs inf. Here it is as if it were not there.
    logits, target = np.array([[2, 1, -np.inf]], dtype), np.array([0])
    expected, _ = torch_result(torch, torch.nn.CrossEntropyLoss(label_smoothing=0.1), logits, target)
    assert np.isinf(expected)
    value, grad = fx.CrossEntropy(label_smoothing=0.1).value_and_grad(logits, target)
    without, grad_without = fx.CrossEntropy(label_smoothing=0.1).value_and_grad(logits[:, :2], target)
    assert_close(value, without, dtype)
    assert_close(grad, [[*grad_without[0], 0]], dtype)


def test_masked_classes_without_mass_cost_nothing(torch, dtype):
    # 0 * inf: NaN in torch, 0 here.
    logits, target = np.array([[2, 1, -np.inf]], dtype), np.array([[0.5, 0.5, 0]], dtype)
    expected, _ = torch_result(torch, torch.nn.CrossEntropyLoss(), logits, target)
    assert np.isnan(expected)
    assert_close(fx.CrossEntropy()(logits, target), fx.CrossEntropy()(logits[:, :2], target[:, :2]), dtype)


def test_confident_rows_keep_their_digits(torch):
    logits, target = np.float32([[17, 0]]), np.array([0])
    expected, expected_grad = torch_result(torch, torch.nn.CrossEntropyLoss(), logits, target)
    value, grad = fx.CrossEntropy().value_and_grad(logits, target)
    assert expected == expected_grad[0, 0] == 0
    assert value == pytest.approx(4.1399376e-08, rel=REORDERED * eps(np.float32))
    assert grad[0, 0] == pytest.approx(-4.1399374e-08, rel=(OPTIONS + 17) * eps(np.float32))


def test_the_mean_of_many_half_precision_rows(torch):
    # 70 000 is beyond float16: torch's sum of the rows overflows. Here it is a float64.
    logits, target = np.zeros((70_000, 2), np.float16), np.zeros(70_000, np.int64)
    assert torch.nn.CrossEntropyLoss()(torch.tensor(logits), torch.tensor(target)) == 0
    assert fx.CrossEntropy()(logits, target) == pytest.approx(np.log(2), rel=REORDERED * eps(np.float32))


# --- Keras ------------------------------------------------------------------------------------------------------------


def test_keras_ignore_class(dtype):
    """keras.losses.SparseCategoricalCrossentropy(ignore_class) written out (keras/src/losses/losses.py, 3.15)."""
    p = fx.softmax(random_logits(np.random.default_rng(6), (20, 4), dtype))
    target = np.arange(20) % 4
    valid = target != 2
    losses = np.where(valid, -np.log(p[np.arange(20), target]), 0)
    # "sum_over_batch_size" counts the rows that are valid.
    assert_close(fx.CrossEntropy(ignore_index=2, inputs="probs")(p, target), losses.sum() / valid.sum(), dtype)
    assert_close(fx.CrossEntropy(ignore_index=2, reduction="none", inputs="probs")(p, target), losses, dtype)


def test_keras_normalizes_and_clips_probabilities(dtype):
    """keras.ops.categorical_crossentropy(from_logits=False) written out (keras/src/backend/numpy/nn.py, 3.15)."""
    p, target = np.array([[0.2, 0.2, 0], [0.5, 0.5, 0]], dtype), np.array([0, 2])
    expected = -np.log((p / p.sum(axis=1, keepdims=True)).clip(1e-7, 1 - 1e-7))[[0, 1], target]
    assert_close(expected, [np.log(2), -np.log(1e-7)], dtype)
    value = fx.CrossEntropy(reduction="none", inputs="probs")(p, target)
    assert_close(value, [np.log(5), np.inf], dtype)


# --- scikit-learn -----------------------------------------------------------------------------------------------------


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


def test_labels_out_of_range(dtype):
    # scikit-learn's loss takes a class that is not there for "no target", and torch raises; here it is an error.
    losses = pytest.importorskip("sklearn._loss.loss")
    logits, target = np.zeros((2, 3), dtype), np.array([5, -1])
    no_target = np.log(np.full(2, 3, dtype))
    assert_close(losses.HalfMultinomialLoss(n_classes=3).loss(target.astype(dtype), logits), no_target, dtype)
    with pytest.raises(ValueError, match=r"target must be in \[0, 3\); got 5 at index 0"):
        fx.CrossEntropy()(logits, target)


def test_weights_that_are_all_zero(dtype):
    losses = pytest.importorskip("sklearn._loss.loss")
    logits, target, zero = np.ones((2, 3), dtype), np.array([0, 1]), np.zeros(2, dtype)
    with pytest.raises(ZeroDivisionError):
        losses.HalfMultinomialLoss(n_classes=3)(target.astype(dtype), logits, zero)
    assert fx.CrossEntropy()(logits, target, zero) == 0.0


def test_log_loss_of_a_certain_mistake():
    # scikit-learn clips probabilities at eps, so that a class held to be impossible costs 36; here it costs inf.
    metrics = pytest.importorskip("sklearn.metrics")
    p, target = np.array([[1.0, 0, 0]]), np.array([1])
    expected = metrics.log_loss(target, p, labels=[0, 1, 2])
    assert expected == pytest.approx(-np.log(eps(np.float64)), rel=REORDERED * eps(np.float64))
    assert fx.CrossEntropy(inputs="probs")(p, target) == np.inf


# --- SciPy and optax --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 3), (20, 100), (4, 5, 6)], ids=str)
def test_scipy_special(dtype, shape):
    special = pytest.importorskip("scipy.special")
    x = random_logits(np.random.default_rng(2), shape, dtype, 3.0)
    for axis in range(-len(shape), len(shape)):
        assert_close(fx.softmax(x, axis=axis), special.softmax(x, axis=axis), dtype)
        assert_close(fx.log_softmax(x, axis=axis), special.log_softmax(x, axis=axis), dtype, OPTIONS)
        assert_close(fx.logsumexp(x, axis=axis), special.logsumexp(x, axis=axis), dtype, OPTIONS)


def test_optax_softmax_cross_entropy():
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(3)
    logits = random_logits(rng, (9, 5), np.float32, 3.0)
    index, distribution = rng.integers(0, 5, 9), random_probabilities(rng, (9, 5), np.float32)
    unreduced = fx.CrossEntropy(reduction="none")
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, index)
    assert_close(unreduced(logits, index), expected, np.float32, 10)
    assert_close(unreduced(logits, distribution), optax.softmax_cross_entropy(logits, distribution), np.float32, 10)
    # `where` leaves rows out: they weigh 0 here.
    where = rng.random(9) < 0.5
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, index, where=where)
    assert_close(unreduced(logits, index, where), expected, np.float32, 10)
    smoothed = optax.smooth_labels(one_hot(index, 5, np.float32), 0.1)
    expected = optax.softmax_cross_entropy(logits, smoothed)
    assert_close(fx.CrossEntropy(label_smoothing=0.1, reduction="none")(logits, index), expected, np.float32, 10)
