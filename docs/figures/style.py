"""What the figures share: size, and colours that the colour-blind can tell apart."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, BLUE, ORANGE, GREEN, PINK, GREY = "#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#888888"


def panels(n: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``n`` panels side by side."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"})
    figure, axes = plt.subplots(1, n, figsize=(9.6, height), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.grid(color="#e5e5e5", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, list(axes[0])
