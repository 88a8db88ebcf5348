"""The speed table of the GPU path: ``make gpu-bench`` on a machine with a GPU and CuPy.

Every case is checked against float64 first. Then all contestants take turns (A B C A B C), timed by CUDA events, on
inputs that rotate so that the second-level cache does not serve them. The ceiling is a copy from device to device in the
same run; for values alone, a maximum over the same bytes. Peers are those that can be imported: torch eager, torch.compile,
Liger, torchvision. Results go to ``benchmarks/results`` as JSON and Markdown; nothing is written that was not measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastxent as fx
import fastxent.gpu
from benchmarks import machine

RESULTS = Path(__file__).parent / "results"
# Bytes that inputs must have together to be of no use to the cache: four times the largest there is (60 MB, H200).
ROTATED = 4 * 60_000_000
CEILING_BYTES = 4_000_000_000
WARM_UPS, REPEATS = 5, 30
CALLS = 1000  # of the case whose cost is Python's
SAMPLED_ROWS = 32
GAMMA = 2.0
ITEM_SIZES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    loss: str
    n_rows: int
    n_classes: int
    dtype: str
    target: float  # what the issue asks for, as a fraction of the ceiling
    value_alone: bool = False

    @property
    def name(self) -> str:
        """As in ``CE 8192x32000 float32``."""
        what = "value" if self.value_alone else "value+grad"
        return f"{self.loss} {self.n_rows}x{self.n_classes} {self.dtype} {what}"

    @property
    def floor_bytes(self) -> int:
        """What any implementation must move at least."""
        size = self.n_rows * self.n_classes
        targets = 8 * self.n_rows if self.loss == "CE" else size
        return size * ITEM_SIZES[self.dtype] * (1 if self.value_alone else 2) + targets


DTYPES = tuple(ITEM_SIZES)
CASES = [
    *(Case("CE", 8192, k, dtype, 0.90) for k in (32000, 50257, 128256, 151936) for dtype in DTYPES),
    *(Case("CE", n, k, dtype, 0.88) for n, k in ((65536, 4096), (262144, 1000)) for dtype in DTYPES),
    *(Case("CE", n, k, "float32", 0.75) for n, k in ((4_000_000, 10), (2_100_000, 21))),
    *(Case(loss, 1_000_000, 1000, dtype, 0.85) for loss in ("BCE", "focal") for dtype in DTYPES),
    Case("CE", 8192, 128256, "bfloat16", 0.95, value_alone=True),
]
LOSSES: dict[str, Any] = {
    "CE": fx.CrossEntropy(),
    "BCE": fx.BinaryCrossEntropy(),
    "focal": fx.BinaryFocalLoss(gamma=GAMMA),
}


def dtype_of(name: str) -> Any:
    """The dtype, which may be that of ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def inputs(cupy: Any, case: Case, seed: int) -> tuple[Any, Any]:
    """Fresh logits (twice a standard normal) and targets."""
    generator = cupy.random.default_rng(seed)
    logits = cupy.empty((case.n_rows, case.n_classes), dtype_of(case.dtype))
    step = max(1, 2**27 // case.n_classes)
    for i in range(0, case.n_rows, step):
        part = logits[i : i + step]
        part[...] = (2 * generator.standard_normal(part.shape, dtype=np.float32)).astype(logits.dtype)
    if case.loss == "CE":
        return logits, generator.integers(0, case.n_classes, case.n_rows)
    return logits, generator.integers(0, 2, logits.shape, dtype=np.uint8).astype(bool)


def check(cupy: Any, case: Case, logits: Any, target: Any) -> None:
    """Stop unless values and gradients agree with float64, on rows drawn at random and in the mean."""
    loss = LOSSES[case.loss]
    value, grad = loss.value_and_grad(logits, target)
    each = type(loss)(reduction="none")(logits, target)
    rows = np.sort(np.random.default_rng().choice(case.n_rows, min(SAMPLED_ROWS, case.n_rows), replace=False))
    expected, expected_grad = type(loss)(reduction="none").value_and_grad(
        logits[rows].get().astype(np.float64), target[rows].get()
    )
    divisor = case.n_rows if case.loss == "CE" else case.n_rows * case.n_classes
    eps = float(np.finfo(np.float32).eps)
    rounding = 2.0**-8 if case.dtype == "bfloat16" else 0.0
    for what, got, true in (
        ("value", each[rows].get().astype(np.float64), expected),
        ("gradient", grad[rows].get().astype(np.float64) * divisor, expected_grad),
    ):
        allowed = (100 * eps + rounding) * np.abs(true) + 1e-30
        if not (np.abs(got - true) <= allowed).all():
            sys.exit(f"{case.name}: wrong {what}, worst {np.max(np.abs(got - true)):.3g}")
    # Values of halves are rounded one by one, but not on the way into the mean.
    mean = float(each.astype(np.float64).mean())
    if not abs(float(value) - mean) <= max(1e-6, rounding) * abs(mean):
        sys.exit(f"{case.name}: the mean is {float(value)}, that of the rows {mean}")


def milliseconds(cupy: Any, contestants: dict[str, Callable[[int], Any]], n_inputs: int) -> dict[str, list[float]]:
    """Times of each contestant, which take turns; each is called with the number of the inputs to use."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    for repeat in range(WARM_UPS + REPEATS):
        for name, call in contestants.items():
            prepare = getattr(call, "prepare", None)
            if prepare is not None:
                prepare(repeat % n_inputs)
            start.record()
            call(repeat % n_inputs)
            end.record()
            end.synchronize()
            if repeat >= WARM_UPS:
                times[name].append(cupy.cuda.get_elapsed_time(start, end))
    return times


def torch_peers(case: Case, arrays: list[tuple[Any, Any]]) -> dict[str, Callable[[int], Any]]:
    """Forward and backward of every peer that can be imported."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return {}
    functional = torch.nn.functional

    def tensor(array: Any) -> Any:
        if array.dtype.name == "bfloat16":  # not every version hands these over
            return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)
        if array.dtype.kind == "b":
            return torch.from_dlpack(array.view(np.uint8)).view(torch.bool)
        return torch.from_dlpack(array)

    tensors = [(tensor(z), tensor(y)) for z, y in arrays]

    def loss_of(z: Any, y: Any) -> Any:
        if case.loss == "CE":
            return functional.cross_entropy(z, y)
        y = y.to(z.dtype)
        if case.loss == "BCE":
            return functional.binary_cross_entropy_with_logits(z, y)
        p = torch.sigmoid(z)
        ce = functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        return (ce * (1 - (p * y + (1 - p) * (1 - y))) ** GAMMA).mean()

    def both(function: Callable[[Any, Any], Any]) -> Callable[[int], Any]:
        def call(i: int) -> Any:
            z, y = tensors[i]
            if case.value_alone:
                with torch.no_grad():
                    return function(z, y)
            z = z.detach().requires_grad_()
            function(z, y).backward()
            return z.grad

        return call

    peers = {"torch eager": both(loss_of), "torch.compile": both(torch.compile(loss_of))}
    if case.loss == "CE" and not case.value_alone:
        try:
            liger = importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss()
        except ImportError:
            return peers
        scratch: dict[str, Any] = {}

        def call(i: int) -> Any:
            liger(scratch["z"], tensors[i][1]).backward()

        def prepare(i: int) -> None:  # it writes over its logits; that copy is not its time
            scratch["z"] = tensors[i][0].clone().requires_grad_()
            torch.cuda.synchronize()

        call.prepare = prepare  # type: ignore[attr-defined]
        peers["Liger"] = call
    return peers


def ceilings(cupy: Any) -> dict[str, float]:
    """Bytes per second of a copy from device to device, and of reading."""
    source, copy = (cupy.zeros(CEILING_BYTES // 4, np.float32) for _ in range(2))
    times = milliseconds(
        cupy,
        {
            "copy": lambda i: copy.data.copy_from_device_async(source.data, source.nbytes),
            "read": lambda i: source.max(),
        },
        1,
    )
    read, moved = source.nbytes, 2 * source.nbytes
    return {
        "copy": moved / statistics.median(times["copy"]) * 1e3,
        "read": read / statistics.median(times["read"]) * 1e3,
    }


def measured(cupy: Any, case: Case, ceiling: float) -> dict[str, Any]:
    """Check and time one case."""
    bytes_of_one = case.n_rows * case.n_classes * ITEM_SIZES[case.dtype]
    arrays = [inputs(cupy, case, seed) for seed in range(-(-ROTATED // bytes_of_one))]
    check(cupy, case, *arrays[0])
    loss, grad = LOSSES[case.loss], cupy.empty_like(arrays[0][0])
    if case.value_alone:
        contestants: dict[str, Callable[[int], Any]] = {"fastxent": lambda i: loss(*arrays[i])}
    else:
        contestants = {"fastxent": lambda i: loss.value_and_grad(*arrays[i], grad_out=grad)}
    times = milliseconds(cupy, contestants | torch_peers(case, arrays), len(arrays))
    fastxent.gpu.check()
    results = {}
    for name, found in times.items():
        low, middle, high = (float(q) for q in np.percentile(found, (20, 50, 80)))
        fraction = case.floor_bytes / middle * 1e3 / ceiling
        results[name] = {"median_ms": middle, "p20_ms": low, "p80_ms": high, "of_ceiling": fraction}
    return {"case": case.name, "target": case.target, "floor_bytes": case.floor_bytes, "results": results}


def python_call(cupy: Any) -> dict[str, float]:
    """Microseconds of a whole call on 256 x 1000, seen from Python."""
    case = Case("CE", 256, 1000, "float32", 0.5)
    arrays = [inputs(cupy, case, 0)]
    grad = cupy.empty_like(arrays[0][0])
    calls = {"fastxent": lambda i: LOSSES["CE"].value_and_grad(*arrays[i], grad_out=grad)} | torch_peers(case, arrays)
    microseconds = {}
    for name, call in calls.items():
        if name == "Liger":
            continue
        for timed in (False, True):
            cupy.cuda.Device().synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call(0)
            cupy.cuda.Device().synchronize()
            if timed:
                microseconds[name] = (time.perf_counter() - start) / CALLS * 1e6
    return microseconds


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    names = list(dict.fromkeys(name for entry in report["cases"] for name in entry["results"]))
    device = report["device"]
    lines = [
        f"# {device['name']}\n",
        f"Driver {device['driver']}, CUDA runtime {device['runtime']}, CuPy {device['cupy']}. Copy ceiling",
        f"{report['ceilings']['copy'] / 1e12:.2f} TB/s, read ceiling {report['ceilings']['read'] / 1e12:.2f} TB/s. Median",
        "milliseconds; in brackets the fraction of the ceiling that the fewest possible bytes would make.\n",
        f"| case | target | {' | '.join(names)} |",
        f"|---|---|{'---:|' * len(names)}",
    ]
    for entry in report["cases"]:
        cells = []
        for name in names:
            result = entry["results"].get(name)
            cells.append(f"{result['median_ms']:.3f} ({result['of_ceiling']:.2f})" if result else "-")
        lines.append(f"| {entry['case']} | {entry['target']} | {' | '.join(cells)} |")
    calls = ", ".join(f"{name} {value:.1f}" for name, value in report["python_call_us"].items())
    return "\n".join([*lines, "", f"256x1000, whole Python call in microseconds: {calls}.", ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if not fastxent.gpu.is_available():
        sys.exit("CuPy finds no GPU here; nothing is measured")
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    report: dict[str, Any] = {
        "device": {
            "name": properties["name"].decode(),
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "runtime": cupy.cuda.runtime.runtimeGetVersion(),
            "cupy": cupy.__version__,
        },
        "machine": machine.describe(["numpy", "torch", "triton", "liger-kernel", "ml_dtypes"]),
        "ceilings": ceilings(cupy),
        "cases": [],
    }
    for case in CASES:
        if options.only in case.name:
            ceiling = report["ceilings"]["read" if case.value_alone else "copy"]
            report["cases"].append(measured(cupy, case, ceiling))
            cupy.get_default_memory_pool().free_all_blocks()
            print(json.dumps(report["cases"][-1]), flush=True)
    report["python_call_us"] = python_call(cupy)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{report['device']['name'].lower().replace(' ', '-')}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
