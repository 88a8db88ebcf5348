"""What is measured: one table of cases, chosen before anything was measured, and the arrays of a case.

Sizes are data: change the tables, not the code. The number of a line is that of the goals in `benchmarks.promises`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOGIT_SCALE = 3.0  # normal logits of a trained model: confident, not saturated
SEED = 20240229
IGNORED_FRACTION = 0.05  # of the rows, where a case has an `ignore_index`
LARGE_BYTES = 2**26  # of logits: beyond every cache but the largest servers'
SHORT_NAMES = {
    "CrossEntropy": "CE",
    "FocalLoss": "focal",
    "BinaryCrossEntropy": "BCE",
    "BinaryFocalLoss": "binary focal",
}
BINARY = frozenset({"BinaryCrossEntropy", "BinaryFocalLoss"})
FLOATS = ("float32", "float64")


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the NumPy type of that name; ``"bfloat16"`` is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a loss, a shape, a dtype and what is asked for.

    `operation` is ``"value"`` or ``"value_and_grad"``; `output` says where the gradient goes: ``"grad_out"`` (a buffer
    of the caller), ``"fresh"`` (a new array at every call) or ``"in_place"`` (over the logits). `options` are those of
    the loss; the class weight ``"ramp"`` stands for as many different weights as there are classes.
    """

    loss: str
    shape: tuple[int, ...]
    dtype: str
    operation: str = "value_and_grad"
    output: str = "grad_out"
    options: dict[str, Any] = field(default_factory=dict)
    soft_target: bool = False  # probabilities instead of class indices
    layout: str = "C"
    threads: int | None = None  # None: as many as the run uses
    level: str | None = None  # of the instruction set; None: that of the run
    line: str = "line4"  # the goal that it is measured for
    quick: bool = False  # also part of ``--quick``
    yardstick: bool = False  # so small that the call itself is the cost: shown beside one ``np.add``

    @property
    def binary(self) -> bool:
        """Whether every element is a yes or a no by itself."""
        return self.loss in BINARY

    @property
    def axis(self) -> int:
        """The class axis."""
        return int(self.options.get("axis", -1))

    @property
    def n_classes(self) -> int:
        """The length of the class axis; 1 for a binary loss."""
        return 1 if self.binary else self.shape[self.axis]

    @property
    def elements(self) -> int:
        """How many logits there are."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """How many losses are averaged."""
        return self.elements // self.n_classes

    @property
    def itemsize(self) -> int:
        """Bytes of a logit."""
        return dtype_of(self.dtype).itemsize

    @property
    def shape_text(self) -> str:
        """The shape, ``"200000x10"``."""
        return "x".join(map(str, self.shape))

    @property
    def what(self) -> str:
        """The operation in words."""
        if self.operation == "value":
            return "value"
        return "value+grad" if self.output == "grad_out" else f"value+grad {self.output.replace('_', ' ')}"

    @property
    def name(self) -> str:
        """Loss, shape, dtype, operation and options: ``"CE 200000x10 float32 value+grad"``."""
        options = [f"{name} {value}" for name, value in self.options.items() if name not in ("axis", "reduction")]
        return " ".join([SHORT_NAMES[self.loss], self.shape_text, self.dtype, self.what, *options])

    @property
    def array_bytes(self) -> int:
        """Bytes of the logits (and of the gradient)."""
        return self.elements * self.itemsize

    @property
    def wide_target(self) -> bool:
        """Whether the target is as large as the logits."""
        return self.binary or self.soft_target

    @property
    def bytes_moved(self) -> int:
        """Bytes that any implementation must move between memory and the cores."""
        # I/O: read logits + target, write grad
        target = self.array_bytes if self.wide_target else self.rows * np.dtype(np.int64).itemsize
        written = 0 if self.operation == "value" else self.array_bytes
        return self.array_bytes + target + written

    def make_loss(self, module: ModuleType) -> Any:
        """Return the loss of this case from fastxent or from its reference."""
        options = dict(self.options)
        if options.get("class_weight") == "ramp":
            options["class_weight"] = np.linspace(0.5, 1.5, self.n_classes)
        return getattr(module, self.loss)(**options)


def of_bytes(loss: str, n_classes: int, dtype: str, n_bytes: int = LARGE_BYTES, **more: Any) -> Case:
    """Return a case whose logits take just over `n_bytes`."""
    rows = n_bytes // (dtype_of(dtype).itemsize * n_classes) + 1
    return Case(loss, (rows,) if loss in BINARY else (rows, n_classes), dtype, **more)


FOCAL_GAMMAS = (2.0, 1.5)  # the usual one, and one whose power is not a product
LARGE_CLASSES = (10, 32, 100, 1_000, 32_000, 128_000)
FEW_CLASSES = (2, 3, 5, 10, 20, 32)
PICTURE_CLASSES = (2, 3, 5, 20, 300, 4_000)  # those of the picture that are not among `LARGE_CLASSES`
ALPHA = 0.25  # torchvision's default

MEMORY_CASES = [
    *(
        of_bytes("CrossEntropy", classes, dtype, line="line1", quick=dtype == "float32" and classes in (10, 1_000))
        for classes in LARGE_CLASSES
        for dtype in FLOATS
    ),
    *(of_bytes("BinaryCrossEntropy", 1, dtype, line="line1", quick=dtype == "float32") for dtype in FLOATS),
    *(
        of_bytes("BinaryFocalLoss", 1, dtype, line="line1", options={"gamma": gamma, "alpha": ALPHA})
        for gamma in FOCAL_GAMMAS
        for dtype in FLOATS
    ),
    *(
        of_bytes("FocalLoss", 100, dtype, line="line1", options={"gamma": gamma})
        for gamma in FOCAL_GAMMAS
        for dtype in FLOATS
    ),
]
VALUE_CASES = [
    *(
        of_bytes(
            "CrossEntropy", classes, dtype, line="line2", operation="value", quick=(classes, dtype) == (100, "float32")
        )
        for classes in LARGE_CLASSES
        for dtype in FLOATS
    ),
    *(of_bytes("BinaryCrossEntropy", 1, dtype, line="line2", operation="value") for dtype in FLOATS),
]
FEW_CLASS_CASES = [
    Case(
        "CrossEntropy",
        (rows, classes),
        dtype,
        line="line3",
        quick=rows < 1_000_000 and classes in (3, 10) and dtype == "float32",
    )
    for rows in (200_000, 2_000_000)
    for classes in FEW_CLASSES
    for dtype in FLOATS
]
PEER_CASES = [
    *(
        Case("CrossEntropy", shape, dtype, quick=shape == (65_536, 100) and dtype == "float32")
        for shape in [(65_536, 32), (65_536, 100), (16_384, 1_000)]
        for dtype in FLOATS
    ),
    *(Case("BinaryCrossEntropy", (1_000_000,), dtype, quick=dtype == "float32") for dtype in FLOATS),
    Case("BinaryFocalLoss", (1_000_000,), "float32", options={"gamma": 2.0, "alpha": ALPHA}, quick=True),
    Case("FocalLoss", (200_000, 10), "float32", options={"gamma": 2.0}, quick=True),
    *(Case("CrossEntropy", (200_000, classes), "float32", operation="value") for classes in (3, 10)),
    *(
        Case("CrossEntropy", shape, "float32", output=output)
        for shape in [(200_000, 10), (16_384, 1_000)]
        for output in ("fresh", "in_place")
    ),
]
SMALL_CASES = [
    Case("CrossEntropy", (32, 10), "float32", line="line5", quick=True, yardstick=True),
    Case("CrossEntropy", (1, 3), "float32", line="line5", quick=True, yardstick=True),
]
# Only points of the picture, with `MEMORY_CASES` in float32, which have as many elements.
PICTURE_CASES = [of_bytes("CrossEntropy", classes, "float32", line="picture") for classes in PICTURE_CLASSES]

CASES = [*MEMORY_CASES, *VALUE_CASES, *FEW_CLASS_CASES, *PEER_CASES, *SMALL_CASES, *PICTURE_CASES]


@dataclass
class Problem:
    """The arrays of a case, as every contender gets them.

    `grad` is the buffer for the gradient: None when each call shall make its own, and `logits` itself when the
    gradient is written over them. Then `restore` puts the logits back, outside the timing.
    """

    case: Case
    n_threads: int
    logits: NDArray[Any]
    target: NDArray[Any]
    grad: NDArray[Any] | None
    pristine: NDArray[Any] = field(repr=False)

    @property
    def in_place(self) -> bool:
        """Whether the gradient overwrites the logits."""
        return self.grad is self.logits

    def restore(self) -> None:
        """Undo what an in-place call did to the logits."""
        if self.in_place:
            np.copyto(self.logits, self.pristine)


def make_problem(case: Case, n_threads: int) -> Problem:
    """Draw the arrays of `case`: the same numbers for the same shape, in every run."""
    rng = np.random.default_rng([SEED, *case.shape])
    dtype = dtype_of(case.dtype)
    numbers = rng.standard_normal(case.shape, dtype=np.float32)
    numbers *= LOGIT_SCALE
    pristine = arrange(numbers.astype(dtype, copy=False), case.layout)
    target = _draw_target(case, rng, dtype)
    logits = pristine.copy() if case.output == "in_place" else pristine
    if case.operation == "value" or case.output == "fresh":
        grad = None
    else:
        # Written once, as np.zeros would not, so that no contender pays for the first touch of its pages.
        grad = logits if case.output == "in_place" else arrange(np.full(case.shape, 0, dtype), case.layout)
    return Problem(case, case.threads or n_threads, logits, target, grad, pristine)


def _draw_target(case: Case, rng: np.random.Generator, dtype: np.dtype[Any]) -> NDArray[Any]:
    ignore_index = case.options.get("ignore_index")
    if case.binary:
        target = rng.integers(0, 2, size=case.shape, dtype=np.int8).astype(dtype)
    elif case.soft_target:
        target = rng.random(case.shape, dtype=np.float32)
        target /= target.sum(axis=case.axis, keepdims=True)
        return target.astype(dtype, copy=False)
    else:
        without_classes = list(case.shape)
        del without_classes[case.axis]
        target = rng.integers(0, case.n_classes, size=without_classes)
    if ignore_index is not None:
        target[rng.random(target.shape) < IGNORED_FRACTION] = ignore_index
    return target


def _every_second_row(array: NDArray[Any]) -> NDArray[Any]:
    twice = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
    twice[::2] = array
    return twice[::2]


def _part_of_wider_rows(array: NDArray[Any]) -> NDArray[Any]:
    wider = np.zeros((*array.shape[:-1], array.shape[-1] + 7), array.dtype)
    wider[..., : array.shape[-1]] = array
    return wider[..., : array.shape[-1]]


LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "every second row": _every_second_row,
    "part of wider rows": _part_of_wider_rows,
}


def arrange(array: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return `array` laid out in memory as `LAYOUTS` says."""
    return LAYOUTS[layout](array)
