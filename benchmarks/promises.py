"""What the project wants to reach, as a table: each goal with its metric, its target and the measurements it is about.

Line numbers are those of the list of goals: 1 memory ceiling, 2 value alone, 3 few classes, 4 peers and options,
5 small calls, 6 scaling, 7 fresh outputs and memory, 8 layouts, 9 half precision.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cases import FEW_CLASSES

LINES = {
    "line1": "value and gradient, memory ceiling",
    "line2": "value alone, read ceiling",
    "line3": "few classes",
    "line4": "peers, cost of options",
    "line5": "small calls",
    "line6": "scaling",
    "line7": "fresh outputs, peak memory",
    "line8": "layouts",
    "line9": "half precision",
}


@dataclass(frozen=True)
class Promise:
    """A bound on `metric` (see `benchmarks.verdict.METRICS`) for every measurement of `kind` that is as `where` says."""

    line: str
    text: str
    kind: str
    metric: str
    target: float
    at_least: bool = True
    where: Mapping[str, Container[Any]] = field(default_factory=dict)

    def applies(self, item: Mapping[str, Any]) -> bool:
        """Whether `item` is a measurement that this is about."""
        return item["kind"] == self.kind and all(item.get(name) in values for name, values in self.where.items())

    def kept_by(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value >= self.target if self.at_least else value <= self.target


F32, F64 = ("float32",), ("float64",)
CE, BCE, FOCAL = ("CrossEntropy",), ("BinaryCrossEntropy",), ("FocalLoss", "BinaryFocalLoss")
MANY = range(100, 128_001)
LARGE_ROWS = (2_000_000,)


def _ceiling(text: str, target: float, **where: Container[Any]) -> Promise:
    kind = "copy" if where["loss"] in (CE,) else "memory"
    text = f"{text}: >= {target} of the {kind} ceiling"
    return Promise("line1", text, "race", "of memory ceiling", target, where={"line": ("line1",), **where})


def _read(text: str, target: float, **where: Container[Any]) -> Promise:
    text = f"{text}: >= {target} of the read ceiling"
    return Promise("line2", text, "race", "of memory ceiling", target, where={"line": ("line2",), **where})


def _variant(line: str, text: str, metric: str, target: float, *, at_least: bool = False, **where: Any) -> Promise:
    return Promise(line, text, "variant", metric, target, at_least, where)


PROMISES = [
    _ceiling("CE float32, 100 to 128000 classes", 0.85, loss=CE, dtype=F32, n_classes=MANY),
    _ceiling("CE float32, 32 classes", 0.6, loss=CE, dtype=F32, n_classes=(32,)),
    _ceiling("CE float32, 10 classes", 0.5, loss=CE, dtype=F32, n_classes=(10,)),
    _ceiling("BCE float32", 0.85, loss=BCE, dtype=F32),
    _ceiling("both focal losses float32, gamma 2", 0.7, loss=FOCAL, dtype=F32, gamma=(2.0,)),
    _ceiling("both focal losses float32, gamma 1.5", 0.5, loss=FOCAL, dtype=F32, gamma=(1.5,)),
    _ceiling("CE float64, 100 to 128000 classes", 0.75, loss=CE, dtype=F64, n_classes=MANY),
    _ceiling("CE float64, 32 classes", 0.6, loss=CE, dtype=F64, n_classes=(32,)),
    _ceiling("CE float64, 10 classes", 0.5, loss=CE, dtype=F64, n_classes=(10,)),
    _ceiling("BCE float64", 0.75, loss=BCE, dtype=F64),
    _ceiling("both focal losses float64", 0.5, loss=FOCAL, dtype=F64),
    _read("value, float32", 0.6, dtype=F32),
    _read("value, float64", 0.5, dtype=F64),
    Promise(
        "line3",
        ">= 3x the fastest peer at 200000 and 2000000 rows",
        "race",
        "over fastest peer",
        3,
        where={"line": ("line3",), "n_classes": FEW_CLASSES},
    ),
    Promise(
        "line3",
        ">= 5x the fastest peer at 2000000 rows",
        "race",
        "over fastest peer",
        5,
        where={"line": ("line3",), "n_classes": FEW_CLASSES, "rows": LARGE_ROWS},
    ),
    Promise(
        "line3",
        ">= 15x the NumPy textbook form",
        "race",
        "over NumPy textbook",
        15,
        where={"line": ("line3",), "n_classes": FEW_CLASSES},
    ),
    Promise("line4", ">= 3x the fastest peer in every case", "race", "over fastest peer", 3),
    _variant(
        "line4",
        "class weights, smoothing, ignore_index, pos_weight: <= 1.3x the plain case",
        "over plain",
        1.3,
        topic=("options",),
        variant=("class weights", "smoothing", "ignore_index", "pos_weight"),
    ),
    _variant(
        "line4",
        "soft targets: at most the extra bytes (time over plain / bytes over plain <= 1)",
        "over plain per byte",
        1.0,
        topic=("options",),
        variant=("soft target",),
    ),
    Promise("line5", "<= 5x one np.add on the same arrays", "race", "over np.add", 5, False, {"line": ("line5",)}),
    Promise(
        "line6",
        "time per element flat from 10^7 elements to what memory allows (longest / shortest <= 1.15)",
        "sweep",
        "spread",
        1.15,
        False,
        {"topic": ("elements",)},
    ),
    Promise(
        "line6",
        "time per element flat from 100 to 100000 classes (longest / shortest <= 1.15)",
        "sweep",
        "spread",
        1.15,
        False,
        {"topic": ("classes beyond cache",)},
    ),
    Promise(
        "line6",
        "no cliff at any class count from 1 to 300 (neighbours: element dearer or row cheaper by <= 1.3x)",
        "sweep",
        "cliff",
        1.3,
        False,
        {"topic": ("class counts", "class counts, coarse")},
    ),
    _variant(
        "line6",
        "two threads >= 1.8x one thread where one is below half the ceiling of two",
        "over plain",
        1.8,
        at_least=True,
        topic=("threads",),
        variant=("one thread",),
        below_half_ceiling=(True,),
    ),
    Promise(
        "line6",
        "OMP_NUM_THREADS=1 not slower than in the results before (time over that of a copy, <= 1.05x)",
        "one thread",
        "over before",
        1.05,
        False,
    ),
    _variant(
        "line6",
        "AVX2 >= 0.6 of AVX-512's speed",
        "speed of plain",
        0.6,
        at_least=True,
        topic=("levels",),
        variant=("avx2",),
        plain_name=("avx512",),
    ),
    _variant(
        "line6",
        "baseline >= 4x the NumPy textbook form",
        "over NumPy textbook",
        4,
        at_least=True,
        topic=("levels",),
        variant=("baseline",),
    ),
    _variant(
        "line7",
        "fresh output: at most np.empty + fill above grad_out (difference / fill <= 1)",
        "above plain, in fills",
        1.0,
        topic=("fresh outputs",),
        variant=("fresh",),
    ),
    Promise("line7", "peak memory: inputs, outputs and < 2 MB", "resident set", "extra MB", 2, False),
    _variant(
        "line8",
        "class axis not last (N, C, d): >= 0.5 of the copy ceiling",
        "of memory ceiling",
        0.5,
        at_least=True,
        topic=("class axis 1",),
    ),
    _variant(
        "line8",
        "strided rows and F-order: <= 1.3x C-order",
        "over plain",
        1.3,
        topic=("layouts",),
        variant=("F", "every second row", "part of wider rows"),
    ),
    _variant(
        "line9",
        "float16 and bfloat16: <= 1x float32 per element",
        "over plain",
        1.0,
        topic=("half precision",),
        variant=("float16", "bfloat16"),
    ),
]
