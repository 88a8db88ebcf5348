"""The engine of the GPU path where devices refuse, and where threads meet; no kernel is run here."""

import re
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gpu import fake_cupy

from fastxent.gpu import engine
from fastxent.gpu import plan as planning

pytestmark = pytest.mark.thread_unsafe


class RefusedError(Exception):
    """An error of the driver."""


class Cupy(types.ModuleType):
    """The stand-in for CuPy, with kernels that are noted, or refused, instead of run."""

    def __init__(self):
        super().__init__("cupy")
        vars(self).update(vars(fake_cupy))
        self.launched, self.refuses = [], lambda launch: False
        self.RawModule = lambda *, code, options: types.SimpleNamespace(
            get_function=lambda name: Kernel(self, code, name)
        )


class Kernel:
    def __init__(self, cupy, code, name):
        self.cupy, self.cluster, self.name = cupy, int(re.search("#define CLUSTER (.*)", code)[1]), name

    def __call__(self, grid, block, arguments, *, shared_mem):
        launch = self.name, self.cluster, shared_mem
        self.cupy.launched.append(launch)
        if self.cupy.refuses(launch):
            raise RefusedError


@pytest.fixture
def cupy(monkeypatch):
    module = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(engine, "_devices", {})
    return module


def softmax(n_classes, n_jobs=1):
    """Jobs in place."""
    logits = fake_cupy.zeros((1, 1, n_classes), np.float32)
    return [engine.Job("softmax", logits, grad=logits) for _ in range(n_jobs)]


def loss(n_classes):
    logits, target = fake_cupy.zeros((1, 3, n_classes), np.float32), fake_cupy.zeros((1, 3), np.int64)
    return engine.Job("cross_entropy", logits, target=target)


# ---- devices that refuse ----


@pytest.mark.parametrize("capability", ["70", "75"])
def test_devices_that_are_too_old_are_named(cupy, monkeypatch, capability):
    monkeypatch.setattr(cupy.Device, "compute_capability", capability)
    expected = f"device must have compute capability 8.0 or later; got 7.{capability[1]}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(expected)}$"):
        engine.evaluate(softmax(10))
    assert engine.flaws() is None


def test_the_largest_cluster_is_tried_once(cupy):
    engine.evaluate(softmax(10))
    assert [cluster for _, cluster, _ in cupy.launched] == [1]
    engine.evaluate(softmax(20_000))
    tried, launched = cupy.launched[1:]
    assert tried[1] == planning.LARGEST_CLUSTER
    assert launched[1] == 4
    assert tried[2] > 2 * launched[2]
    engine.evaluate(softmax(20_000))
    assert cupy.launched[3:] == [launched]


def test_where_it_is_refused_there_are_no_clusters(cupy):
    cupy.refuses = lambda launch: launch[1] == planning.LARGEST_CLUSTER
    engine.evaluate(softmax(20_000))
    engine.evaluate(softmax(20_000))
    assert [cluster for _, cluster, _ in cupy.launched] == [8, 1, 1]


def test_where_another_is_refused_the_call_is_launched_without(cupy):
    cupy.refuses = lambda launch: launch[1] == 4
    engine.evaluate([loss(20_000)], reduction="sum")
    engine.evaluate([loss(20_000)], reduction="sum")
    without = [("rows", 1), ("add_up", 1)]
    assert [launch[:2] for launch in cupy.launched] == [("rows", 8), ("rows", 4), *without, *without]


def test_what_has_run_is_not_launched_again(cupy):
    """In place that would take results for logits."""
    cupy.refuses = lambda launch: len(cupy.launched) == 3
    with pytest.raises(RefusedError):
        engine.evaluate(softmax(20_000, n_jobs=2))
    assert [cluster for _, cluster, _ in cupy.launched] == [8, 4, 4]


def test_other_errors_are_raised(cupy):
    cupy.refuses = lambda launch: True
    with pytest.raises(RefusedError):
        engine.evaluate(softmax(10))
    with pytest.raises(RefusedError):
        engine.evaluate(softmax(20_000))


# ---- threads ----


def test_two_threads_make_one_device(cupy, monkeypatch):
    made = []

    class Slow(engine._Device):
        def __init__(self, cupy):
            time.sleep(0.05)
            made.append(self)
            super().__init__(cupy)

    monkeypatch.setattr(engine, "_Device", Slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: engine._device(cupy), range(2))
    assert first is second
    assert len(made) == 1


def test_a_flaw_is_read_by_one_thread(cupy, monkeypatch):
    """The other one, which saw that there is one, finds nothing, not a flaw of zeros."""
    device = engine._device(cupy)
    number = engine.numbers(1)
    key = number % (1 << engine.CALL_BITS) << (engine.KIND_BITS + engine.POSITION_BITS) | engine.BAD_TARGET << 40 | 7
    device.flaws._host[:] = key ^ (2**64 - 1), 0, 12, 0
    device.flagged[0] = 1
    found, threads = [], []

    def synchronize(_):
        if not threads:
            threads.append(threading.Thread(target=lambda: found.append(engine.flaws())))
            threads[0].start()
            threads[0].join(0.2)

    monkeypatch.setattr(cupy.Device, "synchronize", synchronize)
    assert engine.flaws() == (number, engine.BAD_TARGET, 7, 12)
    threads[0].join()
    assert found == [None]
    assert not engine.pending()
