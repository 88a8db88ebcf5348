"""Make the probabilities of classifiers fit: one temperature for each, found on held-out digits.

Linear classifiers of scikit-learn's handwritten digits, trained on few and noisy ones with several losses. A weak penalty
makes probabilities too sure, a focal loss too shy; the right temperature mends both, and changes no label.

Run it with ``python examples/calibration.py``.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastxent as fx
from fastxent.sklearn import LinearClassifier, TemperatureScaling, cross_entropy_scorer

NOISE = 0.4
MODELS = {
    "cross-entropy, C=1": LinearClassifier(),
    "cross-entropy, C=1000": LinearClassifier(C=1000.0),
    "smoothed by 0.2, C=1": LinearClassifier(fx.CrossEntropy(label_smoothing=0.2)),
    "focal, gamma 3, C=1": LinearClassifier(fx.FocalLoss(gamma=3.0)),
}


def main() -> None:
    """Train, scale, and print what became of the probabilities."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels / 16 + NOISE * np.random.default_rng(0).standard_normal(pixels.shape)
    train_x, rest_x, train_y, rest_y = train_test_split(pixels, digits, train_size=500, random_state=0)
    held_out_x, test_x, held_out_y, test_y = train_test_split(rest_x, rest_y, train_size=0.5, random_state=0)
    print(f"{'':<24}{'accuracy':>10}{'temperature':>13}{'calibration error':>21}{'cross-entropy':>21}")
    print(f"{'':<24}{'of test':>10}{'':>13}{'of held-out digits':>21}{'of test':>21}")
    for name, model in MODELS.items():
        model.fit(train_x, train_y)
        scaling = TemperatureScaling().fit(model.decision_function(held_out_x), held_out_y)
        errors = scaling.calibration_error_before_, scaling.calibration_error_after_
        losses = (
            -cross_entropy_scorer(model, test_x, test_y),
            -cross_entropy_scorer(scaling, model.decision_function(test_x), test_y),
        )
        columns = (f"{before:.3f} -> {after:.3f}" for before, after in (errors, losses))
        texts = "".join(f"{text:>21}" for text in columns)
        print(f"{name:<24}{model.score(test_x, test_y):>10.3f}{scaling.temperature_:>13.2f}{texts}")


if __name__ == "__main__":
    main()
