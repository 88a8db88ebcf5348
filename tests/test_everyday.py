"""The short way of the engine: taken by everyday calls, the same bits as the long way, and left for all else."""

import numpy as np
import pytest
from arrays import LAYOUTS, random_logits

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

LOSSES = [
    fx.CrossEntropy(),
    fx.CrossEntropy(label_smoothing=0.1, ignore_index=1, reduction="sum"),
    fx.CrossEntropy(inputs="log_probs"),
    fx.FocalLoss(gamma=1.5),
    fx.BinaryCrossEntropy(),
    fx.BinaryCrossEntropy(label_smoothing=0.1, ignore_index=1, reduction="sum"),
    fx.BinaryFocalLoss(alpha=0.25),
]


def problem(loss, dtype, shape=(9, 5)):
    rng = np.random.default_rng(0)
    logits = random_logits(rng, shape, dtype, 3.0)
    is_binary = isinstance(loss, fx.BinaryCrossEntropy | fx.BinaryFocalLoss)
    target = rng.integers(0, 2 if is_binary else shape[1], shape if is_binary else shape[0])
    return logits, target


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("shape", [(1, 3), (9, 5), (40, 100), (300, 1000)], ids=str)
def test_the_short_way_gives_the_bits_of_the_long_one(dtype, loss, shape):
    logits, target = problem(loss, dtype, shape)
    short = loss._everyday.value_and_grad(logits, target, None)
    assert short is not None
    value, grad, _ = loss._evaluate(logits, target, None, n_derivatives=1)
    assert short[0] == value
    np.testing.assert_array_equal(short[1], grad)
    assert loss._everyday.value(logits, target) == loss(logits, target)
    out = np.empty_like(logits)
    assert loss.value_and_grad(logits, target, grad_out=out)[1] is out
    np.testing.assert_array_equal(out, grad)
    over = loss.value_and_grad(logits, target, grad_out=logits)
    assert over[0] == value
    np.testing.assert_array_equal(logits, grad)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.int64])
def test_targets_of_the_short_way(kind):
    logits, target = problem(LOSSES[4], np.float32)
    assert LOSSES[4]._everyday.value(logits, target.astype(kind)) == LOSSES[4]._evaluate(logits, target, None)[0]
    logits = logits[:, :2].copy()
    labels = target[:, 0].astype(kind)
    assert LOSSES[0]._everyday.value(logits, labels) == LOSSES[0]._evaluate(logits, labels, None)[0]


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


UNUSUAL = {
    **{
        f"logits {name}": lambda z, t, g, make=make: (make(z), t, g)
        for name, make in LAYOUTS.items()
        if name not in ("C", "read_only", "offset")
    },
    **{
        f"gradient {name}": lambda z, t, g, make=make: (z, t, make(g))
        for name, make in LAYOUTS.items()
        if name not in ("C", "offset")
    },
    "list": lambda z, t, g: (z.tolist(), t, g),
    "integers": lambda z, t, g: (z.astype(int), t, g),
    "half": lambda z, t, g: (z.astype(np.float16), t, g),
    "subclass": lambda z, t, g: (np.ma.masked_array(z), t, g),
    "target list": lambda z, t, g: (z, t.tolist(), g),
    "target strided": lambda z, t, g: (z, np.repeat(t, 2)[::2], g),
    "target too long": lambda z, t, g: (z, np.append(t, 0), g),
    "target out of range": lambda z, t, g: (z, with_value(t, 3, 7), g),
    "nothing": lambda z, t, g: (z[:0], t[:0], g[:0]),
    "one axis": lambda z, t, g: (z[0], t[:1], g[0]),
    "gradient of another type": lambda z, t, g: (z, t, g.astype(np.float64 if g.dtype == np.float32 else np.float32)),
    "gradient of another shape": lambda z, t, g: (z, t, g[:-1]),
    "gradient overlaps": lambda z, t, g: (g[:-1], t[:-1], g[1:]),
    "gradient no array": lambda z, t, g: (z, t, g.tolist()),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_the_unusual_is_left_to_the_long_way_untouched(dtype, case):
    loss = fx.CrossEntropy()
    logits, target = problem(loss, dtype)
    grad = np.full_like(logits, 7)
    logits, target, grad = UNUSUAL[case](logits, target, grad)
    before = np.array(logits, copy=True)
    assert loss._everyday.value_and_grad(logits, target, grad) is None
    np.testing.assert_array_equal(np.asarray(logits), before)
    if isinstance(grad, np.ndarray) and "overlaps" not in case:
        assert (grad == 7).all()


@pytest.mark.parametrize("target", [[0.5, 2.0], [np.nan, 0.0], [-0.1, 0.0]], ids=str)
def test_binary_targets_outside_are_left_to_the_long_way(target):
    assert fx.BinaryCrossEntropy()._everyday.value(np.zeros(2), np.array(target)) is None


@pytest.mark.parametrize(
    "loss",
    [
        fx.CrossEntropy(reduction="none"),
        fx.CrossEntropy("balanced"),
        fx.CrossEntropy(axis=0),
        fx.FocalLoss(class_weight=[1, 2]),
        fx.BinaryCrossEntropy(2.0),
        fx.BinaryCrossEntropy(reduction="none"),
    ],
    ids=repr,
)
def test_options_that_rule_the_short_way_out(loss):
    assert loss._everyday is None
