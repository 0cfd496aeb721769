"""Checks that the finite policies share: probabilities, finite values, positive beta, and masks."""

from __future__ import annotations

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError

MINUS_INFINITY = float("-inf")


def masked(values: torch.Tensor, support: torch.Tensor, fill: float) -> torch.Tensor:
    """``values`` where ``support`` holds, else ``fill``."""
    return torch.where(support, values, torch.full((), fill, dtype=values.dtype, device=values.device))


def log_probabilities(reference: torch.Tensor) -> torch.Tensor:
    """Checked log pi0, rows summing to 1 exactly; -inf marks masked candidates."""
    if reference.ndim == 0 or reference.shape[-1] == 0:
        raise PrudentError("reference has no candidates; give probabilities of shape (..., prompts, candidates)")
    total = reference.sum(-1, keepdim=True)
    wrong = ~((reference >= 0).all(-1, keepdim=True) & ((total - 1).abs() <= 1e-6))
    if bool(wrong.any()):
        row = torch.nonzero(wrong[..., 0])[0].tolist()
        raise PrudentError(
            f"reference holds no probabilities at row {row or 0} (it sums to {total[wrong][0].item():.6g}); "
            "every row must be >= 0 and sum to 1 within 1e-6"
        )
    return torch.log(reference) - torch.log(total)


def require_usable(values: torch.Tensor, name: str, support: torch.Tensor, low: float = MINUS_INFINITY) -> torch.Tensor:
    """``values`` with masked entries set to 0, or PrudentError naming the first one that can't be used."""
    try:
        if values.shape[-support.ndim :] != support.shape or not bool(support.all()):
            values = masked(values, support, 0.0)
    except RuntimeError as error:
        raise PrudentError(
            f"{name} of shape {tuple(values.shape)} doesn't broadcast with reference {tuple(support.shape)}"
        ) from error
    if values.numel() == 0:
        return values
    least, most = torch.aminmax(values)  # two numbers tell; a search over beta asks thousands of times
    if not bool(torch.isfinite(least) & torch.isfinite(most) & (least >= low)):
        bad = ~(torch.isfinite(values) & (values >= low))
        index = torch.nonzero(bad)[0].tolist()
        wanted = "finite" if low == MINUS_INFINITY else f"finite and at least {low:g}"
        raise PrudentError(
            f"{name} is {values[tuple(index)].item()} at (..., prompt, candidate) {index}, must be {wanted}; "
            "fix it, or give the candidate reference probability 0 to leave it out"
        )
    return values


def require_beta(beta: ArrayLike) -> torch.Tensor:
    """beta in float64, or PrudentError: positive, finite, and one for all of a prompt's candidates."""
    values = as_tensor(beta, torch.float64)
    if values.ndim and values.shape[-1] != 1:
        raise PrudentError(
            f"beta of shape {tuple(values.shape)} would vary among candidates; "
            "give a number, or several of shape (betas, 1, 1, 1) for rewards (draws, prompts, candidates)"
        )
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise PrudentError(f"beta is {values.flatten().tolist()[:8]}, must be positive and finite")
    return values
