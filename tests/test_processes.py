"""Other processes, Python threads, joblib, other OpenMP regions, limits of all kinds, and Ctrl-C.

Each case is a process of its own with a time limit: what hangs is killed, and fails.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastxent as fx
from fastxent import _config

pytestmark = [
    pytest.mark.thread_unsafe,
    pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP"),
]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
SETTINGS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "LOKY_MAX_CPU_COUNT")

# A call large enough for threads, and whether it gives what it gave at first, bit for bit.
COMMON = """
import os, sys, threading, time
import numpy as np
import fastxent as fx
from fastxent import _config

generator = np.random.default_rng(0)
logits, target = generator.standard_normal((200_000, 3)), generator.integers(0, 3, 200_000)
short_way, long_way = fx.CrossEntropy(), fx.CrossEntropy(class_weight=[1.0, 2.0, 3.0])

def results():
    return [*short_way.value_and_grad(logits, target), *long_way.value_grad_hess(logits, target)]

def is_right(got):
    return all(np.array_equal(a, b) for a, b in zip(got, EXPECTED, strict=True))

def reason():
    return _config.config()["threads"]

before = fx.get_num_threads()
fx.set_num_threads(1)
EXPECTED = results()
fx.set_num_threads(-1)
"""


def run(code, *, tmp_path=None, timeout=60, prefix=(), **environment):
    """The lines that Python code prints in a process of its own; with ``tmp_path`` as a script, which can be imported."""
    arguments = ["-c", code]
    if tmp_path is not None:
        (tmp_path / "script.py").write_text(code)
        arguments = [str(tmp_path / "script.py")]
    result = subprocess.run(
        [*prefix, sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={name: value for name, value in os.environ.items() if name not in SETTINGS} | environment,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


# --- fork -------------------------------------------------------------------------------------------------------------

IN_CHILD = """
child = os.fork()
if child == 0:
    fx.set_num_threads(4)
    os._exit(0 if is_right(results()) and reason().startswith("1 (this is a forked process") else 1)
_, status = os.waitpid(child, 0)
fx.set_num_threads(2)
print(os.waitstatus_to_exitcode(status), fx.get_num_threads(), is_right(results()))
"""


@needs_fork
def test_a_child_forked_after_a_parallel_call_computes_serially():
    # The threads of OpenMP do not survive a fork; a child that waited for them would wait for ever.
    assert run(COMMON + "fx.set_num_threads(2); results()" + IN_CHILD, timeout=30) == ["0 2 True"]


@needs_fork
def test_a_child_forked_during_a_parallel_call_computes_serially():
    code = """
import warnings
warnings.simplefilter("ignore")
fx.set_num_threads(2)
stopped = threading.Event()
def compute():
    while not stopped.is_set():
        results()
other = threading.Thread(target=compute)
other.start()
time.sleep(0.05)
"""
    assert run(COMMON + code + IN_CHILD + "stopped.set(); other.join()", timeout=30) == ["0 2 True"]


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preloaded"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path, method, preload):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    if preload and method != "forkserver":
        pytest.skip("only a fork server preloads")
    code = (
        COMMON
        + f"""
def work(number):
    fx.set_num_threads(2)
    return is_right(results()), reason()

if __name__ == "__main__":
    import multiprocessing, warnings
    warnings.simplefilter("ignore")
    fx.set_num_threads(2)
    assert is_right(results())
    context = multiprocessing.get_context({method!r})
    if {preload}:
        context.set_forkserver_preload(["fastxent"])
    with context.Pool(2) as pool:
        for right, why in pool.map(work, range(4)):
            print(right, why)
"""
    )
    forked = method == "fork" or preload
    expected = (
        "1 (this is a forked process: OpenMP's threads do not survive a fork)" if forked else "2 (set_num_threads(2))"
    )
    assert run(code, tmp_path=tmp_path) == [f"True {expected}"] * 4


# --- Python threads, joblib, other parallel regions -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
def test_eight_python_threads_at_once(n):
    code = f"""
fx.set_num_threads({n})
gate, right = threading.Barrier(8), []
def work():
    gate.wait()
    right.extend(is_right(results()) for _ in range(5))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(right), all(right))
"""
    assert run(COMMON + code) == ["40 True"]


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="joblib is not installed")
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib(tmp_path, backend):
    code = (
        COMMON
        + f"""
def work(number):
    return is_right(results()), reason()

if __name__ == "__main__":
    import joblib
    fx.set_num_threads(-1)
    assert is_right(results())
    with joblib.parallel_config({backend!r}, n_jobs=2{", inner_max_num_threads=3" * (backend == "loky")}):
        for right, why in joblib.Parallel()(joblib.delayed(work)(i) for i in range(4)):
            print(right, why)
"""
    )
    lines = run(code, tmp_path=tmp_path)
    assert len(lines) == 4
    assert all(line.startswith("True ") for line in lines)
    if backend == "loky":  # whose workers are told by the environment
        assert lines == ["True 3 (OMP_NUM_THREADS=3)"] * 4


NEST = """
#include <omp.h>
int nest(int (*call)(void))
{
    int right = 0;
#pragma omp parallel num_threads(2) reduction(+ : right)
    right += call();
    return right;
}
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc, whose OpenMP is shared")
def test_inside_another_parallel_region(tmp_path):
    (tmp_path / "nest.c").write_text(NEST)
    library = tmp_path / "nest.so"
    command = ["gcc", "-fopenmp", "-shared", "-fPIC", str(tmp_path / "nest.c"), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if built.returncode:
        pytest.skip(f"gcc has no OpenMP: {built.stderr}")
    if list(Path(fx.__file__).parents[1].glob("fastxent.libs/*gomp*")):
        pytest.skip("the wheel brings an OpenMP of its own, which knows nothing of other ones")
    code = f"""
import ctypes
fx.set_num_threads(2)
CALL = ctypes.CFUNCTYPE(ctypes.c_int)
@CALL
def call():
    return int(is_right(results()) and reason() == "1 (inside another parallel region)")
print(ctypes.CDLL({str(library)!r}).nest(call), reason(), is_right(results()))
"""
    assert run(COMMON + code) == ["2 2 (set_num_threads(2)) True"]


# --- limits, and what show_config says about them ---------------------------------------------------------------------

REPORT = "print(before, reason(), is_right(results()), sep=' | ')"


@pytest.mark.skipif(importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed")
@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "3"}], ids=["plain", "with OMP_NUM_THREADS"])
def test_limits_of_threadpoolctl(environment):
    code = """
import threadpoolctl
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    print(reason(), is_right(results()), sep=" | ")
print(fx.get_num_threads() == before)
"""
    expected = "1 (OpenMP's limit is 1 (threadpoolctl, joblib or omp_set_num_threads)) | True"
    if not environment and min(_config._CPUS, os.cpu_count()) == 1:
        pytest.skip("one CPU, which a limit of 1 does not change")
    assert run(COMMON + code, **environment) == [expected, "True"]


@pytest.mark.parametrize(("value", "n"), [("1", 1), ("3", 3), (" 2 ", 2), ("4,2", 4)])
def test_omp_num_threads(value, n):
    assert run(COMMON + REPORT, OMP_NUM_THREADS=value) == [f"{n} | {n} (OMP_NUM_THREADS={n}) | True"]


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "2.5"])
def test_what_openmp_ignores_is_ignored(value):
    assert run(COMMON + REPORT, OMP_NUM_THREADS=value) == run(COMMON + REPORT)


def test_absurd_omp_num_threads_are_bounded():
    # OpenMP ends the process when it cannot start a thread.
    (line,) = run(COMMON + REPORT, OMP_NUM_THREADS="1000000")
    most = _config._MOST
    assert line == f"{most} | {most} (OpenMP's limit is 1000000, of which at most {most} are used) | True"


def test_omp_thread_limit():
    code = "fx.set_num_threads(5); print(fx.get_num_threads(), is_right(results()))"
    assert run(COMMON + code, OMP_THREAD_LIMIT="2") == ["2 True"]


@needs_affinity
@pytest.mark.parametrize("how", ["sched_setaffinity", "taskset"])
def test_affinity(how):
    cpu = min(os.sched_getaffinity(0))
    if how == "taskset":
        if shutil.which("taskset") is None:
            pytest.skip("no taskset")
        lines = run(COMMON + REPORT, prefix=("taskset", "-c", str(cpu)))
    else:
        lines = run(f"import os; os.sched_setaffinity(0, {{{cpu}}})" + COMMON + REPORT)
    total = os.cpu_count()
    why = f"the CPU affinity allows 1 of {total} CPUs" if total > 1 else "1 CPU"
    if _config._QUOTA == 1:
        why = "the control group's quota allows 1 CPU"
    assert lines == [f"1 | 1 ({why}) | True"]


@pytest.mark.parametrize(
    ("v2", "quota", "period", "cpus"),
    [
        ("max 100000\n", None, None, None),
        ("200000 100000\n", None, None, 2),
        ("150000 100000\n", None, None, 2),
        ("1000 100000\n", None, None, 1),
        ("6400000 100000", "100000", "100000", 64),
        ("0 100000\n", None, None, None),
        ("-1 100000\n", None, None, None),
        ("100000 0\n", None, None, None),
        ("", "300000", "100000", 3),
        ("nonsense", "300000", "100000", 3),
        ("100000", "300000", "100000", 3),
        (None, "250000\n", "100000\n", 3),
        (None, "-1\n", "100000\n", None),
        (None, "100000\n", None, None),
        (None, "\xff", "100000", None),
        (None, None, None, None),
    ],
)
def test_the_quota_of_the_control_group(tmp_path, monkeypatch, v2, quota, period, cpus):
    for name, text in (("cpu.max", v2), ("quota", quota), ("period", period)):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="latin-1")
    files = ((str(tmp_path / "cpu.max"), None), (str(tmp_path / "quota"), str(tmp_path / "period")))
    monkeypatch.setattr(_config, "_CGROUPS", files)
    assert _config._cgroup_quota() == cpus


@pytest.mark.parametrize(("text", "n"), [("100000 100000", 1), ("150000 100000", 2)])
def test_the_quota_bounds_the_number(tmp_path, text, n):
    # The files are read at import, so the path that is asked for is another one there.
    (tmp_path / "cpu.max").write_text(text)
    code = f"""
import builtins, os
os.sched_getaffinity = lambda process: set(range(64))
real = builtins.open
builtins.open = lambda path, *rest, **named: real(
    {str(tmp_path / "cpu.max")!r} if str(path).endswith("/cpu.max") else path, *rest, **named)
"""
    (line,) = run(code + COMMON + REPORT)
    if line.startswith("1") and n > 1:
        pytest.skip("OpenMP sees one CPU only")
    assert line == f"{n} | {n} (the control group's quota allows {n} CPU{'s' * (n > 1)}) | True"


@pytest.mark.parametrize("n", [-1, -2, -(10**9), 10**9, 2**40, 10**30])
def test_negative_and_absurd_numbers(n):
    code = f"""
everything = fx.get_num_threads()
fx.set_num_threads({n})
n = fx.get_num_threads()
assert n == (max(1, everything + 1 + {n}) if {n} < 0 else _config._MOST), n
assert reason().startswith(str(n) + " (")
assert {n} == -1 or "set_num_threads(" in reason()
print(is_right(results()))
"""
    assert run(COMMON + code) == ["True"]


@pytest.mark.parametrize(
    ("n", "error"),
    [("0", "ValueError"), ("'2'", "TypeError"), ("1.5", "TypeError"), ("True", "TypeError"), ("None", "TypeError")],
)
def test_numbers_that_are_refused(n, error):
    code = f"""
fx.set_num_threads(2)
try:
    fx.set_num_threads({n})
except {error} as problem:
    print(str(problem).startswith("n must be "), reason(), is_right(results()))
"""
    assert run(COMMON + code) == ["True 2 (set_num_threads(2)) True"]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

# Zeros that nobody has written to take no memory, so inputs may be large.
INTERRUPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have jobs in the background ignore it
_config.use_level({level!r})

def seconds_to_stop(call, delay):
    sent = []
    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(delay, interrupt)
    timer.start()
    finished = False
    try:
        call()
        finished = True
        timer.join()
        time.sleep(1)
    except KeyboardInterrupt:
        if not finished:
            return time.perf_counter() - sent[0]
    return None

def best(call, delay, prepare):
    # A neighbour may keep the CPU from us, it will not do so three times; a fast machine may be done before the signal.
    least, tries = 1e9, 3
    while tries and least >= 0.1:
        prepare()
        seconds = seconds_to_stop(call, delay)
        if seconds is None:
            delay /= 2
            assert delay > 1e-4, "the call is always done before it can be interrupted"
        else:
            least, tries = min(least, seconds), tries - 1
    return least

REAL = np.{dtype}
N = 3 * 10**9
zeros = np.zeros(N, REAL)
def report(name, call, delay=0.03, prepare=lambda: None):
    seconds = best(call, delay, prepare)
    fx.set_num_threads(2)
    right = is_right(results())
    fx.set_num_threads({threads})
    print(name, "stopped" if seconds < 0.2 else f"took {{seconds:.3f}} s", right, sep=": ")
    print(f"{{name}}: {{seconds * 1000:.1f}} ms", file=sys.stderr)
_config.use_level({level!r})
fx.set_num_threads(1)
EXPECTED = results()
fx.set_num_threads({threads})
"""
VALUES = """
labels = np.zeros(N // 2, int)
for name, n_classes in (("few classes", 3), ("short rows", 40), ("rows", 1000), ("long rows", 10**5), ("very long rows", 10**7)):
    n = N // n_classes
    z, t = zeros[: n * n_classes].reshape(n, n_classes), labels[:n]
    soft, few = np.broadcast_to(z[:1], z.shape), np.empty(n, REAL)
    report(f"{name}, short way", lambda: fx.CrossEntropy()(z, t))
    report(f"{name}, late", lambda: fx.CrossEntropy()(z, t), 0.3)
    report(f"{name}, long way", lambda: fx.CrossEntropy(class_weight=np.ones(n_classes))(z, t))
    report(f"{name}, probabilities", lambda: fx.CrossEntropy()(z, soft))
    report(f"{name}, focal", lambda: fx.FocalLoss(1.5)(z, t))
for n_classes in (3, 40, 1000):
    n = N // n_classes
    z, t = zeros[: n * n_classes].reshape(n_classes, n), labels[:n]
    report(f"{n_classes} classes first", lambda: fx.CrossEntropy(axis=0)(z, t))
report("binary, short way", lambda: fx.BinaryCrossEntropy()(zeros, zeros))
report("binary, long way", lambda: fx.BinaryCrossEntropy(pos_weight=2.0)(zeros, zeros))
report("binary, focal", lambda: fx.BinaryFocalLoss(1.5)(zeros, zeros))
"""
# Activations write as much as they read: fewer numbers, and other ones than 0.
OUTPUTS = """
M = 6 * 10**7
z = np.resize(generator.standard_normal(10**6).astype(REAL), M)
out = np.ones(M, REAL)
for name, n_classes in (("few classes", 3), ("rows", 1000), ("long rows", 10**5)):
    shape = M // n_classes, n_classes
    report(f"softmax, {name}", lambda: fx.softmax(z.reshape(shape), out=out.reshape(shape)))
    report(f"logsumexp, {name}", lambda: fx.logsumexp(zeros[: N // n_classes * n_classes].reshape(-1, n_classes)))
report("sigmoid", lambda: fx.sigmoid(z, out=out))
report("log_sigmoid", lambda: fx.log_sigmoid(z, out=out))
"""
# New outputs: the system finds their memory while the call runs, which takes longer than the call, now more, now less.
# What was not reached before the interrupt takes no memory.
FRESH = """
M = 198 * 10**6
labels = np.zeros(M // 3, int)
for name, n_classes in (("few classes", 3), ("short rows", 40), ("rows", 1000), ("long rows", 10**5), ("very long rows", 10**6)):
    n = M // n_classes
    z, t = zeros[: n * n_classes].reshape(n, n_classes), labels[:n]
    report(f"gradient, {name}", lambda: fx.CrossEntropy().value_and_grad(z, t))
    report(f"focal Hessian, {name}", lambda: fx.FocalLoss(1.5).value_grad_hess(z, t))
z, t = zeros[:M].reshape(3, -1), labels
report("gradient, classes first", lambda: fx.CrossEntropy(axis=0).value_and_grad(z, t))
report("gradient, binary", lambda: fx.BinaryCrossEntropy().value_and_grad(zeros[:M], zeros[:M]))
report("focal Hessian, binary", lambda: fx.BinaryFocalLoss(1.5).value_grad_hess(zeros[:M], zeros[:M]))
report("softmax, classes first", lambda: fx.softmax(z, axis=0))
"""
# Outputs that were written before.
TOUCHED = """
M = 8 * 10**8 // np.dtype(REAL).itemsize
labels, out = np.zeros(M // 3, int), np.ones(M, REAL)
for name, n_classes in (("few classes", 3), ("short rows", 40), ("rows", 1000), ("long rows", 10**5), ("very long rows", 10**6)):
    n = M // n_classes
    z, grad = (a[: n * n_classes].reshape(n, n_classes) for a in (zeros, out))
    t = labels[:n]
    report(f"gradient, {name}", lambda: fx.CrossEntropy().value_and_grad(z, t, None, grad))
    report(f"focal gradient, {name}", lambda: fx.FocalLoss(1.5).value_and_grad(z, t, None, grad))
report("binary", lambda: fx.BinaryCrossEntropy().value_and_grad(zeros[:M], zeros[:M], None, out))
"""
# Each row of the outputs, or each element of binary losses, is either finished or as it was.
PARTLY = """
M, K = 6 * 10**7, 5
z = np.resize(generator.standard_normal(10**6).astype(REAL), M).reshape(-1, K)
t = np.zeros(len(z), int)
for loss, arguments, calls in (
    (fx.FocalLoss(1.5, reduction="sum"), (z, t), ("value_and_grad", "value_grad_hess")),
    (fx.CrossEntropy(reduction="sum"), (z, t), ("value_and_grad",)),
    (fx.BinaryFocalLoss(1.5, reduction="sum"), (z, z > 0), ("value_and_grad",)),
):
    for name in calls:
        outputs = [np.empty_like(z) for _ in range(2 if name == "value_grad_hess" else 1)]
        call, delay = getattr(loss, name), 0.03
        for _ in range(20):  # a neighbour may keep either thread waiting: until the signal falls into the writing
            for out in outputs:
                out.fill(np.nan)
            seconds = seconds_to_stop(lambda: call(*arguments, None, *outputs), delay)
            written = [~np.isnan(out) for out in outputs]
            if seconds is None or written[0].all():
                delay /= 2
            elif not written[0].any():
                delay *= 1.5
            else:
                break
        rows = [w.reshape(-1, 1) if isinstance(loss, fx.BinaryFocalLoss) else w for w in written]
        print(type(loss).__name__, name,
              all(w.any() and not w.all() and (w.all(1) | ~w.any(1)).all() for w in rows),
              all(np.array_equal(out[w], full[w]) for out, w, full in zip(outputs, written, call(*arguments)[1:])))
fx.set_num_threads(2)
print("right afterwards", is_right(results()), True)
"""
interruptible = pytest.mark.skipif(sys.platform != "linux", reason="signals, and memory that is not touched")


def interrupted(code, **options):
    try:
        return run(COMMON + INTERRUPT.format(**options) + code, timeout=120)
    except AssertionError as problem:
        if "MemoryError" in str(problem):
            pytest.skip("this machine does not lend that much memory")
        raise


@interruptible
@pytest.mark.parametrize(("threads", "dtype"), [(1, "float64"), (2, "float32")])
@pytest.mark.parametrize("code", [VALUES, OUTPUTS], ids=["losses", "activations"])
def test_ctrl_c_stops_every_regime_within_a_fifth_of_a_second(code, threads, dtype):
    lines = interrupted(code, level="baseline", dtype=dtype, threads=threads)
    assert len(lines) == (31 if code is VALUES else 8)
    assert [line for line in lines if not line.endswith(": stopped: True")] == []


@interruptible
@pytest.mark.parametrize("level", sorted({"baseline", _config.usable_levels()[0]}))
@pytest.mark.parametrize(("threads", "dtype"), [(2, "float32"), (1, "float64")])
def test_ctrl_c_stops_calls_with_new_outputs(threads, dtype, level):
    lines = interrupted(FRESH, level=level, dtype=dtype, threads=threads)
    assert len(lines) == 14
    assert [line for line in lines if not line.endswith(": stopped: True")] == []


@interruptible
@pytest.mark.parametrize(("threads", "dtype"), [(1, "float32"), (2, "float64")])
def test_ctrl_c_stops_gradients_above_baseline(threads, dtype):
    lines = interrupted(TOUCHED, level=_config.usable_levels()[0], dtype=dtype, threads=threads)
    assert len(lines) == 11
    assert [line for line in lines if not line.endswith(": stopped: True")] == []


@interruptible
def test_rows_of_interrupted_outputs_are_finished_or_untouched():
    lines = interrupted(PARTLY, level="baseline", dtype="float32", threads=1)
    assert len(lines) == 5
    assert [line for line in lines if not line.endswith(" True True")] == []
