"""The libraries that the doctests compare with; None where one is not installed, and its doctests are skipped."""

import importlib
import os
import warnings
from typing import Any

# Keras computes with NumPy, which needs no other framework.
os.environ.setdefault("KERAS_BACKEND", "numpy")


def _peer(*names: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a peer warns about when imported is its own affair
            first, *_ = [importlib.import_module(name) for name in names]
    except ImportError:
        return None
    return first


sklearn = _peer("sklearn", "sklearn.metrics", "sklearn._loss.loss", "sklearn.utils.class_weight")
scipy = _peer("scipy", "scipy.special")
torch = _peer("torch")
optax = _peer("optax")
keras = _peer("keras")
xgboost = _peer("xgboost")
dask = _peer("dask", "dask.array")
