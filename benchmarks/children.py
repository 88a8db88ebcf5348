"""What only a process of its own can tell: its resident set, and the speed with ``OMP_NUM_THREADS=1``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case, make_problem
from benchmarks.ceiling import Ceiling
from benchmarks.measure import Contestant, interleave, summary

CLEAR_PEAK = "5"  # written to clear_refs: the peak of the resident set starts anew (man 5 proc)
SECONDS = 1.0


@dataclass(frozen=True)
class Memory:
    """A call whose peak of memory is measured."""

    name: str
    case: Case


_LARGE = (40_000, 100)
MEMORY = [
    Memory("plain", Case("CrossEntropy", _LARGE, "float32")),
    Memory("fresh", Case("CrossEntropy", _LARGE, "float32", output="fresh")),
    Memory("value", Case("CrossEntropy", _LARGE, "float32", operation="value")),
    Memory("three classes", Case("CrossEntropy", (1_000_000, 3), "float64")),
    Memory("long rows", Case("CrossEntropy", (40, 100_000), "float32")),
    Memory("soft target", Case("CrossEntropy", _LARGE, "float32", soft_target=True)),
    Memory(
        "weights, smoothing",
        Case("CrossEntropy", _LARGE, "float32", options={"class_weight": "ramp", "label_smoothing": 0.1}),
    ),
    Memory("class axis 1", Case("CrossEntropy", (4, 10, 100_000), "float32", options={"axis": 1})),
    Memory("column-major", Case("CrossEntropy", _LARGE, "float32", layout="F")),
    Memory("float16", Case("CrossEntropy", _LARGE, "float16", options={"reduction": "sum"})),
    Memory("focal", Case("FocalLoss", _LARGE, "float32", options={"gamma": 1.5})),
    Memory("binary", Case("BinaryCrossEntropy", (4_000_000,), "float32")),
    Memory("binary focal", Case("BinaryFocalLoss", (4_000_000,), "float32", options={"gamma": 1.5, "alpha": 0.25})),
]
ONE_THREAD = [
    Case("CrossEntropy", (200_000, 3), "float32"),
    Case("CrossEntropy", (200_000, 10), "float32"),
    Case("CrossEntropy", (65_536, 100), "float32"),
    Case("CrossEntropy", (16_384, 1_000), "float64"),
    Case("BinaryCrossEntropy", (1_000_000,), "float32"),
]


def _status(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def resident_set(memory: Memory, threads: int) -> dict[str, Any]:
    """Return by how much one call raises the resident set, beyond inputs and outputs that are all touched."""
    import fastxent

    fastxent.set_num_threads(threads)
    case = memory.case
    problem = make_problem(case, threads)
    loss = case.make_loss(fastxent)
    # What is loaded and made at the first call of a process is not of this call: a small one first.
    tiny = make_problem(Case(case.loss, (4,) if case.binary else (4, 3), case.dtype), 1)
    type(loss)().value_and_grad(tiny.logits, tiny.target)
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")
    before = _status("VmRSS")
    if case.operation == "value":
        loss(problem.logits, problem.target)
    else:
        loss.value_and_grad(problem.logits, problem.target, grad_out=problem.grad)
    outputs = case.array_bytes if case.output == "fresh" and case.operation != "value" else 0
    return {"name": f"{memory.name}: {case.name}", "extra_bytes": _status("VmHWM") - before - outputs}


def one_thread(case: Case) -> dict[str, Any]:
    """Return times of one case and of the memory loops in this process, whose environment allows one thread."""
    import fastxent

    assert fastxent.get_num_threads() == 1
    problem = make_problem(case, 1)
    loss = case.make_loss(fastxent)
    contestants = [
        Contestant("fastxent", lambda: loss.value_and_grad(problem.logits, problem.target, grad_out=problem.grad))
    ]
    contestants += [Contestant(name, loop) for name, (_, loop) in Ceiling().loops(problem).items()]
    samples = interleave(contestants, seconds=SECONDS, min_rounds=5)
    times = {name: summary(values) for name, values in samples.items()}
    copies = [time["min_ms"] for name, time in times.items() if not name.startswith("read")]
    return {"name": case.name, **times["fastxent"], "copy_ms": min(copies)}


def measure_resident_set(threads: int) -> list[dict[str, Any]]:
    """Measure each of `MEMORY` in a process of its own; empty on a system without ``/proc/self/clear_refs``."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return []
    return [_child("memory", str(index), str(threads)) for index in range(len(MEMORY))]


def measure_one_thread() -> list[dict[str, Any]]:
    """Measure each of `ONE_THREAD` in a process with ``OMP_NUM_THREADS=1``."""
    return [_child("one-thread", str(index), OMP_NUM_THREADS="1") for index in range(len(ONE_THREAD))]


def _child(*arguments: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.children", *arguments]
    finished = subprocess.run(
        command,
        env=os.environ | environment,
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def main(arguments: list[str]) -> None:
    """Measure one thing and print it as JSON."""
    kind, index = arguments[0], int(arguments[1])
    if kind == "memory":
        print(json.dumps(resident_set(MEMORY[index], int(arguments[2]))))
    else:
        print(json.dumps(one_thread(ONE_THREAD[index])))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main(sys.argv[1:])
