"""Which side a call takes, and the errors of the GPU side; CuPy and its kernels are stand-ins here (tests/gpu)."""

import contextlib
import gc
import inspect
import re
import sys
import weakref

import numpy as np
import pytest
from fresh import run_python
from gpu.backends import backend, unusable

import fastxent as fx
from fastxent import _check, _dispatch
from fastxent._run import Run
from fastxent.cpu.run import CpuRun

pytestmark = pytest.mark.thread_unsafe


@pytest.fixture(params=[name for name in ("stand_in", "emulated") if not unusable(name)])
def cupy(request):
    with backend(request.param) as module:
        yield module


@pytest.fixture
def arrays(cupy):
    rng = np.random.default_rng(0)
    return {
        "logits": cupy.asarray(rng.standard_normal((5, 3)).astype(np.float32)),
        "target": cupy.asarray(rng.integers(0, 3, 5)),
    }


def gpu_run():
    from fastxent.gpu.run import run

    return run


# --- the side ---------------------------------------------------------------------------------------------------------


def test_calls_on_numpy_arrays_load_nothing_of_the_gpu():
    code = """
import sys, numpy as np, fastxent as fx
z = np.ones((4, 3), np.float32)
fx.CrossEntropy(class_weight="balanced").value_grad_hess(z, [0, 1, 2, 0], np.ones(4), grad_out=z)
fx.BinaryCrossEntropy(pos_weight=2.0).value_and_grad(z, z > 2), fx.softmax(z, out=z), fx.logsumexp(z.tolist()), fx.sigmoid(1)
fx.balanced_class_weight([0, 1], 2)
fx.show_config()
print("loaded:", [m for m in sys.modules if m.startswith(("cupy", "fastxent.gpu", "torch"))])
"""
    assert run_python(code).splitlines()[-1] == "loaded: []"


def test_an_installed_cupy_that_is_of_no_use_is_in_nobodys_way():
    code = """
import sys, types
sys.modules["cupy"] = types.ModuleType("cupy")  # as while it is being imported: no ndarray yet
import fastxent as fx
print(fx.CrossEntropy()([[0.0, 0.0]], [0]), fx.softmax([1.0]))
"""
    assert run_python(code) == "0.6931471805599453 [1.]"


def test_results_are_cupy_arrays_and_nobody_waits(cupy, arrays):
    value, grad, hess = fx.CrossEntropy().value_grad_hess(**arrays)
    cupy.synchronised.clear()  # the first call on a device may wait, once
    assert [type(a) for a in (value, grad, hess)] == [cupy.ndarray] * 3
    assert (value.shape, value.dtype) == ((), np.float64)
    assert (grad.shape, grad.dtype) == (hess.shape, hess.dtype) == ((5, 3), np.float32)
    for loss in (
        fx.CrossEntropy(class_weight=[1, 2, 3], label_smoothing=0.1, ignore_index=-1),
        fx.CrossEntropy(class_weight="balanced"),
        fx.CrossEntropy(class_weight="balanced", ignore_index=1),
        fx.FocalLoss(class_weight={0: 2.0}),
    ):
        assert type(loss(**arrays)) is cupy.ndarray
        assert type(loss.value_and_grad(**arrays, sample_weight=cupy.asarray(np.ones(5)))[1]) is cupy.ndarray
    assert type(fx.CrossEntropy(reduction="none")(**arrays)) is cupy.ndarray
    for f in (fx.softmax, fx.log_softmax, fx.logsumexp, fx.sigmoid, fx.log_sigmoid):
        assert type(f(arrays["logits"])) is cupy.ndarray
    targets = cupy.asarray(np.zeros((5, 3)))
    for loss in (fx.BinaryCrossEntropy(pos_weight=[1, 2, 3]), fx.BinaryFocalLoss(alpha=0.25)):
        assert type(loss(arrays["logits"], targets)) is cupy.ndarray
    assert cupy.synchronised == []


def test_the_value_of_nothing_is_an_array_too(cupy):
    for shape in ((0, 3), (4, 3)):
        loss = fx.CrossEntropy(ignore_index=0)
        value, grad = loss.value_and_grad(cupy.asarray(np.ones(shape)), cupy.asarray(np.zeros(shape[0], int)))
        assert type(value) is cupy.ndarray
        assert (value.shape, value.dtype, float(value)) == ((), np.float64, 0)
        assert not grad.any()


def test_numbers_lie_on_no_device(cupy):
    row = cupy.asarray(np.zeros(2, np.float32))
    assert float(fx.CrossEntropy()(row, 1)) == pytest.approx(np.log(2))
    assert float(fx.CrossEntropy(reduction="sum")(row, np.int8(1), 2.0)) == pytest.approx(2 * np.log(2))


def test_integers_and_booleans_become_float64(cupy):
    for dtype in (np.int8, bool, np.uint64):
        assert fx.softmax(cupy.asarray(np.ones((2, 2), dtype))).dtype == np.float64


def test_given_outputs_are_returned(cupy, arrays):
    grad, hess = (cupy.empty((5, 3), np.float32) for _ in range(2))
    results = fx.CrossEntropy().value_grad_hess(**arrays, grad_out=grad, hess_out=hess)
    assert results[1] is grad
    assert results[2] is hess
    expected = grad.get().copy()
    assert fx.CrossEntropy().value_and_grad(**arrays, grad_out=arrays["logits"])[1] is arrays["logits"]
    np.testing.assert_array_equal(arrays["logits"].get(), expected)


def test_new_arrays_lie_as_far_from_whole_vectors_as_the_logits(cupy):
    memory = cupy.asarray(np.zeros(100, np.float32))
    for start in range(5):
        logits = memory[start : start + 90].reshape(30, 3)
        grad = fx.CrossEntropy().value_and_grad(logits, cupy.zeros(30, np.int64))[1]
        assert (grad.shape, grad.dtype) == ((30, 3), np.float32)
        assert grad.data.ptr % 16 == logits.data.ptr % 16
        np.testing.assert_allclose(grad.get(), np.tile([-2 / 90, 1 / 90, 1 / 90], (30, 1)), rtol=1e-6)


def test_options_may_be_cupy_arrays_and_are_copied_once(cupy):
    weights = cupy.asarray(np.array([1.0, 2.0, 3.0]))
    assert fx.CrossEntropy(class_weight=weights) == fx.CrossEntropy(class_weight=[1, 2, 3])
    assert fx.BinaryCrossEntropy(pos_weight=weights) == fx.BinaryCrossEntropy(pos_weight=[1, 2, 3])
    weights = fx.balanced_class_weight(cupy.asarray(np.array([0, 0, 0, 1])), 2)
    assert type(weights) is cupy.ndarray
    assert fx.CrossEntropy(class_weight=weights).class_weight == pytest.approx((2 / 3, 2))


def test_balanced_weights_are_those_of_the_cpu(cupy):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (5, 7)).astype(np.int8)
    soft = rng.random((6, 300))
    soft[:3] = np.eye(300)[2]
    soft[1, 3] = 1e-30
    for target, k in ((labels, 5), (labels, 300), (soft, 300), (labels.astype(np.uint64), 5), (labels > 1, 2)):
        expected = fx.balanced_class_weight(target, k)
        np.testing.assert_allclose(fx.balanced_class_weight(cupy.asarray(target), k).get(), expected, rtol=1e-14)
        for ignore_index in (None, 2, -1, 1000):
            expected = CpuRun().balanced(target, k, -1, ignore_index)
            got = gpu_run().balanced(cupy.asarray(target), k, -1, ignore_index).get()
            np.testing.assert_allclose(got, expected, rtol=1e-14)
    with pytest.raises(ValueError, match=re.escape("target must be in [0, 3); got 3 at index (")):
        fx.balanced_class_weight(cupy.asarray(labels), 3)


def test_the_arrays_of_options_are_kept_for_each_device(cupy, arrays):
    loss = fx.CrossEntropy(class_weight=[1.0, 2.0, 3.0])
    loss(**arrays)
    kept = loss._on_gpu
    assert len(kept) == 1
    first = next(iter(kept.values()))
    loss(**arrays)
    assert list(kept.values()) == [first] or next(iter(kept.values())) is first
    cupy.cuda.Device.current = 1
    try:
        elsewhere = [cupy.asarray(np.ones((2, 3))), cupy.asarray(np.zeros(2, int))]
    finally:
        cupy.cuda.Device.current = 0
    value = loss(*elsewhere)
    assert value.device.id == 1
    assert len(kept) == 2
    assert loss == fx.CrossEntropy(class_weight=[1, 2, 3])
    assert "_on_gpu" not in vars(type(loss)(*loss.__reduce__()[1]))


def test_all_that_a_captured_call_takes_is_kept(cupy, arrays):
    """A graph writes there whenever it is launched."""
    logits, target, weights = arrays["logits"], arrays["target"], cupy.asarray(np.arange(5))
    balanced = fx.CrossEntropy(class_weight="balanced", ignore_index=1)
    taken = []

    def allocate(size):
        memory = cupy.Allocation(size)
        taken.append(weakref.ref(memory))
        return memory

    def alive_after_a_call():
        taken.clear()
        balanced.value_grad_hess(logits, target, weights)
        gc.collect()
        return [memory() is not None for memory in taken]

    balanced.value_grad_hess(logits, target, weights)  # what is kept for a device is
    with cupy.cuda.Stream() as stream, cupy.cuda.using_allocator(allocate):
        assert not any(alive_after_a_call())
        stream.begin_capture()
        assert len(taken) > 10
        assert all(alive_after_a_call())
        stream.end_capture()
        assert not any(alive_after_a_call())


def test_options_are_on_the_gpu_before_a_capture(cupy, arrays):
    loss = fx.CrossEntropy(class_weight=[1.0, 2.0, 3.0])
    loss(**arrays)
    with cupy.cuda.Stream() as stream:
        stream.begin_capture()
        assert message(RuntimeError, loss, **arrays) == (
            "loss must be called once on this stream before calls are captured; "
            "got CrossEntropy whose weights are not on the GPU yet"
        )
        stream.end_capture()
        loss(**arrays)
        stream.begin_capture()
        loss(**arrays)
        stream.end_capture()
    *_, weights = loss._on_gpu.values()
    assert any(kept is weights for kept in gpu_run()._kept)  # should the loss forget them, the graph does not


def test_nobody_waits_while_calls_are_captured(cupy, arrays, monkeypatch):
    import fastxent.gpu

    fx.CrossEntropy()(arrays["logits"], cupy.asarray(np.array([0, 12, 0, 0, 0])))
    monkeypatch.setattr(sys.modules[type(gpu_run()).__module__], "CHECK", True)
    with cupy.cuda.Stream() as stream:
        stream.begin_capture()
        fx.CrossEntropy()(**arrays)  # the stand-in raises where it would have to wait
        stream.end_capture()
    assert message(ValueError, fastxent.gpu.check) == "target must be in [0, 3); got 12 at index 1" + LATE


def test_the_device_of_the_logits_is_used_and_left(cupy):
    cupy.cuda.Device.current = 1
    x = cupy.asarray(np.ones((2, 3)))
    cupy.cuda.Device.current = 0
    assert fx.softmax(x).device.id == 1
    assert cupy.cuda.Device.current == 0
    with pytest.raises(ValueError, match="axis"):
        fx.softmax(x, axis=5)
    assert cupy.cuda.Device.current == 0


def test_both_sides_have_the_same_signatures(cupy):
    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    for name, function in inspect.getmembers(Run, inspect.isfunction):
        on_cpu, on_gpu = getattr(CpuRun, name), getattr(type(gpu_run()), name)
        assert parameters(on_cpu) == parameters(on_gpu) == parameters(function) or name == "__init__"


# --- errors about the side --------------------------------------------------------------------------------------------


def message(error, call, *arguments, **named):
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    assert type(caught.value) is error
    return str(caught.value)


MIXED = "arguments must be all NumPy or all CuPy arrays; got "


def test_mixed_arguments_are_named_with_their_kinds(cupy, arrays):
    loss, logits, target = fx.CrossEntropy(), arrays["logits"], arrays["target"]
    on_cpu = np.zeros((5, 3), np.float32)
    for call, expected in (
        (lambda: loss(logits, np.zeros(5, int)), "logits: cupy.ndarray, target: numpy.ndarray"),
        (lambda: loss(on_cpu, target), "logits: numpy.ndarray, target: cupy.ndarray"),
        (lambda: loss(logits, [0] * 5), "logits: cupy.ndarray, target: list"),
        (lambda: loss([[0.0, 1.0]], target), "logits: list, target: cupy.ndarray"),
        (
            lambda: loss(logits, target, np.ones(5)),
            "logits: cupy.ndarray, target: cupy.ndarray, sample_weight: numpy.ndarray",
        ),
        (
            lambda: loss.value_and_grad(logits, target, None, on_cpu),
            "logits: cupy.ndarray, target: cupy.ndarray, grad_out: numpy.ndarray",
        ),
        (
            lambda: loss.value_grad_hess(on_cpu, np.zeros(5, int), hess_out=logits),
            "logits: numpy.ndarray, target: numpy.ndarray, hess_out: cupy.ndarray",
        ),
        (lambda: loss(logits, None), "logits: cupy.ndarray, target: NoneType"),
        (lambda: loss(logits, "abc"), "logits: cupy.ndarray, target: str"),
        (lambda: fx.softmax(on_cpu, out=logits), "x: numpy.ndarray, out: cupy.ndarray"),
        (lambda: fx.sigmoid(logits, out=on_cpu), "x: cupy.ndarray, out: numpy.ndarray"),
        (lambda: fx.sigmoid([[0.0]], out=logits), "x: list, out: cupy.ndarray"),
    ):
        assert message(TypeError, call) == MIXED + expected
    assert cupy.synchronised == []


def test_arrays_of_two_devices_are_an_error(cupy, arrays):
    cupy.cuda.Device.current = 1
    other = cupy.asarray(np.zeros(5, int))
    cupy.cuda.Device.current = 0
    expected = "arguments must be on one device; got logits: device 0, target: device 1"
    assert message(ValueError, fx.CrossEntropy(), arrays["logits"], other) == expected


class Numba:
    """What numba's device arrays show; they would copy themselves to the CPU if asked."""

    __cuda_array_interface__ = {"shape": (5, 3), "version": 3}  # noqa: RUF012

    def __array__(self, *_, **__):
        raise AssertionError("copied")


class Torch:
    """What tensors show; one that records gradients refuses the interface of CUDA arrays."""

    __module__ = "torch"

    def __init__(self, device_type):
        self.device_type = device_type

    def __dlpack_device__(self):
        return self.device_type, 0

    @property
    def __cuda_array_interface__(self):
        if self.device_type == 1:
            raise AttributeError("on the CPU")
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    def __array__(self, *_, **__):
        if self.device_type == 1:
            return np.zeros((2, 2))
        raise AssertionError("copied")


class Shy(Torch):
    def __dlpack_device__(self):
        raise BufferError("Can't export tensors that require gradient")


@pytest.mark.parametrize("with_cupy", [False, True])
def test_arrays_of_other_libraries_on_a_gpu_are_refused_with_advice(with_cupy):
    with backend("stand_in") if with_cupy else contextlib.nullcontext():
        assert_refused_with_advice()


def assert_refused_with_advice():
    for foreign in (Numba(), Torch(2), Torch(13), Shy(2)):
        expected = f"must be a NumPy or a CuPy array; got {_dispatch.kind(foreign)} on a GPU: pass cupy.from_dlpack(x)"
        assert message(TypeError, fx.CrossEntropy(), foreign, [0]) == f"logits {expected}"
        assert message(TypeError, fx.CrossEntropy(), np.ones((1, 2)), foreign) == f"target {expected}"
        assert message(TypeError, fx.softmax, foreign) == f"x {expected}"
        assert message(TypeError, fx.balanced_class_weight, foreign, 3) == f"target {expected}"


def test_tensors_of_the_cpu_are_arrays_as_before(cupy):
    assert fx.softmax(Torch(1)).tolist() == [[0.5, 0.5]] * 2
    assert message(TypeError, fx.softmax, Torch(1), out=cupy.asarray(np.ones(2))) == (
        f"{MIXED}x: torch.Torch, out: cupy.ndarray"
    )


# --- errors about arrays ----------------------------------------------------------------------------------------------


def test_shapes_types_and_options_have_the_texts_of_the_cpu(cupy, arrays):
    logits, target = arrays["logits"], arrays["target"]
    host_logits, host_target = cupy.host(logits), cupy.host(target)
    other = np.zeros((5, 4), np.float32)
    cases = [
        (fx.CrossEntropy(), {"target": np.zeros(4, int)}),
        (fx.CrossEntropy(), {"target": np.zeros((5, 3), complex)}),
        (fx.CrossEntropy(), {"target": np.zeros(5)}),
        (fx.CrossEntropy(axis=4), {}),
        (fx.CrossEntropy(class_weight=[1, 2]), {}),
        (fx.CrossEntropy(class_weight={7: 1.0}), {}),
        (fx.CrossEntropy(class_weight=[1e300] * 3), {}),
        (fx.CrossEntropy(), {"logits": np.zeros((5, 3), complex)}),
        (fx.CrossEntropy(), {"logits": np.zeros((5, 0))}),
        (fx.CrossEntropy(), {"logits": np.zeros(())}),
        (fx.CrossEntropy(), {"sample_weight": np.ones(4)}),
        (fx.CrossEntropy(), {"sample_weight": np.ones(5, complex)}),
        (fx.CrossEntropy(), {"grad_out": other}),
        (fx.CrossEntropy(), {"grad_out": np.zeros((5, 3))}),
        (fx.CrossEntropy(), {"hess_out": host_logits}),
        (fx.CrossEntropy(), {"grad_out": host_logits[::-1]}),
        (fx.CrossEntropy(), {"grad_out": np.lib.stride_tricks.as_strided(other, (5, 3), (0, 4))}),
        (fx.BinaryCrossEntropy(), {"target": np.zeros(5)}),
        (fx.BinaryCrossEntropy(pos_weight=[1, 2]), {"target": np.zeros((5, 3))}),
    ]
    for loss, changed in cases:
        named = {"logits": host_logits, "target": host_target} | changed
        with pytest.raises((TypeError, ValueError)) as expected:
            loss.value_grad_hess(**named)
        on_gpu = {name: cupy.ndarray._of(a) for name, a in named.items()}
        assert message(type(expected.value), loss.value_grad_hess, **on_gpu) == str(expected.value)
    assert cupy.synchronised == []


def test_outputs_are_arrays(cupy, arrays):
    assert message(TypeError, fx.CrossEntropy().value_and_grad, **arrays, grad_out=3.0) == (
        "grad_out must be a CuPy array; got float"
    )


def test_misaligned_arrays_are_refused(cupy):
    memory = np.zeros(4 * 6 + 4, np.uint8)
    start = 1 - memory.ctypes.data % 4
    x = cupy.ndarray._of(memory[start : start + 24].view(np.float32))
    assert message(ValueError, fx.sigmoid, x).startswith(
        "x must be aligned and in native byte order on the GPU; got float32 at address"
    )
    with pytest.raises(ValueError, match="grad_out must be aligned"):
        fx.BinaryCrossEntropy().value_and_grad(cupy.zeros(6, np.float32), cupy.zeros(6), grad_out=x)


def test_overlaps_are_seen_from_addresses(cupy):
    memory = np.zeros(100, np.float32)
    on_gpu = [cupy.ndarray._of(a) for a in (memory[:50], memory[50:], memory[49:99], memory[::2], memory[1::2])]
    low, high, shifted, even, odd = on_gpu
    for a, b, expected in ((low, high, False), (low, shifted, True), (even, odd, False), (even, low, True)):
        assert _check.overlap(a, b) is expected
    assert _check.same_memory(low, cupy.ndarray._of(memory[:50]))
    assert not _check.same_memory(low, even)
    empty = cupy.ndarray._of(memory[:0])
    assert not _check.overlap(empty, low)
    assert not _check.overlap(empty, empty)


# --- errors about values ----------------------------------------------------------------------------------------------

LATE = " (in an earlier call on the GPU; FASTXENT_GPU_CHECK=1 raises in the call itself)"


def bad_calls(cupy):
    """(call, text of the CPU) of values that only the kernels see, in layouts that move rows about."""
    labels = np.zeros((4, 5), int)
    labels[2, 3] = 7
    soft = np.full((4, 3, 5), 0.25)
    soft[1, 2, 3] = -1
    weights = np.ones(4)
    weights[3] = np.nan
    z = np.zeros((4, 3, 5), np.float32)
    binary = np.zeros((4, 6))
    binary[2, 1] = 2
    middle, ignoring = fx.CrossEntropy(axis=1), fx.CrossEntropy(axis=1, ignore_index=-1)
    in_range, or_ignored = "target must be in [0, 3)", " or equal to ignore_index; got 7 at index "
    yield middle, (z, labels), in_range + "; got 7 at index (2, 3)"
    yield ignoring, (z, labels), in_range + or_ignored + "(2, 3)"
    yield ignoring, (z[:, :, ::-1], labels[:, ::-1]), in_range + or_ignored + "(2, 1)"
    yield ignoring, (z.transpose(2, 1, 0), labels.T), in_range + or_ignored + "(3, 2)"
    yield ignoring, (z[::2, :, ::3], labels[::2, ::3]), in_range + or_ignored + "(1, 1)"
    yield fx.CrossEntropy(), (z.transpose(0, 2, 1)[2], labels[2]), in_range + "; got 7 at index 3"
    yield fx.CrossEntropy(class_weight="balanced"), (np.zeros((5, 3)), labels[2]), in_range + "; got 7 at index 3"
    yield middle, (z, soft), "target must be finite and >= 0; got -1.0 at index (1, 2, 3)"
    weight_rule = "sample_weight must be finite and >= 0; got nan at index "
    yield middle, (z, labels % 3, weights), weight_rule + "3"
    yield middle, (z, labels % 3, weights.astype(np.float16)), weight_rule + "3"
    yield middle, (z, labels % 3, np.tile(weights, (5, 1)).T), weight_rule + "(3, 0)"
    yield fx.BinaryCrossEntropy(), (np.zeros((4, 6)), binary), "target must be in [0, 1]; got 2.0 at index (2, 1)"
    yield (
        fx.BinaryFocalLoss(ignore_index=-1),
        (np.zeros((6, 4)).T, binary),
        "target must be in [0, 1] or equal to ignore_index; got 2.0 at index (2, 1)",
    )
    small = labels[2] % 3
    yield fx.CrossEntropy(), (np.zeros((5, 3)), small, np.array([1, 0, -2, 1, -3])), weight_rule[:-13] + "-2 at index 2"
    far = np.array([0, 2**63 + 5, 7], np.uint64)
    yield fx.CrossEntropy(), (np.zeros((3, 3)), far), in_range + "; got 9223372036854775813 at index 1"
    far_in_binary = "target must be in [0, 1]; got 9223372036854775813 at index 1"
    yield fx.BinaryCrossEntropy(), (np.zeros(3), far), far_in_binary
    large = np.array([[1.0, 0, 0], [0, 0, 1e300]])
    yield (
        fx.FocalLoss(),
        (np.zeros((2, 3), np.float32), large),
        "target must be finite in float32; got 1e+300 at index (1, 2)",
    )
    many = np.full(2, 1e308)
    yield fx.CrossEntropy(), (z[0, :, :2].T, labels[0, :2], many), "sample_weight must have a finite sum; got inf"


def test_what_is_wrong_is_raised_by_the_next_call(cupy, arrays):
    for loss, arguments, expected in bad_calls(cupy):
        assert message(ValueError, loss, *arguments) == expected
        value, grad = loss.value_and_grad(*map(cupy.ndarray._of, arguments))
        assert message(ValueError, fx.CrossEntropy(), **arrays) == expected + LATE
        fx.CrossEntropy()(**arrays)  # once only
        if "sum" not in expected:
            assert np.isnan(float(value))
            assert not grad._host[np.isnan(grad._host)].size


def test_what_is_wrong_is_raised_by_check(cupy):
    import fastxent.gpu

    fastxent.gpu.check()
    for loss, arguments, expected in bad_calls(cupy):
        loss(*map(cupy.ndarray._of, arguments))
        assert message(ValueError, fastxent.gpu.check) == expected + LATE
        fastxent.gpu.check()
    assert "device" in cupy.synchronised


def test_other_calls_between_do_not_blur_the_error(cupy, arrays):
    z = cupy.zeros((4, 3))
    fx.CrossEntropy(reduction="none", axis=0)(cupy.zeros((9, 2)), cupy.asarray(np.array([0, 12])))
    assert message(ValueError, fx.softmax, z) == "target must be in [0, 9); got 12 at index 1" + LATE


def test_a_call_long_forgotten_is_still_an_error(cupy, arrays):
    fx.CrossEntropy()(arrays["logits"], cupy.asarray(np.array([0, 12, 0, 0, 0])))
    gpu_run()._calls.clear()
    assert message(ValueError, fx.softmax, arrays["logits"]) == "target must be valid; got 12" + LATE


def test_a_call_of_more_jobs_than_calls_are_remembered_keeps_its_text(cupy, monkeypatch):
    monkeypatch.setattr(sys.modules[type(gpu_run()).__module__], "MOST_CALLS", 5)
    logits = cupy.asarray(np.zeros((4, 6, 8, 10, 3)))[::2, ::2, ::2, ::2]  # axes that cannot be merged
    for place in ((0, 0, 1, 2), (1, 2, 3, 4)):
        labels = np.zeros((2, 3, 4, 5), int)
        labels[place] = 7
        fx.CrossEntropy()(logits, cupy.asarray(labels))
        assert message(ValueError, fx.softmax, logits) == f"target must be in [0, 3); got 7 at index {place}" + LATE


def test_calls_are_remembered_before_they_are_launched(cupy, arrays, monkeypatch):
    """Else another thread could find a flaw of a call that nobody knows yet, or come between it and its number."""
    engine = sys.modules["fastxent.gpu.engine"]
    evaluate = engine.evaluate

    def after_another(jobs, **named):
        if jobs[0].task == "cross_entropy":
            assert named["first"] in gpu_run()._calls
            fx.softmax(arrays["logits"])
        return evaluate(jobs, **named)

    monkeypatch.setattr(engine, "evaluate", after_another)
    fx.CrossEntropy()(arrays["logits"], cupy.asarray(np.array([0, 12, 0, 0, 0])))
    expected = "target must be in [0, 3); got 12 at index 1" + LATE
    assert message(ValueError, fx.softmax, arrays["logits"]) == expected


def test_only_so_many_calls_are_remembered_and_none_of_their_arrays(cupy, arrays, monkeypatch):
    monkeypatch.setattr(sys.modules[type(gpu_run()).__module__], "MOST_CALLS", 5)
    target = cupy.asarray(np.zeros(5, int))
    alive = weakref.ref(target)
    for _ in range(9):
        fx.CrossEntropy()(arrays["logits"], target)
    assert len(gpu_run()._calls) == 5
    del target
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", [name for name in ("stand_in", "emulated") if not unusable(name)])
def test_errors_in_the_call_itself_where_the_environment_asks_for_them(monkeypatch, name):
    monkeypatch.setenv("FASTXENT_GPU_CHECK", "1")
    with backend(name) as cupy:
        for loss, arguments, expected in bad_calls(cupy):
            assert message(ValueError, loss, *map(cupy.ndarray._of, arguments)) == expected
            cupy.ndarray._of(np.ones(1))
        fx.CrossEntropy()(cupy.zeros((2, 2)), cupy.zeros(2, int))
        assert "stream" in cupy.synchronised


# --- is there a GPU ---------------------------------------------------------------------------------------------------


def test_is_available_says_no_whatever_is_wrong(monkeypatch):
    import fastxent.gpu

    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    assert fastxent.gpu.is_available() is False
    monkeypatch.setitem(sys.modules, "cupy", object())
    assert fastxent.gpu.is_available() is False


def test_is_available_says_yes(cupy):
    import fastxent.gpu

    assert fastxent.gpu.is_available() is True
