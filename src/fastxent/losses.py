"""The losses: frozen dataclasses whose fields are their options.

Every loss ``l`` has the same three calls::

    value             = l(logits, target, sample_weight=None)
    value, grad       = l.value_and_grad(logits, target, sample_weight=None, grad_out=None)
    value, grad, hess = l.value_grad_hess(logits, target, sample_weight=None, grad_out=None, hess_out=None)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastxent import _check
from fastxent._base import BinaryLoss, SoftmaxLoss
from fastxent.activations import balanced_class_weight

__all__ = ["BinaryCrossEntropy", "BinaryFocalLoss", "CrossEntropy", "FocalLoss", "balanced_class_weight"]


@dataclass(frozen=True, repr=False)
class CrossEntropy(SoftmaxLoss):
    r"""Softmax cross-entropy of logits, with gradient and Hessian diagonal.

    For a row of logits :math:`z`, target distribution :math:`t` (one-hot for a class index), class weights :math:`w`,
    sample weight :math:`s` and label smoothing :math:`\varepsilon`, with :math:`p = \mathrm{softmax}(z)`,
    :math:`\mathrm{LSE}(z) = \log \sum_c e^{z_c}`, :math:`\tilde t = (1 - \varepsilon) t + \varepsilon / K'` and
    :math:`W = \sum_c w_c \tilde t_c`:

    .. math::

        \ell = s \sum_c w_c \tilde t_c (\mathrm{LSE}(z) - z_c), \qquad
        \frac{\partial \ell}{\partial z_c} = s (p_c W - w_c \tilde t_c), \qquad
        \frac{\partial^2 \ell}{\partial z_c^2} = s W p_c (1 - p_c)

    Parameters
    ----------
    class_weight : None, "balanced", dict or array_like of shape (n_classes,)
        :math:`w`, finite and >= 0. A dict gives ``{class: weight}``, missing classes weigh 1. ``"balanced"`` is
        ``n / (n_classes * counts)`` of each call's target, ignored rows left out; a class without samples weighs 0.
    label_smoothing : float in [0, 1], default 0.0
        :math:`\varepsilon`, spread over the :math:`K'` classes that are not masked (logit -inf).
    ignore_index : int or None, default None
        Rows with this class index do not count. With probabilities: rows whose whole mass lies on this class.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the total weight of what was counted, :math:`\sum_i s_i \sum_c w_c t_{ic}` (before
        smoothing); nothing counted gives 0.0.
    axis : int, default -1
        The class axis of ``logits``.
    inputs : {"logits", "log_probs", "probs"}, default "logits"
        What is passed as ``logits``: with log-probabilities :math:`x` the loss is :math:`-s \sum_c w_c \tilde t_c x_c`
        (negative log-likelihood), with probabilities :math:`-s \sum_c w_c \tilde t_c \log x_c`; neither is normalized
        or clipped, and the derivatives are with respect to them.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value.

    See Also
    --------
    FocalLoss : the same with confident rows weighing less.
    BinaryCrossEntropy : independent yes-or-no labels.
    log_softmax : with ``inputs="log_probs"`` the same in two steps.

    Notes
    -----
    It is ``torch.nn.CrossEntropyLoss`` with two differences: probabilities and class indices give the same mean for
    one-hot data, and an empty mean is 0. ``inputs="log_probs"`` is ``torch.nn.NLLLoss``; Keras'
    ``CategoricalCrossentropy`` and ``SparseCategoricalCrossentropy`` are ``inputs="probs"`` without their clipping.

    Infinities: -inf masks a class; on the target it makes the loss inf and the gradient finite. One +inf is a certain
    class. Several, nothing but -inf, or a NaN make that row NaN and no other. Rows that are ignored or weigh 0 are
    never looked at. No rows give 0.0.

    Accuracy: value within (4 + gap) eps relative for class indices, where gap is the distance of the two largest
    logits; gradient elements within (4 + max(z) - z_c) eps. Confident rows keep their digits: see the example. With
    probabilities and smoothing the bound of the gradient is relative to its terms :math:`p_c W` and
    :math:`w_c \tilde t_c` where these nearly cancel.

    Results are the same bits for any number of threads. Sums are float64.

    References
    ----------
    C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (label smoothing).
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal
    of Numerical Analysis 41, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> loss = fx.CrossEntropy(label_smoothing=0.1)
    >>> loss
    CrossEntropy(label_smoothing=0.1)
    >>> value, grad = loss.value_and_grad([[2.0, 1.0, 0.1]], [0])
    >>> round(value, 6)
    0.513697
    >>> grad.round(4)
    array([[-0.2743,  0.2091,  0.0652]])

    Nearly certain, yet not 0 (others return exactly 0 here):

    >>> confident = np.array([[17.0, 0.0]], dtype=np.float32)
    >>> value, grad = fx.CrossEntropy().value_and_grad(confident, [0])
    >>> f"{value:.4e}", f"{grad[0, 0]:.4e}"
    ('4.1399e-08', '-4.1399e-08')
    """

    class_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    axis: int = -1
    inputs: str = "logits"

    def __hash__(self) -> int:
        """Return the hash of the options; that of a dataclass would not take class weights."""
        return super().__hash__()

    def __post_init__(self) -> None:
        """Check the options once, and make them immutable."""
        self._replace_options(
            class_weight=_check.option_class_weight(self.class_weight),
            label_smoothing=_check.option_fraction("label_smoothing", self.label_smoothing),
            ignore_index=_check.option_ignore_index(self.ignore_index),
            reduction=_check.option_among("reduction", self.reduction, _check.REDUCTIONS),
            axis=_check.option_integer("axis", self.axis),
            inputs=_check.option_among("inputs", self.inputs, _check.INPUTS),
        )

    def _task(self) -> tuple[str, dict[str, Any]]:
        return "cross_entropy", {"inputs": self.inputs}


@dataclass(frozen=True, repr=False)
class FocalLoss(SoftmaxLoss):
    r"""Softmax focal loss of logits, with gradient and Hessian diagonal.

    Cross-entropy in which a class that is nearly certain counts less. With the symbols of :class:`CrossEntropy`
    (:math:`p = \mathrm{softmax}(z)`, :math:`u_c = w_c \tilde t_c`), :math:`q = 1 - p` and :math:`L_c = -\log p_c`:

    .. math::

        \ell = s \sum_c u_c \, q_c^\gamma L_c, \qquad
        \frac{\partial \ell}{\partial z_k} = s (p_k A - a_k), \qquad
        \frac{\partial^2 \ell}{\partial z_k^2} = s \left(p_k q_k (A - a_k) - p_k^2 (B - b_k)
        + q_k (p_k a_k - q_k b_k)\right)

    with :math:`a_c = u_c q_c^\gamma (\gamma p_c L_c / q_c + 1)`, :math:`A = \sum_c a_c`,
    :math:`b_c = u_c \gamma p_c q_c^{\gamma - 1} ((1 - \gamma p_c) L_c / q_c - 2)`, :math:`B = \sum_c b_c`.

    Derivation: by :math:`\partial p_c / \partial z_k = p_c (\delta_{ck} - p_k)` the derivative of
    :math:`u_c (1 - p_c)^\gamma (-\log p_c)` with respect to :math:`z_k` is :math:`-a_c (\delta_{ck} - p_k)`, which is the
    gradient; then :math:`\partial a_c / \partial z_k = b_c (\delta_{ck} - p_k)` with :math:`b_c = p_c \, da_c / dp_c`.

    Parameters
    ----------
    gamma : float, default 2.0
        Focusing parameter :math:`\gamma`, finite and >= 0; 0 is :class:`CrossEntropy`, bit for bit.
    class_weight : None, "balanced", dict or array_like of shape (n_classes,)
        :math:`w`, as in :class:`CrossEntropy`; the :math:`\alpha` of the paper.
    label_smoothing : float in [0, 1], default 0.0
        :math:`\varepsilon`, spread over the classes that are not masked (logit -inf).
    ignore_index : int or None, default None
        Rows with this class index do not count. With probabilities: rows whose whole mass lies on this class.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by :math:`\sum_i s_i \sum_c w_c t_{ic}`, as :class:`CrossEntropy` does.
    axis : int, default -1
        The class axis of ``logits``.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value.

    See Also
    --------
    BinaryFocalLoss : independent yes-or-no labels.
    CrossEntropy : ``gamma=0``.

    Notes
    -----
    With probabilities every class is modulated by its own :math:`p_c`, as in Keras' ``CategoricalFocalCrossentropy``
    (which clips, and multiplies by alpha = 0.25 unless told otherwise).

    The Hessian diagonal is exact, and negative where a row is badly wrong: the loss is not convex.

    Infinities and NaN are those of :class:`CrossEntropy`; a certain and right row (gradient 0 there) has loss 0.

    Accuracy: value within (8 + gap + gamma (4 + gap)) eps relative for class indices, gap the distance of the two largest
    logits; gradient elements likewise, with max(z) - z_c for the first gap where that is larger; finite for every finite
    logit and every gamma.

    References
    ----------
    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import fastxent as fx
    >>> logits = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]
    >>> value, grad = fx.FocalLoss(gamma=2.0).value_and_grad(logits, [0, 0])
    >>> round(value, 6)
    0.906258
    >>> grad.round(4)
    array([[-0.0518,  0.0368,  0.015 ],
           [-0.5457,  0.4913,  0.0544]])
    """

    gamma: float = 2.0
    class_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    axis: int = -1

    def __hash__(self) -> int:
        """Return the hash of the options; that of a dataclass would not take class weights."""
        return super().__hash__()

    def __post_init__(self) -> None:
        """Check the options once, and make them immutable."""
        self._replace_options(
            gamma=_check.option_gamma(self.gamma),
            class_weight=_check.option_class_weight(self.class_weight),
            label_smoothing=_check.option_fraction("label_smoothing", self.label_smoothing),
            ignore_index=_check.option_ignore_index(self.ignore_index),
            reduction=_check.option_among("reduction", self.reduction, _check.REDUCTIONS),
            axis=_check.option_integer("axis", self.axis),
        )

    def _task(self) -> tuple[str, dict[str, Any]]:
        return ("focal", {"gamma": self.gamma}) if self.gamma > 0 else ("cross_entropy", {})


@dataclass(frozen=True, repr=False)
class BinaryCrossEntropy(BinaryLoss):
    r"""Binary cross-entropy of logits, with gradient and Hessian diagonal; multi-label too.

    For a logit :math:`z`, target :math:`t` in [0, 1], weight :math:`w` of the positive class, sample weight :math:`s` and
    label smoothing :math:`\varepsilon`, with :math:`p = \sigma(z)`,
    :math:`\tilde t = (1 - \varepsilon) t + \varepsilon / 2` and :math:`\mathrm{softplus}(z) = \log(1 + e^z)`:

    .. math::

        \ell = s \left(w \tilde t \, \mathrm{softplus}(-z) + (1 - \tilde t) \, \mathrm{softplus}(z)\right), \qquad
        \frac{\partial \ell}{\partial z} = s \left((1 - \tilde t) p - w \tilde t (1 - p)\right), \qquad
        \frac{\partial^2 \ell}{\partial z^2} = s (w \tilde t + 1 - \tilde t) p (1 - p)

    Parameters
    ----------
    pos_weight : None, float or array_like of shape (n_labels,)
        :math:`w`, finite and >= 0: one number, or one per label along the last axis of ``logits``.
    label_smoothing : float in [0, 1], default 0.0
        :math:`\varepsilon`.
    ignore_index : int or None, default None
        Elements with this target do not count: missing labels, say -1.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the sum of the sample weights of the elements that count (without ``pos_weight``); nothing
        counted gives 0.0.
    inputs : {"logits", "probs"}, default "logits"
        What is passed as ``logits``: with probabilities :math:`x` the loss is
        :math:`-s (w \tilde t \log x + (1 - \tilde t) \log(1 - x))`, not clipped, with derivatives with respect to
        :math:`x`; outside [0, 1] it is NaN.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value.

    See Also
    --------
    BinaryFocalLoss : the same with confident elements weighing less.
    CrossEntropy : one class out of several.
    log_sigmoid : minus the loss of a positive.

    Notes
    -----
    It is ``torch.nn.BCEWithLogitsLoss``, and with ``inputs="probs"`` ``torch.nn.BCELoss`` without its clamp at -100; but
    targets outside [0, 1] are an error, and an empty mean is 0.

    Infinities: at :math:`z = \pm\infty` the loss is 0 where that is right, else inf with gradient +-1; a NaN makes that
    element NaN and no other. Elements that are ignored or weigh 0 are never looked at.

    Accuracy: value and gradient within (4 + abs(z)) eps relative, for targets between 0 and 1 the gradient relative to
    its two terms. Results are the same bits for any number of threads. Sums are float64.

    References
    ----------
    D. R. Cox, "The Regression Analysis of Binary Sequences", Journal of the Royal Statistical Society B 20, 1958.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> loss = fx.BinaryCrossEntropy(pos_weight=3.0, ignore_index=-1)
    >>> value, grad = loss.value_and_grad([[2.0, -1.0], [0.5, 4.0]], [[1, 0], [-1, 0]])
    >>> round(value, 6)
    1.570732
    >>> grad.round(4)
    array([[-0.1192,  0.0896],
           [ 0.    ,  0.3273]])

    Nearly certain, yet not 0:

    >>> f"{fx.BinaryCrossEntropy()(np.array([40.0], dtype=np.float32), [1]):.5e}"
    '4.24835e-18'
    """

    pos_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    inputs: str = "logits"

    def __hash__(self) -> int:
        """Return the hash of the options; that of a dataclass would not take class weights."""
        return super().__hash__()

    def __post_init__(self) -> None:
        """Check the options once, and make them immutable."""
        self._replace_options(
            pos_weight=_check.option_pos_weight(self.pos_weight),
            label_smoothing=_check.option_fraction("label_smoothing", self.label_smoothing),
            ignore_index=_check.option_ignore_index(self.ignore_index),
            reduction=_check.option_among("reduction", self.reduction, _check.REDUCTIONS),
            inputs=_check.option_among("inputs", self.inputs, _check.BINARY_INPUTS),
        )

    def _task(self) -> tuple[str, dict[str, Any]]:
        return "binary_cross_entropy", {"inputs": self.inputs}


@dataclass(frozen=True, repr=False)
class BinaryFocalLoss(BinaryLoss):
    r"""Binary focal loss of logits, with gradient and Hessian diagonal; multi-label too.

    With the symbols of :class:`BinaryCrossEntropy` and :math:`L, L', L''` its loss and derivatives for :math:`w = s = 1`,
    :math:`r = 1 - p_t = \tilde t (1 - p) + (1 - \tilde t) p` and
    :math:`\alpha_t = \alpha \tilde t + (1 - \alpha) (1 - \tilde t)`, 1 without :math:`\alpha`:

    .. math::

        \ell = s \, \alpha_t r^\gamma L, \qquad
        \frac{\partial \ell}{\partial z} = s \, \alpha_t r^\gamma (\gamma \rho L + L'), \qquad
        \frac{\partial^2 \ell}{\partial z^2} = s \, \alpha_t r^\gamma \left(
        \gamma L ((\gamma - 1) \rho^2 + \rho (1 - 2 p)) + 2 \gamma \rho L' + L''\right)

    with :math:`\rho = r' / r = p (1 - p) (1 - 2 \tilde t) / r`.

    Derivation: :math:`r' = p (1 - p) (1 - 2 \tilde t)` and :math:`r'' = r' (1 - 2 p)`, hence
    :math:`(r^\gamma)' = \gamma r^\gamma \rho` and
    :math:`(r^\gamma)'' = \gamma r^\gamma ((\gamma - 1) \rho^2 + \rho (1 - 2 p))`; the rest is the product rule.

    Parameters
    ----------
    gamma : float, default 2.0
        Focusing parameter :math:`\gamma`, finite and >= 0; 0 is :class:`BinaryCrossEntropy`.
    alpha : float in [0, 1] or None, default None
        Weight of positives; negatives weigh 1 - alpha. None: both weigh 1.
    label_smoothing : float in [0, 1], default 0.0
        :math:`\varepsilon`.
    ignore_index : int or None, default None
        Elements with this target do not count: missing labels, say -1.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the sum of the sample weights of the elements that count (without alpha); nothing counted
        gives 0.0.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value.

    See Also
    --------
    FocalLoss : one class out of several.
    BinaryCrossEntropy : ``gamma=0`` and ``alpha=None``.

    Notes
    -----
    It is ``torchvision.ops.sigmoid_focal_loss``, whose alpha is 0.25 unless told otherwise, ``optax.sigmoid_focal_loss``,
    and Keras' ``BinaryFocalCrossentropy`` without clipping.

    The Hessian diagonal is exact, and negative where an element is badly wrong: the loss is not convex.

    Infinities and NaN are those of :class:`BinaryCrossEntropy`, its gradients times :math:`\alpha_t`.

    Accuracy: value and gradient within (8 + gamma (4 + abs(z))) eps relative, for targets between 0 and 1 relative to the
    terms; finite for every finite logit and every gamma.

    References
    ----------
    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import fastxent as fx
    >>> value, grad = fx.BinaryFocalLoss(gamma=2.0, alpha=0.25).value_and_grad([2.0, -1.0, 0.5], [1, 0, 0])
    >>> round(value, 6)
    0.100168
    >>> grad.round(4)
    array([-0.0004,  0.0131,  0.1315])
    """

    gamma: float = 2.0
    alpha: float | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"

    def __hash__(self) -> int:
        """Return the hash of the options; that of a dataclass would not take class weights."""
        return super().__hash__()

    def __post_init__(self) -> None:
        """Check the options once, and make them immutable."""
        self._replace_options(
            gamma=_check.option_gamma(self.gamma),
            alpha=_check.option_alpha(self.alpha),
            label_smoothing=_check.option_fraction("label_smoothing", self.label_smoothing),
            ignore_index=_check.option_ignore_index(self.ignore_index),
            reduction=_check.option_among("reduction", self.reduction, _check.REDUCTIONS),
        )

    def _task(self) -> tuple[str, dict[str, Any]]:
        if self.gamma == 0 and self.alpha is None:
            return "binary_cross_entropy", {}
        return "binary_focal", {"gamma": self.gamma, "alpha": self.alpha}
