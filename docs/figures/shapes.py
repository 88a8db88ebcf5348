"""Value, gradient and Hessian diagonal of a positive, by its logit, for the binary losses and their options."""

import numpy as np
from style import BLACK, BLUE, GREEN, ORANGE, PINK, panels

import fastxent as fx

LOSSES = {
    "BinaryCrossEntropy()": (fx.BinaryCrossEntropy(reduction="none"), BLACK, "-"),
    "pos_weight=2": (fx.BinaryCrossEntropy(pos_weight=2.0, reduction="none"), ORANGE, "--"),
    "label_smoothing=0.2": (fx.BinaryCrossEntropy(label_smoothing=0.2, reduction="none"), GREEN, "-."),
    "BinaryFocalLoss(gamma=2)": (fx.BinaryFocalLoss(gamma=2.0, reduction="none"), BLUE, "-"),
    "BinaryFocalLoss(gamma=5)": (fx.BinaryFocalLoss(gamma=5.0, reduction="none"), PINK, ":"),
}

logits = np.linspace(-6, 6, 601)
figure, axes = panels(3, height=3.9)
for name, (loss, colour, dashes) in LOSSES.items():
    for axis, curve in zip(axes, loss.value_grad_hess(logits, np.ones(601)), strict=True):
        axis.plot(logits, curve, dashes, color=colour, linewidth=1.8, label=name)
for axis, title in zip(axes, ("value", "gradient", "Hessian diagonal"), strict=True):
    axis.set_title(title)
    axis.set_xlabel("logit of a positive")
    axis.axhline(0, color="#999999", linewidth=0.8)
axes[0].set_ylim(-0.2, 8)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
