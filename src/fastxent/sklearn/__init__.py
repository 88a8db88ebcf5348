"""scikit-learn's conventions around a loss: a linear classifier, temperature scaling, a scorer, a loss for boosting."""

try:
    import sklearn  # noqa: F401 - for its absence to be told in these words
except ImportError as _error:
    raise ImportError('fastxent.sklearn needs scikit-learn: pip install "fastxent[sklearn]"') from _error

from fastxent.sklearn.boosting import hist_gradient_boosting_loss
from fastxent.sklearn.classifier import LinearClassifier
from fastxent.sklearn.scorer import cross_entropy_scorer
from fastxent.sklearn.temperature import TemperatureScaling

__all__ = ["LinearClassifier", "TemperatureScaling", "cross_entropy_scorer", "hist_gradient_boosting_loss"]
