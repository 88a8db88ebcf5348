"""Figures others have printed, each with where it comes from. A tolerance is half a unit of the last printed digit.

Where the inputs themselves are printed with four digits, their rounding moves the result by up to as much again.
"""

import numpy as np
import pytest
from tolerances import PRINTED, eps

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


# --- binary cross-entropy ---------------------------------------------------------------------------------------------

# Keras 3, BinaryCrossentropy and BinaryFocalCrossentropy, Examples 1 and 2. With two columns its sums are over means
# of two, and its means with sample weights divide by the number of rows.
KERAS_LOGITS = np.array([[-18.6, 0.51], [2.94, -12.8]])
KERAS_TARGET = np.array([[0, 1], [0, 0]])
# Keras 3, functions binary_crossentropy and binary_focal_crossentropy.
KERAS_PROBABILITIES = np.array([[0.6, 0.4], [0.4, 0.6]])


def test_one_logit(dtype):
    # The textbook step from a score to its loss: sigmoid(2) = 0.8808 and -log 0.8808 = 0.1269.
    assert fx.sigmoid(np.array([2], dtype))[0] == printed(0.8808, 4)
    assert fx.BinaryCrossEntropy()(np.array([2], dtype), [1]) == printed(0.1269, 4)


def test_sure_unsure_and_wrong_probabilities(dtype):
    # The textbook table of -log p for p = 0.9, 0.1 and 0.01.
    p = np.array([0.9, 0.1, 0.01], dtype)
    loss = fx.BinaryCrossEntropy(reduction="none", inputs="probs")(p, [1, 1, 1])
    assert loss[0] == printed(0.105, 3)
    assert loss[1] == printed(2.303, 3)
    assert loss[2] == printed(4.605, 3)


def test_four_probabilities(dtype):
    # Four labels as tutorials on binary cross-entropy show them: (log 2 - log 0.4 - log 0.4 - log 0.7) / 4.
    p = np.array([[0.5, 0.4], [0.6, 0.3]], dtype)
    assert fx.BinaryCrossEntropy(inputs="probs")(p, [[0, 1], [0, 0]]) == printed(0.7206, 4)


def test_torch_example_of_64_labels(dtype):
    # torch.nn.BCEWithLogitsLoss: "-log(sigmoid(1.5))", printed as 0.20...
    logits, target = np.full((10, 64), 1.5, dtype), np.ones((10, 64), dtype)
    assert 0.20 <= fx.BinaryCrossEntropy(pos_weight=np.ones(64))(logits, target) < 0.21


def test_keras_binary_crossentropy(dtype):
    logits = KERAS_LOGITS.astype(dtype)
    # The exact values are 0.865458, 1.730916 and, with weights, 0.243639: these three figures were cut, not rounded.
    assert fx.BinaryCrossEntropy()(logits, KERAS_TARGET) == pytest.approx(0.8654, rel=0, abs=1e-4)
    assert fx.BinaryCrossEntropy(reduction="sum")(logits, KERAS_TARGET) / 2 == pytest.approx(1.730, rel=0, abs=1e-3)
    unreduced = fx.BinaryCrossEntropy(reduction="none")
    assert unreduced(logits, KERAS_TARGET).mean(axis=1) == pytest.approx([0.235, 1.496], rel=0, abs=PRINTED * 1e-3)
    # Keras divides by 4 elements, ours by their weights, which are 2.
    value = fx.BinaryCrossEntropy()(logits, KERAS_TARGET, sample_weight=[0.8, 0.2])
    assert value * 2 / 4 == pytest.approx(0.243, rel=0, abs=1e-3)
    p = KERAS_PROBABILITIES.astype(dtype)
    by_row = fx.BinaryCrossEntropy(reduction="none", inputs="probs")(p, KERAS_TARGET).mean(axis=1)
    assert by_row == pytest.approx([0.916, 0.714], rel=0, abs=PRINTED * 1e-3)


def test_scikit_learn_log_loss(dtype):
    # sklearn.metrics.log_loss: spam, ham, ham, spam.
    p = np.array([[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]], dtype)
    assert fx.CrossEntropy(inputs="probs")(p, [1, 0, 0, 1]) == printed(0.21616, 5)
    assert fx.BinaryCrossEntropy(inputs="probs")(p[:, 1], [1, 0, 0, 1]) == printed(0.21616, 5)


def test_keras_categorical_crossentropy(dtype):
    # Keras 3, CategoricalCrossentropy and SparseCategoricalCrossentropy; the weighted mean divides by 2 rows there.
    p = np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]], dtype)
    one_hot = np.array([[0, 1, 0], [0, 0, 1]], dtype)
    for target in (one_hot, np.array([1, 2])):
        assert fx.CrossEntropy(inputs="probs")(p, target) == printed(1.177, 3)
        assert fx.CrossEntropy(inputs="probs")(p, target, [0.3, 0.7]) * 1 / 2 == printed(0.814, 3)
        assert fx.CrossEntropy(reduction="sum", inputs="probs")(p, target) == printed(2.354, 3)
        unreduced = fx.CrossEntropy(reduction="none", inputs="probs")(p, target)
        assert unreduced[0] == printed(0.0513, 4)
        assert unreduced[1] == printed(2.303, 3)


def test_optax_softmax_cross_entropy(dtype):
    # optax.losses.softmax_cross_entropy, with one-hot and with integer labels.
    logits = np.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]], dtype)
    for target in (np.array([[1, 0, 0], [0, 1, 0]], dtype), np.array([0, 1])):
        value = fx.CrossEntropy(reduction="none")(logits, target)
        assert value == pytest.approx([0.2761, 2.9518], rel=0, abs=PRINTED * 1e-4)


# --- focal loss -------------------------------------------------------------------------------------------------------


def test_the_paper_on_easy_examples(dtype):
    # T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3.2: with gamma 2 an example of
    # p_t = 0.9 costs 100 times less than with cross-entropy, one of 0.968 about 1000 times less, and one of at most
    # 0.5 at most 4 times less.
    p_t = np.array([0.9, 0.968, 0.5])
    logits = np.log(p_t / (1 - p_t)).astype(dtype)
    plain = fx.BinaryCrossEntropy(reduction="none")(logits, [1, 1, 1])
    ratio = plain / fx.BinaryFocalLoss(gamma=2, reduction="none")(logits, [1, 1, 1])
    # The rounding of a logit moves 1 - p_t by as many eps as the logit is large.
    assert ratio == pytest.approx([100, 1 / 0.032**2, 4], rel=100 * eps(dtype))
    assert ratio[1] == pytest.approx(1000, rel=0.03)


@pytest.mark.parametrize(("gamma", "plain", "balanced"), [(2, 0.691, 0.510), (3, 0.647, 0.482), (4, 0.611, 0.457)])
def test_keras_binary_focal_crossentropy(dtype, gamma, plain, balanced):
    # "Apply class weight" is apply_class_balancing=True there, with its alpha of 0.25. 0.510 is printed as 0.51,
    # and for gamma 4 the sum of two rows, 1.222 and 0.914.
    logits = KERAS_LOGITS.astype(dtype)
    assert fx.BinaryFocalLoss(gamma)(logits, KERAS_TARGET) == printed(plain, 3)
    assert fx.BinaryFocalLoss(gamma, alpha=0.25)(logits, KERAS_TARGET) == printed(balanced, 3)


def test_keras_binary_focal_crossentropy_by_row(dtype):
    logits = KERAS_LOGITS.astype(dtype)
    by_row = fx.BinaryFocalLoss(gamma=5, reduction="none")(logits, KERAS_TARGET).mean(axis=1)
    assert by_row == pytest.approx([0.0017, 1.1561], rel=0, abs=PRINTED * 1e-4)
    by_row = fx.BinaryFocalLoss(gamma=5, alpha=0.25, reduction="none")(logits, KERAS_TARGET).mean(axis=1)
    # 0.867077 in exact arithmetic; Keras computes in float32 and prints 0.8670.
    assert by_row == pytest.approx([0.0004, 0.8670], rel=0, abs=1e-4)
    # The function of probabilities; logits of float32 probabilities are good to some eps.
    p = KERAS_PROBABILITIES
    by_row = fx.BinaryFocalLoss(reduction="none")(np.log(p / (1 - p)).astype(dtype), KERAS_TARGET).mean(axis=1)
    assert by_row == pytest.approx([0.330, 0.206], rel=0, abs=PRINTED * 1e-3)


def test_keras_categorical_focal_crossentropy(dtype):
    # alpha=0.25, Keras' default, is a factor of every class.
    quarter = {"class_weight": [0.25] * 3, "reduction": "none"}
    logits = np.log(np.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]])).astype(dtype)
    # Printed with nine digits, of a float32; its rounding and that of the logits come on top.
    expected = [2.63401289e-04, 6.75912094e-01]
    assert fx.FocalLoss(**quarter)(logits, [1, 2]) == pytest.approx(expected, rel=100 * eps(np.float32))
    # A probability of 0 is a logit of -inf.
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])).astype(dtype)
    expected = [3.2058331e-05, 4.6627346e-01]
    assert fx.FocalLoss(**quarter)(logits, [1, 2]) == pytest.approx(expected, rel=100 * eps(np.float32))
    assert fx.FocalLoss(**quarter | {"reduction": "sum"})(logits, [1, 2]) == printed(0.46631, 5)
    # Keras' mean is that of two rows; ours divides by their weights, so that a common factor cancels.
    assert fx.FocalLoss(**quarter | {"reduction": "mean"})(logits, [1, 2]) / 4 == printed(0.23315276, 5)
