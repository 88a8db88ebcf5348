"""fastxent and its peers, each in the forms in which it can do the job; the fastest form is the one that is shown.

A contender has for each loss a function from a `Problem` to its forms, ``{how: call}``, where a call returns
``(value, gradient)`` (the gradient is None for the value alone). That imports the library itself, so that a missing one
is only missing. No forms at all mean that the contender cannot do this case, as torch and JAX cannot write over the
logits.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from benchmarks import jax_peers, numpy_peers, torch_peers
from benchmarks.cases import SHORT_NAMES, Problem
from benchmarks.numpy_peers import Call, Forms


def forms_of(module: str) -> Forms:
    """Return the forms of a module with the signatures of fastxent."""

    def forms(problem: Problem) -> Mapping[str, Call]:
        loss = problem.case.make_loss(importlib.import_module(module))
        logits, target, grad = problem.logits, problem.target, problem.grad
        if problem.case.operation == "value":
            return {"call": lambda: (loss(logits, target), None)}
        if grad is None:
            return {"value_and_grad": lambda: loss.value_and_grad(logits, target)}
        return {"value_and_grad": lambda: loss.value_and_grad(logits, target, grad_out=grad)}

    return forms


@dataclass(frozen=True)
class Contender:
    """A column of the tables; `peer` marks the libraries that a user would otherwise reach for."""

    label: str
    module: str
    distribution: str
    losses: Mapping[str, Forms]
    peer: bool = True
    strict: bool = False  # held to the accuracy that fastxent promises
    default: bool = True  # measured without being asked for
    up_to_bytes: float = inf  # of logits: beyond, it would only cost time

    def forms(self, problem: Problem) -> Mapping[str, Call]:
        """Return the forms in which it can solve `problem`."""
        if problem.case.loss not in self.losses or problem.case.array_bytes > self.up_to_bytes:
            return {}
        return self.losses[problem.case.loss](problem)

    def why_missing(self) -> str | None:
        """Return why the library cannot be imported, or None."""
        try:
            importlib.import_module(self.module)
        except (
            ImportError,
            OSError,
            RuntimeError,
            AttributeError,
            ValueError,
        ) as error:  # how broken installations fail
            return f"{type(error).__name__}: {error}"
        return None


CONTENDERS = {
    "fastxent": Contender(
        "fastxent", "fastxent", "fastxent", dict.fromkeys(SHORT_NAMES, forms_of("fastxent")), peer=False, strict=True
    ),
    "numpy": Contender(
        "NumPy reference",
        "fastxent._reference",
        "numpy",
        dict.fromkeys(SHORT_NAMES, forms_of("fastxent._reference")),
        peer=False,
        strict=True,
        up_to_bytes=2**25,  # slower than the textbook and as fast per element at every size
    ),
    "numpy_textbook": Contender("NumPy textbook", "numpy", "numpy", numpy_peers.TEXTBOOK),
    "scipy": Contender(
        "SciPy",
        "scipy.special",
        "scipy",
        numpy_peers.SCIPY,
        up_to_bytes=2**28,  # never the fastest, and its temporaries make it seconds
    ),
    "scikit-learn": Contender("scikit-learn", "sklearn._loss.loss", "scikit-learn", numpy_peers.SCIKIT_LEARN),
    "torch": Contender("torch", "torch", "torch", dict.fromkeys(SHORT_NAMES, torch_peers.eager)),
    "torch.compile": Contender(
        "torch.compile", "torch._inductor", "torch", dict.fromkeys(SHORT_NAMES, torch_peers.compiled), default=False
    ),
    "jax": Contender("JAX", "jax", "jax", dict.fromkeys(SHORT_NAMES, jax_peers.jit)),
}
