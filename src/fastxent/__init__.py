"""Classification losses with gradients and Hessian diagonals for NumPy, in one compiled pass."""

from fastxent._config import get_num_threads, set_num_threads, show_config
from fastxent.activations import balanced_class_weight, log_sigmoid, log_softmax, logsumexp, sigmoid, softmax
from fastxent.losses import BinaryCrossEntropy, BinaryFocalLoss, CrossEntropy, FocalLoss

__version__ = "0.1.0"

__all__ = [
    "BinaryCrossEntropy",
    "BinaryFocalLoss",
    "CrossEntropy",
    "FocalLoss",
    "__version__",
    "balanced_class_weight",
    "get_num_threads",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "softmax",
]
