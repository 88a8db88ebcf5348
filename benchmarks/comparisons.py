"""fastxent beside itself: what an option, a layout, a dtype, a thread or an instruction set costs.

The first variant of a comparison is the plain one, with which the others are compared; all are timed in turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import ALPHA, FLOATS, LAYOUTS, Case, of_bytes


@dataclass(frozen=True)
class Comparison:
    """One race of fastxent against itself; `extras` are timed in the same race (see `benchmarks.races.EXTRAS`)."""

    line: str
    topic: str
    variants: dict[str, Case]
    extras: tuple[str, ...] = ()
    quick: bool = False

    @property
    def name(self) -> str:
        """Topic and plain case."""
        return f"{self.topic}: {next(iter(self.variants.values())).name}"


def _cross_entropy(rows: int, classes: int, dtype: str = "float32") -> Case:
    return Case("CrossEntropy", (rows, classes), dtype)


EVERYDAY = (_cross_entropy(200_000, 3), _cross_entropy(200_000, 10))
WIDER = (_cross_entropy(65_536, 100), _cross_entropy(16_384, 1_000))
BINARY_CASE = Case("BinaryCrossEntropy", (4_000_000,), "float32")
FOCAL_CASE = Case("BinaryFocalLoss", (4_000_000,), "float32", options={"gamma": 1.5, "alpha": ALPHA})

SOFTMAX_OPTIONS: dict[str, dict[str, Any]] = {
    "soft target": {"soft_target": True},
    "class weights": {"options": {"class_weight": "ramp"}},
    "smoothing": {"options": {"label_smoothing": 0.1}},
    "ignore_index": {"options": {"ignore_index": -100}},
}
BINARY_OPTIONS: dict[str, dict[str, Any]] = {
    "pos_weight": {"options": {"pos_weight": 3.0}},
    "smoothing": {"options": {"label_smoothing": 0.1}},
    "ignore_index": {"options": {"ignore_index": -1}},
}


def _with_changes(plain: Case, changes: dict[str, dict[str, Any]]) -> dict[str, Case]:
    return {"plain": plain} | {name: replace(plain, **change) for name, change in changes.items()}


def _summed(case: Case) -> Case:
    """Return the case without the mean, whose elements would not be normal numbers in half precision."""
    return replace(case, options={**case.options, "reduction": "sum"})


THREADS = {"two threads": 2, "one thread": 1}
LEVELS = ("avx512", "avx2", "baseline")
HALVES = ("float16", "bfloat16")
# Batch, classes, positions: images, volumes, sequences.
INNER_SHAPES = ((26, 10, 65_536), (13, 21, 65_536), (168, 100, 1_000), (17, 1_000, 1_000))

COMPARISONS = [
    *(
        Comparison("line4", "options", _with_changes(case, SOFTMAX_OPTIONS), quick=case is EVERYDAY[1])
        for case in (*EVERYDAY, *WIDER)
    ),
    Comparison("line4", "options", _with_changes(BINARY_CASE, BINARY_OPTIONS)),
    *(
        Comparison("line6", "threads", {name: replace(case, threads=n) for name, n in THREADS.items()}, quick=quick)
        for case, quick in [
            (EVERYDAY[0], False),
            (EVERYDAY[1], True),
            (WIDER[0], False),
            (WIDER[1], True),
            (_cross_entropy(65_536, 100, "float64"), False),
            (BINARY_CASE, False),
            (FOCAL_CASE, False),
        ]
    ),
    *(
        Comparison(
            "line6",
            "levels",
            {level: replace(case, dtype=dtype, level=level) for level in LEVELS},
            extras=("NumPy textbook",),
            quick=case is EVERYDAY[1] and dtype == "float32",
        )
        for case in (*EVERYDAY, *WIDER, BINARY_CASE)
        for dtype in FLOATS
    ),
    *(
        Comparison(
            "line7",
            "fresh outputs",
            {"grad_out": case, "fresh": replace(case, output="fresh")},
            extras=("np.empty + fill",),
            quick=case.n_classes == 100,
        )
        for case in (
            _cross_entropy(200_000, 10),
            of_bytes("CrossEntropy", 10, "float32"),
            of_bytes("CrossEntropy", 100, "float32"),
            of_bytes("CrossEntropy", 1_000, "float64"),
            of_bytes("BinaryCrossEntropy", 1, "float32"),
        )
    ),
    *(
        Comparison("line8", "class axis 1", {"grad_out": Case("CrossEntropy", shape, "float32", options={"axis": 1})})
        for shape in INNER_SHAPES
    ),
    *(
        Comparison(
            "line8", "layouts", {layout: replace(case, layout=layout) for layout in LAYOUTS}, quick=case is EVERYDAY[1]
        )
        for case in (*EVERYDAY, *WIDER)
    ),
    *(
        Comparison(
            "line9",
            "half precision",
            {dtype: _summed(replace(case, dtype=dtype)) for dtype in ("float32", *HALVES)},
            quick=case is EVERYDAY[1],
        )
        for case in (*EVERYDAY, *WIDER, BINARY_CASE)
    ),
]


def runnable(comparison: Comparison, threads: int, levels: tuple[str, ...]) -> Comparison | None:
    """Return the comparison without the variants that this machine cannot run; None if nothing is left to compare."""
    variants = {
        name: case
        for name, case in comparison.variants.items()
        if (case.threads or 1) <= threads and (case.level is None or case.level in levels)
    }
    enough = len(variants) > 1 or (len(comparison.variants) == 1 and variants)
    return replace(comparison, variants=variants) if enough else None
