"""TemperatureScaling: the temperature of the definition, the calibration error by hand, the checks that apply."""

import pickle
import re

import numpy as np
import pytest

import fastxent as fx

sklearn = pytest.importorskip("sklearn")

from scipy.optimize import minimize_scalar
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

from fastxent.sklearn import LinearClassifier, TemperatureScaling

pytestmark = pytest.mark.thread_unsafe  # scikit-learn's checks change the filters of warnings

# A minimum is flat: where values agree to eps, places agree to its square root, 1.5e-8. Ten times over.
PLACE = 1e-6


def overconfident(n_classes, factor=3.0, n_samples=2000):
    """Logits, times a factor, of labels that are drawn from their probabilities."""
    rng = np.random.default_rng(n_classes)
    logits = rng.standard_normal((n_samples, n_classes)) * 1.5
    uniform = rng.random((n_samples, 1))
    return factor * logits, (fx.softmax(logits).cumsum(axis=1) < uniform).sum(axis=1).clip(max=n_classes - 1)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_it_finds_the_factor_that_was_put_in(n_classes):
    logits, y = overconfident(n_classes)
    scaling = TemperatureScaling().fit(logits, y)
    assert 2.7 < scaling.temperature_ < 3.3  # by the luck of 2000 draws
    assert scaling.calibration_error_before_ > 0.05
    assert scaling.calibration_error_after_ < 0.5 * scaling.calibration_error_before_
    assert log_loss(y, scaling.predict_proba(logits)) < log_loss(y, fx.softmax(logits))
    np.testing.assert_array_equal(scaling.predict(logits), logits.argmax(axis=1))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        None,
        fx.CrossEntropy(label_smoothing=0.1, class_weight={1: 2.0}),
        fx.CrossEntropy(class_weight="balanced"),
        fx.FocalLoss(gamma=1.5),
        fx.FocalLoss(gamma=1.5, label_smoothing=0.1),
    ],
    ids=str,
)
def test_the_temperature_is_that_of_a_search_over_the_values(loss, weighted, n_classes):
    logits, y = overconfident(n_classes)
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float) if weighted else None
    definition = fx.CrossEntropy() if loss is None else loss
    found = minimize_scalar(
        lambda log_temperature: definition(logits / np.exp(log_temperature), y, weight),
        bracket=(0.0, 1.0),
        options={"xtol": 1e-9},
    )
    scaling = TemperatureScaling(loss).fit(logits, y, weight)
    np.testing.assert_allclose(np.log(scaling.temperature_), found.x, rtol=0, atol=PLACE)


@pytest.mark.parametrize(
    "loss", [None, fx.FocalLoss(label_smoothing=0.1), fx.BinaryCrossEntropy(pos_weight=2.0)], ids=str
)
def test_two_columns_are_one_score(loss):
    logits, y = overconfident(2)
    score = logits[:, 1] - logits[:, 0]
    ways = [TemperatureScaling(loss).fit(x, y) for x in (logits, score, score[:, np.newaxis], score.tolist())]
    for way, x in zip(ways, (logits, score, score[:, np.newaxis], score.tolist()), strict=True):
        assert way.temperature_ == ways[0].temperature_
        assert way.decision_function(x).shape == score.shape
        np.testing.assert_array_equal(way.predict_proba(x), ways[0].predict_proba(logits))


def test_probabilities_of_one_class_are_labels():
    logits, y = overconfident(3)
    hard, soft = (TemperatureScaling().fit(logits, target) for target in (y, np.eye(3)[y]))
    np.testing.assert_allclose(soft.temperature_, hard.temperature_, rtol=PLACE)
    np.testing.assert_allclose(soft.calibration_error_after_, hard.calibration_error_after_, rtol=PLACE)


def test_the_calibration_error_by_hand():
    # Two samples in each of two bins of five: right, wrong; right, right.
    p = np.array([0.9, 0.9, 0.65, 0.7])
    score = np.log(p / (1 - p))
    y, weight = np.array([1, 0, 1, 1]), np.array([3.0, 1.0, 2.0, 0.0])
    scaling = TemperatureScaling(n_bins=5).fit(score, y)
    by_hand = (abs(0.1 - 0.9) + abs(0.35 + 0.3)) / 4
    np.testing.assert_allclose(scaling.calibration_error_before_, by_hand, rtol=1e-14)
    scaling.fit(score, y, weight)
    np.testing.assert_allclose(scaling.calibration_error_before_, (abs(3 * 0.1 - 0.9) + 2 * 0.35) / 6, rtol=1e-14)
    # Certain samples are in the last bin; what is ignored, in none.
    scaling = TemperatureScaling(fx.CrossEntropy(ignore_index=-1)).fit([1000.0, 1000.0, -1000.0, 3.0], [1, 0, 0, -1])
    np.testing.assert_allclose(scaling.calibration_error_before_, 1 / 3, rtol=1e-14)


def test_it_says_when_no_temperature_is_best():
    with pytest.warns(ConvergenceWarning, match=r"beyond exp\(\+10\): the logits are no better than chance"):
        TemperatureScaling().fit([2.0, -2.0], [0, 1])
    with pytest.warns(ConvergenceWarning, match="all samples are right"):
        TemperatureScaling().fit([2.0, -2.0], [1, 0])


def test_classes_need_not_all_be_there():
    logits, y = overconfident(3)
    keep = y != 1
    names = np.array(["c", "a", "b"])  # in the order of the columns, whatever that is
    scaling = TemperatureScaling(classes=names).fit(logits[keep], names[y[keep]])
    np.testing.assert_array_equal(scaling.predict(logits), names[logits.argmax(axis=1)])
    with pytest.raises(ValueError, match=r"classes must be 3 labels.*; got \['b', 'c'\]"):
        TemperatureScaling().fit(logits[keep], names[y[keep]])
    with pytest.raises(ValueError, match=r"y must be among the classes \['c', 'a', 'b'\]; got 'd' at index 1"):
        TemperatureScaling(classes=names).fit(logits[:2], ["a", "d"])


def test_clone_pickle_and_an_unfitted_one():
    logits, y = overconfident(3)
    scaling = TemperatureScaling(fx.FocalLoss(), n_bins=10).fit(logits, y)
    again = pickle.loads(pickle.dumps(scaling))
    np.testing.assert_array_equal(again.predict_proba(logits), scaling.predict_proba(logits))
    with pytest.raises(NotFittedError):
        clone(scaling).predict(logits)


def test_single_precision_stays_single_precision():
    logits, y = overconfident(3)
    scaling = TemperatureScaling().fit(logits.astype(np.float32), y)
    assert scaling.decision_function(logits.astype(np.float32)).dtype == np.float32
    # The rounding errors of float32 values, and their square root for the place of the minimum.
    np.testing.assert_allclose(scaling.temperature_, TemperatureScaling().fit(logits, y).temperature_, rtol=1e-3)


BAD = {
    "bins": ({"n_bins": 0}, {}, ValueError, "n_bins must be >= 1; got 0"),
    "bins of text": ({"n_bins": "ten"}, {}, TypeError, "n_bins must be an integer; got 'ten'"),
    "no loss": ({"loss": 3}, {}, TypeError, "loss must be a loss of fastxent; got 3"),
    "no sum": ({"loss": fx.CrossEntropy(reduction="none")}, {}, ValueError, "loss must have reduction 'mean' or 'sum'"),
    "probabilities": (
        {},
        {"y": np.full((2000, 2), 0.5)},
        ValueError,
        r"classes must be 3 labels, as many as X has columns of logits .*; got \[0, 1\]",
    ),
    "not finite": ({}, {"X": np.full((2000, 3), np.nan)}, ValueError, "Input X contains NaN"),
    "lengths": ({}, {"y": [0, 1, 2]}, ValueError, "inconsistent numbers of samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    parameters, arguments, error, text = BAD[case]
    logits, y = overconfident(3)
    with pytest.raises(error, match=text):
        TemperatureScaling(**parameters).fit(**({"X": logits, "y": y} | arguments))


# ---- scikit-learn's checks ----


class OfFeatures(TemperatureScaling):
    """Temperature scaling of a linear model's logits, so that checks with any features have logits to give."""

    def fit(self, X, y, sample_weight=None):
        self.model_ = LinearClassifier(C=1e3, max_iter=1000).fit(X, y, sample_weight)
        super().fit(self.model_.decision_function(X), y, sample_weight)
        self.__dict__.update({name: value for name, value in vars(self.model_).items() if name.endswith("_in_")})
        return self

    def decision_function(self, X):
        check_is_fitted(self)
        return self.model_.decision_function(X) / self.temperature_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True  # as the linear model takes it
        return tags


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # what is separable has no temperature
@parametrize_with_checks([OfFeatures()])
def test_every_check_of_scikit_learn(estimator, check):
    check(estimator)


# Of logits alone: those that want to learn from features, or say in their own words why they failed.
MORE_THAN_LOGITS = {"check_classifiers_train", "check_positive_only_tag_during_fit", "check_fit2d_1sample"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([TemperatureScaling()])
def test_every_check_of_scikit_learn_that_gives_logits(estimator, check):
    name = getattr(check, "func", check).__name__
    try:
        check(estimator)
    except ValueError as error:
        if not re.match("classes must be .* labels, as many as X has columns of logits", str(error)):
            raise
        pytest.skip("its features are not logits, with a column for each of its classes")
    except AssertionError:
        if name not in MORE_THAN_LOGITS:
            raise
        pytest.skip("its features are no logits")
    else:
        assert name not in MORE_THAN_LOGITS
