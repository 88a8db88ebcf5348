"""What the options do to the probabilities: one feature, 5 % positives, a logistic model for each loss."""

import numpy as np
from style import BLACK, BLUE, GREEN, GREY, ORANGE, panels

import fastxent as fx

SHARE, N = 0.05, 40_000
LOSSES = {
    "plain": (fx.BinaryCrossEntropy(), BLACK, "-"),
    "pos_weight=19": (fx.BinaryCrossEntropy(pos_weight=(1 - SHARE) / SHARE), ORANGE, "--"),
    "focal, gamma=2": (fx.BinaryFocalLoss(gamma=2.0), BLUE, "-"),
    "label_smoothing=0.1": (fx.BinaryCrossEntropy(label_smoothing=0.1), GREEN, "-."),
}


def fit(loss, features, positive):
    """Newton's method with the Hessian diagonal of the logits; halved steps until the value falls."""
    coefficients = np.zeros(features.shape[1])
    for _ in range(40):
        value, grad, hess = loss.value_grad_hess(features @ coefficients, positive)
        slope = features.T @ grad
        # A focal loss is not convex: where its Hessian is negative it says nothing about the size of a step.
        step = np.linalg.solve((features.T * np.abs(hess)) @ features, slope)
        size = 1.0
        while size > 1e-3 and loss(features @ (coefficients - size * step), positive) > value:
            size /= 2
        coefficients -= size * step
    return coefficients


rng = np.random.default_rng(0)
positive = rng.random(N) < SHARE
x = rng.normal(np.where(positive, 1.0, -1.0))
features = np.column_stack([x, np.ones(N)])

figure, (axis,) = panels(1, height=3.6)
grid = np.linspace(-4, 4.5, 400)
# Two normal distributions of equal width: the logit of the truth is a straight line.
axis.plot(grid, fx.sigmoid(2 * grid + np.log(SHARE / (1 - SHARE))), color=GREY, linewidth=6, alpha=0.4, label="truth")
for name, (loss, colour, dashes) in LOSSES.items():
    slope, intercept = fit(loss, features, positive)
    axis.plot(grid, fx.sigmoid(slope * grid + intercept), dashes, color=colour, linewidth=1.8, label=name)
axis.set_xlabel("feature: normal around -1 for negatives, around +1 for the 5 % positives")
axis.set_ylabel("probability of a positive")
axis.axhline(0.5, color="#999999", linewidth=0.8)
axis.legend(frameon=False, loc="upper left")
