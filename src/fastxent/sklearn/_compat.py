"""What changed its place between scikit-learn 1.5 and later ones."""

from __future__ import annotations

from typing import Any

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # 1.5

    def validate_data(estimator: Any, *data: Any, **options: Any) -> Any:
        """Check arguments, and remember or compare the features."""
        return estimator._validate_data(*data, **options)


__all__ = ["validate_data"]
