"""hist_gradient_boosting_loss inside HistGradientBoostingClassifier, beside scikit-learn's own loss."""

import copy
import pickle

import numpy as np
import pytest

import fastxent as fx

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GridSearchCV

from fastxent.boosting import Objective
from fastxent.sklearn import hist_gradient_boosting_loss

LOADERS = {"two classes": load_breast_cancer, "three classes": load_iris}


@pytest.fixture(params=LOADERS)
def data(request):
    X, y = LOADERS[request.param](return_X_y=True)
    return X, np.array(["c", "b", "a"])[y]


def boosted(loss, **options):
    return HistGradientBoostingClassifier(loss=loss, **({"max_iter": 20, "random_state": 0} | options))


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_grows_the_trees_of_log_loss(data, weighted):
    X, y = data
    weight = np.random.default_rng(0).uniform(0.1, 3, len(y)) if weighted else None
    ours = boosted(hist_gradient_boosting_loss(fx.CrossEntropy(), hessian="diagonal")).fit(X, y, weight)
    theirs = boosted("log_loss").fit(X, y, weight)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_weights_are_sample_weights(n_classes):
    rng = np.random.default_rng(0)
    y, weight = rng.integers(0, n_classes, 50).astype(float), rng.uniform(0, 2, 50)
    raw = rng.standard_normal((50, n_classes if n_classes > 2 else 1))
    class_weight = np.arange(1.0, n_classes + 1)
    results = []
    for loss, weights in ((fx.CrossEntropy(class_weight=class_weight), weight), (fx.CrossEntropy(), weight * (y + 1))):
        wrapped = hist_gradient_boosting_loss(loss)
        start = wrapped.fit_intercept_only(y, weights)
        results.append((start, *wrapped.gradient_hessian(y, raw, weights), wrapped(y, raw, weights)))
    for with_classes, with_samples in zip(*results, strict=True):
        np.testing.assert_allclose(with_classes, with_samples, rtol=1e-13, atol=1e-14)


LOSSES = [
    fx.CrossEntropy(label_smoothing=0.1, class_weight="balanced"),
    fx.FocalLoss(gamma=1.0),
    fx.FocalLoss(gamma=2.0, label_smoothing=0.1),
]
BINARY = [fx.BinaryCrossEntropy(pos_weight=2.0), fx.BinaryFocalLoss(gamma=2.0, alpha=0.25)]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("hessian", ["auto", "diagonal", "residual"])
def test_any_loss_trains(data, loss, hessian):
    X, y = data
    model = boosted(hist_gradient_boosting_loss(loss, hessian)).fit(X, y)
    assert model.score(X, y) > 0.95
    mean = fx.FocalLoss(gamma=getattr(loss, "gamma", 0.0), label_smoothing=loss.label_smoothing)
    scores = model.decision_function(X)
    logits = scores if scores.ndim == 2 else np.column_stack([np.zeros(len(X)), scores])
    target = np.searchsorted(model.classes_, y)
    assert mean(logits, target) < 0.6 * mean(np.zeros_like(logits), target)


@pytest.mark.parametrize("loss", BINARY, ids=str)
def test_binary_losses_train_on_two_classes_alone(loss):
    X, y = load_breast_cancer(return_X_y=True)
    assert boosted(hist_gradient_boosting_loss(loss)).fit(X, y).score(X, y) > 0.95
    with pytest.raises(ValueError, match="loss must be CrossEntropy or FocalLoss for more than 2 classes"):
        boosted(hist_gradient_boosting_loss(loss)).fit(*load_iris(return_X_y=True))


@pytest.mark.parametrize(
    "loss", [*LOSSES, *BINARY, fx.FocalLoss(1.5, class_weight=(1.0, 3.0), label_smoothing=0.2)], ids=str
)
@pytest.mark.parametrize("hessian", ["diagonal", "exact"])
def test_two_classes_have_the_derivatives_of_the_objective(loss, hessian):
    rng = np.random.default_rng(0)
    raw, y, weight = rng.standard_normal((50, 1)), rng.integers(0, 2, 50), rng.uniform(0, 2, 50)
    wrapped = hist_gradient_boosting_loss(loss, hessian)
    wrapped.fit_intercept_only(y.astype(float))
    grad, hess = np.full(50, np.nan, np.float32), np.full(50, np.nan, np.float32)
    wrapped.gradient_hessian(y.astype(float), raw, weight, grad, hess)
    if type(loss) in (fx.BinaryCrossEntropy, fx.BinaryFocalLoss):
        objective = Objective(loss, hessian=hessian, min_hessian=0.0)
        right = objective.gradient_hessian(raw[:, 0], y, weight)
    else:
        # Of two logits 0 and z: the same function of z, and its derivatives are those of the second.
        objective = Objective(loss, hessian=hessian, min_hessian=0.0)
        both = objective.gradient_hessian(np.column_stack([np.zeros(50), raw]), y, weight)
        right = tuple(derivative[:, 1] for derivative in both)
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(grad, right[0], rtol=4 * eps, atol=1e-12)
    # Two rows of one class each have the least Hessian twice.
    np.testing.assert_allclose(hess, np.maximum(right[1], 1e-6), rtol=4 * eps, atol=2e-6)


def test_early_stopping_and_warm_start():
    X, y = make_classification(1000, 20, n_informative=5, n_classes=3, random_state=0)
    loss = hist_gradient_boosting_loss(fx.FocalLoss(gamma=1.0))
    model = boosted(loss, max_iter=200, early_stopping=True, n_iter_no_change=3, learning_rate=0.3).fit(X, y)
    assert model.n_iter_ < 200
    assert -model.validation_score_[-1] < -model.validation_score_[0]
    rounds = boosted(loss, max_iter=5, warm_start=True).fit(X, y)
    rounds.set_params(max_iter=20).fit(X, y)
    np.testing.assert_array_equal(rounds.decision_function(X), boosted(loss).fit(X, y).decision_function(X))


@pytest.mark.thread_unsafe(reason="starts processes")
def test_clone_pickle_and_search(data):
    X, y = data
    loss = hist_gradient_boosting_loss(fx.FocalLoss(gamma=1.0), "diagonal")
    assert repr(loss) == "hist_gradient_boosting_loss(FocalLoss(gamma=1.0), hessian='diagonal')"
    model = boosted(loss).fit(X, y)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), clone(model).fit(X, y)):
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    grid = {"loss": ["log_loss", loss], "max_iter": [5]}
    search = GridSearchCV(boosted(loss), grid, n_jobs=2, cv=3).fit(X, y)
    assert (search.cv_results_["mean_test_score"] > 0.85).all()


def test_one_object_in_two_classifiers_one_after_the_other():
    loss = hist_gradient_boosting_loss(fx.CrossEntropy())
    for load in LOADERS.values():
        X, y = load(return_X_y=True)
        assert boosted(loss).fit(X, y).score(X, y) > 0.95


def test_bad_arguments_are_told():
    with pytest.raises(TypeError, match="loss must be a loss of fastxent; got str"):
        hist_gradient_boosting_loss("log_loss")
    with pytest.raises(ValueError, match="hessian must be one of"):
        hist_gradient_boosting_loss(fx.CrossEntropy(), "psd")


@pytest.mark.thread_unsafe(reason="patches scikit-learn")
@pytest.mark.parametrize("version", ["1.4.2", "1.10.0", "1.10.dev0", "2.0"])
def test_other_versions_of_scikit_learn_are_told(monkeypatch, version):
    monkeypatch.setattr(sklearn, "__version__", version)
    text = f"scikit-learn must be 1.5 to 1.9 for hist_gradient_boosting_loss, .*; got {version}"
    with pytest.raises(ImportError, match=text):
        hist_gradient_boosting_loss(fx.CrossEntropy())
