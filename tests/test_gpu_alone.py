"""What only a GPU can show: streams, graphs, other libraries, very large arrays, the sanitizers. Skipped without one."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from gpu.backends import unusable

import fastxent as fx

REASON = unusable("gpu")
pytestmark = [pytest.mark.thread_unsafe, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
# Few classes, rows in one block, rows in clusters, and one that fits nowhere.
SHAPES = [(100_003, 10), (2003, 1000), (101, 50_257), (17, 151_936), (3, 2_000_000)]


def drawn(cupy, shape, dtype=np.float32):
    generator = cupy.random.default_rng(shape[0])
    logits = (3 * generator.standard_normal(shape, dtype=np.float32)).astype(dtype)
    return logits, generator.integers(0, shape[1], shape[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", [fx.CrossEntropy(), fx.FocalLoss(label_smoothing=0.1, ignore_index=0)], ids=repr)
def test_the_same_bits_from_run_to_run_and_stream_to_stream(shape, loss):
    import cupy

    logits, target = drawn(cupy, shape)
    expected = loss.value_grad_hess(logits, target)
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for i in range(10):
        with streams[i % 2]:
            results = loss.value_grad_hess(logits, target)
            streams[i % 2].synchronize()
        for a, b in zip(results, expected, strict=True):
            assert bool((a == b).all())


def test_a_call_with_buffers_can_be_captured_in_a_graph():
    import cupy

    logits, target = drawn(cupy, (2003, 1000))
    grad, loss = cupy.empty_like(logits), fx.CrossEntropy(class_weight=np.linspace(0.5, 2, 1000))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        loss.value_and_grad(logits, target, grad_out=grad)  # compiles, and takes the weights to the device
        stream.begin_capture()
        value, _ = loss.value_and_grad(logits, target, grad_out=grad)
        graph = stream.end_capture()
        for factor in (1, 2):
            logits *= factor
            graph.launch(stream)
            stream.synchronize()
            expected, expected_grad = loss.value_and_grad(logits, target)
            assert float(value) == float(expected)
            assert bool((grad == expected_grad).all())


@pytest.mark.parametrize("loss", [fx.CrossEntropy(class_weight="balanced"), fx.FocalLoss(ignore_index=3)], ids=repr)
def test_a_graph_writes_to_nobody_elses_memory(loss):
    """What a captured call takes must not go back to the pool, neither its intermediate results nor a dropped value."""
    import cupy

    logits, target = drawn(cupy, (2003, 1000))
    weights, grad = cupy.arange(2003), cupy.empty_like(logits)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        loss.value_and_grad(logits, target, weights, grad_out=grad)
        stream.begin_capture()
        loss.value_and_grad(logits, target, weights, grad_out=grad)
        graph = stream.end_capture()
        others = [cupy.full(n, 7.0) for n in (1, 10, 100, 1000, 2003, 5000) for _ in range(200)]
        logits *= 2
        graph.launch(stream)
        expected = grad.copy()
        stream.synchronize()
        assert all(bool((other == 7.0).all()) for other in others)
        assert bool((loss.value_and_grad(logits, target, weights)[1] == expected).all())


def test_weights_are_on_the_gpu_before_a_capture():
    import cupy

    logits, target = drawn(cupy, (203, 10))
    loss, stream = fx.CrossEntropy(class_weight=np.ones(10)), cupy.cuda.Stream(non_blocking=True)
    loss(logits, target)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="loss must be called once on this stream before calls are captured"):
            loss(logits, target)
        stream.end_capture()


def test_a_bad_label_leaves_the_device_usable():
    import cupy

    import fastxent.gpu

    logits, target = drawn(cupy, (2003, 1000))
    target[77] = 1000
    value, grad = fx.CrossEntropy().value_and_grad(logits, target)
    assert np.isnan(float(value))
    assert not bool(grad[77].any())
    with pytest.raises(ValueError, match=r"target must be in \[0, 1000\); got 1000 at index 77 "):
        fastxent.gpu.check()
    assert np.isfinite(float(fx.CrossEntropy()(logits[:77], target[:77])))


def test_more_elements_than_32_bits_can_count():
    import cupy

    n_rows, n_classes = 2**31 // 1000 + 17, 1000
    if cupy.cuda.Device().mem_info[0] < 3 * 2 * n_rows * n_classes:
        pytest.skip("not enough memory")
    logits = cupy.zeros((n_rows, n_classes), np.float16)
    logits[-1, 5] = 3
    target = cupy.full(n_rows, 5)
    each, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, target, grad_out=logits)
    expected, expected_grad = fx.CrossEntropy(reduction="none").value_and_grad(
        np.array([[0.0] * 5 + [3.0] + [0.0] * 994], np.float16), [5]
    )
    assert float(each[-1]) == float(expected[0])
    np.testing.assert_allclose(grad[-1].get().astype(float), expected_grad[0].astype(float), rtol=2e-3)
    assert bool((each[:-1] == each[0]).all())


def test_tensors_of_torch_come_in_by_dlpack():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no GPU")
    import cupy

    z = torch.randn(64, 10, device="cuda")
    y = torch.randint(0, 10, (64,), device="cuda")
    with pytest.raises(TypeError, match=r"pass cupy\.from_dlpack"):
        fx.CrossEntropy()(z, y)
    value = fx.CrossEntropy()(cupy.from_dlpack(z), cupy.from_dlpack(y))
    assert float(value) == pytest.approx(float(torch.nn.functional.cross_entropy(z, y)), rel=1e-5)


def test_arrays_of_a_second_device():
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    with cupy.cuda.Device(1):
        logits, target = drawn(cupy, (2003, 1000))
    value, grad = fx.CrossEntropy().value_and_grad(logits, target)
    assert value.device.id == grad.device.id == 1


# Tiles are copied in whole vectors of 16 bytes: what lies behind the last row is read, and may never have been written.
ODD, EVEN = ((1003, 10), (33, 1000), (3, 50_257), (2, 151_936)), ((1004, 10), (34, 1000), (4, 50_257), (2, 151_936))


@pytest.mark.parametrize(("tool", "shapes"), [("racecheck", ODD), ("memcheck", ODD), ("initcheck", EVEN)])
def test_the_sanitizers_find_nothing(tool, shapes):
    sanitizer = shutil.which("compute-sanitizer") or pytest.skip("no compute-sanitizer")
    code = f"""
import cupy, fastxent as fx
for n_rows, n_classes in {shapes}:
    logits = cupy.zeros((n_rows, n_classes), "float32")
    fx.CrossEntropy().value_and_grad(logits, cupy.zeros(n_rows, int))
    fx.BinaryFocalLoss().value_and_grad(logits, logits)
cupy.cuda.Device().synchronize()
"""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
