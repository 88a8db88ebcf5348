"""Figures others have printed, each with where it comes from. A tolerance is half a unit of the last printed digit.

Where the inputs themselves are printed with four digits, their rounding moves the result by up to as much again.
"""

import numpy as np
import pytest
from tolerances import PRINTED

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

# torch.nn.CrossEntropyLoss, "Example of target with class indices": a 3 x 5 torch.randn and random targets, as one
# printed run of that example shows them. The printed loss is that of the logits before they were rounded to 4 digits.
PRINTED_LOGITS = np.array(
    [
        [-0.7514, 1.2616, -0.4232, 1.3868, 1.2298],
        [1.5341, -0.4240, 0.0112, -0.5188, 0.1129],
        [-2.6143, 0.1532, 0.0868, -0.8231, 0.7698],
    ]
)
PRINTED_TARGET = np.array([3, 0, 1])
# The same example with torch.rand logits, where the printed run shows the gradient after backward() too.
UNIFORM_LOGITS = np.array(
    [
        [0.8671, 0.0189, 0.0042, 0.1619, 0.9805],
        [0.1054, 0.1519, 0.6359, 0.6112, 0.9417],
        [0.9968, 0.3285, 0.9185, 0.0315, 0.9592],
    ]
)
UNIFORM_TARGET = np.array([1, 0, 4])
UNIFORM_GRADIENT = np.array(
    [
        [0.0962, -0.2921, 0.0406, 0.0475, 0.1078],
        [-0.2901, 0.0453, 0.0735, 0.0717, 0.0997],
        [0.0882, 0.0452, 0.0815, 0.0336, -0.2484],
    ]
)


def printed(value, digits):
    return pytest.approx(value, rel=0, abs=PRINTED * 10.0**-digits)


def test_softmax_of_a_very_sure_row(dtype):
    # The usual demonstration that softmax turns scores into probabilities: three scores far apart, five digits each.
    p = fx.softmax(np.array([[-9, 5, 10]], dtype=dtype))
    assert p[0, 0] == printed(5.5653e-09, 13)
    assert p[0, 1] == printed(6.6929e-03, 7)
    assert p[0, 2] == printed(9.9331e-01, 5)


def test_torch_style_example_with_indices(dtype):
    value = fx.CrossEntropy()(PRINTED_LOGITS.astype(dtype), PRINTED_TARGET)
    # The printed loss. Logits rounded to 4 digits are off by 5e-5 at most, so the mean loss is off by at most 1e-4.
    assert value == pytest.approx(1.0314, rel=0, abs=1e-4)
    # The rounded logits themselves give 1.0313392 (mpmath), which this project's notes quote as 1.03135.
    assert value == printed(1.0313392, 7)
    assert value == pytest.approx(1.03135, rel=0, abs=1.1e-5)


def test_log_softmax_then_log_probs_is_the_same(dtype):
    # torch documents CrossEntropyLoss as LogSoftmax followed by NLLLoss.
    log_p = fx.log_softmax(PRINTED_LOGITS.astype(dtype))
    assert fx.CrossEntropy(inputs="log_probs")(log_p, PRINTED_TARGET) == printed(1.0313392, 6)


def test_torch_style_example_with_gradient(dtype):
    value, grad = fx.CrossEntropy().value_and_grad(UNIFORM_LOGITS.astype(dtype), UNIFORM_TARGET)
    assert value == printed(1.8338, 4)
    # Here the rounding of the inputs is at most 5e-5 * max |d grad / d logit| = 5e-5 / 4 / 3, under a tenth of a unit.
    assert np.abs(grad - UNIFORM_GRADIENT).max() <= (PRINTED + 0.1) * 1e-4


def test_three_scores_of_a_classifier(dtype):
    # The scores 2.0, 1.0, 0.1 of the standard softmax lecture; p = .659, .242, .099 there, four digits here.
    logits = np.array([[2, 1, 0.1]], dtype=dtype)
    assert fx.softmax(logits)[0] == pytest.approx([0.6590, 0.2424, 0.0986], rel=0, abs=PRINTED * 1e-4)
    assert fx.CrossEntropy()(logits, [0]) == printed(0.4170, 4)


def test_label_smoothing_of_a_sure_row(dtype):
    # Tutorials on label smoothing: a sure and right answer costs nothing, until 0.1 of the mass is spread out.
    logits = np.array([[5, 0.1, 0.1]], dtype=dtype)
    assert fx.CrossEntropy()(logits, [0]) == printed(0.0148, 4)
    # The exact value is 0.34145002; the figure was cut after the fourth digit, not rounded.
    assert fx.CrossEntropy(label_smoothing=0.1)(logits, [0]) == pytest.approx(0.3414, rel=0, abs=1e-4)


def test_probabilities_of_ten_digits(dtype):
    # The textbook walk-through with a digit classifier: -log 0.70 = 0.357, and -log 0.05 = 2.996 when it is wrong.
    sure = np.array([[0.05, 0.02, 0.08, 0.70, 0.03, 0.04, 0.02, 0.03, 0.02, 0.01]], dtype=dtype)
    assert fx.CrossEntropy(inputs="probs")(sure, [3]) == printed(0.357, 3)
    wrong = sure.copy()
    wrong[0, [0, 3]] = wrong[0, [3, 0]]
    assert fx.CrossEntropy(inputs="probs")(wrong, [3]) == printed(2.996, 3)


def test_balanced_weights_of_nine_to_one():
    # scikit-learn's definition of class_weight="balanced": n / (n_classes * counts), here 100 / (2 * [90, 10]).
    target = np.repeat([0, 1], [90, 10])
    assert fx.balanced_class_weight(target, 2).tolist() == [100 / 180, 5.0]
