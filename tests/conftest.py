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
def pytest_collection_modifyitems(items):
    """Mark the others."""
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
