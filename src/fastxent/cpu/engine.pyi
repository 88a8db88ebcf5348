"""Types of the compiled engine."""

from collections.abc import Callable
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

TASKS: Final[dict[str, int]]
INPUTS: Final[dict[str, int]]
REGIMES: Final[tuple[str, ...]]
BAD_TARGET: Final[int]
BAD_WEIGHT: Final[int]
__test__: dict[str, str]

def usable_levels() -> tuple[str, ...]: ...
def use_level(name: str) -> None: ...
def level() -> str: ...
def has_openmp() -> bool: ...
def configure_threads(requested: int, left_out: int, cpu_limit: int) -> None: ...
def openmp_max_threads() -> int: ...
def openmp_thread_limit() -> int: ...
def forked() -> bool: ...
def in_parallel() -> bool: ...
def threads() -> int: ...
def elementary(
    function: Literal["exp", "log1p", "log1p_of_fraction", "log"],
    x: npt.NDArray[np.floating[Any]],
    y: npt.NDArray[np.floating[Any]],
) -> None: ...
def kernel_addresses() -> tuple[int, int]: ...

@disjoint_base
class Job:
    def __new__(
        cls,
        task: str,
        logits: npt.NDArray[Any],
        *,
        grad: npt.NDArray[Any] | None = None,
        hess: npt.NDArray[Any] | None = None,
        loss: npt.NDArray[Any] | None = None,
        target: npt.NDArray[Any] | None = None,
        sample_weight: npt.NDArray[Any] | None = None,
        class_weight: npt.NDArray[Any] | None = None,
        pos_weight: npt.NDArray[Any] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        inputs: str = "logits",
        gamma: float = 0.0,
        alpha: float | None = None,
    ) -> Self: ...
    def survey(self) -> tuple[float, int]: ...
    def compute(self, divisor: float) -> float: ...
    @property
    def plan(self) -> dict[str, Any]: ...

@disjoint_base
class Everyday:
    def __new__(
        cls,
        task: str,
        array_type: type,
        empty_like: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
        *,
        mean: bool,
        label_smoothing: float,
        ignore_index: int | None = None,
        inputs: str = "logits",
        gamma: float = 0.0,
        alpha: float | None = None,
    ) -> Self: ...
    def value(self, logits: Any, target: Any) -> float | None: ...
    def value_and_grad(self, logits: Any, target: Any, grad_out: Any) -> tuple[float, npt.NDArray[Any]] | None: ...
