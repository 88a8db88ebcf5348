"""fastxent and its peers, each in the forms in which it can do the job; the fastest form is the one that is shown.

A contender is a function from a `Problem` to its forms, ``{how: call}``, where a call returns ``(value, gradient)``
(the gradient is None for the value alone). It imports its library itself, so that a missing one is only missing.
No forms at all mean that the contender cannot do this case, as torch and JAX cannot write over the logits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import Problem

Call = Callable[[], tuple[Any, Any]]


def fastxent(problem: Problem) -> Mapping[str, Call]:
    """Call the subject."""
    from fastxent import CrossEntropy

    return _as_fastxent(CrossEntropy(), problem)


def reference(problem: Problem) -> Mapping[str, Call]:
    """Call the definitions in plain NumPy, which have the accuracy of fastxent."""
    from fastxent._reference import CrossEntropy

    return _as_fastxent(CrossEntropy(), problem)


def _as_fastxent(loss: Any, problem: Problem) -> Mapping[str, Call]:
    logits, target, grad = problem.logits, problem.target, problem.grad
    if problem.case.operation == "value":
        return {"call": lambda: (loss(logits, target), None)}
    if grad is None:
        return {"value_and_grad": lambda: loss.value_and_grad(logits, target)}
    return {"value_and_grad": lambda: loss.value_and_grad(logits, target, grad_out=grad)}


def textbook(problem: Problem) -> Mapping[str, Call]:
    """Write the usual lines of NumPy: shift, exponentials, sum, logarithm, p - 1."""
    logits, target, grad = problem.logits, problem.target, problem.grad
    n_rows, every_row = len(logits), np.arange(len(logits))

    def value() -> tuple[Any, Any]:
        p = logits - logits.max(axis=1, keepdims=True)
        of_target = p[every_row, target]
        return np.mean(np.log(np.exp(p, out=p).sum(axis=1)) - of_target), None

    def value_and_grad() -> tuple[Any, Any]:
        p = np.subtract(logits, logits.max(axis=1, keepdims=True), out=grad)
        of_target = p[every_row, target]
        total = np.exp(p, out=p).sum(axis=1, keepdims=True)
        p /= total
        p[every_row, target] -= 1
        p /= n_rows
        return np.mean(np.log(total[:, 0]) - of_target), p

    return {"six lines": value if problem.case.operation == "value" else value_and_grad}


def scipy(problem: Problem) -> Mapping[str, Call]:
    """Call SciPy's `log_softmax`, and make the gradient from it."""
    from scipy.special import log_softmax

    logits, target, grad = problem.logits, problem.target, problem.grad
    n_rows, every_row = len(logits), np.arange(len(logits))

    def value() -> tuple[Any, Any]:
        return -np.mean(log_softmax(logits, axis=1)[every_row, target]), None

    def value_and_grad() -> tuple[Any, Any]:
        log_p = log_softmax(logits, axis=1)
        mean_loss = -np.mean(log_p[every_row, target])
        p = np.exp(log_p, out=log_p if grad is None else grad)
        p[every_row, target] -= 1
        p /= n_rows
        return mean_loss, p

    return {"log_softmax": value if problem.case.operation == "value" else value_and_grad}


def scikit_learn(problem: Problem) -> Mapping[str, Call]:
    """Call the private loss under scikit-learn's linear models and boosting."""
    from sklearn._loss.loss import HalfMultinomialLoss

    logits, grad, n_threads = problem.logits, problem.grad, problem.n_threads
    loss = HalfMultinomialLoss(n_classes=problem.case.classes)
    labels = problem.target.astype(logits.dtype)  # the only kind it takes
    # It sums; weights of one over the number of rows make that a mean without another pass over the gradient.
    weight = np.full(len(logits), 1 / len(logits), dtype=logits.dtype)
    losses = None if grad is None else np.empty_like(weight)

    def value() -> tuple[Any, Any]:
        return np.sum(loss.loss(labels, logits, weight, losses, n_threads=n_threads)), None

    def value_and_grad() -> tuple[Any, Any]:
        each, gradient = loss.loss_gradient(labels, logits, weight, losses, grad, n_threads=n_threads)
        return np.sum(each), gradient

    return {"HalfMultinomialLoss": value if problem.case.operation == "value" else value_and_grad}


def torch_eager(problem: Problem) -> Mapping[str, Call]:
    """Use torch as its users do, and by hand without autograd, which saves a copy and a pass."""
    import torch
    from torch.nn import functional

    if problem.in_place:
        return {}
    torch.set_num_threads(problem.n_threads)
    logits, target = torch.from_numpy(problem.logits), torch.from_numpy(problem.target)
    grad_out = torch.empty_like(logits) if problem.grad is None else torch.from_numpy(problem.grad)
    n_rows, every_row = len(logits), torch.arange(len(logits))
    if problem.case.operation == "value":
        return {"cross_entropy": lambda: (functional.cross_entropy(logits, target), None)}

    def by_hand() -> tuple[Any, Any]:
        p = torch.log_softmax(logits, 1) if problem.grad is None else torch.log_softmax(logits, 1, out=grad_out)
        mean_loss = functional.nll_loss(p, target)
        p.exp_()
        p[every_row, target] -= 1
        p.div_(n_rows)
        return mean_loss, p

    return {"backward": _backward(functional.cross_entropy, logits, target), "by hand": by_hand}


def torch_compiled(problem: Problem) -> Mapping[str, Call]:
    """Compile the loss with torch, forward and backward."""
    import torch

    if problem.in_place:
        return {}
    torch.set_num_threads(problem.n_threads)
    torch.compiler.reset()  # each case is compiled for its own shape
    compiled = torch.compile(partial(torch.nn.functional.cross_entropy), dynamic=False)
    logits, target = torch.from_numpy(problem.logits), torch.from_numpy(problem.target)
    if problem.case.operation == "value":
        return {"cross_entropy": lambda: (compiled(logits, target), None)}
    return {"backward": _backward(compiled, logits, target)}


def _backward(cross_entropy: Any, logits: Any, target: Any) -> Call:
    leaf = logits.detach().requires_grad_()  # shares the memory; the arrays of the problem stay without a gradient

    def backward() -> tuple[Any, Any]:
        leaf.grad = None  # else the new gradient is added to the old one, which costs a pass
        mean_loss = cross_entropy(leaf, target)
        mean_loss.backward()
        return mean_loss.detach(), leaf.grad

    return backward


def jax_jit(problem: Problem) -> Mapping[str, Call]:
    """Compile with JAX; the arrays are on the device before the clock starts."""
    import jax
    import jax.numpy as jnp

    config: Any = jax.config  # neither is annotated
    finished: Any = jax.block_until_ready
    config.update("jax_enable_x64", True)
    if problem.in_place:
        return {}
    logits, target = jax.device_put(problem.logits), jax.device_put(problem.target.astype(np.int32))

    def by_index(logits: Any, target: Any) -> Any:  # optax.losses.softmax_cross_entropy_with_integer_labels
        of_target = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - of_target)

    def by_mask(logits: Any, target: Any) -> Any:  # the gradient of an index is a scatter, that of a mask is not
        is_target = jax.lax.broadcasted_iota(target.dtype, logits.shape, 1) == target[:, None]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.sum(jnp.where(is_target, logits, 0), axis=1))

    def prepared(loss: Any) -> Call:
        if problem.case.operation == "value":
            value = jax.jit(loss)
            return lambda: (finished(value(logits, target)), None)
        value_and_grad = jax.jit(jax.value_and_grad(loss))
        return lambda: finished(value_and_grad(logits, target))

    return {"index": prepared(by_index), "mask": prepared(by_mask)}


@dataclass(frozen=True)
class Contender:
    """A column of the tables; `peer` marks the libraries that a user would otherwise reach for."""

    label: str
    module: str
    distribution: str
    forms: Callable[[Problem], Mapping[str, Call]]
    peer: bool = True
    strict: bool = False  # held to the accuracy that fastxent promises
    default: bool = True  # measured without being asked for

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
    "fastxent": Contender("fastxent", "fastxent", "fastxent", fastxent, peer=False, strict=True),
    "numpy": Contender("NumPy reference", "fastxent._reference", "numpy", reference, peer=False, strict=True),
    "numpy_textbook": Contender("NumPy textbook", "numpy", "numpy", textbook, peer=False),
    "scipy": Contender("SciPy", "scipy.special", "scipy", scipy),
    "scikit-learn": Contender("scikit-learn", "sklearn._loss.loss", "scikit-learn", scikit_learn),
    "torch": Contender("torch", "torch", "torch", torch_eager),
    "torch.compile": Contender("torch.compile", "torch._inductor", "torch", torch_compiled, default=False),
    "jax": Contender("JAX", "jax", "jax", jax_jit),
}
