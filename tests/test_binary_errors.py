"""DESIGN 2.4 for the binary losses, focal loss, the sigmoids and half precision: types, messages, nothing written before."""

import re

import numpy as np
import pytest
from arrays import HALVES

import fastxent as fx


class Arguments:
    """Fresh good arguments for each call: 4 rows of 3 labels, or of 3 classes."""

    def __init__(self, dtype=np.float32):
        self.memory = np.arange(60, dtype=np.float32).astype(dtype)
        self.logits = self.memory[:12].reshape(4, 3)
        self.index = np.array([0, 1, 2, 1])
        self.binary = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
        self.soft = np.full((4, 3), 0.25, np.float32)
        self.grad_out = np.full((4, 3), 77, dtype)
        self.hess_out = np.full((4, 3), 77, dtype)

    def arrays(self):
        return [a for a in vars(self).values() if isinstance(a, np.ndarray)]


class Call:
    """A call of all three outputs of a loss; changes are arguments, or functions of the `Arguments`."""

    def __init__(self, name, options=None, dtype=np.float32, **changes):
        self.name, self.options, self.dtype, self.changes = name, options or {}, dtype, changes

    def can_be_in_place(self):
        """Whether the logits are an array, which can be written over."""
        return callable(self.changes.get("logits", callable))

    def __call__(self, a, in_place=False):
        target = a.binary if self.name.startswith("Binary") else a.index
        arguments = {"logits": a.logits, "target": target, "grad_out": a.grad_out, "hess_out": a.hess_out}
        arguments |= {name: change(a) if callable(change) else change for name, change in self.changes.items()}
        if in_place:
            arguments["grad_out"] = arguments["logits"]
        return getattr(fx, self.name)(**self.options).value_grad_hess(**arguments)


def bce(options=None, **changes):
    return Call("BinaryCrossEntropy", options, **changes)


def option(name, **options):
    return lambda a: getattr(fx, name)(**options)


def activation(name, *x, **arguments):
    def call(a):
        given = {k: v(a) if callable(v) else v for k, v in arguments.items()}
        return getattr(fx, name)(*x or (a.logits,), **given)

    return call


def full(shape, dtype=np.float32):
    return lambda a: np.zeros(shape, dtype)


def changed(position, value, dtype=np.float64):
    """A good binary target but for one element."""
    target = np.zeros((4, 3), dtype)
    target[position] = value
    return target


def read_only(a):
    out = np.zeros((4, 3), np.float32)
    out.flags.writeable = False
    return out


WANTED = "target must be "
IGNORED = {"ignore_index": -1}
GAMMA = "gamma must be finite and >= 0; got "
POS_WEIGHT = "pos_weight must be finite and >= 0; got "
SHAPE = (4, 3)

# What holds for both binary losses: (changes, options, exception, message).
BINARY = [
    # --- targets out of [0, 1]
    ({"target": changed((1, 2), 2, np.int64)}, {}, ValueError, "target must be in [0, 1]; got 2 at index (1, 2)"),
    ({"target": changed((0, 1), -1, np.int64)}, {}, ValueError, "target must be in [0, 1]; got -1 at index (0, 1)"),
    ({"target": changed((3, 0), -128, np.int8)}, {}, ValueError, "target must be in [0, 1]; got -128 at index (3, 0)"),
    ({"target": changed((3, 0), 255, np.uint8)}, {}, ValueError, "target must be in [0, 1]; got 255 at index (3, 0)"),
    (
        {"target": changed((3, 2), 2**64 - 1, np.uint64)},
        {},
        ValueError,
        f"target must be in [0, 1]; got {2**64 - 1} at index (3, 2)",
    ),
    # 2^32 is 0 and 2^32 + 1 is 1 where an integer is cut to 32 bits; 2^8 in 8.
    (
        {"target": changed((2, 1), 2**32, np.int64)},
        {},
        ValueError,
        "target must be in [0, 1]; got 4294967296 at index (2, 1)",
    ),
    (
        {"target": changed((2, 1), 2**32 + 1, np.uint64)},
        {},
        ValueError,
        "target must be in [0, 1]; got 4294967297 at index (2, 1)",
    ),
    ({"target": changed((0, 0), 256, np.int16)}, {}, ValueError, "target must be in [0, 1]; got 256 at index (0, 0)"),
    ({"target": changed((1, 1), 1.5)}, {}, ValueError, "target must be in [0, 1]; got 1.5 at index (1, 1)"),
    ({"target": changed((1, 1), -0.25)}, {}, ValueError, "target must be in [0, 1]; got -0.25 at index (1, 1)"),
    ({"target": changed((2, 2), np.nan)}, {}, ValueError, "target must be in [0, 1]; got nan at index (2, 2)"),
    ({"target": changed((2, 2), np.inf)}, {}, ValueError, "target must be in [0, 1]; got inf at index (2, 2)"),
    ({"target": changed((0, 2), -np.inf)}, {}, ValueError, "target must be in [0, 1]; got -inf at index (0, 2)"),
    ({"target": changed((3, 2), 1.5, np.float32)}, {}, ValueError, "target must be in [0, 1]; got 1.5 at index (3, 2)"),
    ({"target": changed((3, 2), 1.5, np.float16)}, {}, ValueError, "target must be in [0, 1]; got 1.5 at index (3, 2)"),
    # One more than 1 in float64 is 1 in float32: the target is read in its own dtype.
    (
        {"target": changed((1, 0), np.nextafter(1, 2))},
        {},
        ValueError,
        "target must be in [0, 1]; got 1.0000000000000002 at index (1, 0)",
    ),
    ({"target": changed((1, 0), -1e-300)}, {}, ValueError, "target must be in [0, 1]; got -1e-300 at index (1, 0)"),
    (
        {"logits": full(3), "target": np.array([0, 1, 3]), "grad_out": None, "hess_out": None},
        {},
        ValueError,
        "target must be in [0, 1]; got 3 at index 2",
    ),
    (
        {"logits": 0.5, "target": 2, "grad_out": None, "hess_out": None},
        {},
        ValueError,
        "target must be in [0, 1]; got 2",
    ),
    # --- or to be ignored
    (
        {"target": changed((0, 2), -2, np.int64)},
        IGNORED,
        ValueError,
        "target must be in [0, 1] or equal to ignore_index; got -2 at index (0, 2)",
    ),
    (
        {"target": changed((0, 2), -1.5)},
        IGNORED,
        ValueError,
        "target must be in [0, 1] or equal to ignore_index; got -1.5 at index (0, 2)",
    ),
    (
        {"target": changed((2, 0), np.nan)},
        IGNORED,
        ValueError,
        "target must be in [0, 1] or equal to ignore_index; got nan at index (2, 0)",
    ),
    (
        {"target": changed((2, 0), 255, np.uint8)},
        IGNORED,
        ValueError,
        "target must be in [0, 1] or equal to ignore_index; got 255 at index (2, 0)",
    ),
    (
        {"target": changed((2, 0), 2**64 - 1, np.uint64)},
        IGNORED,
        ValueError,
        f"target must be in [0, 1] or equal to ignore_index; got {2**64 - 1} at index (2, 0)",
    ),
    # Elements of weight 0 are not looked at, but their targets are still targets.
    (
        {"target": changed((0, 0), 9, np.int64), "sample_weight": [0, 1, 1, 1]},
        {},
        ValueError,
        "target must be in [0, 1]; got 9 at index (0, 0)",
    ),
    (
        {"target": changed((3, 1), 7.0)},
        {"label_smoothing": 0.1},
        ValueError,
        "target must be in [0, 1]; got 7.0 at index (3, 1)",
    ),
    # --- dtype and shape of the target
    ({"target": np.zeros(4, int)}, {}, ValueError, "target must have shape (4, 3); got shape (4,)"),
    ({"target": np.zeros((3, 4))}, {}, ValueError, "target must have shape (4, 3); got shape (3, 4)"),
    ({"target": np.zeros((4, 3, 1), bool)}, {}, ValueError, "target must have shape (4, 3); got shape (4, 3, 1)"),
    ({"target": 1}, {}, ValueError, "target must have shape (4, 3); got shape ()"),
    (
        {"target": full(SHAPE, object)},
        {},
        TypeError,
        "target must be integers, booleans or floats; got object of shape (4, 3)",
    ),
    (
        {"target": full(SHAPE, np.complex64)},
        {},
        TypeError,
        "target must be integers, booleans or floats; got complex64 of shape (4, 3)",
    ),
    (
        {"target": [["a"] * 3] * 4},
        {},
        TypeError,
        "target must be integers, booleans or floats; got <U1 of shape (4, 3)",
    ),
    ({"target": None}, {}, TypeError, "target must be integers, booleans or floats; got object of shape ()"),
    # --- logits
    ({"logits": full(SHAPE, np.complex128)}, {}, TypeError, "complex128"),
    ({"logits": full(SHAPE, object)}, {}, TypeError, "object"),
    ({"logits": full(SHAPE, np.longdouble)}, {}, TypeError, np.dtype(np.longdouble).name),
    ({"logits": [["a"] * 3] * 4}, {}, TypeError, "<U1"),
    # --- sample_weight
    ({"sample_weight": np.ones(3)}, {}, ValueError, "sample_weight must have shape (4,) or (4, 3); got shape (3,)"),
    ({"sample_weight": 2.0}, {}, ValueError, "sample_weight must have shape (4,) or (4, 3); got shape ()"),
    ({"sample_weight": [1, 1, -1.0, 1]}, {}, ValueError, "sample_weight must be finite and >= 0; got -1.0 at index 2"),
    ({"sample_weight": [1, np.nan, 1, 1]}, {}, ValueError, "sample_weight must be finite and >= 0; got nan at index 1"),
    (
        {"sample_weight": changed((3, 1), np.inf)},
        {},
        ValueError,
        "sample_weight must be finite and >= 0; got inf at index (3, 1)",
    ),
    (
        {"sample_weight": changed((0, 2), -2, np.int32)},
        {},
        ValueError,
        "sample_weight must be finite and >= 0; got -2 at index (0, 2)",
    ),
    # An ignored element's weight is checked all the same.
    (
        {"target": np.full(SHAPE, -1), "sample_weight": [np.nan, 1, 1, 1]},
        IGNORED,
        ValueError,
        "sample_weight must be finite and >= 0; got nan at index 0",
    ),
    ({"sample_weight": np.ones(4, complex)}, {}, TypeError, "sample_weight must be real numbers; got complex128"),
    ({"sample_weight": np.full(4, 1e308)}, {}, ValueError, "sample_weight must have a finite sum; got inf"),
    # --- outputs
    ({"grad_out": full((3, 4))}, {}, ValueError, "grad_out must have shape (4, 3); got (3, 4)"),
    ({"hess_out": full((4,))}, {}, ValueError, "hess_out must have shape (4, 3); got (4,)"),
    ({"grad_out": full(SHAPE, np.float64)}, {}, TypeError, "grad_out must have dtype float32; got float64"),
    ({"hess_out": full(SHAPE, np.float16)}, {}, TypeError, "hess_out must have dtype float32; got float16"),
    ({"grad_out": [[0.0]]}, {}, TypeError, "grad_out must be a NumPy array; got list"),
    ({"grad_out": read_only}, {}, ValueError, "grad_out must be writable; got a read-only array"),
    ({"hess_out": read_only}, {}, ValueError, "hess_out must be writable; got a read-only array"),
    (
        {"grad_out": lambda a: a.memory[3:15].reshape(4, 3)},
        {},
        ValueError,
        "grad_out must be logits itself or not overlap it; got a partial overlap",
    ),
    (
        {"grad_out": lambda a: a.logits[::-1]},
        {},
        ValueError,
        "grad_out must be logits itself or not overlap it; got a partial overlap",
    ),
    (
        {"target": lambda a: a.soft, "grad_out": lambda a: a.soft},
        {},
        ValueError,
        "grad_out must not overlap target; got an overlap",
    ),
    (
        {"sample_weight": lambda a: a.grad_out},
        {},
        ValueError,
        "grad_out must not overlap sample_weight; got an overlap",
    ),
    ({"hess_out": lambda a: a.logits}, {}, ValueError, "hess_out must not overlap logits; got an overlap"),
    ({"hess_out": lambda a: a.grad_out}, {}, ValueError, "hess_out must not overlap grad_out; got an overlap"),
    (
        {"target": lambda a: a.soft, "hess_out": lambda a: a.soft},
        {},
        ValueError,
        "hess_out must not overlap target; got an overlap",
    ),
    (
        {"grad_out": lambda a: np.lib.stride_tricks.as_strided(a.grad_out, SHAPE, (0, 4))},
        {},
        ValueError,
        "grad_out must not overlap itself; got strides (0, 4)",
    ),
]

# Options, of which each loss has some: (losses, options, exception, message).
FOCAL, PLAIN, EVERY = (
    ("FocalLoss", "BinaryFocalLoss"),
    ("BinaryCrossEntropy",),
    ("BinaryCrossEntropy", "FocalLoss", "BinaryFocalLoss"),
)
OPTIONS = [
    (FOCAL, {"gamma": -1.0}, ValueError, GAMMA + "-1.0"),
    (FOCAL, {"gamma": -1e-300}, ValueError, GAMMA + "-1e-300"),
    (FOCAL, {"gamma": np.nan}, ValueError, GAMMA + "nan"),
    (FOCAL, {"gamma": np.inf}, ValueError, GAMMA + "inf"),
    (FOCAL, {"gamma": np.float32(-2)}, ValueError, GAMMA + "-2.0"),
    (FOCAL, {"gamma": "2"}, TypeError, "gamma must be a real number; got '2'"),
    (FOCAL, {"gamma": True}, TypeError, "gamma must be a real number; got True"),
    (FOCAL, {"gamma": np.True_}, TypeError, f"gamma must be a real number; got {np.True_!r}"),
    (FOCAL, {"gamma": None}, TypeError, "gamma must be a real number; got None"),
    (FOCAL, {"gamma": 1j}, TypeError, "gamma must be a real number; got 1j"),
    (FOCAL, {"gamma": [2.0]}, TypeError, "gamma must be a real number; got [2.0]"),
    (("BinaryFocalLoss",), {"alpha": 1.5}, ValueError, "alpha must be in [0, 1]; got 1.5"),
    (("BinaryFocalLoss",), {"alpha": -0.25}, ValueError, "alpha must be in [0, 1]; got -0.25"),
    (("BinaryFocalLoss",), {"alpha": np.nan}, ValueError, "alpha must be in [0, 1]; got nan"),
    (("BinaryFocalLoss",), {"alpha": "a"}, TypeError, "alpha must be a real number; got 'a'"),
    (("BinaryFocalLoss",), {"alpha": True}, TypeError, "alpha must be a real number; got True"),
    (("BinaryFocalLoss",), {"alpha": [0.5]}, TypeError, "alpha must be a real number; got [0.5]"),
    (PLAIN, {"pos_weight": -1.0}, ValueError, POS_WEIGHT + "-1.0"),
    (PLAIN, {"pos_weight": -2}, ValueError, POS_WEIGHT + "-2"),
    (PLAIN, {"pos_weight": np.nan}, ValueError, POS_WEIGHT + "nan"),
    (PLAIN, {"pos_weight": np.inf}, ValueError, POS_WEIGHT + "inf"),
    (PLAIN, {"pos_weight": [1, 2, -3.5]}, ValueError, POS_WEIGHT + "-3.5 at index 2"),
    (PLAIN, {"pos_weight": np.array([1, np.nan, 3])}, ValueError, POS_WEIGHT + "nan at index 1"),
    (PLAIN, {"pos_weight": "balanced"}, TypeError, "pos_weight must be None, a number or a 1-D array; got 'balanced'"),
    (
        PLAIN,
        {"pos_weight": ["a", "b"]},
        TypeError,
        "pos_weight must be None, a number or a 1-D array; got <U1 of shape (2,)",
    ),
    (PLAIN, {"pos_weight": {0: 1.0}}, TypeError, "pos_weight must be None, a number or a 1-D array; got {0: 1.0}"),
    (PLAIN, {"pos_weight": True}, TypeError, "pos_weight must be None, a number or a 1-D array; got True"),
    (PLAIN, {"pos_weight": 1j}, TypeError, "pos_weight must be None, a number or a 1-D array; got 1j"),
    (PLAIN, {"pos_weight": [[1, 2]]}, ValueError, "pos_weight must be None, a number or a 1-D array; got shape (1, 2)"),
    (PLAIN, {"inputs": "log_probs"}, ValueError, "inputs must be one of 'logits', 'probs'; got 'log_probs'"),
    (PLAIN, {"inputs": 1}, TypeError, "inputs must be one of 'logits', 'probs'; got 1"),
    (EVERY, {"label_smoothing": 1.5}, ValueError, "label_smoothing must be in [0, 1]; got 1.5"),
    (EVERY, {"label_smoothing": -0.1}, ValueError, "label_smoothing must be in [0, 1]; got -0.1"),
    (EVERY, {"label_smoothing": np.nan}, ValueError, "label_smoothing must be in [0, 1]; got nan"),
    (EVERY, {"label_smoothing": "a"}, TypeError, "label_smoothing must be a real number; got 'a'"),
    (EVERY, {"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'sum', 'mean'; got 'avg'"),
    (EVERY, {"reduction": None}, TypeError, "reduction must be one of 'none', 'sum', 'mean'; got None"),
    (EVERY, {"ignore_index": 1.5}, TypeError, "ignore_index must be an integer or None; got 1.5"),
    (EVERY, {"ignore_index": True}, TypeError, "ignore_index must be an integer or None; got True"),
    (("FocalLoss",), {"axis": 1.5}, TypeError, "axis must be an integer; got 1.5"),
    (
        ("FocalLoss",),
        {"class_weight": [1, 1, -3.5]},
        ValueError,
        "class_weight must be finite and >= 0; got -3.5 at index 2",
    ),
    (
        ("FocalLoss",),
        {"class_weight": "equal"},
        ValueError,
        "class_weight must be None, 'balanced', a dict or a 1-D array; got 'equal'",
    ),
]

# The rest: (call, exception, message).
TABLE = [
    # --- pos_weight of the wrong length
    (bce({"pos_weight": [1, 2]}), ValueError, "pos_weight must have shape (3,); got shape (2,)"),
    (bce({"pos_weight": np.ones(4)}), ValueError, "pos_weight must have shape (3,); got shape (4,)"),
    (bce({"pos_weight": []}), ValueError, "pos_weight must have shape (3,); got shape (0,)"),
    (
        bce({"pos_weight": [1, 2]}, logits=full(3), target=np.zeros(3, int), grad_out=None, hess_out=None),
        ValueError,
        "pos_weight must have shape (3,); got shape (2,)",
    ),
    (
        bce({"pos_weight": [1, 1e300, 1]}),
        ValueError,
        "pos_weight must be finite in float32; got 1e+300 at index 1",
    ),
    (bce({"pos_weight": 1e300}), ValueError, "pos_weight must be finite in float32; got 1e+300"),
    (
        bce({"inputs": "probs"}, target=changed((1, 2), 2, np.int64)),
        ValueError,
        "target must be in [0, 1]; got 2 at index (1, 2)",
    ),
    # --- FocalLoss, which shares its checks with CrossEntropy
    (Call("FocalLoss", target=np.array([0, 3, 1, 2])), ValueError, "target must be in [0, 3); got 3 at index 1"),
    (
        Call("FocalLoss", {"ignore_index": -100}, target=np.array([0, -1, 1, 2])),
        ValueError,
        "target must be in [0, 3) or equal to ignore_index; got -1 at index 1",
    ),
    (
        Call("FocalLoss", target=changed((1, 2), np.nan)),
        ValueError,
        "target must be finite and >= 0; got nan at index (1, 2)",
    ),
    (
        Call("FocalLoss", target=changed((3, 0), -0.5)),
        ValueError,
        "target must be finite and >= 0; got -0.5 at index (3, 0)",
    ),
    (
        Call("FocalLoss", target=np.array([0.0, 1, 2, 1])),
        TypeError,
        "target must be integer class indices of shape (4,) or probabilities of shape (4, 3); got float64 of shape (4,)",
    ),
    (Call("FocalLoss", {"axis": 2}), ValueError, "axis must be in [-2, 2); got 2"),
    (Call("FocalLoss", {"class_weight": [1, 2]}), ValueError, "class_weight must have shape (3,); got shape (2,)"),
    (
        Call("FocalLoss", {"gamma": 0, "class_weight": "balanced"}, target=np.array([0, 1, 7, 1])),
        ValueError,
        "target must be in [0, 3); got 7 at index 2",
    ),
    (Call("FocalLoss", logits=np.float32(1)), ValueError, "logits must have at least 1 dimension; got 0"),
    (Call("FocalLoss", logits=full((4, 0))), ValueError, "logits must have at least 1 class; got shape (4, 0)"),
    (
        Call("FocalLoss", sample_weight=[1, 1, -1.0, 1]),
        ValueError,
        "sample_weight must be finite and >= 0; got -1.0 at index 2",
    ),
    (
        Call("FocalLoss", grad_out=lambda a: a.logits[::-1]),
        ValueError,
        "grad_out must be logits itself or not overlap it; got a partial overlap",
    ),
    (Call("FocalLoss", hess_out=lambda a: a.logits), ValueError, "hess_out must not overlap logits; got an overlap"),
    # --- the sigmoids
    (activation("sigmoid", [1j]), TypeError, "complex128"),
    (activation("log_sigmoid", [None]), TypeError, "object"),
    (activation("sigmoid", ["a"]), TypeError, "<U1"),
    (activation("sigmoid", out=full((3, 4))), ValueError, "out must have shape (4, 3); got (3, 4)"),
    (activation("log_sigmoid", out=full(SHAPE, np.float64)), TypeError, "out must have dtype float32; got float64"),
    (activation("sigmoid", out=read_only), ValueError, "out must be writable; got a read-only array"),
    (activation("sigmoid", out=[1.0]), TypeError, "out must be a NumPy array; got list"),
    (
        activation("sigmoid", out=lambda a: a.memory[1:13].reshape(4, 3)),
        ValueError,
        "out must be x itself or not overlap it; got a partial overlap",
    ),
    (
        activation("log_sigmoid", out=lambda a: np.lib.stride_tricks.as_strided(a.grad_out, SHAPE, (0, 4))),
        ValueError,
        "out must not overlap itself; got strides (0, 4)",
    ),
]
TABLE += [
    (Call(name, options, **changes), exception, message)
    for name in ("BinaryCrossEntropy", "BinaryFocalLoss")
    for changes, options, exception, message in BINARY
]
TABLE += [
    (option(name, **options), exception, message) for names, options, exception, message in OPTIONS for name in names
]


def name_of(call):
    return getattr(call, "name", "option")


def ids_of(table):
    return [f"{i}: {name_of(call)}: {message}" for i, (call, _, message) in enumerate(table)]


def assert_raises(call, exception, message, arguments):
    before = [a.copy() for a in arguments.arrays()]
    with pytest.raises(exception) as caught:
        call(arguments)
    assert type(caught.value) is exception
    if " must " in message:
        assert str(caught.value) == message
    else:  # the dtypes that logits may have are CrossEntropy's message, and change with it
        assert re.fullmatch(rf"(logits|x) must be .+; got {re.escape(message)}", str(caught.value))
    for a, b in zip(arguments.arrays(), before, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize(("call", "exception", "message"), TABLE, ids=ids_of(TABLE))
def test_table(call, exception, message):
    assert_raises(call, exception, message, Arguments())


# Calls of a loss whose logits are good, so that the gradient could be written over them.
IN_PLACE = [
    row
    for row in TABLE
    if isinstance(row[0], Call)
    and row[0].can_be_in_place()
    and re.match("target|sample_weight|class_weight|pos_weight|axis|hess_out", row[2])
    and "grad_out" not in row[2]
]


@pytest.mark.parametrize(("call", "exception", "message"), IN_PLACE, ids=ids_of(IN_PLACE))
def test_logits_survive_an_error_of_an_in_place_call(call, exception, message):
    assert_raises(lambda a: call(a, in_place=True), exception, message, Arguments())


@pytest.mark.parametrize("shape", [(1,), (17,), (1000,), (300_000,), (1000, 301)], ids=str)
@pytest.mark.parametrize("name", ["BinaryCrossEntropy", "BinaryFocalLoss"])
@pytest.mark.parametrize("bad", [2, 1.5, np.nan])
def test_a_bad_target_in_the_last_place_is_found_before_anything_is_written(dtype, name, shape, bad):
    # Several threads and slices: the first element must not be lost before the last one is known.
    logits = np.ones(shape, dtype)
    target = np.zeros(shape, np.int8 if bad == 2 else np.float64)
    last = tuple(n - 1 for n in shape)
    target[last] = bad
    where = last if len(last) > 1 else last[0]
    with pytest.raises(ValueError, match=re.escape(f"got {bad} at index {where}")):
        getattr(fx, name)().value_and_grad(logits, target, grad_out=logits)
    assert np.all(logits == 1)
    # Transposed, it is still its own place.
    if len(shape) > 1:
        with pytest.raises(ValueError, match=re.escape(f"got {bad} at index {where[::-1]}")):
            getattr(fx, name)().value_and_grad(logits.T, target.T, grad_out=logits.T)
    weight = np.ones(shape)
    weight[last] = -1
    with pytest.raises(ValueError, match=re.escape(f"got -1.0 at index {where}")):
        getattr(fx, name)().value_and_grad(logits, np.zeros(shape), weight, grad_out=logits)
    assert np.all(logits == 1)


@pytest.mark.parametrize("n_rows", [1, 1000, 200_000])
def test_a_bad_label_of_focal_loss_is_found_before_anything_is_written(dtype, n_rows):
    logits = np.ones((n_rows, 3), dtype)
    target = np.zeros(n_rows, np.int32)
    target[-1] = 3
    with pytest.raises(ValueError, match=f"got 3 at index {n_rows - 1}$"):
        fx.FocalLoss().value_and_grad(logits, target, grad_out=logits)
    assert np.all(logits == 1)


def test_the_first_of_several_bad_targets_is_named():
    target = np.zeros((1000, 3))
    target[17, 1], target[400, 0], target[999, 2] = 5, -1, np.nan
    for name in ("BinaryCrossEntropy", "BinaryFocalLoss"):
        for stored in (target, np.asfortranarray(target)):
            with pytest.raises(ValueError, match=r"got 5.0 at index \(17, 1\)$"):
                getattr(fx, name)()(np.zeros((1000, 3)), stored)


# --- half precision ---------------------------------------------------------------------------------------------------


def half_table(half, name):
    """Outputs must have the dtype of the logits, not that of the arithmetic."""
    others = HALVES | {"float32": np.float32, "float64": np.float64, "int16": np.int16, "uint16": np.uint16}
    del others[name]
    for wrong, dtype in others.items():
        for loss in ("CrossEntropy", "FocalLoss", "BinaryCrossEntropy", "BinaryFocalLoss"):
            for output in ("grad_out", "hess_out"):
                message = f"{output} must have dtype {name}; got {wrong}"
                yield Call(loss, dtype=half, **{output: full(SHAPE, dtype)}), TypeError, message
        for f in ("softmax", "log_softmax", "sigmoid", "log_sigmoid"):
            yield activation(f, out=full(SHAPE, dtype)), TypeError, f"out must have dtype {name}; got {wrong}"
    for loss in ("CrossEntropy", "FocalLoss"):
        yield Call(loss, target=np.array([0, 1, 3, 0])), ValueError, "target must be in [0, 3); got 3 at index 2"
        message = "class_weight must be finite in float32; got 1e+300 at index 1"
        yield Call(loss, {"class_weight": [1, 1e300, 1]}), ValueError, message
    for loss in ("BinaryCrossEntropy", "BinaryFocalLoss"):
        yield Call(loss, target=changed((3, 2), 1.5)), ValueError, "target must be in [0, 1]; got 1.5 at index (3, 2)"
        message = "target must be in [0, 1]; got 1.5 at index (3, 2)"
        yield Call(loss, target=changed((3, 2), 1.5, half)), ValueError, message
        message = "hess_out must not overlap grad_out; got an overlap"
        yield Call(loss, hess_out=lambda a: a.grad_out), ValueError, message
        message = "grad_out must be logits itself or not overlap it; got a partial overlap"
        yield Call(loss, grad_out=lambda a: a.memory[1:13].reshape(4, 3)), ValueError, message


@pytest.mark.parametrize("name", HALVES)
def test_half_precision(name):
    half = HALVES[name]
    for call, exception, message in half_table(half, name):
        assert_raises(call, exception, message, Arguments(half))


@pytest.mark.parametrize("dtype_name", ["float8_e4m3fn", "float8_e5m2", "int4"])
def test_other_small_types_are_refused(dtype_name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    logits = np.zeros((4, 3), getattr(ml_dtypes, dtype_name))
    for call in (
        lambda: fx.CrossEntropy()(logits, [0, 0, 0, 0]),
        lambda: fx.BinaryCrossEntropy()(logits, np.zeros((4, 3))),
        lambda: fx.softmax(logits),
        lambda: fx.sigmoid(logits),
    ):
        with pytest.raises(TypeError, match=rf"^(logits|x) must be .+; got {dtype_name}$"):
            call()


def test_void_and_strings_are_not_bfloat16():
    for dtype in ("V2", "S2", [("a", np.float16)]):
        for f in (fx.sigmoid, fx.softmax):
            with pytest.raises(TypeError, match=r"^x must be .+; got "):
                f(np.zeros(3, dtype))


# --- garbage ----------------------------------------------------------------------------------------------------------


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
        10**400,
        1.5,
        np.nan,
        "mean",
        b"x",
        [],
        [[]],
        (),
        {},
        {0: 1},
        {0},
        object(),
        good,
        good.astype(np.float32),
        good.astype(np.float16),
        good[:0],
        good[:, :0],
        good[0],
        np.float32(1),
        np.array(0),
        np.array(None),
        np.zeros(4, int),
        np.zeros((4, 3), int),
        np.zeros((4, 3), bool),
        np.zeros(4, "datetime64[s]"),
        np.zeros((4, 3), [("a", int)]),
        np.array(["a"] * 4),
        np.zeros((1,) * 32),
        np.ma.ones((4, 3)),
        np.broadcast_to(1.0, (4, 3)),
        range(3),
    ]
    grammar = re.compile(r"\w+ must .+; got .+", re.DOTALL)
    common = {"label_smoothing": 0.0, "ignore_index": None, "reduction": "mean"}
    kinds = {
        "BinaryCrossEntropy": (np.zeros((4, 3)), common | {"pos_weight": None}),
        "FocalLoss": (np.zeros(4, int), common | {"gamma": 2.0, "class_weight": None, "axis": -1}),
        "BinaryFocalLoss": (np.zeros((4, 3)), common | {"gamma": 2.0, "alpha": None}),
    }
    n_refused = 0
    for name, (target, usual_options) in kinds.items():
        # Mostly good arguments with one or two pieces of garbage reach further than garbage alone.
        usual = {"logits": good, "target": target, "sample_weight": None, "grad_out": None, "hess_out": None}
        for _ in range(1000):
            arguments, options = dict(usual), dict(usual_options)
            for _ in range(rng.integers(1, 3)):
                place = arguments if rng.random() < 0.7 else options
                place[list(place)[rng.integers(len(place))]] = values[rng.integers(len(values))]
            try:
                getattr(fx, name)(**options).value_grad_hess(**arguments)
            except (TypeError, ValueError) as error:
                assert grammar.fullmatch(str(error)), f"{error!r} of {name}, {options}, {arguments}"  # noqa: PT017
                n_refused += 1
            good[...] = 1  # it may have been grad_out
    assert n_refused > 1000
