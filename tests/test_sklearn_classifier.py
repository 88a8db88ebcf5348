"""LinearClassifier: scikit-learn's own checks, the numbers of LogisticRegression, and what no peer has."""

import pickle
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from tolerances import FINITE_DIFFERENCE

import fastxent as fx
from fastxent import _reference

sklearn = pytest.importorskip("sklearn")
sparse = pytest.importorskip("scipy.sparse")

from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastxent.sklearn import LinearClassifier, cross_entropy_scorer

pytestmark = pytest.mark.thread_unsafe  # scikit-learn's checks change the filters of warnings

LOSSES = [
    fx.CrossEntropy(),
    fx.CrossEntropy(label_smoothing=0.1),
    fx.FocalLoss(gamma=2.0),
    fx.FocalLoss(gamma=1.5, label_smoothing=0.1),
]
# Coefficients of LogisticRegression, as promised.
SAME = {"rtol": 0, "atol": 1e-4}
TIGHT = {"tol": 1e-9, "max_iter": 5000}


def words(n_samples=600, n_words=2000, n_topics=5):
    """Sparse counts like those of texts, made to unit length."""
    rng = np.random.default_rng(0)
    topics = rng.dirichlet(np.full(n_words, 0.05), n_topics)
    y = rng.integers(0, n_topics, n_samples)
    counts = np.stack([rng.multinomial(60, 0.4 * topics[c] + 0.6 / n_words) for c in y]).astype(float)
    return sparse.csr_array(counts / np.linalg.norm(counts, axis=1, keepdims=True)), y


def scaled_digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


DATA = {
    "iris": lambda: load_iris(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),  # scales from 1e-3 to 1e3, not standardized
    "digits": scaled_digits,
    "words": words,
}


@pytest.fixture
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture
def two(iris):
    X, y = iris
    return X[50:], y[50:]


@parametrize_with_checks(
    [LinearClassifier(), *(LinearClassifier(loss, class_weight="balanced", C=0.5) for loss in LOSSES[1:])]
)
def test_every_check_of_scikit_learn(estimator, check):
    check(estimator)


# ---- the numbers of LogisticRegression ----


def logistic_regression(X, y, **options):
    # Newton's methods end nearest to the minimum; that with a Hessian has been one of all classes only since 1.6.
    solver = "newton-cholesky" if len(np.unique(y)) == 2 else "newton-cg"
    return LogisticRegression(solver=solver, tol=1e-10, max_iter=20_000, **options)


@pytest.mark.parametrize("name", DATA)
def test_coefficients_are_those_of_logistic_regression(name):
    X, y = DATA[name]()
    ours = LinearClassifier(**TIGHT).fit(X, y)
    theirs = logistic_regression(X, y).fit(X, y)
    assert ours.coef_.shape == theirs.coef_.shape
    np.testing.assert_allclose(ours.coef_, theirs.coef_, **SAME)
    # Of a softmax, what is added to all intercepts is free; ours begin at a sum of 0, as theirs do.
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), **SAME)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"C": 0.01},
        {"C": 100.0},
        {"fit_intercept": False},
        {"class_weight": "balanced"},
        {"class_weight": {1: 3.0, 2: 0.5}},
    ],
    ids=str,
)
def test_options_are_those_of_logistic_regression(iris, two, n_classes, options):
    X, y = two if n_classes == 2 else iris
    weight = np.random.default_rng(0).integers(0, 4, len(y)).astype(float)
    ours = LinearClassifier(**options, **TIGHT).fit(X, y, weight)
    # "balanced" by the sum of sample weights, as theirs is since 1.7: so told in numbers here.
    if options.get("class_weight") == "balanced":
        labels = np.unique(y)
        counts = np.array([weight[y == label].sum() for label in labels])
        options = {"class_weight": dict(zip(labels, weight.sum() / (len(labels) * counts), strict=True))}
    theirs = logistic_regression(X, y, **options).fit(X, y, weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), **SAME)


def test_single_precision_stays_single_precision(iris):
    X, y = iris
    single = LinearClassifier().fit(X.astype(np.float32), y)
    assert single.coef_.dtype == single.decision_function(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(single.coef_, LinearClassifier().fit(X, y).coef_, rtol=0, atol=1e-3)


def test_features_with_offsets_and_scales_take_few_steps():
    X, y = load_breast_cancer(return_X_y=True)
    model = LinearClassifier(max_iter=1000).fit(1e4 + X * np.geomspace(1e-3, 1e3, X.shape[1]), y)
    assert model.score(1e4 + X * np.geomspace(1e-3, 1e3, X.shape[1]), y) > 0.95


# ---- any loss ----


def objective_of(model, X, target, sample_weight=None):
    """C times the sum of the losses of the reference and the penalty, as a function of the coefficients."""
    loss = replace(model.loss, reduction="sum")
    options = {name: getattr(loss, name) for name in loss.__dataclass_fields__}
    if isinstance(options.get("class_weight"), Mapping):
        options["class_weight"] = dict(options["class_weight"])
    definition = getattr(_reference, type(loss).__name__)(**options)

    def objective(coef, intercept):
        logits = X @ coef.T + intercept
        if len(coef) == 1 and not type(loss).__name__.startswith("Binary"):
            logits = np.column_stack([np.zeros(len(X)), logits[:, 0]])  # two classes have one row
        elif len(coef) == 1:
            logits = logits[:, 0]
        value = definition(logits, target, sample_weight)
        return model.C * value + 0.5 * np.sum(coef**2)

    return objective


def assert_stationary(model, X, target, sample_weight=None):
    """No coefficient or intercept can be moved to make the objective smaller, by more than differences can tell."""
    objective = objective_of(model, X, target, sample_weight)
    least = objective(model.coef_, model.intercept_)
    for name in ("coef_", "intercept_"):
        parameters = getattr(model, name)
        for index in np.ndindex(parameters.shape):
            step = 1e-4 * max(1, abs(parameters[index]))
            moved = []
            for sign in (1, -1):
                changed = {"coef_": model.coef_.copy(), "intercept_": model.intercept_.copy()}
                changed[name][index] += sign * step
                moved.append(objective(changed["coef_"], changed["intercept_"]))
            curvature = abs(sum(moved) - 2 * least) / step**2
            slope = (moved[0] - moved[1]) / (2 * step)
            # The coefficients are right to the promised 1e-4, relative to where they are.
            assert abs(slope) <= 1e-4 * (curvature + 1) + FINITE_DIFFERENCE * least / step


ALL = [
    *LOSSES,
    fx.CrossEntropy(class_weight="balanced"),
    fx.CrossEntropy(class_weight=(1.0, 2.0, 0.5)),
    fx.FocalLoss(class_weight={1: 3.0}, label_smoothing=0.2),
]


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_any_loss_of_three_classes_ends_at_a_minimum(iris, loss):
    X, y = iris
    weight = np.random.default_rng(1).uniform(0.1, 2, len(y))
    model = LinearClassifier(loss, C=2.0, **TIGHT).fit(X, y, weight)
    assert_stationary(model, X, y, weight)


TWO = [
    fx.CrossEntropy(),
    fx.CrossEntropy(class_weight=(1.0, 3.0), label_smoothing=0.2),
    fx.CrossEntropy(class_weight=(0.0, 3.0), label_smoothing=0.2),
    fx.CrossEntropy(class_weight="balanced"),
    fx.FocalLoss(gamma=2.0),
    fx.FocalLoss(gamma=1.5, class_weight={1: 3.0}),
    fx.FocalLoss(gamma=1.5, class_weight=(0.5, 2.0), label_smoothing=0.2),
    fx.BinaryCrossEntropy(pos_weight=3.0, label_smoothing=0.1),
    fx.BinaryCrossEntropy(pos_weight=[3.0]),
    fx.BinaryFocalLoss(gamma=2.0, alpha=0.25, label_smoothing=0.1),
]


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("loss", TWO, ids=str)
def test_two_classes_are_the_loss_of_logits_0_and_z(two, loss, soft):
    X, y = two
    weight = np.random.default_rng(1).uniform(0.1, 2, len(y))
    target = y - 1
    given = y
    if soft:
        share = np.random.default_rng(2).uniform(0, 1, len(y))
        given = np.column_stack([1 - share, share])
        target = given if isinstance(loss, fx.CrossEntropy | fx.FocalLoss) else share
    model = LinearClassifier(loss, C=2.0, **TIGHT).fit(X, given, weight)
    assert model.coef_.shape == (1, 4)
    if loss == fx.BinaryCrossEntropy(pos_weight=[3.0]):
        model.loss = fx.BinaryCrossEntropy(pos_weight=3.0)  # the reference has one-dimensional logits here
    assert_stationary(model, X, target, weight)


def test_probabilities_of_one_class_are_labels(iris):
    X, y = iris
    names = np.array(["a", "b", "c"])
    with_labels = LinearClassifier(**TIGHT).fit(X, names[y])
    with_probabilities = LinearClassifier(**TIGHT).fit(X, np.eye(3)[y], classes=names)
    assert with_probabilities.classes_.tolist() == with_labels.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(with_probabilities.coef_, with_labels.coef_, **SAME)
    np.testing.assert_array_equal(with_probabilities.predict(X), with_labels.predict(X))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_soft_row_is_one_row_for_each_class(iris, two, n_classes):
    X, _ = two if n_classes == 2 else iris
    y = np.random.default_rng(0).dirichlet(np.ones(n_classes), len(X))
    soft = LinearClassifier(fx.FocalLoss(), class_weight={1: 2.0}, **TIGHT).fit(X, y)
    rows, labels = np.tile(X, (n_classes, 1)), np.repeat(np.arange(n_classes), len(X))
    hard = LinearClassifier(fx.FocalLoss(), class_weight={1: 2.0}, **TIGHT).fit(rows, labels, y.T.ravel())
    np.testing.assert_allclose(soft.coef_, hard.coef_, **SAME)


@pytest.mark.parametrize(
    "loss", [fx.CrossEntropy(class_weight="balanced"), fx.FocalLoss(), fx.BinaryCrossEntropy()], ids=str
)
@pytest.mark.parametrize("ignored", [-1, 0, 7])
def test_ignored_labels_do_not_count(iris, two, loss, ignored):
    X, y = two if isinstance(loss, fx.BinaryCrossEntropy) else iris
    y = y + 10
    keep = np.arange(len(y)) % 3 > 0
    model = LinearClassifier(replace(loss, ignore_index=ignored), **TIGHT).fit(X, np.where(keep, y, ignored))
    without = LinearClassifier(loss, **TIGHT).fit(X[keep], y[keep])
    assert model.classes_.tolist() == without.classes_.tolist()
    np.testing.assert_allclose(model.coef_, without.coef_, **SAME)


def test_a_column_of_probabilities_can_be_ignored(two):
    X, _ = two
    y = np.random.default_rng(0).dirichlet(np.ones(2), len(X))
    y[::3] = [1.0, 0.0]
    model = LinearClassifier(fx.CrossEntropy(ignore_index=0), **TIGHT).fit(X, y)
    keep = np.arange(len(y)) % 3 > 0
    np.testing.assert_allclose(model.coef_, LinearClassifier(**TIGHT).fit(X[keep], y[keep]).coef_, **SAME)


def test_reduction_says_nothing(iris):
    models = [LinearClassifier(fx.CrossEntropy(reduction=name)).fit(*iris) for name in ("mean", "sum")]
    np.testing.assert_array_equal(models[0].coef_, models[1].coef_)


# ---- inputs ----


def test_every_kind_of_input_is_the_same(iris):
    X, y = iris
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    plain = LinearClassifier().fit(X, y)
    columns = ["a", "b", "c", "d"]
    weight = np.ones(len(y))
    kinds = {
        "fortran": (np.asfortranarray(X), y, weight),
        "lists": (X.tolist(), y.tolist(), weight.tolist()),
        "pandas": (pandas.DataFrame(X, columns=columns), pandas.Series(y), pandas.Series(weight)),
        "polars": (polars.DataFrame(X, schema=columns), polars.Series(y), polars.Series(weight)),
        "csr": (sparse.csr_array(X), y, weight),
        "csc matrix": (sparse.csc_matrix(X), y, weight),
        "coo": (sparse.coo_array(X), y, weight),
    }
    for name, (features, labels, weights) in kinds.items():
        model = LinearClassifier().fit(features, labels, weights)
        np.testing.assert_allclose(model.coef_, plain.coef_, err_msg=name, **SAME)
        np.testing.assert_allclose(model.predict_proba(features), plain.predict_proba(X), err_msg=name, **SAME)
        assert model.n_features_in_ == 4
        if name == "pandas":
            assert model.feature_names_in_.tolist() == columns
            with pytest.raises(ValueError, match="feature names"):
                model.predict(features[columns[::-1]])
    frame = pandas.DataFrame(np.eye(3)[y], columns=list("xyz"))
    np.testing.assert_allclose(LinearClassifier().fit(X, frame, classes=frame.columns).coef_, plain.coef_, **SAME)


def test_probabilities_are_not_rounded_to_certainty():
    X = np.array([[0.0], [1.0]])
    model = LinearClassifier().fit(X, [0, 1])
    model.coef_[:], model.intercept_[:] = 100.0, 0.0
    log_proba = model.predict_log_proba(X[1:])
    np.testing.assert_allclose(log_proba, [[-100.0, -np.exp(-100.0)]], rtol=1e-13)
    np.testing.assert_allclose(model.predict_proba(X[1:])[0, 0], np.exp(-100.0), rtol=1e-13)


# ---- life as an estimator ----


def test_warm_start_goes_on_from_where_it_was(iris):
    model = LinearClassifier(warm_start=True, max_iter=1000).fit(*iris)
    cold = model.n_iter_
    coef = model.coef_
    model.fit(*iris)
    assert model.n_iter_ < cold / 2
    np.testing.assert_allclose(model.coef_, coef, **SAME)
    X, y = iris
    assert model.fit(X[:, :3], y).coef_.shape == (3, 3)  # a start of another shape is none


def test_too_few_steps_are_told(iris):
    with pytest.warns(ConvergenceWarning, match=r"took max_iter=3 steps.* tol is 1e-06"):
        model = LinearClassifier(max_iter=3).fit(*iris)
    assert model.n_iter_ == 3


def test_verbose_shows_one_line(iris, capsys):
    model = LinearClassifier(verbose=1).fit(*iris)
    line, end = capsys.readouterr().out.strip().split("\n")
    assert line.count("\r") == model.n_iter_ - 1
    assert line.split("\r")[-1].startswith(f"LinearClassifier: step {model.n_iter_}, objective 0.")
    assert "CONVERGENCE" in end
    LinearClassifier().fit(*iris)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("loss", [None, *LOSSES], ids=str)
def test_clone_and_pickle(iris, loss):
    X, y = iris
    model = LinearClassifier(loss, C=3.0).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    copy = clone(model)
    assert copy.loss == model.loss
    with pytest.raises(NotFittedError):
        copy.predict(X)
    np.testing.assert_array_equal(copy.fit(X, y).coef_, model.coef_)


def test_a_search_over_losses_in_a_pipeline_and_in_processes(iris):
    pandas = pytest.importorskip("pandas")
    X, y = pandas.DataFrame(iris[0], columns=["a", "b", "c", "d"]), iris[1]
    pipeline = make_pipeline(StandardScaler(), LinearClassifier()).set_output(transform="pandas")
    grid = {"linearclassifier__loss": [None, fx.FocalLoss(gamma=1.0)], "linearclassifier__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline, grid, scoring=cross_entropy_scorer, n_jobs=2, cv=3).fit(X, y)
    assert search.best_params_ == {"linearclassifier__C": 1.0, "linearclassifier__loss": None}
    assert search.best_estimator_[-1].feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert search.best_estimator_.score(X, y) > 0.95


def test_probabilities_in_cross_validation(iris):
    X, y = iris
    order = np.random.default_rng(0).permutation(len(y))
    scores = cross_val_score(
        LinearClassifier(),
        X[order],
        np.eye(3)[y[order]],
        scoring=cross_entropy_scorer,
        params={"classes": np.array(["a", "b", "c"])},
    )
    assert (scores > -0.5).all()


# ---- bad input ----

BAD_FITS = {
    "penalty of 0": ({"C": 0.0}, {}, ValueError, r"C must be > 0; got 0\.0"),
    "penalty is text": ({"C": "1"}, {}, TypeError, r"C must be a real number; got '1'"),
    "penalty is NaN": ({"C": np.nan}, {}, ValueError, r"C must be finite and >= 0; got nan"),
    "tolerance": ({"tol": -1.0}, {}, ValueError, r"tol must be finite and >= 0; got -1\.0"),
    "steps": ({"max_iter": 0}, {}, ValueError, r"max_iter must be >= 1; got 0"),
    "no loss": ({"loss": "log_loss"}, {}, TypeError, r"loss must be a loss of fastxent; got 'log_loss'"),
    "no sum": (
        {"loss": fx.CrossEntropy(reduction="none")},
        {},
        ValueError,
        r"loss must have reduction 'mean' or 'sum'; got CrossEntropy\(reduction='none'\)",
    ),
    "not of logits": (
        {"loss": fx.CrossEntropy(inputs="probs")},
        {},
        ValueError,
        r"loss must have inputs 'logits'; got CrossEntropy\(inputs='probs'\)",
    ),
    "binary loss": (
        {"loss": fx.BinaryCrossEntropy()},
        {},
        ValueError,
        r"loss must be CrossEntropy or FocalLoss for more than 2 classes; got BinaryCrossEntropy\(\)",
    ),
    "class weights": ({"class_weight": 3}, {}, TypeError, 'class_weight must be None, "balanced" or a dict; got 3'),
    "unknown class": (
        {"class_weight": {5: 1.0}},
        {},
        ValueError,
        r"class_weight must have keys among the classes \[0, 1, 2\]; got 5",
    ),
    "negative class weight": (
        {"class_weight": {1: -1.0}},
        {},
        ValueError,
        r"class_weight must be finite and >= 0; got -1\.0 at index 1",
    ),
    "negative weight": (
        {},
        {"sample_weight": np.where(np.arange(150) == 4, -1.0, 1.0)},
        ValueError,
        r"sample_weight must be finite and >= 0; got -1\.0 at index 4",
    ),
    "negative probability": (
        {},
        {"y": np.where(np.arange(450).reshape(150, 3) == 7, -0.5, 0.3)},
        ValueError,
        r"y must be finite and >= 0; got -0\.5 at index \(2, 1\)",
    ),
    "classes of labels": (
        {},
        {"classes": [0, 1, 2]},
        ValueError,
        r"classes must be None unless y are probabilities; got \[0, 1, 2\]",
    ),
    "too few classes": (
        {},
        {"y": np.full((150, 3), 0.3), "classes": ["a", "b"]},
        ValueError,
        r"classes must be 3 different labels, as many as y has columns; got \['a', 'b'\]",
    ),
    "one class": ({}, {"y": np.zeros(150, int)}, ValueError, r"y must have at least 2 classes; got only one class"),
    "whole numbers in columns": ({}, {"y": np.ones((150, 3), int)}, ValueError, r"y should be a 1d array"),
    "numbers": ({}, {"y": np.linspace(0, 1, 150)}, ValueError, r"Unknown label type"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_input_is_told(iris, case):
    parameters, arguments, error, text = BAD_FITS[case]
    with pytest.raises(error, match=text):
        LinearClassifier(**parameters).fit(**({"X": iris[0], "y": iris[1]} | arguments))


def test_bad_options_of_two_classes_are_told_too(two):
    for loss, text in (
        (fx.CrossEntropy(reduction="none"), "have reduction"),
        (fx.FocalLoss(reduction="none"), "have reduction"),
        (fx.CrossEntropy(inputs="probs"), "have inputs"),
        (fx.BinaryCrossEntropy(inputs="probs"), "have inputs"),
    ):
        with pytest.raises(ValueError, match=f"loss must {text}"):
            LinearClassifier(loss).fit(*two)


def test_weights_of_nothing_are_told(iris):
    with pytest.raises(ValueError, match=r"weight.*(zero|0)"):
        LinearClassifier().fit(*iris, sample_weight=np.zeros(150))
    # Nothing is left where all that counts is ignored.
    y = np.where(np.arange(150) < 2, [0, 1] * 75, -1)
    with pytest.raises(ValueError, match="sample_weight must not be zero for all samples that have a class"):
        LinearClassifier(fx.CrossEntropy(ignore_index=-1)).fit(iris[0], y, np.where(y < 0, 1.0, 0.0))
