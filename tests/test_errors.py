"""DESIGN 2.4: every bad argument has one exception type and one message, and nothing is written before it."""

import re

import numpy as np
import pytest

import fastxent as fx


class Arguments:
    """Fresh good arguments for each call: 4 rows of 3 classes."""

    def __init__(self):
        self.memory = np.arange(60, dtype=np.float32)
        self.logits = self.memory[:12].reshape(4, 3)
        self.target = np.array([0, 1, 2, 1])
        self.probabilities = np.full((4, 3), 0.25, np.float32)
        self.grad_out = np.full((4, 3), 77, np.float32)
        self.hess_out = np.full((4, 3), 77, np.float32)

    def arrays(self):
        return [a for a in vars(self).values() if isinstance(a, np.ndarray)]


def loss(_options=None, **changes):
    """A call of all three outputs; changes are arguments, or functions of the `Arguments`."""

    def call(a, in_place=False):
        arguments = {"logits": a.logits, "target": a.target, "grad_out": a.grad_out, "hess_out": a.hess_out}
        arguments |= {name: change(a) if callable(change) else change for name, change in changes.items()}
        if in_place:
            arguments["grad_out"] = arguments["logits"]
        return fx.CrossEntropy(**(_options or {})).value_grad_hess(**arguments)

    return call


def option(**options):
    return lambda a: fx.CrossEntropy(**options)


def activation(name, x=None, **arguments):
    def call(a):
        return getattr(fx, name)(
            (a.logits if x is None else x(a) if callable(x) else x),
            **{k: v(a) if callable(v) else v for k, v in arguments.items()},
        )

    return call


def full(shape, dtype=np.float32):
    return lambda a: np.zeros(shape, dtype)


def indices(*values, dtype=np.int64):
    return np.array(values, dtype=dtype)


def read_only(a):
    out = np.zeros((4, 3), np.float32)
    out.flags.writeable = False
    return out


def float32_probabilities(position, value):
    target = np.full((4, 3), 0.25, np.float32)
    target[position] = value
    return target


WANTED = "target must be integer class indices of shape (4,) or probabilities of shape (4, 3); got "
LOGITS = " must be float16, bfloat16, float32 or float64, or integers, booleans or lists of numbers; got "
WEIGHT_KINDS = "class_weight must be None, 'balanced', a dict or a 1-D array; got "
REDUCTIONS = "reduction must be one of 'none', 'sum', 'mean'; got "
INPUTS = "inputs must be one of 'logits', 'log_probs', 'probs'; got "
IGNORED = {"ignore_index": -100}
SEVEN = np.zeros((2, 3, 5), np.float32)
SEVEN_OUT = {"logits": lambda a: SEVEN.copy(), "grad_out": None, "hess_out": None}

# (call, exception type, full message)
TABLE = [
    # --- logits
    (loss(logits=full((4, 3), np.complex128)), TypeError, "logits" + LOGITS + "complex128"),
    (loss(logits=full((4, 3), object)), TypeError, "logits" + LOGITS + "object"),
    (loss(logits=None), TypeError, "logits" + LOGITS + "object"),
    (loss(logits=[["a", "b"]]), TypeError, "logits" + LOGITS + "<U1"),
    (loss(logits=np.float32(1)), ValueError, "logits must have at least 1 dimension; got 0"),
    (loss(logits=full((4, 0))), ValueError, "logits must have at least 1 class; got shape (4, 0)"),
    (loss({"axis": 0}, logits=full((0, 3))), ValueError, "logits must have at least 1 class; got shape (0, 3)"),
    # --- axis
    (loss({"axis": 2}), ValueError, "axis must be in [-2, 2); got 2"),
    (loss({"axis": -3}), ValueError, "axis must be in [-2, 2); got -3"),
    (loss({"axis": 1}, logits=full(3), target=0), ValueError, "axis must be in [-1, 1); got 1"),
    (option(axis=1.5), TypeError, "axis must be an integer; got 1.5"),
    (option(axis=None), TypeError, "axis must be an integer; got None"),
    # --- class indices
    (loss(target=indices(0, 3, 1, 2)), ValueError, "target must be in [0, 3); got 3 at index 1"),
    (loss(target=indices(0, 1, 1, -1)), ValueError, "target must be in [0, 3); got -1 at index 3"),
    (loss(target=indices(0, 1, 2**40, 1)), ValueError, "target must be in [0, 3); got 1099511627776 at index 2"),
    (loss(target=indices(-(2**63), 0, 0, 0)), ValueError, f"target must be in [0, 3); got {-(2**63)} at index 0"),
    (
        loss(target=indices(0, 0, 0, 2**64 - 1, dtype=np.uint64)),
        ValueError,
        f"target must be in [0, 3); got {2**64 - 1} at index 3",
    ),
    # 2^32 is 0 and 2^32 + 1 is 1 where an index is cut to 32 bits.
    (loss(target=indices(0, 2**32, 0, 0)), ValueError, "target must be in [0, 3); got 4294967296 at index 1"),
    (
        loss(target=indices(0, 0, 2**32 + 1, 0, dtype=np.uint64)),
        ValueError,
        "target must be in [0, 3); got 4294967297 at index 2",
    ),
    (loss(target=indices(0, 0, 0, -128, dtype=np.int8)), ValueError, "target must be in [0, 3); got -128 at index 3"),
    (loss(target=indices(255, 0, 0, 0, dtype=np.uint8)), ValueError, "target must be in [0, 3); got 255 at index 0"),
    (
        loss(IGNORED, target=indices(0, 1, 1, 12)),
        ValueError,
        "target must be in [0, 3) or equal to ignore_index; got 12 at index 3",
    ),
    (
        loss(IGNORED, target=indices(-100, -100, -1, 1)),
        ValueError,
        "target must be in [0, 3) or equal to ignore_index; got -1 at index 2",
    ),
    (
        loss({"ignore_index": -1}, target=indices(2**64 - 1, 0, 0, 0, dtype=np.uint64)),
        ValueError,
        f"target must be in [0, 3) or equal to ignore_index; got {2**64 - 1} at index 0",
    ),
    # Rows of weight 0 are not looked at, but their labels are still labels.
    (
        loss(target=indices(9, 0, 0, 0), sample_weight=[0, 1, 1, 1]),
        ValueError,
        "target must be in [0, 3); got 9 at index 0",
    ),
    (
        loss({"class_weight": "balanced"}, target=indices(0, 1, 7, 1)),
        ValueError,
        "target must be in [0, 3); got 7 at index 2",
    ),
    (
        loss({"label_smoothing": 0.1}, target=indices(0, 1, 7, 1)),
        ValueError,
        "target must be in [0, 3); got 7 at index 2",
    ),
    (
        loss({"inputs": "log_probs"}, target=indices(0, 1, 7, 1)),
        ValueError,
        "target must be in [0, 3); got 7 at index 2",
    ),
    (loss({"inputs": "probs"}, target=indices(0, 1, 1, -7)), ValueError, "target must be in [0, 3); got -7 at index 3"),
    (loss(logits=full(3), target=3, grad_out=None, hess_out=None), ValueError, "target must be in [0, 3); got 3"),
    (
        loss(logits=full((4, 1)), target=np.array([False, True, False, False]), grad_out=None, hess_out=None),
        ValueError,
        "target must be in [0, 1); got True at index 1",
    ),
    (
        loss({"axis": 1}, **SEVEN_OUT, target=np.array([[0, 1, 5, 0, 0], [0] * 5])),
        ValueError,
        "target must be in [0, 3); got 5 at index (0, 2)",
    ),
    # --- probabilities
    (
        loss(target=float32_probabilities((1, 2), np.nan)),
        ValueError,
        "target must be finite and >= 0; got nan at index (1, 2)",
    ),
    (
        loss(target=float32_probabilities((3, 0), np.inf)),
        ValueError,
        "target must be finite and >= 0; got inf at index (3, 0)",
    ),
    (
        loss(target=float32_probabilities((0, 1), -0.5)),
        ValueError,
        "target must be finite and >= 0; got -0.5 at index (0, 1)",
    ),
    (
        loss({"class_weight": "balanced"}, target=float32_probabilities((0, 1), -0.5)),
        ValueError,
        "target must be finite and >= 0; got -0.5 at index (0, 1)",
    ),
    (
        loss({"inputs": "probs"}, target=float32_probabilities((2, 2), np.nan)),
        ValueError,
        "target must be finite and >= 0; got nan at index (2, 2)",
    ),
    # --- dtype and shape of the target
    (loss(target=np.array([0.0, 1, 2, 1])), TypeError, WANTED + "float64 of shape (4,)"),
    (loss(target=indices(0, 1, 2, 1, 0)), ValueError, WANTED + "int64 of shape (5,)"),
    (loss(target=np.zeros((4, 1), np.int32)), ValueError, WANTED + "int32 of shape (4, 1)"),
    (loss(target=np.zeros((3, 4), np.float32)), ValueError, WANTED + "float32 of shape (3, 4)"),
    (loss(target=np.float32(0)), ValueError, WANTED + "float32 of shape ()"),
    (loss(target=np.zeros((4, 3), np.int64)), ValueError, WANTED + "int64 of shape (4, 3)"),
    (loss(target=full(4, object)), TypeError, WANTED + "object of shape (4,)"),
    (loss(target=full(4, np.complex64)), TypeError, WANTED + "complex64 of shape (4,)"),
    (loss(target=["a", "b", "c", "a"]), TypeError, WANTED + "<U1 of shape (4,)"),
    (loss(target=None), TypeError, WANTED + "object of shape ()"),
    (loss(target=[0, 1, 2, 2**64]), TypeError, WANTED + "object of shape (4,)"),
    # --- sample_weight
    (loss(sample_weight=np.ones(5)), ValueError, "sample_weight must have shape (4,); got shape (5,)"),
    (loss(sample_weight=np.ones((4, 3))), ValueError, "sample_weight must have shape (4,); got shape (4, 3)"),
    (loss(sample_weight=2.0), ValueError, "sample_weight must have shape (4,); got shape ()"),
    (
        loss({"axis": 1}, **SEVEN_OUT, target=np.zeros((2, 5), int), sample_weight=np.ones(3)),
        ValueError,
        "sample_weight must have shape (2,) or (2, 5); got shape (3,)",
    ),
    (loss(sample_weight=[1, 1, -1.0, 1]), ValueError, "sample_weight must be finite and >= 0; got -1.0 at index 2"),
    (loss(sample_weight=[1, np.nan, 1, 1]), ValueError, "sample_weight must be finite and >= 0; got nan at index 1"),
    (loss(sample_weight=[1, 1, 1, np.inf]), ValueError, "sample_weight must be finite and >= 0; got inf at index 3"),
    (
        loss(sample_weight=np.array([0, 0, -2, 0], np.int32)),
        ValueError,
        "sample_weight must be finite and >= 0; got -2 at index 2",
    ),
    # An ignored row's weight is checked all the same.
    (
        loss({"ignore_index": 0}, sample_weight=[np.nan, 1, 1, 1]),
        ValueError,
        "sample_weight must be finite and >= 0; got nan at index 0",
    ),
    (
        loss({"axis": 1}, **SEVEN_OUT, target=np.zeros((2, 5), int), sample_weight=[1, -1]),
        ValueError,
        "sample_weight must be finite and >= 0; got -1 at index 1",
    ),
    (loss(sample_weight=np.ones(4, complex)), TypeError, "sample_weight must be real numbers; got complex128"),
    (loss(sample_weight=["a"] * 4), TypeError, "sample_weight must be real numbers; got <U1"),
    # --- class_weight
    (option(class_weight=[1, np.nan, 1]), ValueError, "class_weight must be finite and >= 0; got nan at index 1"),
    (option(class_weight=[1, 1, -3.5]), ValueError, "class_weight must be finite and >= 0; got -3.5 at index 2"),
    (option(class_weight={4: np.inf}), ValueError, "class_weight must be finite and >= 0; got inf at index 4"),
    (loss({"class_weight": [1, 2]}), ValueError, "class_weight must have shape (3,); got shape (2,)"),
    (loss({"class_weight": {5: 1.0}}), ValueError, "class_weight must have keys in [0, 3); got 5"),
    (loss({"class_weight": {-1: 1.0}}), ValueError, "class_weight must have keys in [0, 3); got -1"),
    (option(class_weight={1.5: 1.0}), TypeError, "class_weight must have integer keys; got 1.5"),
    (option(class_weight="equal"), ValueError, WEIGHT_KINDS + "'equal'"),
    (option(class_weight=3), TypeError, WEIGHT_KINDS + "3"),
    (option(class_weight=[[1, 2]]), ValueError, WEIGHT_KINDS + "shape (1, 2)"),
    (option(class_weight=["a", "b"]), TypeError, WEIGHT_KINDS + "<U1 of shape (2,)"),
    # --- the other options
    (option(label_smoothing=1.5), ValueError, "label_smoothing must be in [0, 1]; got 1.5"),
    (option(label_smoothing=-0.1), ValueError, "label_smoothing must be in [0, 1]; got -0.1"),
    (option(label_smoothing=np.nan), ValueError, "label_smoothing must be in [0, 1]; got nan"),
    (option(label_smoothing="a"), TypeError, "label_smoothing must be a real number; got 'a'"),
    (option(label_smoothing=None), TypeError, "label_smoothing must be a real number; got None"),
    (option(reduction="avg"), ValueError, REDUCTIONS + "'avg'"),
    (option(reduction=None), TypeError, REDUCTIONS + "None"),
    (option(inputs="logit"), ValueError, INPUTS + "'logit'"),
    (option(inputs=1), TypeError, INPUTS + "1"),
    (option(ignore_index=1.5), TypeError, "ignore_index must be an integer or None; got 1.5"),
    (option(ignore_index="a"), TypeError, "ignore_index must be an integer or None; got 'a'"),
    # --- outputs
    (loss(grad_out=full((3, 4))), ValueError, "grad_out must have shape (4, 3); got (3, 4)"),
    (loss(hess_out=full((4,))), ValueError, "hess_out must have shape (4, 3); got (4,)"),
    (loss(grad_out=full((4, 3), np.float64)), TypeError, "grad_out must have dtype float32; got float64"),
    (loss(hess_out=full((4, 3), np.int32)), TypeError, "hess_out must have dtype float32; got int32"),
    (
        loss(logits=[[1, 2], [3, 4]], target=[0, 1], grad_out=full((2, 2))),
        TypeError,
        "grad_out must have dtype float64; got float32",
    ),
    (loss(grad_out=[[0.0]]), TypeError, "grad_out must be a NumPy array; got list"),
    (loss(hess_out=7), TypeError, "hess_out must be a NumPy array; got int"),
    (loss(grad_out=read_only), ValueError, "grad_out must be writable; got a read-only array"),
    (loss(hess_out=read_only), ValueError, "hess_out must be writable; got a read-only array"),
    (
        loss(grad_out=lambda a: a.memory[3:15].reshape(4, 3)),
        ValueError,
        "grad_out must be logits itself or not overlap it; got a partial overlap",
    ),
    (
        loss(grad_out=lambda a: a.logits[::-1]),
        ValueError,
        "grad_out must be logits itself or not overlap it; got a partial overlap",
    ),
    (
        loss(target=lambda a: a.probabilities, grad_out=lambda a: a.probabilities),
        ValueError,
        "grad_out must not overlap target; got an overlap",
    ),
    (
        loss(sample_weight=lambda a: a.grad_out[:, 1]),
        ValueError,
        "grad_out must not overlap sample_weight; got an overlap",
    ),
    (loss(hess_out=lambda a: a.logits), ValueError, "hess_out must not overlap logits; got an overlap"),
    (loss(hess_out=lambda a: a.grad_out), ValueError, "hess_out must not overlap grad_out; got an overlap"),
    (
        loss(target=lambda a: a.probabilities, hess_out=lambda a: a.probabilities),
        ValueError,
        "hess_out must not overlap target; got an overlap",
    ),
    (
        loss(grad_out=lambda a: np.lib.stride_tricks.as_strided(a.grad_out, (4, 3), (0, 4))),
        ValueError,
        "grad_out must not overlap itself; got strides (0, 4)",
    ),
    (
        loss(grad_out=lambda a: np.lib.stride_tricks.as_strided(a.grad_out, (4, 3), (4, 4))),
        ValueError,
        "grad_out must not overlap itself; got strides (4, 4)",
    ),
    # --- activations
    (activation("softmax", x=[1j]), TypeError, "x" + LOGITS + "complex128"),
    (activation("log_softmax", x=[None]), TypeError, "x" + LOGITS + "object"),
    (activation("logsumexp", x=["a"]), TypeError, "x" + LOGITS + "<U1"),
    (activation("softmax", x=1.0), ValueError, "x must have at least 1 dimension; got 0"),
    (activation("logsumexp", x=1.0), ValueError, "x must have at least 1 dimension; got 0"),
    (activation("softmax", axis=2), ValueError, "axis must be in [-2, 2); got 2"),
    (activation("logsumexp", axis=-3), ValueError, "axis must be in [-2, 2); got -3"),
    (activation("log_softmax", axis=0.5), TypeError, "axis must be an integer; got 0.5"),
    (activation("softmax", out=full((3, 4))), ValueError, "out must have shape (4, 3); got (3, 4)"),
    (activation("softmax", out=full((4, 3), np.float64)), TypeError, "out must have dtype float32; got float64"),
    (activation("log_softmax", out=read_only), ValueError, "out must be writable; got a read-only array"),
    (activation("softmax", out=[1.0]), TypeError, "out must be a NumPy array; got list"),
    (
        activation("softmax", out=lambda a: a.memory[1:13].reshape(4, 3)),
        ValueError,
        "out must be x itself or not overlap it; got a partial overlap",
    ),
    (
        activation("softmax", out=lambda a: np.lib.stride_tricks.as_strided(a.grad_out, (4, 3), (0, 4))),
        ValueError,
        "out must not overlap itself; got strides (0, 4)",
    ),
    # --- balanced_class_weight
    (lambda a: fx.balanced_class_weight([0, 1, 3], 3), ValueError, "target must be in [0, 3); got 3 at index 2"),
    (lambda a: fx.balanced_class_weight([0, -1], 3), ValueError, "target must be in [0, 3); got -1 at index 1"),
    (lambda a: fx.balanced_class_weight([0], 1.5), TypeError, "n_classes must be an integer; got 1.5"),
    (lambda a: fx.balanced_class_weight([0], 0), ValueError, "n_classes must be at least 1; got 0"),
    # --- threads
    (lambda a: fx.set_num_threads(0), ValueError, "n must be a non-zero integer; got 0"),
    (lambda a: fx.set_num_threads(1.5), TypeError, "n must be an integer; got 1.5"),
    (lambda a: fx.set_num_threads("2"), TypeError, "n must be an integer; got '2'"),
    (lambda a: fx.set_num_threads(None), TypeError, "n must be an integer; got None"),
]
IDS = [f"{i}: {message}" for i, (_, _, message) in enumerate(TABLE)]


def assert_raises(call, exception, message, arguments):
    before = [a.copy() for a in arguments.arrays()]
    with pytest.raises(exception) as caught:
        call(arguments)
    assert type(caught.value) is exception
    assert str(caught.value) == message
    for a, b in zip(arguments.arrays(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("call", "exception", "message"), TABLE, ids=IDS)
def test_table(call, exception, message):
    assert_raises(call, exception, message, Arguments())


# Calls of a loss whose logits are good, so that the gradient could be written over them.
IN_PLACE = [
    row
    for row in TABLE
    if row[0].__qualname__.startswith("loss.")
    and re.match("target|sample_weight|class_weight|axis|hess_out", row[2])
    and "grad_out" not in row[2]
]


@pytest.mark.parametrize(
    ("call", "exception", "message"), IN_PLACE, ids=[f"{i}: {message}" for i, (_, _, message) in enumerate(IN_PLACE)]
)
def test_logits_survive_an_error_of_an_in_place_call(call, exception, message):
    assert_raises(lambda a: call(a, in_place=True), exception, message, Arguments())


@pytest.mark.parametrize("n_rows", [1, 17, 1000, 200_000])
@pytest.mark.parametrize("n_classes", [3, 50])
def test_a_bad_label_in_the_last_row_is_found_before_anything_is_written(dtype, n_rows, n_classes):
    # Several threads and slices: the first row must not be lost before the last one is known.
    if n_rows * n_classes > 1_000_000:
        n_classes = 3
    logits = np.ones((n_rows, n_classes), dtype)
    target = np.zeros(n_rows, np.int32)
    target[-1] = n_classes
    with pytest.raises(ValueError, match=f"got {n_classes} at index {n_rows - 1}$"):
        fx.CrossEntropy().value_and_grad(logits, target, grad_out=logits)
    assert np.all(logits == 1)
    soft = np.full((n_rows, n_classes), 0.25, dtype)
    soft[-1, -1] = -1
    with pytest.raises(ValueError, match=re.escape(f"got -1.0 at index ({n_rows - 1}, {n_classes - 1})")):
        fx.CrossEntropy().value_and_grad(logits, soft, grad_out=logits)
    assert np.all(logits == 1)


def test_garbage_is_refused_in_the_grammar():
    """Whatever is passed, the answer is a result or one of the two exceptions in the grammar; never a crash."""
    rng = np.random.default_rng(0)
    good = np.ones((4, 3))
    values = [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        np.nan,
        "mean",
        b"x",
        [],
        [[]],
        (),
        {},
        {0: 1},
        {"a": 2},
        {0},
        object(),
        good,
        good.astype(np.float32),
        good[:0],
        good[:, :0],
        good[0],
        np.float32(1),
        np.array(0),
        np.array(None),
        np.zeros(4, int),
        np.zeros((4, 3), int),
        np.zeros(4, "datetime64[s]"),
        np.zeros(4, [("a", int)]),
        np.array(["a"] * 4),
        np.zeros((1,) * 32),
        np.ma.ones((4, 3)),
        np.broadcast_to(1.0, (4, 3)),
        range(4),
    ]
    grammar = re.compile(r"\w+ must .+; got .+", re.DOTALL)
    # Mostly good arguments with one or two pieces of garbage reach further than garbage alone.
    usual = {"logits": good, "target": np.zeros(4, int), "sample_weight": None, "grad_out": None, "hess_out": None}
    usual_options = {
        "class_weight": None,
        "label_smoothing": 0.0,
        "ignore_index": None,
        "reduction": "mean",
        "axis": -1,
    }
    n_refused = 0
    for _ in range(3000):
        arguments, options = dict(usual), dict(usual_options)
        for _ in range(rng.integers(1, 3)):
            place = arguments if rng.random() < 0.7 else options
            place[list(place)[rng.integers(len(place))]] = values[rng.integers(len(values))]
        try:
            fx.CrossEntropy(**options).value_grad_hess(**arguments)
        except (TypeError, ValueError) as error:
            assert grammar.fullmatch(str(error)), f"{error!r} of {options}, {arguments}"  # noqa: PT017
            n_refused += 1
        good[...] = 1  # it may have been grad_out
    assert n_refused > 1000
