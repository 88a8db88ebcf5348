"""Gradients that leave past the caches, of every option and layout of rows: the same bits as those of a few rows alone."""

import numpy as np
import pytest
from arrays import random_logits, random_probabilities

import fastxent as fx
from fastxent.cpu import engine

pytestmark = pytest.mark.usefixtures("isa")

# (rows, classes) beyond 16 MiB; few vectors a row, several rows a group, one row a group, several chunks.
SHAPES = [(120_001, 37), (32_001, 135), (4_301, 1003), (501, 9_001)]
PIECE = 251  # rows that come again and again, too few to be streamed
IGNORED = 7

OPTIONS = {
    "index": ({}, "index"),
    "focal": ({"gamma": 2.0}, "index"),
    "ignored": ({"ignore_index": IGNORED}, "index"),
    "class weight": ({"class_weight": "ramp"}, "index"),
    "smooth": ({"label_smoothing": 0.1}, "index"),
    "smooth and ignored": ({"label_smoothing": 0.1, "ignore_index": IGNORED}, "index"),
    "smooth and class weight": ({"label_smoothing": 0.1, "class_weight": "ramp"}, "index"),
    "probabilities": ({}, "probabilities"),
    "probabilities, smooth and class weight": ({"label_smoothing": 0.1, "class_weight": "ramp"}, "probabilities"),
}


def every_second_row(array):
    return np.repeat(array, 2, axis=0)[::2]


def part_of_wider_rows(array):
    return np.concatenate([array, array[:, :7]], axis=1)[:, : array.shape[1]]


LAYOUTS = {"C": np.ascontiguousarray, "every second row": every_second_row, "part of wider rows": part_of_wider_rows}


def piece_of(rng, n_classes, kind):
    logits = random_logits(rng, (PIECE, n_classes), np.float32, 3.0)
    target = rng.integers(0, n_classes, PIECE)
    target[::10] = IGNORED
    logits[target == IGNORED] = np.nan  # where that class counts, the row is NaN and nothing else
    logits[5, 3:] = -np.inf  # masked classes take another way through smoothing
    target[5] = 1
    if kind == "probabilities":
        target = random_probabilities(rng, (PIECE, n_classes), np.float32)
        target[9] = 0
    return logits, target


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_streamed_rows_are_those_of_a_piece(shape, option):
    n_rows, n_classes = shape
    options, kind = OPTIONS[option]
    options = dict(options)
    if "class_weight" in options:
        options["class_weight"] = np.linspace(0.0, 1.5, n_classes)
    loss = (fx.FocalLoss if "gamma" in options else fx.CrossEntropy)(reduction="sum", **options)
    piece, piece_target = piece_of(np.random.default_rng(3), n_classes, kind)
    _, expected = loss.value_and_grad(piece, piece_target)
    with_hess = loss.value_grad_hess(piece, piece_target)
    np.testing.assert_array_equal(with_hess[1], expected)
    logits = np.resize(piece, shape)
    target = np.resize(piece_target, (n_rows, *piece_target.shape[1:]))
    for name, arrange in LAYOUTS.items():
        arranged, out = arrange(logits), arrange(np.full(shape, 7, np.float32))
        job_target = np.zeros((1, n_rows), int)
        plan = engine.Job("cross_entropy", arranged[None], grad=out[None], target=job_target).plan
        assert plan["stream"] or (plan["regime"] == "short_rows" and name != "C")
        loss.value_and_grad(arranged, target, grad_out=out)
        np.testing.assert_array_equal(out, np.resize(expected, shape), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [fx.softmax, fx.log_softmax])
def test_streamed_activations_are_those_of_a_piece(shape, function):
    piece, _ = piece_of(np.random.default_rng(3), shape[1], "index")
    expected = np.resize(function(piece), shape)
    for name, arrange in LAYOUTS.items():
        out = arrange(np.full(shape, 7, np.float32))
        function(arrange(np.resize(piece, shape)), out=out)
        np.testing.assert_array_equal(out, expected, err_msg=name)


@pytest.mark.parametrize("n_classes", [37, 1003, 9_001])
def test_no_smoothed_row_depends_on_its_neighbours(dtype, n_classes):
    rng = np.random.default_rng(5)
    logits = random_logits(rng, (32, n_classes), dtype)
    target = rng.integers(0, 3, 32)
    loss = fx.CrossEntropy(label_smoothing=0.2, reduction="none")
    expected = loss.value_and_grad(logits, target)
    others = logits.copy()
    others[::3, 5:] = -np.inf
    others[1::3, 0] = np.nan
    for actual, before in zip(loss.value_and_grad(others, target), expected, strict=True):
        np.testing.assert_array_equal(actual[2::3], before[2::3])


@pytest.mark.parametrize("n_classes", [3, 37, 1003])
@pytest.mark.parametrize("bad", [-1e-30, np.nan, np.inf])
def test_a_bad_probability_is_found_wherever_it_is(dtype, n_classes, bad):
    logits = np.zeros((19, n_classes), dtype)
    target = np.full((19, n_classes), 0.5, dtype)
    for row, c in [(0, 0), (18, n_classes - 1), (7, n_classes // 2), (16, n_classes - 2)]:
        for order in "CF":
            wrong = np.array(target, order=order)
            wrong[row, c] = bad
            with pytest.raises(ValueError, match="target must"):
                fx.CrossEntropy()(logits, wrong)
