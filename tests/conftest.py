"""Fixtures: every usable instruction set by name, both dtypes, every memory layout; thread number restored."""

import re
import zlib

import numpy as np
import pytest
from arrays import LAYOUTS

import fastxent as fx
from fastxent import _config

collect_ignore = ["gpu"]  # no tests, but what they need

# Emulated kernels take their time: of the tests that run on them, one in so many does always.
EMULATED_SAMPLE = 100
# So do those that found something: (test, a part of its parameters).
EMULATED_ALWAYS = (
    ("TestCrossEntropyLayouts::test_in_place_over_the_logits", "float64-probabilities-((2, 3000), 1)-C"),
    ("TestFocalValues::test_every_gamma", "float64-3.5"),
    ("TestFocalLayouts::test_in_place_over_the_logits", "float64-probabilities-C"),
    ("TestBinaryValues::test_an_element_does_not_know_its_neighbours", "BinaryCrossEntropy"),
    ("TestBinaryOptions::test_every_integer_dtype_means_the_same", "float64"),
    ("TestSigmoid::test_an_element_does_not_know_its_neighbours", "float64"),
    ("TestSigmoid::test_over_the_whole_range", "float64"),
    ("TestHalf::test_every_number_there_is", "soft binary focal"),
    ("TestHalf::test_every_number_there_is_as_a_logit", "float16-32-log_softmax"),
    ("TestHalf::test_rounding_is_to_nearest_even", "bfloat16-(-1,)"),
    ("TestHalf::test_every_number_of_classes", "float16-binary]"),
    ("TestHalf::test_long_rows", "bfloat16-soft focal"),
    ("TestReviewFindings::test_small_masses_survive_large_weights", "{}-40"),
    ("TestReviewFindings::test_sums_of_equal_classes_are_exact", "3000"),
    ("TestReviewFindings::test_the_mean_with_tiny_weights", ""),
    ("TestReviewFindings::test_distances_beyond_float32", "1600"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark the others; and leave out instruction sets where they mean nothing."""
    levels = _config.usable_levels()
    left_out = []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("backend") in ("emulated", "gpu") and parameters.get("isa", levels[0]) != levels[0]:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        left = set(left_out)
        items[:] = [item for item in items if item not in left]
    for item in items:
        name = item.nodeid.rpartition("test_gpu_parity.py::")[2]
        is_emulated = name != item.nodeid and re.search(r"[\[-]emulated[]-]", name)
        always = any(name.startswith(test) and part in name for test, part in EMULATED_ALWAYS)
        if is_emulated and not always and zlib.crc32(name.encode()) % EMULATED_SAMPLE:
            item.add_marker(pytest.mark.emulated)


@pytest.fixture(params=_config.usable_levels())
def isa(request):
    """Each instruction-set level this machine can run, by name, so that a failure says which one it is."""
    before = _config.level()
    _config.use_level(request.param)
    assert _config.level() == request.param
    yield request.param
    _config.use_level(before)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """A function that stores an array's values in another memory layout."""
    return LAYOUTS[request.param]


@pytest.fixture(autouse=True)
def _automatic_threads():
    """No test inherits the thread number of another."""
    yield
    fx.set_num_threads(-1)
