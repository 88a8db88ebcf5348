"""The results as pictures, from the JSON alone: time per element by number of classes, and ratios by case."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.baselines import CONTENDERS
from benchmarks.cases import ALPHA, LARGE_BYTES, LARGE_CLASSES, PICTURE_CLASSES, SHORT_NAMES
from benchmarks.report import read
from benchmarks.verdict import Results, Row, memory_ms, milliseconds, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everyone, also in grey.
COLORS = {
    "fastxent": "#d55e00",
    "numpy": "#999999",
    "numpy_textbook": "#7f7f7f",
    "scipy": "#0072b2",
    "scikit-learn": "#e69f00",
    "torch": "#cc79a7",
    "torch.compile": "#882255",
    "jax": "#009e73",
}
MARKERS = {
    "fastxent": "o",
    "numpy": "P",
    "numpy_textbook": "s",
    "scipy": "D",
    "scikit-learn": "^",
    "torch": "v",
    "torch.compile": "<",
    "jax": "X",
}
FONT = {"size": 11, "title": 14, "small": 9}
PROMISED = 3  # times the fastest peer
NANOSECONDS = [digit * 10.0**power for power in range(-2, 3) for digit in (1, 2, 5)]
INK, PALE = "#222222", "#dddddd"
# The rows of the bars: how a case is recognized, in the order in which they are shown.
RATIO_ROWS: tuple[dict[str, Any], ...] = (
    *({"loss": "CrossEntropy", "rows": rows, "n_classes": k} for rows in (200_000, 2_000_000) for k in (2, 3, 10, 32)),
    {"loss": "CrossEntropy", "shape_text": "65536x100"},
    {"loss": "CrossEntropy", "shape_text": "16384x1000"},
    *({"loss": "CrossEntropy", "line": "line1", "n_classes": k} for k in (32_000, 128_000)),
    {"loss": "FocalLoss", "line": "line4"},
    {"loss": "FocalLoss", "line": "line1", "options": {"gamma": 2.0}},
    {"loss": "BinaryCrossEntropy", "line": "line4"},
    {"loss": "BinaryCrossEntropy", "line": "line1"},
    {"loss": "BinaryFocalLoss", "line": "line4"},
    {"loss": "BinaryFocalLoss", "line": "line1", "options": {"gamma": 2.0, "alpha": ALPHA}},
)
RATIO_COMMON = {"dtype": "float32", "operation": "value_and_grad", "output": "grad_out"}


def draw_all(results: Results, path: Path) -> list[Path]:
    """Draw what the results hold; return the files, ``<name>-classes.png`` and so on."""
    figures = {
        "classes": classes_figure(results),
        "ratios": ratios_figure(results),
        "class-counts": class_counts_figure(results),
    }
    written = []
    for suffix, figure in figures.items():
        if figure is not None:
            file = path.with_name(f"{path.stem}-{suffix}.png")
            figure.savefig(file, dpi=150)
            written.append(file)
    return written


def classes_figure(results: Results) -> Figure | None:
    """Return nanoseconds per logit by number of classes at a constant number of logits, or None if not measured."""
    wanted = {*LARGE_CLASSES, *PICTURE_CLASSES}
    rows = sorted(
        (
            row
            for row in results["rows"]
            if row["loss"] == "CrossEntropy"
            and row["dtype"] == "float32"
            and row["n_classes"] in wanted
            and row["line"] in ("line1", "picture")
        ),
        key=lambda row: int(row["n_classes"]),
    )
    if len(rows) < 2:
        return None
    figure, panel = _figure(10, 6.2)
    classes = [row["n_classes"] for row in rows]
    labels = {}
    for key in [key for key in CONTENDERS if key != "fastxent"] + ["fastxent"]:
        times = [_per_element(row, milliseconds(row, key, "median_ms")) for row in rows]
        if np.all(np.isnan(times)) or key == "numpy":
            continue
        ours = key == "fastxent"
        panel.plot(
            classes,
            times,
            color=COLORS[key],
            marker=MARKERS[key],
            linewidth=3 if ours else 1.6,
            markersize=8 if ours else 5.5,
            zorder=5 if ours else 3,
        )
        labels[CONTENDERS[key].label] = (times[-1], COLORS[key], ours)
    ceilings = {
        "memory: a copy": [_per_element(row, memory_ms(row, "median_ms")) for row in rows],
        "arithmetic: exponentials": [_per_element(row, row["arithmetic_ms"]) for row in rows],
    }
    for (name, times), style in zip(ceilings.items(), ("--", ":"), strict=True):
        panel.plot(classes, times, color=INK, linewidth=1.5, linestyle=style, zorder=4)
        labels[name] = (times[-1], INK, False)
    panel.set(xscale="log", yscale="log", xlabel="number of classes", ylabel="nanoseconds per logit")
    panel.set_xticks(classes, [f"{k // 1000}k" if k >= 1000 else str(k) for k in classes])
    panel.minorticks_off()
    _mark_nanoseconds(panel)
    panel.set_xlim(classes[0] * 0.85, classes[-1] * 1.15)
    panel.grid(color=PALE, linewidth=0.7)
    _label_ends(panel, labels)
    millions = LARGE_BYTES // 4 / 1e6
    _titles(panel, f"Cross-entropy, value and gradient of {millions:.0f} million float32 logits", results)
    return figure


def ratios_figure(results: Results) -> Figure | None:
    """Return bars of how many times as long as fastxent the peers take, or None if nothing was measured."""
    rows = ratio_rows(results)
    if not rows:
        return None
    keys = [key for key in CONTENDERS if key not in ("fastxent", "numpy") and any(key in r["contenders"] for r in rows)]
    figure, panel = _figure(10, 1.9 + 0.52 * len(rows))
    height = 0.86 / len(keys)
    positions = np.arange(len(rows))[::-1]
    for index, key in enumerate(keys):
        ratios = [ratio(row, key, "median_ms") or np.nan for row in rows]
        offset = ((len(keys) - 1) / 2 - index) * height
        panel.barh(positions + offset, ratios, height * 0.92, color=COLORS[key], label=CONTENDERS[key].label, zorder=3)
    everything = [times for row in rows for key in keys if (times := ratio(row, key, "median_ms"))]
    shortest, longest = min([1.0, *everything]), max([PROMISED + 1.0, *everything])
    for position, row in zip(positions, rows, strict=True):
        known = [times for key in keys if (times := ratio(row, key, "median_ms"))]
        if known:
            text = f"{min(known):.1f}x"
            panel.annotate(
                text,
                (longest * 1.12, position),
                va="center",
                ha="left",
                color=INK,
                fontweight="bold",
                annotation_clip=False,
            )
    panel.annotate(
        "fastest\npeer",
        (longest * 1.12, len(rows) - 0.45),
        va="bottom",
        ha="left",
        fontsize=FONT["small"],
        color=INK,
        annotation_clip=False,
    )
    panel.axvline(1, color=COLORS["fastxent"], linewidth=3, zorder=4)
    panel.axvline(PROMISED, color=INK, linewidth=1, linestyle=":", zorder=4)
    panel.set(xscale="log", xlabel="times as long as fastxent", ylim=(-0.6, len(rows) - 0.4))
    panel.set_xlim(0.8 * shortest, longest * 1.05)
    ticks = [1, 2, 3, 5, 10, 20, 30, 50, 100]
    panel.set_xticks([tick for tick in ticks if tick <= longest], [f"{tick}x" for tick in ticks if tick <= longest])
    panel.minorticks_off()
    panel.set_yticks(positions, [_short(row) for row in rows])
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color=PALE, linewidth=0.7)
    figure.legend(loc="outside lower center", ncols=len(keys), frameon=False)
    _titles(panel, "Value and gradient, float32: how many times as long as fastxent", results)
    return figure


def class_counts_figure(results: Results) -> Figure | None:
    """Return nanoseconds per logit at every class count, where a cliff would show, or None if not measured."""
    sweeps = [sweep for sweep in results["sweeps"] if sweep["kind"].startswith("class counts")]
    if not sweeps:
        return None
    figure, panel = _figure(10, 4.6)
    labels = {}
    for sweep, color in zip(sweeps, (COLORS["fastxent"], COLORS["scipy"]), strict=False):
        points = sweep["points"]
        times = [_per_element(point, point["min_ms"]) for point in points]
        panel.plot([point["n_classes"] for point in points], times, color=color, linewidth=1.6)
        labels[sweep["dtype"]] = (times[-1], color, False)
    panel.set(xlabel="number of classes", ylabel="nanoseconds per logit", yscale="log", xlim=(0, 300))
    _mark_nanoseconds(panel)
    panel.set_xticks([1, *range(16, 301, 16)])
    panel.grid(color=PALE, linewidth=0.7)
    _label_ends(panel, labels)
    millions = sweeps[0]["points"][0]["elements"] / 1e6
    _titles(
        panel,
        f"Cross-entropy, value and gradient of {millions:.0f} million logits, every class count to 300",
        results,
        "minima",
    )
    return figure


def _mark_nanoseconds(panel: Axes) -> None:
    bottom, top = panel.get_ylim()
    ticks = [tick for tick in NANOSECONDS if bottom <= tick <= top]
    panel.minorticks_off()
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def ratio_rows(results: Results) -> list[Row]:
    """Return the measured cases that are `RATIO_ROWS`, in their order."""
    return [
        row
        for wanted in RATIO_ROWS
        for row in results["rows"]
        if all(row[name] == value for name, value in (wanted | RATIO_COMMON).items())
    ]


def _short(row: Row) -> str:
    """Return a name like ``CE 65 536 x 100``, with thin spaces."""
    shape = " \u00d7 ".join(f"{length:,}".replace(",", "\u2009") for length in row["shape"])
    return f"{SHORT_NAMES[row['loss']]}  {shape}"


def _per_element(row: Row, milliseconds: float | None) -> float:
    return 1e6 * milliseconds / row["elements"] if milliseconds else np.nan


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    mpl.rcParams.update({"font.size": FONT["size"], "axes.edgecolor": "#888888", "text.color": INK})
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = NewFigure(figsize=(width, height), layout=engine, facecolor="white")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
    return figure, panel


def _titles(panel: Axes, title: str, results: Results, how: str = "medians, every peer in its fastest form") -> None:
    machine, settings = results["machine"], results["settings"]
    panel.set_title(title, loc="left", fontsize=FONT["title"], fontweight="bold", pad=26)
    where = f"{machine['cpu']}, {settings['threads']} threads, {settings['level']}; {how}"
    panel.annotate(
        where,
        (0, 1),
        (0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=FONT["small"],
        color="#666666",
    )


def _label_ends(panel: Axes, labels: dict[str, tuple[Any, str, bool]]) -> None:
    """Write the names beside the ends of the lines, moved apart where they would overlap."""
    from matplotlib.transforms import blended_transform_factory

    bottom, top = panel.get_ylim()
    decades = np.log10(top / bottom)
    gap = decades * 0.05
    known = {name: label for name, label in labels.items() if not np.isnan(label[0])}
    last = -np.inf
    transform = blended_transform_factory(panel.transAxes, panel.transData)
    for name, (value, color, bold) in sorted(known.items(), key=lambda entry: float(entry[1][0])):
        last = max(np.log10(value), last + gap)
        weight = "bold" if bold else "normal"
        panel.text(1.015, 10**last, name, color=color, transform=transform, va="center", fontweight=weight)


def main() -> None:
    """Draw a results file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="a JSON file in benchmarks/results")
    path = parser.parse_args().results
    for file in draw_all(read(path), path):
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
