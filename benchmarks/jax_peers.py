"""JAX, compiled: the formulas of optax's losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.cases import Problem
from benchmarks.numpy_peers import Call

Formula = Callable[[Any, Any], Any]


def formulas_of(problem: Problem) -> Mapping[str, Formula]:
    """Return the mean loss as a function of logits and target, in each way of writing it."""
    import jax
    import jax.numpy as jnp

    options = problem.case.options

    def by_index(logits: Any, target: Any) -> Any:  # optax.losses.softmax_cross_entropy_with_integer_labels
        of_target = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - of_target

    def by_mask(logits: Any, target: Any) -> Any:  # the gradient of an index is a scatter, that of a mask is not
        is_target = jax.lax.broadcasted_iota(target.dtype, logits.shape, 1) == target[:, None]
        return jax.nn.logsumexp(logits, axis=1) - jnp.sum(jnp.where(is_target, logits, 0), axis=1)

    def binary(logits: Any, target: Any) -> Any:  # optax.losses.sigmoid_binary_cross_entropy
        return -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)

    def focal(cross_entropy: Formula) -> Formula:
        def each(logits: Any, target: Any) -> Any:
            loss = cross_entropy(logits, target)
            return (1 - jnp.exp(-loss)) ** options["gamma"] * loss

        return each

    def binary_focal(logits: Any, target: Any) -> Any:  # optax.losses.sigmoid_focal_loss
        p = jax.nn.sigmoid(logits)
        p_t = p * target + (1 - p) * (1 - target)
        loss = binary(logits, target) * ((1 - p_t) ** options["gamma"])
        return (options["alpha"] * target + (1 - options["alpha"]) * (1 - target)) * loss

    def mean(each: Formula) -> Formula:
        return lambda logits, target: jnp.mean(each(logits, target))

    formulas: dict[str, dict[str, Formula]] = {
        "CrossEntropy": {"index": mean(by_index), "mask": mean(by_mask)},
        "FocalLoss": {"index": mean(focal(by_index)), "mask": mean(focal(by_mask))},
        "BinaryCrossEntropy": {"optax": mean(binary)},
        "BinaryFocalLoss": {"optax": mean(binary_focal)},
    }
    return formulas[problem.case.loss]


def jit(problem: Problem) -> Mapping[str, Call]:
    """Compile with JAX; the arrays are on the device before the clock starts."""
    import jax

    config: Any = jax.config  # neither is annotated
    finished: Any = jax.block_until_ready
    config.update("jax_enable_x64", True)
    if problem.in_place:
        return {}
    logits = jax.device_put(problem.logits)
    target = jax.device_put(problem.target if problem.case.binary else problem.target.astype("int32"))

    def prepared(loss: Formula) -> Call:
        if problem.case.operation == "value":
            value = jax.jit(loss)
            return lambda: (finished(value(logits, target)), None)
        value_and_grad = jax.jit(jax.value_and_grad(loss))
        return lambda: finished(value_and_grad(logits, target))

    return {form: prepared(loss) for form, loss in formulas_of(problem).items()}
