"""What a reward estimate may promise about the policy that is optimised against it, before anything is tuned.

The belief is m = R + eta with eta ~ N(0, Sigma): m the members' mean or the posterior mean, Sigma = F F' over the whole
pool. The plug-in promise <pi - pi0, m> is too good, since pi was chosen by m. Two corrections, both unbiased for what
the policy truly gains when the belief is right (docs/theory.md, equations (34) to (39)):

* Stein: the optimism E<v(m), eta> is E tr(Sigma dv/dm), which each form has in closed form;
* cross-fit: with omega ~ N(0, Sigma), m + omega and m - omega have independent errors: choose by one, value by the
other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.policies.finite import FORMS, kl, solve
from prudent.rewards.uncertainty import centre
from prudent.theory.bounds import width
from prudent.theory.error_quantiles import Response, error_quantile, optimism, pool_variance

LEAST_MEMBERS = 5
VANILLA = "vanilla"
RULES = (VANILLA, *FORMS)


class LeftOut(NamedTuple):
    """Each member beside the others, (K, P, n): the others' mean and variance, and the member minus that mean."""

    reward: torch.Tensor
    variance: torch.Tensor
    apart: torch.Tensor


class Belief(NamedTuple):
    """Reward estimates of a pool and how they vary together.

    reward (P, n): m, centred per prompt under the reference. factor (P, n, r): F with F F' the covariance over all
    stacked responses. variance (P, n): its diagonal, normalised to mean 1 over the pool and floored, as the policies
    use it. reference (P, n). freedom: degrees of freedom behind Sigma, K - 1 for an ensemble, inf for a posterior.
    left_out: of an ensemble, whose policies look at the same members that say how sure they are.
    """

    reward: torch.Tensor
    factor: torch.Tensor
    variance: torch.Tensor
    reference: torch.Tensor
    freedom: float
    left_out: LeftOut | None = None


class Certificate(NamedTuple):
    """One method at one beta. Numbers are means over prompts, in units of the reward; ``prompts`` has each prompt's.

    plug_in: <pi - pi0, m>. optimism: Stein's estimate of what is too good in it. improvement: plug_in - optimism,
    unbiased. deviation: its standard error, sqrt(||pi - pi0||_Sigma^2 + tr(Sigma J Sigma J)) with J = d pi / d m. risk:
    chance that the policy is no better than its reference, from improvement and deviation. bound: improvement below
    which the truth lies with probability delta. uniform: plug-in bound that holds for every policy at once, nan for an
    ensemble (K members know K - 1 directions and can't bound all of them). kl: nats.
    """

    method: str
    beta: float
    plug_in: float
    optimism: float
    improvement: float
    deviation: float
    risk: float
    bound: float
    uniform: float
    kl: float
    prompts: dict[str, torch.Tensor]


def _belief(
    reward: torch.Tensor, factor: torch.Tensor, reference: torch.Tensor, freedom: float, floor: float
) -> Belief:
    reward = centre(reward, weights=reference)
    factor = centre(factor.movedim(-1, 0), weights=reference).movedim(0, -1)
    raw = factor.square().sum(-1)
    if not bool((reference * raw).sum() > 0):
        raise PrudentError("the members agree on every response: there is no variance to certify with")
    return Belief(reward, factor, _relative(raw, reference, floor), reference, freedom)


def _relative(raw: torch.Tensor, reference: torch.Tensor, floor: float) -> torch.Tensor:
    """Variances (..., P, n) over their mean over the pool, floored; 1 where masked."""
    average = (reference * raw).sum(-1, keepdim=True).mean(-2, keepdim=True)
    return torch.where(reference > 0, (raw / average).clamp(min=floor), 1.0)


def belief_from_members(scores: ArrayLike, reference: ArrayLike, *, floor: float = 1e-2) -> Belief:
    """Belief of an ensemble from scores (K, P, n): mean and sample covariance (ddof=1), centred per prompt.

    PrudentError under LEAST_MEMBERS members: the bound did not hold its level with fewer.
    """
    members, pi0 = as_tensor(scores, torch.float64), as_tensor(reference, torch.float64)
    if members.ndim != 3 or len(members) < LEAST_MEMBERS:
        raise PrudentError(
            f"scores have shape {tuple(members.shape)}, expected (members, prompts, responses) with at least "
            f"{LEAST_MEMBERS} members; fit more (--members), or a posterior (--family laplace)"
        )
    members = torch.where(pi0 > 0, members - (pi0 * members).sum(-1, keepdim=True), 0.0)
    count = len(members)
    factor = ((members - members.mean(0)) / math.sqrt(count - 1)).permute(1, 2, 0)
    found = _belief(members.mean(0), factor, pi0, count - 1.0, floor)
    apart = (members - members.mean(0)) * count / (count - 1)
    # The sum of squares without one of K: less (K - 1) / K times its squared distance to the others' mean.
    squares = (members - members.mean(0)).square().sum(0) - apart.square() * (count - 1) / count
    variance = _relative((squares / (count - 2)).clamp(min=0.0), pi0, floor)
    return found._replace(left_out=LeftOut(members - apart, variance, apart))


def belief_from_posterior(
    expected: ArrayLike, factor: ArrayLike, reference: ArrayLike, *, floor: float = 1e-2
) -> Belief:
    """Belief of a posterior from its mean (P, n) and factor (P, n, r), centred per prompt here."""
    mean, root, pi0 = (as_tensor(x, torch.float64) for x in (expected, factor, reference))
    return _belief(torch.where(pi0 > 0, mean, 0.0), root, pi0, math.inf, floor)


def policy_of(belief: Belief, reward: torch.Tensor, beta: float, method: str) -> torch.Tensor:
    """Policy of ``method`` against a reward (..., P, n) that shares the belief's variance."""
    if method not in RULES:
        raise PrudentError(f"method is {method!r}, must be one of {', '.join(RULES)}")
    if method == VANILLA:
        return solve(reward, belief.reference, beta)
    return solve(reward, belief.reference, beta, variance=belief.variance, form=method)


def response(belief: Belief, policy: torch.Tensor, beta: float, method: str) -> Response:
    """How the policy moves with the rewards, the variance taken as fixed. Each row of J sums over the prompt to 0."""
    pull = policy / beta if method == VANILLA else policy / (beta * belief.variance)
    if method == "proportional":
        return Response(pull, policy, pull)
    # The normaliser or the multiplier moves with each reward by that reward's share of the pull.
    return Response(pull, pull, pull / pull.sum(-1, keepdim=True))


def prompt_variances(factor: torch.Tensor, moved: Response) -> torch.Tensor:
    """tr(Sigma J Sigma J) of each prompt by itself, (P,): equation (38). factor (P, n, r)."""
    jacobian = torch.diag_embed(moved.pull) - moved.left[..., :, None] * moved.right[..., None, :]
    turned = (factor @ factor.mT) @ jacobian
    return (turned * turned.mT).sum((-2, -1))


def certify(
    belief: Belief, beta: float, method: str, *, delta: float = 0.05, quantile: float | None = None
) -> Certificate:
    """What the belief may promise about ``method`` at ``beta``, overall and for each prompt.

    The bound is improvement - q deviation: unbiased and with the right variance (equation (38)). q: Student's t with
    the belief's degrees of freedom (the normal for a posterior), times how much further the error's own law reaches
    than the normal (``bound_quantile``), for which ``quantile`` may stand where it is known. ``uniform`` needs no
    approximation: plug-in minus the chi-square width over all directions of the pool (equation (23)).
    """
    policy = policy_of(belief, belief.reward, beta, method)
    step = policy - belief.reference
    count = len(step)
    moved = response(belief, policy, beta, method)
    extra, whole = prompt_variances(belief.factor, moved), float(pool_variance(belief.factor, moved))
    fixed = torch.einsum("pn,pnr->pr", step, belief.factor)
    square, along, lost = fixed.square().sum(-1), float(fixed.sum(0).square().sum()), optimism(belief.factor, moved)
    if belief.left_out is not None:
        square, along, lost = _cross_validated(belief, belief.left_out, beta, method)
    each = {
        "plug_in": (step * belief.reward).sum(-1),
        "optimism": lost,
        "deviation": (square + extra).clamp(min=0.0).sqrt(),
        "kl": kl(policy, belief.reference),
    }
    each["improvement"] = each["plug_in"] - each["optimism"]
    deviation = math.sqrt(max(along + whole, 0.0)) / count
    each["risk"] = _chance(each["improvement"], each["deviation"], belief.freedom)
    each["bound"] = each["improvement"] - _quantile(delta, belief.freedom) * each["deviation"]
    sizes = (belief.reference > 0).sum(-1) - 1
    rank = min(int(sizes.sum()), belief.factor.shape[-1])
    means = {name: float(each[name].mean()) for name in ("plug_in", "optimism", "improvement", "kl")}
    improvement, uniform = means["improvement"], math.nan
    if math.isinf(belief.freedom):
        uniform = means["plug_in"] - width(delta, max(rank, 1)) * math.sqrt(along) / count
    risk = float(_chance(torch.tensor(improvement), torch.tensor(deviation), belief.freedom))
    bound = improvement - (bound_quantile(belief, beta, method, delta) if quantile is None else quantile) * deviation
    known = {"deviation": deviation, "risk": risk, "bound": bound, "uniform": uniform}
    return Certificate(method=method, beta=beta, prompts=each, **means, **known)


def _cross_validated(
    belief: Belief, left_out: LeftOut, beta: float, method: str
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """||v||_Sigma^2 of each prompt (P,) and of the pool's sum, and the optimism (P,), each member judging the policy
    that the others choose.

    The mean of the members errs by Sigma (1 + 1 / K): Sigma for the data, Sigma / K for so few members. And a policy
    that goes where they happen to agree finds them too sure there. A member left out knows nothing of it; its distance
    to the others' mean has covariance Sigma (1 + 1 / (K - 1)).
    """
    rest = belief._replace(reward=left_out.reward, variance=left_out.variance)
    policy = policy_of(rest, rest.reward, beta, method)
    moved, apart = response(rest, policy, beta, method), left_out.apart
    along = ((policy - belief.reference) * apart).sum(-1)
    lost = (moved.pull * apart.square()).sum(-1) - (moved.left * apart).sum(-1) * (moved.right * apart).sum(-1)
    return along.square().mean(0), float(along.sum(-1).square().mean()), lost.mean(0)


def bound_quantile(belief: Belief, beta: float, method: str, delta: float = 0.05) -> float:
    """How many deviations the bound lies below the improvement.

    The error of a policy that mostly follows noise is skewed: its simulated quantile over the normal's (at least 1)
    multiplies Student's t, which stands for a Sigma known from few members.
    """

    def solved(reward: torch.Tensor, prompts: slice) -> tuple[torch.Tensor, Response]:
        part = belief._replace(
            reward=reward, variance=belief.variance[prompts], reference=belief.reference[prompts], left_out=None
        )
        policy = policy_of(part, reward, beta, method)
        return policy - part.reference, response(part, policy, beta, method)

    found = error_quantile(belief.reward, belief.factor, solved, delta)
    return _quantile(delta, belief.freedom) * max(1.0, found / _quantile(delta, math.inf))


def _quantile(delta: float, freedom: float) -> float:
    return float(stats.norm.isf(delta) if math.isinf(freedom) else stats.t.isf(delta, freedom))


def _chance(improvement: torch.Tensor, deviation: torch.Tensor, freedom: float) -> torch.Tensor:
    """P(truth <= 0); 1 where the policy doesn't move, since it is then no better than its reference."""
    moves = deviation > 0
    ratio = torch.where(moves, improvement / torch.where(moves, deviation, 1.0), -math.inf).numpy()
    found = stats.norm.sf(ratio) if math.isinf(freedom) else stats.t.sf(ratio, freedom)
    return torch.as_tensor(found, dtype=torch.float64)


class CrossFit(NamedTuple):
    """A policy chosen by m + omega and valued by m - omega: means over the deviations omega and prompts."""

    improvement: float
    plug_in: float
    bound: float
    draws: int


def cross_fit(belief: Belief, deviations: torch.Tensor, beta: float, method: str, *, delta: float = 0.05) -> CrossFit:
    """Expected reward of a policy whose reward is one member (or posterior draw), equation (39).

    deviations (S, P, n): draws omega ~ N(0, Sigma), such as members minus their mean, or factor times normal noise. The
    member m + omega errs by eta + omega, which m - omega's error eta - omega is independent of when omega has eta's
    covariance, as a bootstrap's deviations have. bound: mean lower bound, from ||v||_{2 Sigma}.
    """
    omega = as_tensor(deviations, torch.float64)
    policy = policy_of(belief, belief.reward + omega, beta, method)
    step = policy - belief.reference
    chosen, valued = ((step * (belief.reward + sign * omega)).sum(-1).mean(-1) for sign in (1, -1))
    deviation = torch.linalg.vector_norm(torch.einsum("spn,pnr->sr", step, belief.factor), dim=-1) / step.shape[-2]
    bound = valued - _quantile(delta, belief.freedom) * math.sqrt(2) * deviation
    return CrossFit(float(valued.mean()), float(chosen.mean()), float(bound.mean()), len(omega))


def draw_deviations(belief: Belief, count: int, generator: torch.Generator) -> torch.Tensor:
    """omega (count, P, n) ~ N(0, Sigma) from the belief's factor."""
    noise = torch.randn(count, belief.factor.shape[-1], generator=generator, dtype=torch.float64)
    return torch.einsum("pnr,sr->spn", belief.factor, noise)
