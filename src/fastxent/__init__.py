"""Softmax cross-entropy with gradients and Hessian diagonals for NumPy, in one compiled pass."""

from fastxent._config import get_num_threads, set_num_threads, show_config
from fastxent.activations import balanced_class_weight, log_softmax, logsumexp, softmax
from fastxent.losses import CrossEntropy

__version__ = "0.1.0"

__all__ = [
    "CrossEntropy",
    "__version__",
    "balanced_class_weight",
    "get_num_threads",
    "log_softmax",
    "logsumexp",
    "set_num_threads",
    "show_config",
    "softmax",
]
