"""Contrastive terms that steady a reward model's representation, as pure functions with any leading axes (members).

total loss = Bradley-Terry + weight * contrastive, on the representation h itself or on the preference difference
h_chosen - h_rejected (the "-diff" variants). Source: "Secrets of RLHF II", arXiv 2401.06080, section on contrastive
learning; SimCSE, arXiv 2104.08821; SwAV, arXiv 2006.09882.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize

from prudent.errors import PrudentError

KINDS = ("simcse", "swav")
SIDES = ("feature", "difference")


def simcse(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """SimCSE loss of two dropout passes over the same batch: (..., B, d) twice -> (...), the mean over the batch.

    -log [exp(sim(h_i, h_i')/T) / sum_j exp(sim(h_i, h_j')/T)] with cosine similarity: an item's own second pass is its
    positive, the rest of the batch its negatives. B equal similarities give ln B; B = 1 gives 0.
    """
    if first.shape != second.shape:
        raise PrudentError(f"the two passes have shapes {tuple(first.shape)} and {tuple(second.shape)}; must be equal")
    similarity = normalize(first, dim=-1) @ normalize(second, dim=-1).transpose(-1, -2) / temperature
    flat = similarity.reshape(-1, *similarity.shape[-2:])
    target = torch.arange(flat.shape[-1], device=flat.device).expand(len(flat), -1)
    losses = cross_entropy(flat.transpose(1, 2), target, reduction="none")
    return losses.mean(-1).reshape(similarity.shape[:-2])


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float = 0.05, iterations: int = 1000) -> torch.Tensor:
    """Codes q (..., B, C) of prototype scores: rows sum to 1, and every prototype gets an equal share B / C of them.

    Alternating normalisation of exp(scores / epsilon) (Sinkhorn-Knopp), in logarithms, until every share holds to 1e-4
    of itself or after ``iterations``.
    """
    log = scores.double() / epsilon
    items, prototypes = log.shape[-2:]
    share = torch.log(torch.tensor(items / prototypes, dtype=torch.float64))
    for _ in range(iterations):
        log = log - log.logsumexp(-2, keepdim=True) + share
        log = log - log.logsumexp(-1, keepdim=True)
        if float((log.logsumexp(-2) - share).abs().max()) < 1e-4:
            break
    return log.exp().to(scores.dtype)


def swav(first: torch.Tensor, second: torch.Tensor, prototypes: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """SwAV loss l(h_t, q_s) + l(h_s, q_t), halved: two views (..., B, d), prototypes (..., C, d) -> (...).

    Codes come from ``sinkhorn`` without gradient; each view predicts the other's code. Vectors and prototypes are
    normalised here.
    """
    if first.shape != second.shape:
        raise PrudentError(f"the two views have shapes {tuple(first.shape)} and {tuple(second.shape)}; must be equal")
    anchors = normalize(prototypes, dim=-1).transpose(-1, -2)
    one, two = normalize(first, dim=-1) @ anchors, normalize(second, dim=-1) @ anchors
    predicted_one = -(sinkhorn(two) * log_softmax(one / temperature, -1)).sum(-1).mean(-1)
    predicted_two = -(sinkhorn(one) * log_softmax(two / temperature, -1)).sum(-1).mean(-1)
    return (predicted_one + predicted_two) / 2


def views(chosen: torch.Tensor, rejected: torch.Tensor, on: str) -> torch.Tensor:
    """What a contrastive term looks at: both sides as 2B items ("feature"), or their difference ("difference")."""
    if on not in SIDES:
        raise PrudentError(f"a contrastive term on {on!r} is unknown; known: {', '.join(SIDES)}")
    return torch.cat([chosen, rejected], dim=-2) if on == "feature" else chosen - rejected


def contrastive_term(
    kind: str, first: torch.Tensor, second: torch.Tensor, prototypes: torch.Tensor | None = None
) -> torch.Tensor:
    """The term of a kind, "simcse" or "swav" (which needs prototypes), with its usual temperature."""
    if kind == "simcse":
        return simcse(first, second)
    if kind == "swav":
        if prototypes is None:
            raise PrudentError("swav needs prototypes (C, d)")
        return swav(first, second, prototypes)
    raise PrudentError(f"unknown contrastive term {kind!r}; known: {', '.join(KINDS)}")
