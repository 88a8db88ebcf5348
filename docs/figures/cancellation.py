"""Relative error of float32 results for a confident row, as the textbook writes it and as fastxent computes it."""

import numpy as np
from style import BLUE, ORANGE, panels

import fastxent as fx

gaps = np.linspace(0, 40, 801, dtype=np.float32)
logits = np.column_stack([gaps, np.zeros_like(gaps)])  # the first class is right, and surer to the right
labels = np.zeros(len(gaps), np.int64)

exact_value = np.log1p(np.exp(-gaps.astype(np.float64)))
exact_grad = -fx.sigmoid(-gaps.astype(np.float64))

terms = np.exp(logits - logits.max(axis=1, keepdims=True))
total = terms.sum(axis=1)
textbook_value = np.log(total) - (logits[:, 0] - logits.max(axis=1))
textbook_grad = terms[:, 0] / total - np.float32(1)
value, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, labels)

figure, axes = panels(2)
pairs = {
    r"value: $\log\sum_c e^{z_c - m} - (z_y - m)$": (textbook_value, value, exact_value),
    r"gradient of the target: $p_y - 1$": (textbook_grad, grad[:, 0], exact_grad),
}
for axis, (title, (textbook, ours, exact)) in zip(axes, pairs.items(), strict=True):
    for name, result, colour in (("textbook", textbook, ORANGE), ("fastxent", ours, BLUE)):
        error = np.abs(result - exact) / np.abs(exact)
        axis.semilogy(gaps, np.maximum(error, 1e-9), ".", color=colour, markersize=3, label=name)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("distance of the two logits")
    axis.axhline(1, color="#999999", linewidth=0.8)
    axis.set_ylim(5e-10, 20)
axes[0].set_ylabel("relative error, float32")
axes[0].text(40, 1.4, "1: nothing is right", ha="right", color="#666666", fontsize=9)
axes[1].legend(frameon=False, loc="center right", markerscale=4)
