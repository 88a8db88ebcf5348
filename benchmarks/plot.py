"""The results as a picture: how many times longer the others take, and how long everyone takes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import CONTENDERS
from benchmarks.verdict import PROMISES, ceiling, milliseconds, ratio

# Okabe and Ito's palette: told apart by everyone, also in grey.
COLORS = {
    "fastxent": "#d55e00",
    "numpy": "#999999",
    "numpy_textbook": "#cccccc",
    "scipy": "#0072b2",
    "scikit-learn": "#e69f00",
    "torch": "#cc79a7",
    "torch.compile": "#882255",
    "jax": "#009e73",
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw ratios and times of the cases that are judged, and save the picture."""
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if row["judged"]]
    if not rows:
        return
    keys = [key for key in CONTENDERS if any(key in row["contenders"] for row in rows)]
    others = [key for key in keys if key != "fastxent"]
    figure = Figure(figsize=(max(9.0, 0.85 * len(rows) + 3), 9), layout="constrained")
    ratios, times = figure.subplots(2, 1, sharex=True)
    positions = np.arange(len(rows))

    width = 0.84 / max(1, len(others))
    for index, key in enumerate(others):
        heights = [ratio(row, key, "median_ms") or np.nan for row in rows]
        offset = (index - (len(others) - 1) / 2) * width
        ratios.bar(positions + offset, heights, width, color=COLORS[key], label=CONTENDERS[key].label)
    for height in [1.0, *(promise.ratio for promise in PROMISES)]:
        ratios.axhline(height, color="black", linewidth=0.8, linestyle="-" if height == 1 else ":")
        ratios.annotate(f"{height:g}x", (1.005, height), xycoords=("axes fraction", "data"), va="center")
    ratios.set(yscale="log", ylabel="time / time of fastxent", title="How many times as long as fastxent (medians)")
    ratios.yaxis.set_major_formatter("{x:g}x")

    for key in keys:
        medians = [milliseconds(row, key, "median_ms") or np.nan for row in rows]
        style = {"markersize": 10, "zorder": 3} if key == "fastxent" else {"markersize": 7}
        times.plot(positions, medians, "o", color=COLORS[key], label=CONTENDERS[key].label, **style)
    tops = [ceiling(row) for row in rows]
    floors = [row["bytes_moved"] / top[1] / 1e6 if top else np.nan for row, top in zip(rows, tops, strict=True)]
    times.plot(positions, floors, "_", color="black", markersize=22, label="memory ceiling")
    times.set(yscale="log", ylabel="milliseconds (median)", title="Value and gradient, into grad_out")
    times.yaxis.set_major_formatter("{x:g}")
    times.set_xticks(positions, [f"{row['shape']}\n{row['dtype']}" for row in rows], rotation=45, ha="right")

    for panel in (ratios, times):
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        panel.set_xlim(-0.6, len(rows) - 0.4)
    handles, labels = times.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=int(figure.get_figwidth() // 1.7), frameon=False)
    machine, settings = results["machine"], results["settings"]
    figure.supxlabel(f"{machine['cpu']}, {settings['threads']} threads, level {settings['level']}", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw a results file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="a JSON file in benchmarks/results")
    path = parser.parse_args().results
    draw(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".png"))
    print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
