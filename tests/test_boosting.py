"""Objectives without any boosting library: Hessian policies, options, layouts, initial scores, errors."""

import copy
import dataclasses
import pickle
import tracemalloc

import numpy as np
import pytest
from fresh import run_python
from tolerances import OPTIONS, eps

import fastxent as fx
from fastxent import _reference as reference
from fastxent.boosting import HESSIANS, CatBoostObjective, Objective

N, K = 40, 3
SOFTMAX = [fx.CrossEntropy(), fx.FocalLoss(2.0)]
BINARY = [fx.BinaryCrossEntropy(), fx.BinaryFocalLoss(2.0)]
WITH_OPTIONS = [
    fx.CrossEntropy([2.0, 1.0, 0.5], 0.1, ignore_index=1),
    fx.FocalLoss(1.5, [2.0, 1.0, 0.5], 0.1, ignore_index=1),
    fx.BinaryCrossEntropy(3.0, 0.1, ignore_index=-1),
    fx.BinaryFocalLoss(1.5, 0.25, 0.1, ignore_index=-1),
]
EVERY = [*SOFTMAX, *BINARY, *WITH_OPTIONS]
# Policies are a few roundings on top of a Hessian, or of probabilities and powers of them in float64.
WITHIN = 8 * OPTIONS * eps(np.float64)


def is_softmax(loss):
    return isinstance(loss, fx.CrossEntropy | fx.FocalLoss)


def policies(loss):
    return [name for name, (_, losses) in HESSIANS.items() if isinstance(loss, losses)]


def data(loss, n=N, dtype=np.float64):
    """Raw scores, labels as a library stores them, weights; some rows are ignored, where that is an option."""
    rng = np.random.default_rng(7)
    raw = 2 * rng.standard_normal((n, K) if is_softmax(loss) else n)
    labels = rng.integers(0, K if is_softmax(loss) else 2, n).astype(np.float32)
    if loss.ignore_index is not None:
        labels[::5] = loss.ignore_index
    return raw.astype(dtype), labels, rng.uniform(0.5, 2.0, n).astype(np.float32)


def slow(loss, **options):
    """The same loss of the reference, a sum."""
    values = {f.name: getattr(loss, f.name) for f in dataclasses.fields(loss)} | {"reduction": "sum"} | options
    return getattr(reference, type(loss).__name__)(**values)


def masses(loss, labels):
    """``w_c t~_c`` of every row, by the definition."""
    eps_, n = loss.label_smoothing, len(labels)
    counted = labels != loss.ignore_index
    if is_softmax(loss):
        weight = np.ones(K) if loss.class_weight is None else np.asarray(loss.class_weight)
        hot = np.eye(K)[np.where(counted, labels, 0).astype(int)]
        return weight * ((1 - eps_) * hot + eps_ / K) * counted[:, np.newaxis]
    t = (1 - eps_) * np.where(counted, labels, 0) + eps_ / 2
    positive, negative = getattr(loss, "pos_weight", None) or 1.0, 1.0
    if getattr(loss, "alpha", None) is not None:
        positive, negative = loss.alpha, 1 - loss.alpha
    return np.stack([negative * (1 - t), positive * t]) * counted * np.ones(n)


def expected_hessian(loss, policy, raw, labels, weight):
    """The policies as the docstring says them."""
    target, labels, weight = labels.astype(int), labels.astype(float), weight.astype(float)
    _, grad, exact = slow(loss).value_grad_hess(raw, target, weight)
    mass = masses(loss, labels)
    gamma = getattr(loss, "gamma", 0.0)
    if is_softmax(loss):
        p = np.asarray(fx.softmax(raw))
        s, focus = weight[:, np.newaxis], (mass * (1 - p) ** gamma).sum(1, keepdims=True)
        spread, total = p * (1 - p), mass.sum(1, keepdims=True)
    else:
        p, s = fx.sigmoid(raw), weight
        t = (1 - loss.label_smoothing) * labels + loss.label_smoothing / 2
        spread, total = p * (1 - p), mass.sum(0)
        focus = total * np.where(total > 0, t * (1 - p) + (1 - t) * p, 0) ** gamma
    return {
        "exact": exact,
        "diagonal": s * total * spread,
        "gershgorin": 2 * s * total * spread,
        "lightgbm": K / (K - 1) * s * total * spread,
        "residual": np.abs(grad),
        "psd": s * focus * spread,
    }[policy]


class TestPolicies:
    @pytest.mark.parametrize(("loss", "policy"), [(loss, p) for loss in EVERY for p in policies(loss)], ids=str)
    def test_is_what_its_formula_says(self, loss, policy):
        raw, labels, weight = data(loss)
        grad, hess = Objective(loss, hessian=policy, min_hessian=0.0).gradient_hessian(raw, labels, weight)
        expected = expected_hessian(loss, policy, raw, labels, weight)
        _, expected_grad, _ = slow(loss).value_grad_hess(raw, labels.astype(int), weight)
        np.testing.assert_allclose(grad, expected_grad, rtol=0, atol=WITHIN * 4)
        np.testing.assert_allclose(hess, np.maximum(expected, 0), rtol=0, atol=WITHIN * 4)

    @pytest.mark.parametrize("loss", EVERY, ids=str)
    def test_automatic_is_positive_wherever_a_row_counts(self, loss):
        raw, labels, weight = data(loss)
        _, hess = Objective(loss, min_hessian=0.0).gradient_hessian(raw, labels, weight)
        assert (hess[labels != loss.ignore_index] > 0).all()

    @pytest.mark.parametrize("loss", EVERY, ids=str)
    def test_automatic_is_by_the_family(self, loss):
        name = "lightgbm" if is_softmax(loss) else "diagonal"
        for a, b in zip(
            *(Objective(loss, hessian=h).gradient_hessian(*data(loss)) for h in ("auto", name)), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    def test_two_classes_take_the_step_of_the_binary_loss(self):
        z, t, s = data(BINARY[0])
        grad, hess = Objective(BINARY[0]).gradient_hessian(z, t, s)
        grads, hesses = Objective(SOFTMAX[0]).gradient_hessian(np.stack([0 * z, z], axis=1), t, s)
        steps = grads / hesses
        np.testing.assert_allclose(steps[:, 1] - steps[:, 0], grad / hess, rtol=WITHIN)

    def test_psd_takes_probabilities(self):
        loss = fx.FocalLoss(2.0)
        raw, labels, weight = data(loss)
        objective = Objective(loss, hessian="psd")
        hot = np.eye(K)[labels.astype(int)]
        for a, b in zip(
            objective.gradient_hessian(raw, hot, weight), objective.gradient_hessian(raw, labels, weight), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=WITHIN, atol=WITHIN)

    def test_exact_focal_hessians_are_negative_somewhere_and_the_floor_lifts_them(self):
        loss = fx.BinaryFocalLoss(2.0)
        raw, labels = np.array([-4.0, 1.0]), [1, 1]
        assert slow(loss).value_grad_hess(raw, np.array(labels))[2][0] < 0
        _, hess = Objective(loss, hessian="exact", min_hessian=0.01).gradient_hessian(raw, labels)
        assert hess[0] == 0.01
        assert hess[1] > 0.01

    def test_the_floor_is_one_in_a_million_unless_told(self):
        _, hess = Objective(fx.BinaryCrossEntropy()).gradient_hessian([60.0], [1])
        assert hess[0] == 1e-6


class TestCalls:
    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    @pytest.mark.parametrize("loss", WITH_OPTIONS, ids=str)
    def test_gradients_are_of_the_sum_and_values_the_mean(self, loss, reduction):
        raw, labels, weight = data(loss)
        objective = Objective(dataclasses.replace(loss, reduction=reduction))
        _, expected, _ = slow(loss).value_grad_hess(raw, labels.astype(int), weight)
        np.testing.assert_allclose(objective.gradient_hessian(raw, labels, weight)[0], expected, atol=4 * WITHIN)
        mean = slow(loss, reduction="mean")(raw, labels.astype(int), weight)
        assert objective.value(raw, labels, weight) == pytest.approx(mean, rel=WITHIN)
        assert type(objective.value(raw, labels, weight)) is float

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(("loss", "policy"), [(loss, p) for loss in EVERY for p in policies(loss)], ids=str)
    def test_layout_and_dtype_are_those_of_the_scores_which_stay(self, loss, policy, order, dtype):
        raw, labels, weight = data(loss, dtype=dtype)
        raw = np.asarray(raw, order=order)
        raw.flags.writeable = False
        for result in Objective(loss, hessian=policy).gradient_hessian(raw, labels, weight):
            assert result.dtype == dtype
            assert result.strides == raw.strides
            assert np.isfinite(result).all()

    def test_rows_that_do_not_count(self):
        loss = fx.CrossEntropy(ignore_index=-1)
        raw, labels, weight = data(loss)
        labels[3], weight[4] = -1, 0
        raw[3:5] = np.nan
        grad, hess = Objective(loss).gradient_hessian(raw, labels, weight)
        assert not grad[3:5].any()
        np.testing.assert_array_equal(hess[3:5], 1e-6)

    def test_class_weights_multiply_with_sample_weights(self):
        raw, labels, weight = data(fx.CrossEntropy())
        weights = np.array([2.0, 1.0, 0.5])
        ours = Objective(fx.CrossEntropy(weights)).gradient_hessian(raw, labels, weight)
        same = Objective(fx.CrossEntropy()).gradient_hessian(raw, labels, weight * weights[labels.astype(int)])
        for a, b in zip(ours, same, strict=True):
            np.testing.assert_allclose(a, b, rtol=WITHIN)

    @pytest.mark.parametrize("loss", SOFTMAX, ids=str)
    def test_as_many_labels_as_scores_are_probabilities(self, loss):
        raw, _, weight = data(loss)
        soft = np.random.default_rng(0).dirichlet(np.ones(K), N)
        _, expected, _ = slow(loss).value_grad_hess(raw, soft, weight)
        for labels in (soft, soft.reshape(-1)):
            np.testing.assert_allclose(
                Objective(loss).gradient_hessian(raw, labels, weight)[0], expected, atol=4 * WITHIN
            )

    def test_several_labels_of_a_binary_loss(self):
        raw = np.random.default_rng(0).standard_normal((N, 2))
        labels = (raw > 0.5).astype(np.float32)
        _, expected, _ = slow(fx.BinaryCrossEntropy()).value_grad_hess(raw, labels)
        grad, _ = Objective(fx.BinaryCrossEntropy()).gradient_hessian(raw, labels.reshape(-1))
        np.testing.assert_allclose(grad, expected, atol=WITHIN)

    @pytest.mark.thread_unsafe
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_scores_are_not_copied(self, order):
        raw, labels, _ = data(fx.CrossEntropy(), n=200_000)
        raw = np.asarray(raw, order=order)
        objective = Objective(fx.CrossEntropy())
        tracemalloc.start()
        objective.gradient_hessian(raw, labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Gradient and Hessian, and labels of 8 bytes.
        assert peak < 2 * raw.nbytes + 8 * len(labels) + 0.3 * raw.nbytes

    def test_catboost_gets_the_gain(self):
        pytest.importorskip("catboost")
        for loss in (*SOFTMAX, *BINARY):
            raw, labels, weight = data(loss)
            objective = Objective(loss)
            grad, hess = objective.gradient_hessian(raw, labels, weight)
            theirs = objective.catboost()
            assert not theirs.is_max_optimal()
            if is_softmax(loss):
                for i in range(5):
                    first, second = theirs.calc_ders_multi(raw[i], float(labels[i]), float(weight[i]))
                    np.testing.assert_allclose(first, -grad[i], rtol=WITHIN)
                    np.testing.assert_allclose(second, np.diag(-hess[i]), rtol=WITHIN)
            else:
                np.testing.assert_array_equal(theirs.calc_ders_range(raw, labels, weight), -np.stack([grad, hess], 1))
            approxes = list(raw.T) if is_softmax(loss) else [raw]
            for weights in (weight, None):
                assert theirs.get_final_error(*theirs.evaluate(approxes, labels, weights)) == pytest.approx(
                    objective.value(raw, labels, weights)
                )
        assert theirs.get_final_error(0.0, 0.0) == 0


class TestInitialScore:
    @pytest.mark.parametrize("loss", [loss for loss in EVERY if not hasattr(loss, "gamma")], ids=str)
    def test_no_constant_is_better(self, loss):
        raw, labels, weight = data(loss)
        score = Objective(loss).initial_score(labels, weight)
        _, grad = slow(loss).value_and_grad(np.broadcast_to(score, raw.shape) + 0.0, labels.astype(int), weight)
        np.testing.assert_allclose(grad.sum(0), 0, atol=N * WITHIN)

    def test_by_hand(self):
        assert Objective(fx.BinaryCrossEntropy()).initial_score([1, 0, 0, 0]) == pytest.approx(-np.log(3))
        assert Objective(fx.BinaryCrossEntropy()).initial_score([1, 0], [1, 3]) == pytest.approx(-np.log(3))
        score = Objective(fx.CrossEntropy()).initial_score(np.float32([0, 1, 1, 2]))
        np.testing.assert_allclose(score, np.log([0.25, 0.5, 0.25]))

    def test_of_a_focal_loss_is_that_of_its_cross_entropy(self):
        for ours, plain in zip(SOFTMAX[::-1], SOFTMAX, strict=True):
            labels = data(plain)[1]
            np.testing.assert_array_equal(*(Objective(loss).initial_score(labels) for loss in (ours, plain)))

    def test_per_label(self):
        score = Objective(fx.BinaryCrossEntropy()).initial_score([[1, 0], [0, 0], [0, 1], [0, 1]])
        np.testing.assert_allclose(score, [-np.log(3), 0], atol=WITHIN)

    def test_classes_nobody_has_are_unlikely_but_possible(self):
        np.testing.assert_allclose(Objective(fx.CrossEntropy()).initial_score([0, 0, 2])[1], np.log(1e-15))
        certain = Objective(fx.CrossEntropy()).initial_score([0, 0], n_classes=2)
        np.testing.assert_allclose(certain, [0, np.log(1e-15)], atol=WITHIN)
        assert Objective(fx.BinaryCrossEntropy()).initial_score([0, 0]) == pytest.approx(np.log(1e-15))

    @pytest.mark.parametrize("labels", [[-1, -1], []])
    def test_nothing_counted(self, labels):
        assert Objective(fx.BinaryCrossEntropy(ignore_index=-1)).initial_score(labels) == 0
        score = Objective(fx.CrossEntropy(ignore_index=-1)).initial_score(np.array(labels, int), n_classes=2)
        np.testing.assert_allclose(score, np.log(0.5))

    def test_of_probabilities(self):
        soft = np.random.default_rng(0).dirichlet(np.ones(K), N)
        np.testing.assert_allclose(Objective(fx.CrossEntropy()).initial_score(soft), np.log(soft.mean(0)))


class TestValue:
    """An objective is a value, as a loss is."""

    @pytest.mark.parametrize("loss", EVERY, ids=str)
    def test_probabilities(self, loss):
        raw = data(loss)[0]
        expected = fx.softmax(raw) if is_softmax(loss) else fx.sigmoid(raw)
        np.testing.assert_array_equal(Objective(loss).probabilities(raw), expected)

    @pytest.mark.parametrize("copied", [lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy], ids=["pickle", "copy"])
    def test_copies_with_their_methods(self, copied):
        objective = Objective(fx.FocalLoss(1.5, {0: 2.0}), hessian="psd", min_hessian=1e-3)
        assert copied(objective) == objective
        assert hash(copied(objective)) == hash(objective)
        arguments = data(objective.loss)
        method = copied(objective.lightgbm_sklearn)
        assert method.__self__ == objective
        raw, labels, weight = arguments
        for a, b in zip(method(labels, raw, weight), objective.gradient_hessian(*arguments), strict=True):
            np.testing.assert_array_equal(a, b)
        assert copied(CatBoostObjective(objective)) == CatBoostObjective(objective)

    def test_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Objective(fx.CrossEntropy()).hessian = "exact"


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            (["CrossEntropy"], {}, TypeError, "loss must be a loss of fastxent; got str"),
            ([fx.CrossEntropy], {}, TypeError, "loss must be a loss of fastxent; got ABCMeta"),
            (
                [fx.CrossEntropy(inputs="probs")],
                {},
                ValueError,
                "loss must take logits; got CrossEntropy(inputs='probs')",
            ),
            (
                [fx.CrossEntropy(axis=0)],
                {},
                ValueError,
                "loss must have the classes along its last axis; got CrossEntropy(axis=0)",
            ),
            (
                [fx.CrossEntropy()],
                {"hessian": "newton"},
                ValueError,
                (
                    "hessian must be one of 'auto', 'exact', 'diagonal', 'residual', 'gershgorin', 'lightgbm', 'psd'; "
                    "got 'newton'"
                ),
            ),
            (
                [fx.CrossEntropy()],
                {"hessian": "psd"},
                ValueError,
                (
                    "hessian must be one of 'exact', 'diagonal', 'residual', 'gershgorin', 'lightgbm' for CrossEntropy(); "
                    "got 'psd'"
                ),
            ),
            (
                [fx.BinaryFocalLoss()],
                {"hessian": "gershgorin"},
                ValueError,
                "hessian must be one of 'exact', 'diagonal', 'residual', 'psd' for BinaryFocalLoss(); got 'gershgorin'",
            ),
            ([fx.CrossEntropy()], {"min_hessian": -1.0}, ValueError, "min_hessian must be finite and >= 0; got -1.0"),
            ([fx.CrossEntropy()], {"min_hessian": None}, TypeError, "min_hessian must be a real number; got None"),
        ],
    )
    def test_options(self, arguments, options, error, message):
        with pytest.raises(error) as caught:
            Objective(*arguments, **options)
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("loss", "raw", "labels", "error", "message"),
        [
            (
                fx.CrossEntropy(),
                np.zeros((3, 2)),
                [0, 0.5, 1],
                ValueError,
                "target must be whole numbers, the indices of classes; got 0.5 at index 1",
            ),
            (
                fx.CrossEntropy(),
                np.zeros((2, 2)),
                [0, np.nan],
                ValueError,
                "target must be whole numbers, the indices of classes; got nan at index 1",
            ),
            (
                fx.CrossEntropy(),
                np.zeros((2, 2)),
                [1e30, 0.0],
                ValueError,
                "target must be whole numbers, the indices of classes; got 1e+30 at index 0",
            ),
            (
                fx.CrossEntropy(),
                np.zeros((2, 2)),
                [1.0, 2.0],
                ValueError,
                "target must be in [0, 2); got 2 at index 1",
            ),
            (
                fx.FocalLoss(),
                np.zeros(6),
                [0.0] * 6,
                ValueError,
                "raw must have shape (n_samples, n_classes) for FocalLoss; got shape (6,); is num_class set?",
            ),
            (
                fx.CrossEntropy(),
                np.zeros((3, 2)),
                [0.0] * 4,
                ValueError,
                (
                    "target must be integer class indices of shape (3,) or probabilities of shape (3, 2); "
                    "got int64 of shape (4,)"
                ),
            ),
            (
                fx.BinaryCrossEntropy(),
                np.zeros((3, 2)),
                [0.0] * 3,
                ValueError,
                "target must have shape (3, 2); got shape (3,)",
            ),
            (
                fx.BinaryCrossEntropy(),
                np.zeros(2),
                [0.0, 2.0],
                ValueError,
                "target must be in [0, 1]; got 2.0 at index 1",
            ),
        ],
    )
    @pytest.mark.parametrize("method", ["gradient_hessian", "value"])
    def test_arrays(self, method, loss, raw, labels, error, message):
        with pytest.raises(error) as caught:
            getattr(Objective(loss), method)(raw, labels)
        assert str(caught.value) == message

    @pytest.mark.parametrize("method", ["xgboost", "lightgbm", "metric_xgboost", "metric_lightgbm"])
    def test_arrays_where_a_data_set_is_expected(self, method):
        with pytest.raises(TypeError, match=r"must have labels and weights, as .* have; got ndarray$"):
            getattr(Objective(fx.CrossEntropy()), method)(np.zeros((3, 2)), np.zeros(3))


LIBRARIES = ("xgboost", "lightgbm", "catboost", "sklearn", "scipy", "pandas")


def test_no_library_is_imported_and_none_is_needed():
    blocked = f"""
import sys
sys.modules |= dict.fromkeys({LIBRARIES})
import fastxent as fx
from fastxent.boosting import Objective
objective = Objective(fx.CrossEntropy())
objective.gradient_hessian([[1.0, 2.0]], [0.0])
objective.initial_score([0.0, 1.0])
try:
    objective.catboost()
except ImportError as error:
    print(error)
"""
    assert run_python(blocked) == 'CatBoost is not installed; pip install "fastxent[boosting]"'
    seen = f"import sys, fastxent.boosting; print([name for name in {LIBRARIES} if name in sys.modules])"
    assert run_python(seen) == "[]"


def test_the_package_does_not_import_this_module():
    assert run_python("import sys, fastxent; print('fastxent.boosting' in sys.modules)") == "False"
