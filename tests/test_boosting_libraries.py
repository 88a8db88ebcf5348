"""Objectives inside XGBoost, LightGBM and CatBoost: their own trees, their wrappers, early stopping, rare positives."""

import pickle

import numpy as np
import pytest

import fastxent as fx
from fastxent.boosting import HESSIANS, Objective

xgboost = pytest.importorskip("xgboost")
lightgbm = pytest.importorskip("lightgbm")
catboost = pytest.importorskip("catboost")
metrics = pytest.importorskip("sklearn.metrics")
base = pytest.importorskip("sklearn.base")

pytestmark = [
    pytest.mark.thread_unsafe,
    pytest.mark.filterwarnings("ignore:Failed to import numba"),
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated"),  # its successor is newer than 4.0
]

N, K, ROUNDS = 1200, 4, 20
# The promise; what is seen is 3e-7 for XGBoost (float32 scores) and 4e-16 for the others.
SAME = 1e-5
XGBOOST = {"nthread": 1, "max_depth": 4}
LIGHTGBM = {"num_threads": 1, "verbosity": -1, "num_leaves": 15, "seed": 1, "deterministic": True}
CATBOOST = {
    "iterations": ROUNDS,
    "learning_rate": 0.2,
    "depth": 4,
    "leaf_estimation_method": "Newton",
    "leaf_estimation_iterations": 1,
    "boost_from_average": False,
    "bootstrap_type": "No",
    "random_strength": 0,
    "random_seed": 0,
    "thread_count": 1,
    "verbose": False,
    "allow_writing_files": False,
}
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((N, 6))
CLASSES = (FEATURES[:, :K] @ RNG.standard_normal((K, K)) + RNG.gumbel(size=(N, K))).argmax(1)
POSITIVE = (CLASSES == 0).astype(int)
WEIGHT = RNG.uniform(0.2, 3.0, N)
HELD_OUT = slice(0, N, 3)

both_ways = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])


def part(array, where):
    return None if array is None else array[where]


class TestTheirOwnTrees:
    @pytest.mark.parametrize("from_average", [False, True])
    @both_ways
    def test_xgboost_softprob(self, weight, from_average):
        ours = Objective(fx.CrossEntropy(), hessian="gershgorin", min_hessian=1e-16)
        there, here = (xgboost.DMatrix(FEATURES, CLASSES, weight=weight) for _ in range(2))
        params, start = XGBOOST | {"num_class": K}, {} if from_average else {"base_score": 0.5}
        if from_average:
            here.set_base_margin(np.tile(ours.initial_score(CLASSES, weight), (N, 1)))
        expected = xgboost.train(params | start | {"objective": "multi:softprob"}, there, ROUNDS).predict(there)
        raw = xgboost.train(params, here, ROUNDS, obj=ours.xgboost).predict(here, output_margin=True)
        np.testing.assert_allclose(ours.probabilities(raw), expected, rtol=0, atol=SAME)

    @pytest.mark.parametrize("from_average", [False, True])
    @both_ways
    def test_xgboost_logistic(self, weight, from_average):
        ours = Objective(fx.BinaryCrossEntropy(), min_hessian=1e-16)
        matrix = xgboost.DMatrix(FEATURES, POSITIVE, weight=weight)
        there = {"objective": "binary:logistic"} | ({} if from_average else {"base_score": 0.5})
        here = {"base_score": float(ours.initial_score(POSITIVE, weight)) if from_average else 0.0}
        expected = xgboost.train(XGBOOST | there, matrix, ROUNDS).predict(matrix)
        raw = xgboost.train(XGBOOST | here, matrix, ROUNDS, obj=ours.xgboost).predict(matrix, output_margin=True)
        np.testing.assert_allclose(ours.probabilities(raw), expected, rtol=0, atol=SAME)

    def test_xgboost_scale_pos_weight(self):
        ours = Objective(fx.BinaryCrossEntropy(pos_weight=3.0), min_hessian=1e-16)
        matrix = xgboost.DMatrix(FEATURES, POSITIVE)
        there = {"objective": "binary:logistic", "base_score": 0.5, "scale_pos_weight": 3.0}
        expected = xgboost.train(XGBOOST | there, matrix, ROUNDS).predict(matrix)
        booster = xgboost.train(XGBOOST | {"base_score": 0.0}, matrix, ROUNDS, obj=ours.xgboost)
        raw = booster.predict(matrix, output_margin=True)
        np.testing.assert_allclose(ours.probabilities(raw), expected, rtol=0, atol=SAME)

    @pytest.mark.parametrize("from_average", [False, True])
    @pytest.mark.parametrize("native", ["multiclass", "binary"])
    @both_ways
    def test_lightgbm(self, weight, native, from_average):
        loss, labels, k = (
            (fx.CrossEntropy(), CLASSES, K) if native == "multiclass" else (fx.BinaryCrossEntropy(), POSITIVE, 1)
        )
        ours = Objective(loss, min_hessian=0.0)
        params = LIGHTGBM | {"num_class": k}
        start = ours.initial_score(labels, weight) if from_average else np.zeros(k)
        there, here = (lightgbm.Dataset(FEATURES, labels, weight=weight) for _ in range(2))
        if from_average:
            here.set_init_score(np.tile(start, (N, 1)).reshape((N, k) if k > 1 else N))
        native_params = params | {"objective": native, "boost_from_average": from_average}
        expected = lightgbm.train(native_params, there, ROUNDS).predict(FEATURES)
        raw = lightgbm.train(params | {"objective": ours.lightgbm}, here, ROUNDS).predict(FEATURES) + start
        np.testing.assert_allclose(ours.probabilities(raw), expected, rtol=0, atol=SAME)

    @both_ways
    def test_catboost_logloss(self, weight):
        ours = Objective(fx.BinaryCrossEntropy(), min_hessian=0.0)
        there = catboost.CatBoostClassifier(loss_function="Logloss", **CATBOOST)
        expected = there.fit(FEATURES, POSITIVE, sample_weight=weight).predict_proba(FEATURES)[:, 1]
        here = catboost.CatBoostClassifier(loss_function=ours.catboost(), eval_metric=ours.catboost(), **CATBOOST)
        raw = here.fit(FEATURES, POSITIVE, sample_weight=weight).predict(FEATURES, prediction_type="RawFormulaVal")
        np.testing.assert_allclose(ours.probabilities(raw), expected, rtol=0, atol=SAME)
        reported = here.evals_result_["learn"]["CatBoostObjective"][-1]
        assert reported == pytest.approx(ours.value(raw, POSITIVE, weight), rel=1e-6)

    def test_catboost_several_classes(self):
        ours = Objective(fx.CrossEntropy())
        few = CATBOOST | {"iterations": 10, "learning_rate": 0.5}
        here = catboost.CatBoostClassifier(
            loss_function=ours.catboost(), eval_metric=ours.catboost(), classes_count=K, **few
        )
        raw = here.fit(FEATURES, CLASSES, sample_weight=WEIGHT).predict(FEATURES, prediction_type="RawFormulaVal")
        there = catboost.CatBoostClassifier(loss_function="MultiClass", **few).fit(
            FEATURES, CLASSES, sample_weight=WEIGHT
        )
        theirs = there.predict(FEATURES, prediction_type="RawFormulaVal")
        # Of the Hessian it has the diagonal, CatBoost all.
        assert ours.value(raw, CLASSES, WEIGHT) < 1.05 * ours.value(theirs, CLASSES, WEIGHT)
        assert ours.value(raw, CLASSES, WEIGHT) < 0.75 * np.log(K)


class TestWrappers:
    """Estimators in scikit-learn's style: labels first, weights third, copies by ``clone`` and by pickling."""

    @both_ways
    def test_xgboost(self, weight):
        ours = Objective(fx.CrossEntropy(), hessian="gershgorin")
        model = xgboost.XGBClassifier(objective=ours.xgboost_sklearn, n_estimators=ROUNDS, n_jobs=1, base_score=0.0)
        fitted = base.clone(model).fit(FEATURES, CLASSES, sample_weight=weight)
        raw = fitted.predict(FEATURES, output_margin=True)
        matrix = xgboost.DMatrix(FEATURES, CLASSES, weight=weight)
        booster = xgboost.train({"num_class": K, "nthread": 1, "base_score": 0.0}, matrix, ROUNDS, obj=ours.xgboost)
        np.testing.assert_array_equal(raw, booster.predict(matrix, output_margin=True))
        again = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(again.predict(FEATURES, output_margin=True), raw)
        assert again.objective.__self__ == ours

    @both_ways
    def test_lightgbm(self, weight):
        ours = Objective(fx.CrossEntropy())
        params = {"n_estimators": ROUNDS, "n_jobs": 1, "verbosity": -1}
        fitted = base.clone(lightgbm.LGBMClassifier(objective=ours.lightgbm_sklearn, **params))
        fitted.fit(FEATURES, CLASSES, sample_weight=weight)
        raw = fitted.predict(FEATURES, raw_score=True)
        data = lightgbm.Dataset(FEATURES, CLASSES, weight=weight)
        there = {"objective": ours.lightgbm, "num_class": K, "num_threads": 1, "verbosity": -1}
        np.testing.assert_array_equal(raw, lightgbm.train(there, data, ROUNDS).predict(FEATURES))
        again = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(again.predict(FEATURES, raw_score=True), raw)

    def test_labels_of_pandas(self):
        pandas = pytest.importorskip("pandas")
        ours = Objective(fx.BinaryCrossEntropy())
        frame = pandas.DataFrame(FEATURES, columns=list("abcdef"))
        labels = pandas.Series(POSITIVE)
        model = lightgbm.LGBMClassifier(objective=ours.lightgbm_sklearn, n_estimators=5, n_jobs=1, verbosity=-1)
        raw = model.fit(frame, labels).predict(frame, raw_score=True)
        plain = base.clone(model).fit(FEATURES, POSITIVE).predict(FEATURES, raw_score=True)
        np.testing.assert_array_equal(raw, plain)

    def test_soft_labels_in_a_dmatrix(self):
        soft = 0.8 * np.eye(K)[CLASSES] + 0.2 / K
        ours = Objective(fx.CrossEntropy(), hessian="gershgorin")
        smooth = Objective(fx.CrossEntropy(label_smoothing=0.2), hessian="gershgorin")
        matrix, plain = xgboost.DMatrix(FEATURES, soft), xgboost.DMatrix(FEATURES, CLASSES)
        params = XGBOOST | {"base_score": 0.0}
        raw = xgboost.train(params, matrix, ROUNDS, obj=ours.xgboost).predict(matrix, output_margin=True)
        same = xgboost.train(params | {"num_class": K}, plain, ROUNDS, obj=smooth.xgboost)
        np.testing.assert_allclose(raw, same.predict(plain, output_margin=True), rtol=0, atol=1e-4)


class TestEarlyStopping:
    """Few rows and large steps, so that the metric turns soon."""

    MOST = 200

    def split(self):
        rest = np.ones(N, bool)
        rest[HELD_OUT] = False
        return (FEATURES[rest], CLASSES[rest], WEIGHT[rest]), (FEATURES[HELD_OUT], CLASSES[HELD_OUT], WEIGHT[HELD_OUT])

    @pytest.mark.parametrize("loss", [fx.CrossEntropy(), fx.FocalLoss()], ids=str)
    def test_xgboost(self, loss):
        ours = Objective(loss)
        train, test = (xgboost.DMatrix(x, y, weight=w) for x, y, w in self.split())
        log = {}
        booster = xgboost.train(
            {"num_class": K, "nthread": 1, "eta": 1.0, "disable_default_eval_metric": True, "base_score": 0.0},
            train,
            self.MOST,
            evals=[(test, "test")],
            obj=ours.xgboost,
            custom_metric=ours.metric_xgboost,
            early_stopping_rounds=5,
            evals_result=log,
            verbose_eval=False,
        )
        values = log["test"][type(loss).__name__]
        assert booster.best_iteration == int(np.argmin(values)) < self.MOST - 6
        raw = booster.predict(test, output_margin=True, iteration_range=(0, booster.best_iteration + 1))
        _, y, w = self.split()[1]
        assert min(values) == pytest.approx(ours.value(raw, y, w), rel=1e-5)

    def test_xgboost_wrapper(self):
        ours = Objective(fx.CrossEntropy())
        (x, y, w), (x_test, y_test, w_test) = self.split()
        model = xgboost.XGBClassifier(
            objective=ours.xgboost_sklearn,
            eval_metric=ours.metric_xgboost_sklearn,
            n_estimators=self.MOST,
            learning_rate=0.5,
            early_stopping_rounds=5,
            disable_default_eval_metric=True,
            n_jobs=1,
        )
        model.fit(x, y, sample_weight=w, eval_set=[(x_test, y_test)], sample_weight_eval_set=[w_test], verbose=False)
        assert 0 < model.best_iteration < self.MOST - 6
        raw = model.predict(x_test, output_margin=True)
        assert model.best_score == pytest.approx(ours.value(raw, y_test, w_test), rel=1e-5)

    def test_lightgbm(self):
        ours = Objective(fx.CrossEntropy())
        (x, y, w), (x_test, y_test, w_test) = self.split()
        train = lightgbm.Dataset(x, y, weight=w)
        test = lightgbm.Dataset(x_test, y_test, weight=w_test, reference=train)
        booster = lightgbm.train(
            LIGHTGBM | {"objective": ours.lightgbm, "num_class": K, "learning_rate": 0.5, "metric": "None"},
            train,
            self.MOST,
            valid_sets=[test],
            feval=ours.metric_lightgbm,
            callbacks=[lightgbm.early_stopping(5, verbose=False)],
        )
        assert 0 < booster.best_iteration < self.MOST - 6
        best = booster.best_score["valid_0"]["CrossEntropy"]
        assert best == pytest.approx(ours.value(booster.predict(x_test), y_test, w_test), rel=1e-6)

    def test_lightgbm_wrapper(self):
        ours = Objective(fx.BinaryCrossEntropy())
        (x, y, w), (x_test, y_test, w_test) = self.split()
        y, y_test = (y == 0).astype(int), (y_test == 0).astype(int)
        model = lightgbm.LGBMClassifier(
            objective=ours.lightgbm_sklearn,
            n_estimators=self.MOST,
            learning_rate=0.5,
            n_jobs=1,
            verbosity=-1,
            metric="None",
        )
        model.fit(
            x,
            y,
            sample_weight=w,
            eval_set=[(x_test, y_test)],
            eval_sample_weight=[w_test],
            eval_metric=ours.metric_lightgbm_sklearn,
            callbacks=[lightgbm.early_stopping(5, verbose=False)],
        )
        assert 0 < model.best_iteration_ < self.MOST - 6
        best = model.best_score_["valid_0"]["BinaryCrossEntropy"]
        assert best == pytest.approx(ours.value(model.predict(x_test, raw_score=True), y_test, w_test), rel=1e-6)

    def test_catboost(self):
        ours = Objective(fx.BinaryCrossEntropy())
        (x, y, w), (x_test, y_test, w_test) = self.split()
        model = catboost.CatBoostClassifier(
            loss_function=ours.catboost(),
            eval_metric=ours.catboost(),
            **CATBOOST | {"iterations": self.MOST, "learning_rate": 1.0},
        )
        test = catboost.Pool(x_test, (y_test == 0).astype(int), weight=w_test)
        model.fit(x, (y == 0).astype(int), sample_weight=w, eval_set=test, early_stopping_rounds=5)
        assert 0 < model.get_best_iteration() < self.MOST - 6
        raw = model.predict(x_test, prediction_type="RawFormulaVal")
        best = model.get_best_score()["validation"]["CatBoostObjective"]
        assert best == pytest.approx(ours.value(raw, y_test == 0, w_test), rel=1e-6)


def trained_by_lightgbm(objective, x, y, x_test):
    start = objective.initial_score(y)
    data = lightgbm.Dataset(x, y, init_score=np.full(len(y), float(start)))
    return lightgbm.train(LIGHTGBM | {"objective": objective.lightgbm}, data, 60).predict(x_test) + start


def trained_by_xgboost(objective, x, y, x_test):
    params = {"nthread": 1, "eta": 0.1, "base_score": float(objective.initial_score(y))}
    booster = xgboost.train(params, xgboost.DMatrix(x, y), 60, obj=objective.xgboost)
    return booster.predict(xgboost.DMatrix(x_test), output_margin=True)


@pytest.fixture(scope="module")
def rare():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.make_classification(
        4000, 20, n_informative=8, weights=[0.95], flip_y=0.01, class_sep=1.0, random_state=0
    )
    return x[::2], y[::2], x[1::2], y[1::2]


class TestRarePositives:
    """Five in a hundred, from the log-odds of that: the positives are badly wrong at first, and not convex."""

    @staticmethod
    def average_precision(train, objective, rare):
        x, y, x_test, y_test = rare
        raw = train(objective, x, y, x_test)
        assert np.isfinite(raw).all()
        return metrics.average_precision_score(y_test, raw)

    @pytest.mark.parametrize("train", [trained_by_lightgbm, trained_by_xgboost])
    @pytest.mark.parametrize("policy", ["exact", "diagonal", "residual", "psd"])
    def test_every_policy_trains(self, policy, train, rare):
        chance = rare[3].mean()
        found = self.average_precision(train, Objective(fx.BinaryFocalLoss(2.0), hessian=policy), rare)
        assert found > 2 * chance

    @pytest.mark.parametrize("train", [trained_by_lightgbm, trained_by_xgboost])
    def test_automatic_is_close_to_log_loss(self, train, rare):
        plain = self.average_precision(train, Objective(fx.BinaryCrossEntropy()), rare)
        assert self.average_precision(train, Objective(fx.BinaryFocalLoss(2.0)), rare) > plain - 0.1

    def test_exact_hessians_wreck_lightgbm(self, rare):
        automatic, exact = (
            self.average_precision(trained_by_lightgbm, Objective(fx.BinaryFocalLoss(2.0), hessian=h), rare)
            for h in ("auto", "exact")
        )
        assert exact < automatic - 0.2

    @pytest.mark.parametrize("policy", list(HESSIANS))
    def test_several_classes(self, policy):
        ours = Objective(fx.FocalLoss(2.0), hessian=policy)
        data = lightgbm.Dataset(FEATURES, CLASSES)
        raw = lightgbm.train(LIGHTGBM | {"objective": ours.lightgbm, "num_class": K}, data, ROUNDS).predict(FEATURES)
        assert np.isfinite(raw).all()
        assert (raw.argmax(1) == CLASSES).mean() > 0.7


class TestErrors:
    def test_num_class_forgotten(self):
        matrix = xgboost.DMatrix(FEATURES, CLASSES)
        with pytest.raises(ValueError, match=r"^raw must have shape \(n_samples, n_classes\) .*; is num_class set\?$"):
            xgboost.train(XGBOOST, matrix, 1, obj=Objective(fx.CrossEntropy()).xgboost)

    def test_too_few_classes(self):
        matrix = xgboost.DMatrix(FEATURES, CLASSES)
        with pytest.raises(ValueError, match=r"^target must be in \[0, 2\); got [23] at index \d+$"):
            xgboost.train(XGBOOST | {"num_class": 2}, matrix, 1, obj=Objective(fx.CrossEntropy()).xgboost)

    def test_labels_that_are_no_classes(self):
        data = lightgbm.Dataset(FEATURES, CLASSES + 0.5)
        with pytest.raises(
            ValueError, match=r"^target must be whole numbers, the indices of classes; got \d.5 at index 0$"
        ):
            lightgbm.train(LIGHTGBM | {"objective": Objective(fx.CrossEntropy()).lightgbm, "num_class": K}, data, 1)

    def test_catboost_shows_the_message(self):
        ours = Objective(fx.BinaryCrossEntropy()).catboost()
        model = catboost.CatBoostClassifier(loss_function=ours, eval_metric=ours, **CATBOOST)
        with pytest.raises(catboost.CatBoostError, match=r"target must be in \[0, 1\]; got \d.0 at index \d+"):
            model.fit(FEATURES, CLASSES)
