"""What must hold for every input and option, looked for by hypothesis: two ways to say the same give the same.

Where the arithmetic is the same the results must be the same bits. Elsewhere each way may be as wrong as DESIGN 2.5
allows, so two may differ by twice that.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import oracle
import pytest
from arrays import one_hot, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import assert_same_bits, assert_within, eps

import fastxent as fx
from fastxent import _config

pytestmark = pytest.mark.usefixtures("isa")

SOFTMAX = ("CrossEntropy", "FocalLoss")
BINARY = ("BinaryCrossEntropy", "BinaryFocalLoss")
LOSSES = SOFTMAX + BINARY
FOCAL = ("FocalLoss", "BinaryFocalLoss")

# Few examples, since every loss and level runs them; the same ones every time, and nothing is written to disk.
few_examples = settings(max_examples=20, deadline=None, derandomize=True, database=None)
fewer_examples = settings(few_examples, max_examples=4)


@dataclass(frozen=True)
class Problem:
    """A loss by name, its options, and what it is called with."""

    name: str
    logits: np.ndarray
    target: np.ndarray
    sample_weight: np.ndarray | None = None
    options: dict = field(default_factory=dict)

    def loss(self, **options):
        return getattr(fx, self.name)(**self.options | options)

    def results(self, **options):
        """Value, gradient and Hessian, with these options changed."""
        return self.loss(**options).value_grad_hess(self.logits, self.target, self.sample_weight)

    @property
    def n_rows(self):
        return len(self.logits)

    def rows(self, index):
        """The problem of some rows, in some order."""
        weight = None if self.sample_weight is None else self.sample_weight[index]
        return replace(self, logits=self.logits[index], target=self.target[index], sample_weight=weight)


# --- strategies -------------------------------------------------------------------------------------------------------

# Quarters and eighths are exact in every dtype, and so are 1 - t and twice a weight; a third is not exact in any.
WEIGHTS = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0, 3.0])
EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)
GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, 5.0])
DTYPES = st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)])


INPUTS = {
    "CrossEntropy": ["logits", "logits", "log_probs", "probs"],
    "BinaryCrossEntropy": ["logits", "logits", "probs"],
}
# What keeps a problem one of logits.
LOGITS = {name: {} if name in FOCAL else {"inputs": "logits"} for name in LOSSES}


def elements(inputs, dtype):
    """From logits that hardly matter to logits whose softmax is one-hot; probabilities of 0 and 1 included."""
    width = dtype.itemsize * 8
    if inputs == "probs":
        return st.floats(0, 1, width=width)
    if inputs == "log_probs":
        return st.floats(-1e4, 0, width=width)
    return st.floats(-1e4, 1e4, width=width) | st.floats(-20, 20, width=width)


@st.composite
def problems(draw, name, *, targets=("hard", "soft"), weights=True, dtypes=DTYPES, **fixed):
    """A problem with random options; `fixed` are the options that are not."""
    dtype = draw(dtypes)
    if name in SOFTMAX:
        shape = (draw(st.integers(1, 12)), draw(st.integers(1, 20)))
        row_shape = shape[:1]
    else:
        shape = row_shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=9))
    inputs = fixed.get("inputs", "logits" if name in FOCAL else draw(st.sampled_from(INPUTS[name])))
    logits = draw(hnp.arrays(dtype, shape, elements=elements(inputs, dtype)))
    if draw(st.sampled_from(targets)) == "soft":
        target = draw(hnp.arrays(dtype, shape, elements=EIGHTHS))
    else:
        largest = shape[-1] - 1 if name in SOFTMAX else 1
        target = draw(hnp.arrays(np.int64, row_shape, elements=st.integers(0, largest)))
    sample_weight = None
    if weights and draw(st.booleans()):
        weight_shape = draw(st.sampled_from([row_shape[:1], row_shape]))
        sample_weight = draw(hnp.arrays(np.float64, weight_shape, elements=WEIGHTS))
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
    }
    if name not in FOCAL:
        options["inputs"] = inputs
    if name in SOFTMAX:
        options["class_weight"] = draw(st.none() | hnp.arrays(np.float64, shape[1], elements=WEIGHTS))
    if name == "BinaryCrossEntropy":
        per_label = hnp.arrays(np.float64, shape[-1], elements=WEIGHTS)
        # Of a 1-D array the last axis is that of the rows, which some properties reorder.
        options["pos_weight"] = draw(st.none() | WEIGHTS | (per_label if len(shape) > 1 else WEIGHTS))
    if name == "BinaryFocalLoss":
        options["alpha"] = draw(st.none() | EIGHTHS)
    if name in FOCAL:
        options["gamma"] = draw(GAMMAS)
    return Problem(name, logits, target, sample_weight, options | fixed)


# --- how far two results may be apart ---------------------------------------------------------------------------------


def bounds(problem):
    """The largest errors of value, gradient and Hessian, as DESIGN 2.5 has them."""
    expected = oracle.expected_of(problem.name, problem.options, problem.logits, problem.target, problem.sample_weight)
    value = expected.value_bound
    if problem.options["reduction"] != "none":
        # Losses are >= 0, so a float64 sum of n of them is good to n eps, whatever their order.
        value = value + problem.logits.size * eps(np.float64) * expected.value
    return value, expected.grad_bound, expected.hess_bound


def assert_same_within(ours, theirs, limits):
    """Two results that each may be wrong by the limits."""
    for what, a, b, limit in zip(("value", "gradient", "Hessian"), ours, theirs, limits, strict=False):
        assert_within(a, np.asarray(b, np.float64), 2 * limit, what)


def each(names):
    return pytest.mark.parametrize("name", names)


# --- the definition ---------------------------------------------------------------------------------------------------


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_the_reference_says_the_same(name, data):
    problem = data.draw(problems(name))
    oracle.assert_as_expected(name, problem.options, problem.logits, problem.target, problem.sample_weight)


# --- invariances ------------------------------------------------------------------------------------------------------


@each(SOFTMAX)
@few_examples
@given(data=st.data())
def test_a_shift_of_all_classes_changes_nothing(name, data):
    problem = data.draw(problems(name, **LOGITS[name]))
    # Whole numbers up to 2^13 and shifts up to 2^14 are exact in both dtypes, so the results must be the same bits.
    shift = data.draw(hnp.arrays(np.int64, (problem.n_rows, 1), elements=st.integers(-(2**14), 2**14)))
    whole = replace(problem, logits=np.round(problem.logits).clip(-(2**13), 2**13))
    shifted = replace(whole, logits=whole.logits + shift.astype(problem.logits.dtype))
    assert_same_bits(shifted.results(), whole.results())


@each(SOFTMAX)
@few_examples
@given(data=st.data())
def test_permuted_classes_permute_the_results(name, data):
    problem = data.draw(problems(name))
    order = np.array(data.draw(st.permutations(range(problem.logits.shape[1]))), np.intp)
    options = dict(problem.options)
    if options["class_weight"] is not None:
        options["class_weight"] = options["class_weight"][order]
    soft = problem.target.dtype.kind == "f"
    target = problem.target[:, order] if soft else np.argsort(order)[problem.target]
    permuted = replace(problem, logits=problem.logits[:, order], target=target, options=options)
    value, grad, hess = problem.results()
    assert_same_within(permuted.results(), (value, grad[:, order], hess[:, order]), _columns(bounds(problem), order))


def _columns(limits, order):
    value, grad, hess = limits
    return value, grad[:, order], hess[:, order]


@each(BINARY)
@few_examples
@given(data=st.data())
def test_swapped_binary_classes_negate_the_gradient(name, data):
    # sigmoid(-z) = 1 - sigmoid(z), and 1 - t is exact for eighths.
    problem = data.draw(problems(name, **LOGITS[name]))
    if name == "BinaryCrossEntropy":
        problem.options["pos_weight"] = None
    options = dict(problem.options)
    if options.get("alpha") is not None:
        options["alpha"] = 1 - options["alpha"]
    swapped = replace(problem, logits=-problem.logits, target=1 - problem.target, options=options)
    value, grad, hess = problem.results()
    assert_same_within(swapped.results(), (value, -grad, hess), bounds(problem))


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_permuted_rows_permute_the_results(name, data):
    problem = data.draw(problems(name))
    order = np.array(data.draw(st.permutations(range(problem.n_rows))), np.intp)
    # A row does not know its neighbours, nor its place in a block.
    whole, permuted = problem.results(reduction="none"), problem.rows(order).results(reduction="none")
    assert_same_bits(permuted, tuple(result[order] for result in whole))
    # A mean and a sum know the order of their terms.
    value, grad, hess = problem.results()
    if problem.options["reduction"] != "none":
        limits = bounds(problem)
        reordered = (value, grad[order], hess[order])
        assert_same_within(problem.rows(order).results(), reordered, (limits[0], limits[1][order], limits[2][order]))


# --- the same thing said in two ways ----------------------------------------------------------------------------------


@each(SOFTMAX)
@few_examples
@given(data=st.data())
def test_two_class_softmax_is_binary_of_the_difference(name, data):
    dtype = data.draw(DTYPES)
    # Differences of whole numbers are exact.
    whole = st.integers(-(2**13), 2**13) | st.integers(-20, 20)
    logits = data.draw(hnp.arrays(np.int64, (data.draw(st.integers(1, 20)), 2), elements=whole)).astype(dtype)
    target = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, 1)))
    sample_weight = data.draw(st.none() | hnp.arrays(np.float64, len(logits), elements=WEIGHTS))
    # The mean of the softmax losses is weighted by class weights, that of the binary ones is not.
    options = {"reduction": data.draw(st.sampled_from(["none", "sum", "mean"])), "label_smoothing": 0.0}
    if name == "CrossEntropy":
        options["label_smoothing"] = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
        binary_options = dict(options)
        if options["reduction"] != "mean":
            binary_options["pos_weight"] = data.draw(WEIGHTS)
            options["class_weight"] = np.array([1.0, binary_options["pos_weight"]])
        binary_name = "BinaryCrossEntropy"
    else:
        # With soft targets each class has its own factor here, and there is one for both there.
        options["gamma"] = data.draw(GAMMAS)
        binary_options = dict(options)
        if options["reduction"] != "mean":
            binary_options["alpha"] = data.draw(EIGHTHS)
            options["class_weight"] = np.array([1 - binary_options["alpha"], binary_options["alpha"]])
        binary_name = "BinaryFocalLoss"
    softmax = Problem(name, logits, target, sample_weight, options)
    binary = Problem(binary_name, logits[:, 1] - logits[:, 0], target, sample_weight, binary_options)
    value, grad, hess = softmax.results()
    assert_same_within((value, grad[:, 1], hess[:, 1]), binary.results(), bounds(binary))


@each(SOFTMAX)
@few_examples
@given(data=st.data())
def test_index_is_one_hot(name, data):
    problem = data.draw(problems(name, targets=["hard"]))
    n_classes = problem.logits.shape[1]
    same = replace(problem, target=one_hot(problem.target, n_classes, problem.logits.dtype))
    assert_same_within(same.results(), problem.results(), bounds(problem))


@each(BINARY)
@few_examples
@given(data=st.data())
def test_integers_are_booleans_and_floats(name, data):
    problem = data.draw(problems(name, targets=["hard"]))
    expected = problem.results()
    for target_dtype in (bool, np.int8, np.uint64, np.float32, np.float64):
        assert_same_bits(replace(problem, target=problem.target.astype(target_dtype)).results(), expected)


@pytest.mark.parametrize(("name", "plain"), [("FocalLoss", "CrossEntropy"), ("BinaryFocalLoss", "BinaryCrossEntropy")])
@few_examples
@given(data=st.data())
def test_gamma_0_is_cross_entropy(name, plain, data):
    problem = data.draw(problems(name, gamma=0.0, **{"alpha": None} if name == "BinaryFocalLoss" else {}))
    options = {option: value for option, value in problem.options.items() if option not in ("gamma", "alpha")}
    assert_same_bits(problem.results(), replace(problem, name=plain, options=options).results())


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_weight_2_is_the_row_twice(name, data):
    problem = data.draw(problems(name, weights=False, reduction=data.draw(st.sampled_from(["sum", "mean"]))))
    times = data.draw(hnp.arrays(np.int64, problem.n_rows, elements=st.integers(0, 3)))
    first = (np.cumsum(times) - times)[times > 0]
    weighted = replace(problem, sample_weight=times.astype(np.float64))
    repeated = problem.rows(np.repeat(np.arange(problem.n_rows), times))
    value, grad, hess = weighted.results()
    limits = bounds(weighted)
    repeated_value, repeated_grad, repeated_hess = repeated.results()
    assert_same_within([value], [repeated_value], limits[:1])
    # The copies of a row share its gradient, which is that of the row with all their weight.
    share = times[times > 0].reshape(-1, *(1,) * (grad.ndim - 1))
    for what, ours, theirs, limit in [
        ("gradient", grad, repeated_grad, limits[1]),
        ("Hessian", hess, repeated_hess, limits[2]),
    ]:
        with np.errstate(over="ignore"):  # the Hessian of a probability of nearly 0 is nearly inf
            expected = share * theirs[first].astype(np.float64)
        assert_within(ours[times > 0], expected, 2 * limit[times > 0], what)
        assert not ours[times == 0].any()


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_an_ignored_row_is_the_row_deleted(name, data):
    # An element, for the binary losses: as 1-D arrays they are rows too, if pos_weight is not per label.
    fixed = {"ignore_index": -1}
    if name == "BinaryCrossEntropy":
        fixed["pos_weight"] = data.draw(st.none() | WEIGHTS)
    problem = data.draw(problems(name, targets=["hard"] if name in SOFTMAX else ["hard", "soft"], **fixed))
    if name in BINARY:
        weight = None if problem.sample_weight is None else np.resize(problem.sample_weight, problem.logits.size)
        problem = replace(problem, logits=problem.logits.ravel(), target=problem.target.ravel(), sample_weight=weight)
    ignored = data.draw(hnp.arrays(bool, problem.n_rows))
    target, logits = problem.target.copy(), problem.logits.copy()
    target[ignored] = -1
    logits[ignored] = np.nan  # never looked at
    value, grad, hess = replace(problem, logits=logits, target=target).results()
    kept = problem.rows(~ignored)
    expected = kept.results()
    if problem.options["reduction"] == "none":
        assert not value[ignored].any()
        value = value[~ignored]
    assert not grad[ignored].any()
    assert not hess[ignored].any()
    assert_same_within((value, grad[~ignored], hess[~ignored]), expected, bounds(kept))


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_chunked_sums_are_the_whole(name, data):
    problem = data.draw(problems(name))
    cut = data.draw(st.integers(0, problem.n_rows))
    chunks = [problem.rows(np.s_[:cut]), problem.rows(np.s_[cut:])]
    value, *derivatives = problem.results(reduction="sum")
    parts = [chunk.results(reduction="sum") for chunk in chunks]
    # Losses are >= 0: adding them in another order costs no more than one eps of the sum for each of them.
    rounding = problem.logits.size * eps(np.float64) * value
    assert_within(np.float64(sum(part[0] for part in parts)), np.float64(value), rounding, "value")
    joined = tuple(np.concatenate(pair) for pair in zip(*(part[1:] for part in parts), strict=True))
    assert_same_bits(joined, tuple(derivatives))


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_column_major_is_row_major(name, data):
    problem = data.draw(problems(name))
    in_columns = replace(problem, logits=np.asfortranarray(problem.logits), target=np.asfortranarray(problem.target))
    if name in BINARY:  # an element is its own; sums follow the memory, and softmax rows may take another kernel
        assert_same_bits(in_columns.results(reduction="none"), problem.results(reduction="none"))
    value, grad, hess = in_columns.results()
    assert grad.flags.f_contiguous
    assert hess.flags.f_contiguous
    assert_same_within((value, grad, hess), problem.results(), bounds(problem))


@each(LOSSES)
@few_examples
@given(data=st.data())
def test_float32_is_near_float64(name, data):
    problem = data.draw(problems(name, dtypes=st.just(np.dtype(np.float32))))
    double = replace(problem, logits=problem.logits.astype(np.float64))
    # float64 is exact beside it; its own errors are 2^-29 of the bound.
    assert_same_within(problem.results(), double.results(), bounds(problem))


# --- threads ----------------------------------------------------------------------------------------------------------

# Enough for three threads, and one row more than whole blocks; the shapes of the regimes of the softmax kernels.
LARGE = {
    "CrossEntropy": [(200_003, 3), (20_003, 17), (7, 40_003)],
    "FocalLoss": [(200_003, 3), (20_003, 17), (7, 40_003)],
    "BinaryCrossEntropy": [(300_001,), (60_001, 5), (3, 100_003)],
    "BinaryFocalLoss": [(300_001,), (60_001, 5), (3, 100_003)],
}


@pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP")
@each(LOSSES)
@fewer_examples
@given(data=st.data())
def test_the_same_bits_for_any_number_of_threads(name, data):
    dtype = data.draw(DTYPES)
    shape = data.draw(st.sampled_from(LARGE[name]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    soft, weighted = data.draw(st.booleans()), data.draw(st.booleans())
    row_shape = shape[:1] if name in SOFTMAX else shape
    target = rng.random(shape, np.float32) if soft else rng.integers(0, shape[-1] if name in SOFTMAX else 2, row_shape)
    options = {"label_smoothing": data.draw(st.sampled_from([0.0, 0.1]))}
    options["reduction"] = data.draw(st.sampled_from(["sum", "mean"]))
    if name in FOCAL:
        options["gamma"] = data.draw(GAMMAS)
    weight = rng.random(row_shape) if weighted else None
    problem = Problem(name, random_logits(rng, shape, dtype, 5.0), target, weight, options)
    fx.set_num_threads(1)
    expected = problem.results()
    for n in (2, 3):
        fx.set_num_threads(n)
        assert fx.get_num_threads() == n
        assert_same_bits(problem.results(), expected)
