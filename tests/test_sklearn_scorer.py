"""cross_entropy_scorer: the mean of CrossEntropy on a classifier's logits, in every place a scorer goes."""

import pickle

import numpy as np
import pytest

import fastxent as fx

sklearn = pytest.importorskip("sklearn")

from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from fastxent.sklearn import cross_entropy_scorer

# Both are sums of the same logarithms; scikit-learn's come from probabilities of at least 1e-6 here.
SAME = {"rtol": 1e-9}


class Logits:
    """A classifier whose decision function is what it is given."""

    def __init__(self, classes):
        self.classes_ = np.asarray(classes)

    def decision_function(self, X):
        return np.asarray(X)


@pytest.fixture(params=["two classes", "three classes"])
def fitted(request):
    X, y = (load_breast_cancer if request.param == "two classes" else load_iris)(return_X_y=True)
    y = np.array(["c", "b", "a"])[y]
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, solver="newton-cg")).fit(X, y), X, y


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_minus_the_log_loss(fitted, weighted):
    model, X, y = fitted
    weight = np.random.default_rng(0).uniform(0, 2, len(y)) if weighted else None
    expected = -log_loss(y, model.predict_proba(X), sample_weight=weight, labels=model.classes_)
    np.testing.assert_allclose(cross_entropy_scorer(model, X, y, weight), expected, **SAME)
    np.testing.assert_allclose(cross_entropy_scorer(model, X, y, sample_weight=weight), expected, **SAME)


def test_nothing_is_clipped():
    # scikit-learn says 36 for a row that costs 100 and 745 for everything beyond, then 0 for what is left.
    assert cross_entropy_scorer(Logits([0, 1]), [100.0, -1000.0], [0, 1]) == -550.0
    np.testing.assert_allclose(cross_entropy_scorer(Logits([0, 1]), [50.0], [1]), -np.exp(-50.0), rtol=1e-13)
    np.testing.assert_allclose(
        cross_entropy_scorer(Logits([0, 1, 2]), [[50.0, 0.0, 0.0]], [0]), -2 * np.exp(-50.0), rtol=1e-13
    )


def test_labels_are_placed_by_the_classes_of_the_classifier():
    logits = np.random.default_rng(0).standard_normal((5, 3))
    scores = {
        order: cross_entropy_scorer(Logits(list(order)), logits[:, ["abc".index(c) for c in order]], list("aacca"))
        for order in ("abc", "cab", "bca")
    }
    expected = -fx.CrossEntropy()(logits, [0, 0, 2, 2, 0])
    np.testing.assert_allclose(list(scores.values()), expected, rtol=1e-14)


def test_probabilities_are_targets_too():
    logits = np.random.default_rng(0).standard_normal((5, 3))
    y = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    np.testing.assert_allclose(
        cross_entropy_scorer(Logits([0, 1, 2]), logits, y), -fx.CrossEntropy()(logits, y), rtol=1e-14
    )
    two = np.column_stack([np.zeros(5), logits[:, 0]])
    y = np.random.default_rng(1).dirichlet(np.ones(2), 5)
    np.testing.assert_allclose(
        cross_entropy_scorer(Logits([0, 1]), two[:, 1], y), -fx.CrossEntropy()(two, y), rtol=1e-14
    )


@pytest.mark.thread_unsafe(reason="starts processes")
def test_in_searches_and_cross_validation(fitted):
    model, X, y = fitted
    by_probabilities = cross_val_score(model, X, y, scoring="neg_log_loss")
    np.testing.assert_allclose(cross_val_score(model, X, y, scoring=cross_entropy_scorer), by_probabilities, **SAME)
    several = cross_validate(model, X, y, scoring={"ce": cross_entropy_scorer, "accuracy": "accuracy"})
    np.testing.assert_allclose(several["test_ce"], by_probabilities, **SAME)
    grid = {"logisticregression__C": [0.01, 1.0]}
    search = GridSearchCV(model, grid, scoring=cross_entropy_scorer, n_jobs=2).fit(X, y)
    other = GridSearchCV(model, grid, scoring="neg_log_loss").fit(X, y)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"], **SAME)
    np.testing.assert_allclose(search.score(X, y), other.score(X, y), **SAME)


@pytest.mark.thread_unsafe(reason="sets the configuration of scikit-learn")
def test_weights_come_by_metadata_routing():
    X, y = load_iris(return_X_y=True)
    weight = np.random.default_rng(0).integers(1, 4, len(y)).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = type(cross_entropy_scorer)().set_score_request(sample_weight=True)
        model = LogisticRegression(C=0.1, solver="newton-cg", max_iter=1000).set_fit_request(sample_weight=True)
        scores = cross_val_score(model, X, y, scoring=scorer, params={"sample_weight": weight})
    by_hand = []
    for train, test in sklearn.model_selection.StratifiedKFold().split(X, y):
        model.fit(X[train], y[train], weight[train])
        by_hand.append(-log_loss(y[test], model.predict_proba(X[test]), sample_weight=weight[test]))
    np.testing.assert_allclose(scores, by_hand, **SAME)


def test_pickle_and_repr():
    again = pickle.loads(pickle.dumps(cross_entropy_scorer))
    assert again(Logits([0, 1]), [1.0], [1]) == cross_entropy_scorer(Logits([0, 1]), [1.0], [1])
    assert repr(cross_entropy_scorer) == "CrossEntropyScorer()"


def test_boosting_has_logits_too():
    X, y = load_iris(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=5).fit(X, y)
    np.testing.assert_allclose(cross_entropy_scorer(model, X, y), -log_loss(y, model.predict_proba(X)), **SAME)


def test_what_has_no_logits_is_told():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(TypeError, match="estimator must have decision_function; got RandomForestClassifier"):
        cross_entropy_scorer(RandomForestClassifier(n_estimators=2).fit(X, y), X, y)
    X, y = X[np.arange(150) % 5 > 0], np.arange(120) % 4
    with pytest.raises(
        ValueError, match=r"estimator must have one logit for each of its 4 classes.*; got shape \(120, 6\)"
    ):
        cross_entropy_scorer(SVC(decision_function_shape="ovo").fit(X, y), X, y)
    with pytest.raises(ValueError, match=r"y must be among the classes \['a', 'b'\]; got 'c' at index 1"):
        cross_entropy_scorer(Logits(["a", "b"]), [1.0, 2.0], ["a", "c"])
    with pytest.raises(ValueError, match=r"sample_weight must be finite and >= 0; got -1\.0 at index 1"):
        cross_entropy_scorer(Logits([0, 1]), [1.0, 2.0], [0, 1], [1.0, -1.0])
