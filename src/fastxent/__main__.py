"""``python -m fastxent info`` and ``python -m fastxent selftest``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import fastxent as fx
from fastxent import _config, _reference

# In eps: the accuracy contract allows (8 + gamma (4 + gap)) eps; logits of scale 3 have gaps up to about 20.
TOLERANCE = 45
# Both sides of every change of regime: few classes, rows, long rows; and lane edges.
N_CLASSES = (1, 2, 3, 8, 10, 17, 100, 3000)
MOST_ROWS, MOST_LOGITS = 50, 5000  # enough for every kernel, and a second for all of it
# The Hessian of a focal loss crosses zero, and next to that nothing is relatively accurate.
LEAST_BINARY = 0.01
SOFTMAX_LOSSES: tuple[tuple[str, dict[str, Any]], ...] = (("CrossEntropy", {}), ("FocalLoss", {"gamma": 1.5}))
BINARY_LOSSES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("BinaryCrossEntropy", {"pos_weight": 2.0}),
    ("BinaryFocalLoss", {"gamma": 1.5, "alpha": 0.25}),
)


def compared(name: str, options: dict[str, Any], logits: Any, target: Any, weights: Any, least: float) -> Iterator[Any]:
    """Yield (what, error in eps) for value, gradient and Hessian of one loss, beside its definition.

    Errors are relative to the largest magnitude of their row, or to ``least`` where that is larger.
    """
    got = getattr(fx, name)(reduction="none", **options).value_grad_hess(logits, target, weights)
    exact = getattr(_reference, name)(reduction="none", **options)
    expected = exact.value_grad_hess(logits.astype(np.longdouble), target, weights)
    for part, a, b in zip(("value", "gradient", "Hessian"), got, expected, strict=True):
        size = np.abs(b) if b.ndim == 1 else np.abs(b).max(axis=-1, keepdims=True)
        error = np.max(np.abs(a - b) / np.maximum(size, least)) / np.finfo(logits.dtype).eps
        yield f"{name}({', '.join(options)}), {part}", float(error)


def differences(dtype: Any, n_classes: int) -> Iterator[tuple[str, float]]:
    """Yield (what, error in eps) for all losses; soft gradients are differences, so relative to the weight of the row."""
    generator = np.random.default_rng(n_classes)
    n_rows = min(MOST_ROWS, 1 + MOST_LOGITS // n_classes)
    logits = generator.normal(scale=3.0, size=(n_rows, n_classes)).astype(dtype)
    labels = generator.integers(n_classes, size=n_rows)
    weights = generator.uniform(0.5, 1.0, size=n_rows)
    soft = (np.eye(n_classes)[labels] * 0.75 + 0.25 / n_classes).astype(dtype)
    weighted: dict[str, Any] = {"class_weight": np.linspace(0.5, 2, n_classes), "label_smoothing": 0.125}
    tiny = float(np.finfo(dtype).tiny)
    for name, options in SOFTMAX_LOSSES:
        yield from compared(name, options, logits, labels, weights, tiny)
        yield from compared(name, options, logits, soft, weights, 0.5)
        yield from compared(name, options | weighted, logits, labels, weights, 0.5)
    for name, options in BINARY_LOSSES:
        yield from compared(name, options, logits, soft > 0.5, weights, LEAST_BINARY)
        yield from compared(name, options | {"label_smoothing": 0.125}, logits, soft, weights, 0.5)


def selftest() -> int:
    """Compare every usable level with the reference; 0 if all agree."""
    start, failures = time.perf_counter(), 0
    for level in fx._config.usable_levels():
        _config.use_level(level)
        for dtype in (np.float32, np.float64):
            worst, where = 0.0, ""
            for n_classes in N_CLASSES:
                for what, error in differences(dtype, n_classes):
                    if not error <= worst:
                        worst, where = error, f"{what}, {n_classes} classes"
            verdict = "ok" if worst <= TOLERANCE else "FAILED"
            failures += verdict != "ok"
            print(f"{level:<9} {dtype.__name__}  {verdict}: worst error {worst:.1f} eps ({where})")
    print(
        f"{'all levels agree with the reference' if not failures else f'{failures} failed'}"
        f" ({time.perf_counter() - start:.2f} s)"
    )
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastxent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="version, instruction-set level, OpenMP, threads and why that number, GPU")
    info.add_argument("--gpu", action="store_true", help="import CuPy, where it is installed, and look for a GPU")
    commands.add_parser("selftest", help="check every instruction-set level of this machine against the reference")
    chosen = parser.parse_args(arguments)
    if chosen.command == "info":
        if chosen.gpu:
            from fastxent.gpu import is_available

            is_available()
        fx.show_config()
        return 0
    return selftest()


if __name__ == "__main__":
    sys.exit(main())
