"""One digit in ten: what class weights, focal loss and label smoothing do to a classifier of rare samples, and what not.

Scikit-learn's digits, an 8 or not, are about 10 % positive. The same logistic regression is trained with four losses
on repeated stratified splits; every difference to plain training is given with an interval, because splits are noisy.
A fifth line costs nothing: the plain model, asked at another threshold.

Run it with ``make imbalance`` or ``python examples/imbalance.py --output imbalance.png``.
"""

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import minimize
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, log_loss, precision_recall_curve
from sklearn.model_selection import RepeatedStratifiedKFold
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import fastxent as fx

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Loss = fx.BinaryCrossEntropy | fx.BinaryFocalLoss

DIGIT = 8
FOLDS = 5
# The penalty is sum(coef ** 2) / (2 C n_samples), beside the mean loss. Of 0.1, 1, 10 and 100 this is, for each of the
# losses, within 0.001 of the best average precision.
C = 1.0
BINS = 10


@dataclass
class Way:
    """A way to train and decide, and what came of it on each split."""

    color: str
    loss: Callable[[float], Loss]  # of the share of positives
    threshold: Callable[[float], float] = lambda share: 0.5
    marker: str = "o"
    scores: list[list[float]] = field(default_factory=list)  # one per metric, for each split
    positive: list[Labels] = field(default_factory=list)
    probability: list[Floats] = field(default_factory=list)


PLAIN, MOVED = "plain", "plain, threshold moved"


def ways() -> dict[str, Way]:
    """What is compared, with nothing measured yet."""
    return {
        PLAIN: Way("#333333", lambda share: fx.BinaryCrossEntropy()),
        # Equal total weights move the decision to where the plain probability is the share of positives.
        MOVED: Way("#999999", lambda share: fx.BinaryCrossEntropy(), lambda share: share, "D"),
        "class-weighted": Way("#d55e00", lambda share: fx.BinaryCrossEntropy(pos_weight=(1 - share) / share)),
        "focal, gamma 2": Way("#0072b2", lambda share: fx.BinaryFocalLoss(gamma=2.0)),
        "smoothed, 0.1": Way("#009e73", lambda share: fx.BinaryCrossEntropy(label_smoothing=0.1)),
    }


# ---- training ----


def fit(loss: Loss, features: Floats, positive: Labels) -> Floats:
    """Return the coefficients of a linear model, the intercept last."""
    n_samples, n_features = features.shape
    penalty = 1.0 / (C * n_samples)
    logits = np.empty(n_samples)

    def objective(weights: Floats) -> tuple[float, Floats]:
        coef = weights[:-1]
        np.matmul(features, coef, out=logits)
        logits[:] += weights[-1]
        # The gradient is written over the logits.
        value, grad = loss.value_and_grad(logits, positive, grad_out=logits)
        value += 0.5 * penalty * float(coef @ coef)
        return value, np.append(features.T @ grad + penalty * coef, grad.sum())

    found = minimize(objective, np.zeros(n_features + 1), jac=True, method="L-BFGS-B", options={"gtol": 1e-6})
    weights: Floats = found.x
    return weights


# ---- metrics ----


def in_bins(positive: Labels, probability: Floats) -> tuple[Floats, Floats, Floats]:
    """For each bin of equal width: its samples, their mean probability and their share of positives; NaN if empty."""
    bin_of = np.minimum((probability * BINS).astype(int), BINS - 1)
    count = np.bincount(bin_of, minlength=BINS).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_of, probability, BINS) / count
        share = np.bincount(bin_of, positive, BINS) / count
    return count, mean, share


def calibration_error(positive: Labels, probability: Floats) -> float:
    """Expected calibration error: how far the probabilities of a bin are from its share of positives, on average."""
    count, mean, share = in_bins(positive, probability)
    return float(np.nansum(count * np.abs(mean - share)) / count.sum())


# Name, whether more is better, and the measure of (is positive, probability, is taken for positive).
Measure = Callable[[Labels, Floats, npt.NDArray[np.bool_]], float]
METRICS: dict[str, tuple[bool, Measure]] = {
    f"recall of {DIGIT}": (True, lambda positive, p, taken: float(taken[positive == 1].mean())),
    "recall of rest": (True, lambda positive, p, taken: float(1 - taken[positive == 0].mean())),
    "average precision": (True, lambda positive, p, taken: float(average_precision_score(positive, p))),
    "log loss": (False, lambda positive, p, taken: float(log_loss(positive, p))),
    "calibration error": (False, lambda positive, p, taken: calibration_error(positive, p)),
}


def gains(way: Way, plain: Way) -> tuple[Floats, Floats]:
    """For each metric: by how much it is better than plain training, and half the width of the 95 % interval.

    The splits share samples, so the differences are not independent; their variance is corrected for that.
    C. Nadeau, Y. Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
    """
    sign = np.array([1.0 if more_is_better else -1.0 for more_is_better, _ in METRICS.values()])
    difference = sign * (np.array(way.scores) - np.array(plain.scores))
    n_splits, test_per_train = len(difference), 1 / (FOLDS - 1)
    error = np.sqrt((1 / n_splits + test_per_train) * difference.var(axis=0, ddof=1))
    return difference.mean(axis=0), student.ppf(0.975, n_splits - 1) * error


# ---- report ----


def marks(way: Way, plain: Way) -> list[str]:
    """For each metric "+" if it is better beyond noise, "-" if worse, else nothing."""
    gain, half_width = gains(way, plain)
    return ["+" if g > h else "-" if -g > h else " " for g, h in zip(gain, half_width, strict=True)]


def conclusion(results: dict[str, Way]) -> str:
    """Say in words what the table shows, whatever it shows."""
    plain = results[PLAIN]
    names = list(METRICS)
    lines = []
    for name, way in results.items():
        if name == PLAIN:
            continue
        verdicts = dict(zip(names, marks(way, plain), strict=True))
        better = [metric for metric in names if verdicts[metric] == "+"]
        worse = [metric for metric in names if verdicts[metric] == "-"]
        said = [f"{word} in {', '.join(found)}" for word, found in (("better", better), ("worse", worse)) if found]
        lines.append(f"{name}: {'; '.join(said) or 'no difference beyond noise'}.")
    trained = [name for name in results if name not in (PLAIN, MOVED)]
    recall, ranking = names[0], names.index("average precision")
    ranks_better = [name for name in trained if marks(results[name], plain)[ranking] == "+"]
    finds_more = [name for name in trained if marks(results[name], plain)[0] == "+"]
    ends = [
        f"Of the {len(trained)} other losses {_listed(ranks_better)} ranked better than plain training (average precision)",
        f"and {_listed(finds_more)} had a better {recall} at the threshold 0.5",
    ]
    if finds_more:
        best = max(finds_more, key=lambda name: float(np.mean(results[name].scores, axis=0)[0]))
        gain, half_width = gains(results[best], results[MOVED])
        compared = "no more than" if gain[0] <= half_width[0] else "more than"
        ends[-1] += f"; {best} found {compared} the plain model with its threshold moved"
    return "\n".join([*lines, "", textwrap.fill(", ".join(ends) + ".", 120)])


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def draw(results: dict[str, Way], path: str) -> None:
    """Draw precision against recall, the calibration, and the gains over plain training."""
    figure = Figure(figsize=(15, 4.8), layout="tight")
    curves, calibration, differences = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    legend = []
    for name, way in results.items():
        dots: dict[str, Any] = {"color": way.color, "marker": way.marker, "markeredgecolor": "white", "clip_on": False}
        positive, probability = np.concatenate(way.positive), np.concatenate(way.probability)
        if name != MOVED:  # whose probabilities are those of plain training
            precision, recall, _ = precision_recall_curve(positive, probability)
            curves.plot(recall, precision, color=way.color, linewidth=2)
            count, mean, observed = in_bins(positive, probability)
            often = count >= 0.001 * count.sum()
            calibration.plot(mean[often], observed[often], **dots, linewidth=2, markersize=7)
        # Where it decides: the precision that belongs to the mean of both recalls.
        of_positives, of_rest = np.mean(way.scores, axis=0)[:2]
        found, false_alarms = of_positives * positive.mean(), (1 - of_rest) * (1 - positive.mean())
        curves.plot(of_positives, found / (found + false_alarms), **dots, markersize=11, zorder=3)
        legend.append(
            Line2D([], [], **dots, linestyle="none" if name == MOVED else "-", linewidth=2, markersize=9, label=name)
        )
    curves.set(xlabel=f"recall of {DIGIT}", ylabel="precision", xlim=(0.4, 1), ylim=(0.4, 1))
    curves.set_title("Ranking: precision and recall")
    curves.annotate("large marks: where each decides", (0.42, 0.42), color="#666666")
    calibration.plot([0, 1], [0, 1], color="#bbbbbb", linestyle=":", linewidth=2, zorder=0)
    calibration.annotate("honest", (0.86, 0.9), rotation=45, ha="center", va="center", color="#666666")
    calibration.set(xlabel="predicted probability", ylabel=f"share that are {DIGIT}", xlim=(0, 1), ylim=(0, 1))
    calibration.set_title("Calibration")
    _draw_gains(differences, results)
    for panel in (curves, calibration, differences):
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontweight("bold")
    figure.legend(
        handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=len(legend), frameon=False, fontsize=11
    )
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.2)


def _draw_gains(panel: Axes, results: dict[str, Way]) -> None:
    others = [way for name, way in results.items() if name != PLAIN]
    for i, way in enumerate(others):
        gain, half_width = gains(way, results[PLAIN])
        place = np.arange(len(METRICS)) + 0.17 * (i - (len(others) - 1) / 2)
        differs = (gain != 0) | (half_width != 0)  # probabilities that are the same have no gain to show
        panel.errorbar(
            gain[differs],
            place[differs],
            xerr=half_width[differs],
            fmt=way.marker,
            color=way.color,
            markeredgecolor="white",
            markersize=8,
            elinewidth=2.5,
        )
    for row in range(0, len(METRICS), 2):
        panel.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
    panel.axvline(0, color=results[PLAIN].color, linewidth=1.5, zorder=1)
    panel.set_yticks(range(len(METRICS)), list(METRICS))
    panel.tick_params(axis="y", length=0)
    panel.set(xlabel="difference with its 95 % interval; right is better", ylim=(len(METRICS) - 0.5, -0.5))
    panel.set_title("Gain over plain training")


def main() -> None:
    """Train on every split, print the table and the conclusion, and draw."""
    parser = argparse.ArgumentParser(description="Train on rare samples with four losses.")
    parser.add_argument("--output", default="imbalance.png", help="the picture to write")
    parser.add_argument("--repeats", type=int, default=10, help=f"of {FOLDS}-fold cross-validation")
    args = parser.parse_args()
    pixels, digits = load_digits(return_X_y=True)
    features, positive = pixels / 16, (digits == DIGIT).astype(np.int64)

    results = ways()
    splits = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=args.repeats, random_state=0)
    threadpool_limits(1, user_api="blas")  # for products this small, waking threads takes longer than the work
    for train, test in splits.split(features, positive):
        share = float(positive[train].mean())
        fitted: dict[Loss, Floats] = {}  # losses that are equal are trained once
        for way in results.values():
            loss = way.loss(share)
            if loss not in fitted:
                fitted[loss] = fit(loss, features[train], positive[train])
            weights = fitted[loss]
            probability = fx.sigmoid(features[test] @ weights[:-1] + weights[-1])
            taken = probability >= way.threshold(share)
            way.scores.append([measure(positive[test], probability, taken) for _, measure in METRICS.values()])
            way.positive.append(positive[test])
            way.probability.append(probability)

    n_splits = args.repeats * FOLDS
    print(f"{len(positive)} digits, {positive.mean():.1%} of them {DIGIT}; means of {n_splits} test parts;")
    print("+ better, - worse than plain training beyond noise (95 %, corrected for splits that overlap)\n")
    print(" " * 24 + "".join(f"{name:>19}" for name in METRICS))
    for name, way in results.items():
        signs = marks(way, results[PLAIN]) if name != PLAIN else [" "] * len(METRICS)
        cells = [f"{mean:>17.4f} {sign}" for mean, sign in zip(np.mean(way.scores, axis=0), signs, strict=True)]
        print(f"{name:<24}" + "".join(cells))
    print("\n" + conclusion(results))
    draw(results, args.output)
    print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
