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

# In eps: the accuracy contract allows (4 + gap) eps; logits of scale 3 have gaps up to about 20.
TOLERANCE = 30
# Both sides of every change of regime: few classes, rows, long rows; and lane edges.
N_CLASSES = (1, 2, 3, 8, 10, 17, 100, 3000)
N_ROWS = 50


def differences(dtype: Any, n_classes: int) -> Iterator[tuple[str, float]]:
    """Yield (what, error in eps) for value, gradient and Hessian.

    The error is relative to the largest magnitude of its row; with soft targets, whose gradient is a difference, to the
    weight of the row where that is larger.
    """
    generator = np.random.default_rng(n_classes)
    logits = generator.normal(scale=3.0, size=(N_ROWS, n_classes)).astype(dtype)
    labels = generator.integers(n_classes, size=N_ROWS)
    weights = generator.uniform(0.5, 1.0, size=N_ROWS)
    soft = (np.eye(n_classes)[labels] * 0.75 + 0.25 / n_classes).astype(dtype)
    weighted: dict[str, Any] = {"class_weight": np.linspace(0.5, 2, n_classes), "label_smoothing": 0.125}
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("indices", labels, {}),
        ("probabilities", soft, {}),
        ("weights and smoothing", labels, weighted),
    ]
    for name, target, options in cases:
        got = fx.CrossEntropy(reduction="none", **options).value_grad_hess(logits, target, weights)
        exact = _reference.CrossEntropy(reduction="none", **options)
        expected = exact.value_grad_hess(logits.astype(np.longdouble), target, weights)
        least = float(np.finfo(dtype).tiny) if name == "indices" else 0.5
        for part, a, b in zip(("value", "gradient", "Hessian"), got, expected, strict=True):
            size = np.abs(b) if b.ndim == 1 else np.abs(b).max(axis=-1, keepdims=True)
            yield f"{name}, {part}", float(np.max(np.abs(a - b) / np.maximum(size, least)) / np.finfo(dtype).eps)


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
    commands.add_parser("info", help="version, instruction-set level, OpenMP, threads and why that number")
    commands.add_parser("selftest", help="check every instruction-set level of this machine against the reference")
    if parser.parse_args(arguments).command == "info":
        fx.show_config()
        return 0
    return selftest()


if __name__ == "__main__":
    sys.exit(main())
