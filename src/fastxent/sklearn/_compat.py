"""scikit-learn's classes as type checkers see them, and what changed its place between 1.5 and later versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class BaseEstimator:
        """It has no types, so any attribute will do."""

        def __getattr__(self, name: str) -> Any:
            """Return anything."""

        def __sklearn_tags__(self) -> Any:
            """Return what the estimator can do."""

    class ClassifierMixin(BaseEstimator):
        """Likewise."""

    class BaseLoss(BaseEstimator):
        """Likewise."""

        def __init__(self, closs: Any, link: Any) -> None: ...

    def validate_data(estimator: Any, *data: Any, **options: Any) -> Any:
        """Check arguments, and remember or compare the features."""

    IdentityLink: Any
else:
    from sklearn.base import BaseEstimator, ClassifierMixin

    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # 1.5

        def validate_data(estimator, *data, **options):
            """Check arguments, and remember or compare the features."""
            return estimator._validate_data(*data, **options)

    try:
        from sklearn._loss.link import IdentityLink
        from sklearn._loss.loss import BaseLoss
    except ImportError:  # a version that has moved them; `hist_gradient_boosting_loss` says so
        BaseLoss, IdentityLink = object, None

__all__ = ["BaseEstimator", "BaseLoss", "ClassifierMixin", "IdentityLink", "validate_data"]
