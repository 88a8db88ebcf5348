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
        if (
            re.search(r"[\[-]emulated[]-]", name)
            and name != item.nodeid
            and zlib.crc32(name.encode()) % EMULATED_SAMPLE
        ):
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
