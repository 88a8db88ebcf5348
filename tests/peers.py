"""What the tests beside other libraries share: how close two results must be, and gradients by torch's autograd."""

import warnings

import numpy as np
import pytest
from tolerances import REORDERED, eps


def import_torch():
    """The module, or the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer warns about when imported is its own affair
        return pytest.importorskip("torch")


def assert_close(actual, expected, dtype, scale=1.0, allowed=REORDERED):
    """Within `allowed` eps of the result and of `scale`: the peers' own errors are absolute."""
    tolerance = allowed * eps(dtype)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


def torch_result(torch, loss, x, target):
    """Value and gradient of ``loss(x, target)``; `loss` is a torch module or a function of tensors."""
    leaf = torch.tensor(x, requires_grad=True)
    value = loss(leaf, torch.tensor(target))
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()
