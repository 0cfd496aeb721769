"""The rivals that fill one slot: from K members' scores of a prompt's candidates to a policy over them.

`estimate` turns scores (..., members, prompts, candidates) into what every method sees, each choice a named option;
`METHODS` maps a name to a pure function ``(estimate, reference, beta) -> policy (..., prompts, candidates)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.policies.finite import beta_for_kl, solve
from prudent.rewards.aggregation import aggregate
from prudent.seeding import torch_generator


class Estimate(NamedTuple):
    """What methods see of the reward models, (..., prompts, candidates) each unless said otherwise.

    scores: members' scores, centred per prompt if asked, (..., members, prompts, candidates). reward: the designated
    member, or their mean. mean: over members. variance: over members (ddof=1), normalised and floored as asked. spread:
    standard deviation in units of the reward. scale: root mean square of the centred reward, (..., 1, 1).
    """

    scores: torch.Tensor
    reward: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    spread: torch.Tensor
    scale: torch.Tensor


Method = Callable[[Estimate, torch.Tensor, ArrayLike], torch.Tensor]


def estimate(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    reward: str | torch.Tensor = "member:0",
    centre: bool = True,
    normalise: bool = True,
    floor: float = 1e-2,
) -> Estimate:
    """Moments of scores (..., members, prompts, candidates) beside reference probabilities (..., prompts, candidates).

    reward: "mean" or "member:k", the reward that the policy is optimised against, or rewards of its own (..., prompts,
    candidates), such as those of a fit on all data. centre: subtract from each member (and such a reward) its
    mean under the reference, prompt by prompt, before anything else (the proportional form isn't invariant to a
    constant, and a member's arbitrary offset would count as variance). normalise: divide the variance by its mean over
    prompts (within a prompt, over the reference), one number a draw, so that beta means the same for every method.
    floor: least variance, as a share of that mean. Raises PrudentError for one member or for identical ones.
    """
    members = as_tensor(scores, torch.float64)
    reference = as_tensor(reference, torch.float64)
    if members.ndim < 3 or members.shape[-3] < 2:
        count = members.shape[-3] if members.ndim >= 3 else 1
        raise PrudentError(
            f"scores of shape {tuple(members.shape)} hold {count} member; a spread needs at least 2, "
            "on the axis before prompts and candidates"
        )
    weights = reference.unsqueeze(-3)
    members = torch.where(weights > 0, members, torch.zeros_like(members))
    require_finite(members, "scores")
    if centre:
        members = _centred(members, weights)
    mean = members.mean(-3)
    raw = members.var(-3)
    average = (reference * raw).sum(-1, keepdim=True).mean(-2, keepdim=True)
    if not bool((average > 0).all()):
        raise PrudentError("members are identical: their scores have no variance; give them other seeds or resamples")
    variance = raw / average if normalise else raw
    variance = torch.maximum(variance, torch.as_tensor(floor) * (1.0 if normalise else average))
    if isinstance(reward, str):
        chosen = mean if reward == "mean" else _member(members, reward)
    else:
        chosen = as_tensor(reward, torch.float64)
        chosen = _centred(chosen, reference) if centre else chosen
    inner = chosen - (reference * chosen).sum(-1, keepdim=True)
    scale = (reference * inner.square()).sum(-1, keepdim=True).mean(-2, keepdim=True).sqrt()
    return Estimate(members, chosen, mean, variance, raw.sqrt(), scale)


def _centred(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``values`` minus their mean under the reference, prompt by prompt; 0 where a candidate is masked."""
    return torch.where(reference > 0, values - (reference * values).sum(-1, keepdim=True), torch.zeros_like(values))


def _member(members: torch.Tensor, reward: str) -> torch.Tensor:
    kind, _, number = reward.partition(":")
    if kind != "member" or not number.isdigit() or int(number) >= members.shape[-3]:
        raise PrudentError(f"reward is {reward!r}, must be 'mean' or 'member:k' with k below {members.shape[-3]}")
    return members[..., int(number), :, :]


def vanilla(seen: Estimate, reference: torch.Tensor, beta: ArrayLike) -> torch.Tensor:
    """KL-regularised optimum of the designated reward; the variance is not looked at."""
    return solve(seen.reward, reference, beta)


def mean(seen: Estimate, reference: torch.Tensor, beta: ArrayLike) -> torch.Tensor:
    """KL-regularised optimum of the members' mean."""
    return solve(seen.mean, reference, beta)


def proportional(seen: Estimate, reference: torch.Tensor, beta: ArrayLike) -> torch.Tensor:
    """Variance-aware, the authors' closed form: pi0 exp(r / (beta sigma2))."""
    return solve(seen.reward, reference, beta, variance=seen.variance, form="proportional")


def bregman(seen: Estimate, reference: torch.Tensor, beta: ArrayLike) -> torch.Tensor:
    """Variance-aware, Bregman form: pi0 exp((r - lam) / (beta sigma2))."""
    return solve(seen.reward, reference, beta, variance=seen.variance, form="bregman")


def exact(seen: Estimate, reference: torch.Tensor, beta: ArrayLike) -> torch.Tensor:
    """Variance-aware, the exact maximiser of J: pi0 exp((r - lam) / (beta sigma2) - 1)."""
    return solve(seen.reward, reference, beta, variance=seen.variance, form="exact")


def _by_rule(rule: str) -> Callable[..., torch.Tensor]:
    """The method whose reward is a rule over members: its formula and defaults are those of ``rewards.aggregation``."""

    def method(seen: Estimate, reference: torch.Tensor, beta: ArrayLike, **options: float) -> torch.Tensor:
        return solve(aggregate(seen.scores.movedim(-3, 0), rule, **options), reference, beta)

    return method


lcb, minimum, uwo, entropic = (_by_rule(rule) for rule in ("lcb", "min", "uwo", "entropic"))


def variance_only(seen: Estimate, reference: torch.Tensor, beta: ArrayLike) -> torch.Tensor:
    """Control that never looks at which response is better: pi0 exp(c / (beta sigma2)), low variance preferred.

    It is the proportional form with the same positive reward c for every response. c is the reward's root mean square
    over the pool, one number a draw, so that at equal beta the tilt is as strong as that of the methods it controls; at
    equal KL c drops out. Any gain it makes comes from low variance going with truth, not from precision weighting.
    """
    return solve(seen.scale.expand(seen.reward.shape), reference, beta, variance=seen.variance, form="proportional")


def permuted(
    seen: Estimate, reference: torch.Tensor, beta: ArrayLike, *, seed: int = 0, form: str = "proportional"
) -> torch.Tensor:
    """Control: as the variance-aware ``form``, with the variances shuffled among each prompt's responses.

    It keeps how unequal the variances are and breaks their link with the responses. Each draw and prompt has its own
    shuffle, the same for every beta.
    """
    shuffled = shuffle_within(seen.variance, reference, seed)
    return solve(seen.reward, reference, beta, variance=shuffled, form=form)


def shuffle_within(values: torch.Tensor, reference: torch.Tensor, seed: int) -> torch.Tensor:
    """``values`` (..., prompts, candidates) shuffled among each prompt's candidates that aren't masked."""
    support = (reference > 0).expand(values.shape)
    keys = torch.rand(values.shape, generator=torch_generator(seed), dtype=torch.float64).to(values.device)
    shuffled = torch.argsort(torch.where(support, keys, 2.0), -1)
    places = torch.argsort((~support).to(torch.int8), dim=-1, stable=True)
    return torch.empty_like(values).scatter(-1, places, values.gather(-1, shuffled))


METHODS: dict[str, Method] = {
    "vanilla": vanilla,
    "mean": mean,
    "proportional": proportional,
    "bregman": bregman,
    "exact": exact,
    "lcb": lcb,
    "min": minimum,
    "uwo": uwo,
    "entropic": entropic,
    "variance-only": variance_only,
    "permuted": permuted,
}
CONTROLS = ("variance-only", "permuted")
VARIANCE_AWARE = ("proportional", "bregman", "exact")


def method_beta_for_kl(
    method: str | Method,
    seen: Estimate,
    reference: ArrayLike,
    target: ArrayLike,
    *,
    per: str = "draw",
    strict: bool = True,
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """beta at which a method's mean KL over prompts is ``target``: one a draw (the leading axes), or one for "all"."""
    if per not in ("draw", "all"):
        raise PrudentError(f"per is {per!r}, must be 'draw' or 'all'")
    function = METHODS[method] if isinstance(method, str) else method
    reference = as_tensor(reference, torch.float64)
    shape = tuple(seen.reward.shape[:-2]) if per == "draw" else ()

    def policy_at(beta: torch.Tensor) -> torch.Tensor:
        return function(seen, reference, beta)

    return beta_for_kl(policy_at, reference, target, shape=shape, strict=strict, tolerance=tolerance)
