"""What members' scores say together: moments, centring per prompt, normalised variance, members that are the same.

Scores are (K, N): K members, N responses; functions that say so also take leading axes (draws). One definition of
variance everywhere: the *sample* variance over members (ddof = 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError, RowsError

DDOF = 1
IDENTICAL_CAUSES = (
    "members are identical; likely causes: every member has the same seed, convex heads were fitted on the same rows "
    "(give --diversity bootstrap), training did not move them, or one file was loaded for all of them"
)


class IdenticalMembersWarning(UserWarning):
    """Some members give the same scores, so their variance says nothing."""


def as_scores(scores: ArrayLike, members_at_least: int = 1) -> torch.Tensor:
    """Floating-point (K, ...) tensor of finite scores with enough members, or PrudentError naming item and member."""
    tensor = as_tensor(scores)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    elif tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()  # the grid of half precision would turn close scores into ties
    if tensor.ndim < 2:
        raise PrudentError(f"scores have shape {tuple(tensor.shape)}, expected (members, responses)")
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        # item first: the first item that can't be used, then its first member (both counted from 1)
        at = torch.nonzero(bad.movedim(0, -1))[0].tolist()
        item = at[0] + 1 if len(at) == 2 else tuple(index + 1 for index in at[:-1])
        member = at[-1] + 1
        raise PrudentError(
            f"the score of item {item}, member {member} is {tensor[(at[-1], *at[:-1])].item()} (counted from 1; "
            f"{int(bad.sum())} of {tensor.numel()} scores are not finite); fix the member, or leave it out for every "
            "item with drop_members(scores)"
        )
    if len(tensor) < members_at_least:
        raise PrudentError(
            f"the standard deviation of {len(tensor)} member{'s' if len(tensor) != 1 else ''} is undefined (sample "
            f"variance, ddof={DDOF}); give at least {members_at_least} members"
        )
    return tensor


def finite_rows(scores: torch.Tensor) -> torch.Tensor:
    """``scores`` (K, N) as they are; RowsError names every response for which a member's score is not finite."""
    bad = torch.nonzero(~torch.isfinite(scores).all(0))[:, 0].tolist()
    if bad:
        raise RowsError({row: f"its scores are {[round(v, 4) for v in scores[:3, row].tolist()]}" for row in bad})
    return scores


def drop_members(scores: ArrayLike) -> tuple[torch.Tensor, list[int]]:
    """Scores without the members that are not finite somewhere, left out for *every* item, and the indices kept.

    scores: (K, ...). Never done on its own: a variance over fewer members is another quantity, so callers show the
    new K.
    """
    tensor = as_tensor(scores)
    kept = torch.nonzero(torch.isfinite(tensor).flatten(1).all(1))[:, 0]
    if len(kept) == 0:
        raise PrudentError("every member has a score that is not finite; none can be kept")
    return tensor[kept], kept.tolist()


def moments(scores: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sample variance (ddof = 1) over members: (K, ...) -> two tensors of shape (...).

    Raises PrudentError for one member (its variance is undefined: neither 0 nor NaN) and for scores that are not
    finite, naming the item and the member.
    """
    tensor = as_scores(scores, members_at_least=2)
    return tensor.mean(0), tensor.var(0, correction=DDOF)


def _group_index(groups: ArrayLike | Sequence[str], n: int) -> torch.Tensor:
    """(n,) numbers of the groups, from 0 in the order in which they come."""
    if len(groups) != n:  # type: ignore[arg-type]
        raise PrudentError(f"{len(groups)} groups for {n} responses; give one a response")  # type: ignore[arg-type]
    names: dict = {}
    values = groups.tolist() if hasattr(groups, "tolist") else groups
    return torch.tensor([names.setdefault(value, len(names)) for value in values], dtype=torch.long)  # type: ignore[union-attr]


def group_means(values: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """(..., N) averaged over the responses of each group: (..., P). index: (N,) numbers 0..P-1. weight: (N,) or equal.

    Raises PrudentError where a group's weights sum to 0.
    """
    weight = torch.ones(len(index), dtype=values.dtype) if weight is None else weight
    count = int(index.max()) + 1 if len(index) else 0
    total = torch.zeros(count, dtype=values.dtype).index_add_(0, index, weight)
    if bool((total <= 0).any()):
        raise PrudentError(f"centring weights of group {int(torch.nonzero(total <= 0)[0])} sum to 0")
    sums = torch.zeros(*values.shape[:-1], count, dtype=values.dtype).index_add_(-1, index, values * weight)
    return sums / total


def centre(
    scores: ArrayLike, groups: ArrayLike | Sequence[str] | None = None, weights: ArrayLike | None = None
) -> torch.Tensor:
    """Scores minus each member's mean over the responses of the same prompt. (..., N) -> (..., N).

    groups: (N,) prompt of each response, integers or texts; None takes the last axis as one prompt's responses, so
    (..., prompts, candidates) is centred as it stands. weights: reference probabilities of the responses ((N,), or
    broadcast against ``scores`` where groups is None); None weighs them equally. Without groups a weight of 0 masks a
    candidate (padding of a ragged pool): whatever it holds, it comes back 0.
    Bradley-Terry leaves an offset per prompt free in every member; the variance of raw scores would measure it.
    """
    tensor = as_tensor(scores)
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.float64)
    weight = torch.ones(tensor.shape[-1], dtype=tensor.dtype) if weights is None else as_tensor(weights, tensor.dtype)
    if bool((weight < 0).any()):
        raise PrudentError("centring weights must not be negative; give reference probabilities")
    if groups is None:
        total = weight.expand(torch.broadcast_shapes(weight.shape, tensor.shape)).sum(-1, keepdim=True)
        if bool((total <= 0).any()):
            raise PrudentError("centring weights of a prompt sum to 0")
        inside, nothing = weight > 0, torch.zeros((), dtype=tensor.dtype)
        mean = (torch.where(inside, tensor, nothing) * weight).sum(-1, keepdim=True) / total
        return torch.where(inside, tensor - mean, nothing)
    index = _group_index(groups, tensor.shape[-1])
    if weight.shape != index.shape:
        raise PrudentError(f"centring weights have shape {tuple(weight.shape)}, expected {tuple(index.shape)}")
    return tensor - group_means(tensor, index, weight)[..., index]


def centre_members(
    scores: ArrayLike, groups: ArrayLike | Sequence[str] | None = None, *, together: bool = False
) -> torch.Tensor:
    """Members' scores (K, N) without what a comparison within a prompt can't mean: (K, N).

    together False: each member has an offset of its own per prompt, which goes (`centre`). True: the members share one
    origin (they are quantiles of one reward), so the prompt's mean over members and responses goes from all of them.
    groups: (N,) prompt of each response; None takes all as one prompt's.
    """
    if not together:
        return centre(scores, groups)
    tensor = as_scores(scores)
    mean = tensor.mean(0)
    return tensor - (mean - centre(mean, groups))


def deviation_within(scores: ArrayLike, weights: ArrayLike) -> torch.Tensor:
    """Standard deviation of scores (..., P, C) within prompts, root mean square over prompts: (...).

    weights: (..., P, C) reference probabilities, 0 masks a candidate. Raises as `centre` does.
    """
    weight = as_tensor(weights)
    return (weight * centre(scores, weights=weight).square()).sum(-1).mean(-1).sqrt()


def normalise_variance(
    variance: ArrayLike, floor: float = 1e-2, dim: int | tuple[int, ...] | None = None
) -> torch.Tensor:
    """Variance divided by its mean over the pool, then raised to at least ``floor``. Same shape.

    dim: axes of the pool (None: the whole tensor is one pool; (-2, -1): each draw's prompts x candidates).
    floor is relative to the mean of 1 (0 gives none). With it the result's mean is a little above 1, by at most floor.
    Then beta means the same in every method. A pool whose variance is 0 everywhere raises PrudentError.
    """
    tensor = as_tensor(variance)
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.float64)
    if not floor >= 0:
        raise PrudentError(f"floor must be at least 0, got {floor}")
    if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
        raise PrudentError("variances must be finite and not negative")
    mean = tensor.mean() if dim is None else tensor.mean(dim, keepdim=True)
    if bool((mean <= 0).any()):
        raise PrudentError(f"the variance is 0 on the whole pool, it can't be normalised: {IDENTICAL_CAUSES}")
    return (tensor / mean).clamp_min(floor)


def identical_members(scores: ArrayLike, tolerance: float = 1e-6) -> list[list[int]]:
    """Groups (of two or more indices) of members that score alike. (K, N) -> list of lists.

    Alike: equal up to an additive constant within ``tolerance`` times the largest distance of a score from its member's
    mean. A constant has no meaning to Bradley-Terry, so it makes no difference between members either.
    """
    tensor = as_scores(scores).double().flatten(1)
    centred = tensor - tensor.mean(1, keepdim=True)
    scale = float(centred.abs().max()) or 1.0
    distance = torch.cdist(centred, centred, p=torch.inf) / scale
    groups: list[list[int]] = []
    left = set(range(len(tensor)))
    for member in range(len(tensor)):
        if member in left:
            alike = [other for other in sorted(left) if float(distance[member, other]) <= tolerance]
            left -= set(alike)
            if len(alike) > 1:
                groups.append(alike)
    return groups


def warn_if_identical(scores: ArrayLike, tolerance: float = 1e-6) -> list[list[int]]:
    """``identical_members``, with an IdenticalMembersWarning that names the members and the likely causes."""
    groups = identical_members(scores, tolerance)
    if groups:
        named = "; ".join(", ".join(str(member + 1) for member in group) for group in groups)
        warnings.warn(f"members {named} (counted from 1): {IDENTICAL_CAUSES}", IdenticalMembersWarning, stacklevel=2)
    return groups


def margin_moments(chosen: ArrayLike, rejected: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sample variance (ddof = 1) over members of the margin chosen - rejected: two (K, n) -> two (n,).

    The margin is free of members' offsets, so its variance is comparable between data sets without centring.
    """
    first, second = as_scores(chosen, 2), as_scores(rejected, 2)
    if first.shape != second.shape:
        raise PrudentError(f"chosen scores have shape {tuple(first.shape)}, rejected {tuple(second.shape)}")
    return moments(first - second)
