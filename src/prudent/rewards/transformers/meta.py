"""MetaRM: keep a reward model able to tell the current policy's responses apart, while it learns from preferences.

On k responses per prompt sampled from the policy, the difference objective

    J(theta) = 2/k^2 sum_{i<j} sg(|r(s, a_i) - r(s, a_j)|)            (mean over prompts)

is raised first, theta' = theta + eta grad J(theta); then the preference loss is followed as seen from there,
theta <- theta - alpha grad L(theta') (first order: theta' is not differentiated through). eta = 0 is ordinary training.
Source: "Secrets of RLHF II", arXiv 2401.06080, section on MetaRM.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from prudent.errors import PrudentError


def difference_objective(scores: torch.Tensor) -> torch.Tensor:
    """J of scores (..., prompts, k): (...), the mean over prompts. Between (k-1)/(2k) (all equal) and (k-1)/k."""
    k = scores.shape[-1]
    if k < 2:
        raise PrudentError(f"the difference objective needs at least 2 responses a prompt, got {k}")
    first, second = torch.triu_indices(k, k, offset=1, device=scores.device)
    gap = (scores[..., first] - scores[..., second]).abs()
    return (2 / k**2 * torch.sigmoid(gap).sum(-1)).mean(-1)


@contextlib.contextmanager
def ascended(
    leaves: Sequence[torch.Tensor], objective: Callable[[], torch.Tensor], eta: float
) -> Iterator[torch.Tensor | None]:
    """Inside, parameters stand at theta + eta grad J(theta); afterwards at theta again, bit for bit. Yields J(theta).

    objective() -> J, a scalar or one a member (its sum is differentiated: members share no parameters).
    eta = 0 does nothing and yields None.
    """
    if eta == 0:
        yield None
        return
    value = objective()
    if not bool(torch.isfinite(value).all()):
        raise PrudentError(f"the difference objective is {value.detach().tolist()}; stopped before the step")
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    kept = [leaf.detach().clone() for leaf in leaves]
    try:
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients):
                if gradient is not None:
                    leaf.add_(eta * gradient)
        yield value.detach()
    finally:
        with torch.no_grad():
            for leaf, value_before in zip(leaves, kept):
                leaf.copy_(value_before)
