"""A loss is a value: frozen, compared and hashed by its options, printable, picklable, copied with changes."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest

import fastxent as fx
from fastxent import _reference as reference

DEFAULTS = {
    "class_weight": None,
    "label_smoothing": 0.0,
    "ignore_index": None,
    "reduction": "mean",
    "axis": -1,
    "inputs": "logits",
}
OPTIONS = [
    {},
    {"class_weight": "balanced"},
    {"class_weight": {0: 2.0, 2: 0.5}},
    {"class_weight": [1.0, 2.0, 0.5]},
    {"class_weight": np.array([1.0, 2.0, 0.5])},
    {"label_smoothing": 0.1, "ignore_index": -100, "reduction": "none", "axis": 1, "inputs": "log_probs"},
]


def test_fields_and_defaults_are_those_of_the_contract_and_of_the_reference():
    for cls in (fx.CrossEntropy, reference.CrossEntropy):
        assert {f.name: f.default for f in dataclasses.fields(cls)} == DEFAULTS
        assert [f.name for f in dataclasses.fields(cls)] == list(DEFAULTS)


@pytest.mark.parametrize("name", ["__call__", "value_and_grad", "value_grad_hess"])
def test_methods_have_the_signature_of_the_reference(name):
    fast, slow = (inspect.signature(getattr(cls, name)).parameters for cls in (fx.CrossEntropy, reference.CrossEntropy))
    assert [(p.name, p.kind, p.default) for p in fast.values()] == [(p.name, p.kind, p.default) for p in slow.values()]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "balanced_class_weight"])
def test_functions_have_the_signature_of_the_reference(name):
    fast, slow = (inspect.signature(getattr(module, name)).parameters for module in (fx, reference))
    assert [(p.name, p.kind, p.default) for p in fast.values()] == [(p.name, p.kind, p.default) for p in slow.values()]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_frozen(options):
    loss = fx.CrossEntropy(**options)
    for name in DEFAULTS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(loss, name, None)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_options_are_equal_losses(options):
    loss, twin = fx.CrossEntropy(**options), fx.CrossEntropy(**copy.deepcopy(options))
    assert loss == twin
    assert hash(loss) == hash(twin)
    assert len({loss, twin}) == 1
    for other in OPTIONS:
        if str(other) != str(options) and not ("class_weight" in options and "class_weight" in other):
            assert loss != fx.CrossEntropy(**other)


def test_weights_are_compared_by_value():
    listed, array, single = ([1.0, 2.0, 0.5], np.array([1.0, 2.0, 0.5]), np.array([1, 2, 0.5], np.float32))
    assert fx.CrossEntropy(class_weight=listed) == fx.CrossEntropy(class_weight=array)
    assert hash(fx.CrossEntropy(class_weight=listed)) == hash(fx.CrossEntropy(class_weight=single))
    assert fx.CrossEntropy(class_weight=listed) != fx.CrossEntropy(class_weight=[1.0, 2.0, 0.25])
    assert fx.CrossEntropy(class_weight={0: 1, 1: 2}) == fx.CrossEntropy(class_weight={1: 2.0, 0: 1.0})
    assert hash(fx.CrossEntropy(class_weight={0: 1, 1: 2})) == hash(fx.CrossEntropy(class_weight={1: 2.0, 0: 1.0}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        dataclasses.replace,
        *(lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(2, 6)),
    ],
    ids=["copy", "deepcopy", "replace", "pickle 2", "pickle 3", "pickle 4", "pickle 5"],
)
def test_copies_are_equal_and_work(options, duplicate):
    loss = fx.CrossEntropy(**options)
    twin = duplicate(loss)
    assert twin == loss
    assert hash(twin) == hash(loss)
    logits = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_array_equal(twin(logits, [0, 1, 2, 1]), loss(logits, [0, 1, 2, 1]))


def test_replace_changes_and_checks():
    loss = dataclasses.replace(fx.CrossEntropy(class_weight={0: 2.0}), reduction="sum")
    assert loss == fx.CrossEntropy(class_weight={0: 2.0}, reduction="sum")
    with pytest.raises(ValueError, match="label_smoothing"):
        dataclasses.replace(loss, label_smoothing=2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_printing_gives_the_call_that_makes_it(options):
    loss = fx.CrossEntropy(**options)
    text = repr(loss)
    assert str(loss) == text
    assert eval(text, {"CrossEntropy": fx.CrossEntropy}) == loss
    for name in options:
        assert f"{name}=" in text


def test_later_changes_of_the_weights_do_not_reach_the_loss():
    logits = np.random.default_rng(1).standard_normal((4, 3))
    target = [0, 1, 2, 1]
    array, mapping = np.array([1.0, 2.0, 3.0]), {0: 2.0}
    losses = fx.CrossEntropy(class_weight=array), fx.CrossEntropy(class_weight=mapping)
    before = [loss(logits, target) for loss in losses]
    array[:] = 7
    mapping[1] = 50.0
    assert [loss(logits, target) for loss in losses] == before
    with pytest.raises(TypeError):
        losses[1].class_weight[1] = 50.0


def test_options_may_be_positional_in_the_order_of_the_contract():
    assert fx.CrossEntropy("balanced", 0.1, -1, "sum", 0, "probs") == fx.CrossEntropy(
        class_weight="balanced", label_smoothing=0.1, ignore_index=-1, reduction="sum", axis=0, inputs="probs"
    )


def test_numpy_numbers_are_numbers():
    loss = fx.CrossEntropy(label_smoothing=np.float32(0.5), ignore_index=np.int16(-3), axis=np.int64(1))
    assert loss == fx.CrossEntropy(label_smoothing=0.5, ignore_index=-3, axis=1)
    assert hash(loss) == hash(fx.CrossEntropy(label_smoothing=0.5, ignore_index=-3, axis=1))
