"""torch as its users write it, by hand without autograd, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.cases import Problem
from benchmarks.numpy_peers import Call

Formula = Callable[[Any, Any], Any]


def formula_of(problem: Problem) -> Formula:
    """Return the mean loss as a function of logits and target that autograd can follow."""
    import torch
    from torch.nn import functional

    options = problem.case.options

    def focal(logits: Any, target: Any) -> Any:
        loss = functional.cross_entropy(logits, target, reduction="none")
        return ((1 - torch.exp(-loss)) ** options["gamma"] * loss).mean()

    def binary_focal(logits: Any, target: Any) -> Any:  # torchvision/ops/focal_loss.py
        p = torch.sigmoid(logits)
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p_t = p * target + (1 - p) * (1 - target)
        loss = loss * ((1 - p_t) ** options["gamma"])
        alpha_t = options["alpha"] * target + (1 - options["alpha"]) * (1 - target)
        return (alpha_t * loss).mean()

    formulas: dict[str, Formula] = {
        "CrossEntropy": functional.cross_entropy,
        "FocalLoss": focal,
        "BinaryCrossEntropy": functional.binary_cross_entropy_with_logits,
        "BinaryFocalLoss": binary_focal,
    }
    return formulas[problem.case.loss]


def eager(problem: Problem) -> Mapping[str, Call]:
    """Use torch as its users do, and by hand without autograd, which saves copies and passes."""
    import torch

    if problem.in_place:
        return {}
    torch.set_num_threads(problem.n_threads)
    formula, logits, target = formula_of(problem), torch.from_numpy(problem.logits), torch.from_numpy(problem.target)
    if problem.case.operation == "value":
        return {"function": lambda: (formula(logits, target), None)}
    grad_out = torch.empty_like(logits) if problem.grad is None else torch.from_numpy(problem.grad)
    by_hand = BY_HAND[problem.case.loss](problem, logits, target, None if problem.grad is None else grad_out)
    return {"backward": backward(formula, logits, target), "by hand": by_hand}


def compiled(problem: Problem) -> Mapping[str, Call]:
    """Compile the loss with torch, forward and backward."""
    import torch

    if problem.in_place:
        return {}
    torch.set_num_threads(problem.n_threads)
    torch.compiler.reset()  # each case is compiled for its own shape
    formula = formula_of(problem)

    def own(logits: Any, target: Any) -> Any:  # a function of ours, as torch's own are compiled for good
        return formula(logits, target)

    fast: Formula = torch.compile(own, dynamic=False)
    logits, target = torch.from_numpy(problem.logits), torch.from_numpy(problem.target)
    if problem.case.operation == "value":
        return {"function": lambda: (fast(logits, target), None)}
    return {"backward": backward(fast, logits, target)}


def backward(formula: Formula, logits: Any, target: Any) -> Call:
    """Return the call of `formula` and of its backward pass."""
    leaf = logits.detach().requires_grad_()  # shares the memory; the arrays of the problem stay without a gradient

    def call() -> tuple[Any, Any]:
        leaf.grad = None  # else the new gradient is added to the old one, which costs a pass
        mean_loss = formula(leaf, target)
        mean_loss.backward()
        return mean_loss.detach(), leaf.grad

    return call


def _cross_entropy_by_hand(problem: Problem, logits: Any, target: Any, grad_out: Any) -> Call:
    import torch
    from torch.nn import functional

    n_rows, every_row = len(logits), torch.arange(len(logits))

    def by_hand() -> tuple[Any, Any]:
        p = torch.log_softmax(logits, 1) if grad_out is None else torch.log_softmax(logits, 1, out=grad_out)
        mean_loss = functional.nll_loss(p, target)
        p.exp_()
        p[every_row, target] -= 1
        p.div_(n_rows)
        return mean_loss, p

    return by_hand


def _focal_by_hand(problem: Problem, logits: Any, target: Any, grad_out: Any) -> Call:
    import torch

    gamma = problem.case.options["gamma"]
    n_rows, every_row = len(logits), torch.arange(len(logits))

    def by_hand() -> tuple[Any, Any]:
        p = torch.log_softmax(logits, 1) if grad_out is None else torch.log_softmax(logits, 1, out=grad_out)
        loss = -p[every_row, target]
        p.exp_()
        p_t = p[every_row, target]
        weight = (1 - p_t) ** gamma
        p[every_row, target] -= 1
        p.mul_(((weight + gamma * p_t * loss * (1 - p_t) ** (gamma - 1)) / n_rows)[:, None])
        return (weight * loss).mean(), p

    return by_hand


def _binary_cross_entropy_by_hand(problem: Problem, logits: Any, target: Any, grad_out: Any) -> Call:
    import torch
    from torch.nn import functional

    def by_hand() -> tuple[Any, Any]:
        mean_loss = functional.binary_cross_entropy_with_logits(logits, target)
        p = torch.sigmoid(logits) if grad_out is None else torch.sigmoid(logits, out=grad_out)
        return mean_loss, p.sub_(target).div_(p.numel())

    return by_hand


def _binary_focal_by_hand(problem: Problem, logits: Any, target: Any, grad_out: Any) -> Call:
    import torch
    from torch.nn import functional

    gamma, alpha = problem.case.options["gamma"], problem.case.options["alpha"]

    def by_hand() -> tuple[Any, Any]:
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p = torch.sigmoid(logits)
        r = p + target - 2 * p * target
        weight = (alpha * target + (1 - alpha) * (1 - target)) * r ** (gamma - 1)
        mean_loss = (weight * r * loss).mean()
        derivative = (p * (1 - p)).mul_(1 - 2 * target).mul_(loss).mul_(gamma).addcmul_(r, p - target)
        weight.div_(p.numel())
        return mean_loss, derivative.mul_(weight) if grad_out is None else torch.mul(derivative, weight, out=grad_out)

    return by_hand


BY_HAND: dict[str, Callable[[Problem, Any, Any, Any], Call]] = {
    "CrossEntropy": _cross_entropy_by_hand,
    "FocalLoss": _focal_by_hand,
    "BinaryCrossEntropy": _binary_cross_entropy_by_hand,
    "BinaryFocalLoss": _binary_focal_by_hand,
}
