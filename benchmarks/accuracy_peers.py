"""fastxent and its peers, each giving the quantities of the accuracy table that it has a function for.

A contender is loaded as two functions from logits and targets to ``(quantity, results)`` pairs. It imports its library
then, so that a missing one is only missing. A quantity may come several times, where several calls compute it; the
worst of them counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.accuracy_cases import GAMMAS, PARTS, Array, with_gamma

Results = Iterator[tuple[str, Array]]


@dataclass(frozen=True)
class Functions:
    """What a contender has for rows of classes, and for single logits."""

    softmax: Callable[[Array, Array], Results]
    binary: Callable[[Array, Array], Results]


def _every_call(name: str, loss: Any, logits: Array, target: Array) -> Results:
    """Yield value, gradient and Hessian from each of the calls that compute them."""
    answers = [
        (loss(logits, target),),
        loss.value_and_grad(logits, target),
        loss.value_grad_hess(logits, target),
    ]
    for answer in answers:
        yield from ((f"{name} {part}", result) for part, result in zip(PARTS, answer, strict=False))


def _as_fastxent(module: ModuleType) -> Functions:
    """Return the two functions of anything with the signatures of fastxent."""

    def softmax(logits: Array, target: Array) -> Results:
        one_hot = np.equal.outer(target, np.arange(logits.shape[1])).astype(logits.dtype)
        for same_target in (target, one_hot):
            yield from _every_call("CrossEntropy", module.CrossEntropy(reduction="none"), logits, same_target)
            for gamma in GAMMAS:
                loss = module.FocalLoss(gamma=gamma, reduction="none")
                yield from _every_call(with_gamma("FocalLoss", gamma), loss, logits, same_target)
        yield "softmax", module.softmax(logits)
        yield "log_softmax", module.log_softmax(logits)

    def binary(logits: Array, target: Array) -> Results:
        for same_target in (target, target.astype(logits.dtype)):
            loss = module.BinaryCrossEntropy(reduction="none")
            yield from _every_call("BinaryCrossEntropy", loss, logits, same_target)
            for gamma in GAMMAS:
                loss = module.BinaryFocalLoss(gamma=gamma, reduction="none")
                yield from _every_call(with_gamma("BinaryFocalLoss", gamma), loss, logits, same_target)
        yield "sigmoid", module.sigmoid(logits)
        yield "log_sigmoid", module.log_sigmoid(logits)

    return Functions(softmax, binary)


def fastxent() -> Functions:
    """Load the subject."""
    return _as_fastxent(importlib.import_module("fastxent"))


def reference() -> Functions:
    """Load the definitions in plain NumPy."""
    return _as_fastxent(importlib.import_module("fastxent._reference"))


def torch() -> Functions:
    """Load torch; its gradients come from autograd."""
    import torch
    from torch.nn import functional

    def value_and_gradient(name: str, loss: Callable[[Any], Any], logits: Array) -> Results:
        leaf = torch.from_numpy(logits).clone().requires_grad_()
        value = loss(leaf)
        value.sum().backward()
        assert leaf.grad is not None
        yield f"{name} value", value.detach().numpy()
        yield f"{name} gradient", leaf.grad.numpy()

    def softmax(logits: Array, target: Array) -> Results:
        y, x = torch.from_numpy(target), torch.from_numpy(logits)
        yield from value_and_gradient(
            "CrossEntropy", lambda z: functional.cross_entropy(z, y, reduction="none"), logits
        )
        yield "softmax", functional.softmax(x, 1).numpy()
        yield "log_softmax", functional.log_softmax(x, 1).numpy()

    def binary(logits: Array, target: Array) -> Results:
        t, x = torch.from_numpy(target.astype(logits.dtype)), torch.from_numpy(logits)

        def cross_entropy(z: Any) -> Any:
            return functional.binary_cross_entropy_with_logits(z, t, reduction="none")

        def focal(gamma: float) -> Callable[[Any], Any]:
            # The formula of torchvision.ops.sigmoid_focal_loss (torchvision/ops/focal_loss.py) with alpha < 0: none.
            def loss(z: Any) -> Any:
                p = torch.sigmoid(z)
                p_t = p * t + (1 - p) * (1 - t)
                return cross_entropy(z) * (1 - p_t) ** gamma

            return loss

        yield from value_and_gradient("BinaryCrossEntropy", cross_entropy, logits)
        for gamma in GAMMAS:
            yield from value_and_gradient(with_gamma("BinaryFocalLoss", gamma), focal(gamma), logits)
        yield "sigmoid", torch.sigmoid(x).numpy()
        yield "log_sigmoid", functional.logsigmoid(x).numpy()

    return Functions(softmax, binary)


def scikit_learn() -> Functions:
    """Load the private losses under scikit-learn's linear models and boosting."""
    from sklearn._loss.loss import HalfBinomialLoss, HalfMultinomialLoss

    def value_gradient_hessian(name: str, loss: Any, logits: Array, target: Array) -> Results:
        y = target.astype(logits.dtype)  # the only kind it takes
        value, gradient = loss.loss_gradient(y, logits)
        _, hessian = loss.gradient_hessian(y, logits)
        yield from ((f"{name} {part}", result) for part, result in zip(PARTS, (value, gradient, hessian), strict=True))

    def softmax(logits: Array, target: Array) -> Results:
        loss = HalfMultinomialLoss(n_classes=logits.shape[1])
        yield from value_gradient_hessian("CrossEntropy", loss, logits, target)
        yield "softmax", loss.predict_proba(logits)

    def binary(logits: Array, target: Array) -> Results:
        loss = HalfBinomialLoss()
        yield from value_gradient_hessian("BinaryCrossEntropy", loss, logits, target)
        yield "sigmoid", loss.predict_proba(logits)[:, 1]

    return Functions(softmax, binary)


def scipy() -> Functions:
    """Load SciPy's functions, and the losses that are one operation away from them."""
    from scipy import special

    def softmax(logits: Array, target: Array) -> Results:
        of_target = np.take_along_axis(logits, target[:, None], 1)[:, 0]
        yield "CrossEntropy value", special.logsumexp(logits, axis=1) - of_target
        yield "softmax", special.softmax(logits, axis=1)
        yield "log_softmax", special.log_softmax(logits, axis=1)

    def binary(logits: Array, target: Array) -> Results:
        yield "BinaryCrossEntropy value", -special.log_expit(np.where(target == 1, logits, -logits))
        yield "sigmoid", special.expit(logits)
        yield "log_sigmoid", special.log_expit(logits)

    return Functions(softmax, binary)


def optax() -> Functions:
    """Load optax, compiled by JAX as its users do, and the activations of JAX."""
    import jax
    import optax

    config: Any = jax.config  # not annotated
    config.update("jax_enable_x64", True)

    def value_and_gradient(name: str, loss: Callable[[Any], Any], logits: Array) -> Results:
        yield f"{name} value", np.asarray(jax.jit(loss)(logits))
        yield f"{name} gradient", np.asarray(jax.jit(jax.grad(lambda z: loss(z).sum()))(logits))

    def softmax(logits: Array, target: Array) -> Results:
        def loss(z: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(z, target)

        yield from value_and_gradient("CrossEntropy", loss, logits)
        yield "softmax", np.asarray(jax.jit(jax.nn.softmax)(logits))
        yield "log_softmax", np.asarray(jax.jit(jax.nn.log_softmax)(logits))

    def binary(logits: Array, target: Array) -> Results:
        t = target.astype(logits.dtype)
        yield from value_and_gradient("BinaryCrossEntropy", lambda z: optax.sigmoid_binary_cross_entropy(z, t), logits)
        for gamma in GAMMAS:

            def focal(z: Any, gamma: float = gamma) -> Any:
                return optax.sigmoid_focal_loss(z, t, gamma=gamma)

            yield from value_and_gradient(with_gamma("BinaryFocalLoss", gamma), focal, logits)
        yield "sigmoid", np.asarray(jax.jit(jax.nn.sigmoid)(logits))
        yield "log_sigmoid", np.asarray(jax.jit(jax.nn.log_sigmoid)(logits))

    return Functions(softmax, binary)


@dataclass(frozen=True)
class Contender:
    """A column of the tables."""

    label: str
    distribution: str
    load: Callable[[], Functions]
    peer: bool = True

    def why_missing(self) -> str | None:
        """Return why the library cannot be used, or None."""
        try:
            self.load()
        except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:  # how installations fail
            return f"{type(error).__name__}: {error}"
        return None


CONTENDERS = {
    "fastxent": Contender("fastxent", "fastxent", fastxent, peer=False),
    "reference": Contender("NumPy reference", "numpy", reference, peer=False),
    "torch": Contender("torch", "torch", torch),
    "scikit-learn": Contender("scikit-learn", "scikit-learn", scikit_learn),
    "scipy": Contender("SciPy", "scipy", scipy),
    "optax": Contender("optax", "optax", optax),
}
