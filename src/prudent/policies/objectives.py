"""One table of objectives: from K members' scores to the exact policy, the RL reward and the KL weight of each name.

A row says which reward it reads off the members' scores, which variance beside it, and the form in which they meet.
The form gives both sides, so that they can't disagree: the exact policy over candidates (``policies.solve``), and the
reward and KL weight of KL-regularised RL, ``E[reward] - beta E[weight * log(pi / pi0)]`` with both numbers detached,
whose fixed point is that policy:

============  =============  ======  ==========================================================================
form          RL reward      weight  exact policy, the fixed point
============  =============  ======  ==========================================================================
plain         r              1       pi0 exp(r / beta)
proportional  r / s          1       pi0 exp(r / (beta s)), the authors' closed form (r centred per prompt)
bregman       r              s       pi0 exp((r - lam) / (beta s)): weighted L2 ball locally
exact         r - beta s     s       the maximiser of J = E[r - beta s log(pi / pi0)]
============  =============  ======  ==========================================================================

r is the row's reward and s the members' variance in units of its mean over samples of the reference, floored. Source:
2410.23726 (objective and closed form); the extra term of ``exact`` is derived in docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.policies.estimates import Estimate, ReferenceStatistics
from prudent.policies.finite import beta_for_kl, solve
from prudent.rewards.aggregation import RULES, aggregate
from prudent.rewards.quantiles import UTILITIES, utility
from prudent.seeding import Seed, torch_generator

LIMIT_BETA = 1e-200  # in place of 0: rewards that differ at all differ by more, and no exponent overflows


class Terms(NamedTuple):
    """An objective on given scores. reward, variance: (..., prompts, candidates); variance None is the plain form."""

    reward: torch.Tensor
    variance: torch.Tensor | None
    form: str

    def policy(self, reference: ArrayLike, beta: ArrayLike) -> torch.Tensor:
        """Exact policy over each prompt's candidates (see ``policies.solve``). beta 0 is the limit: the best candidate
        by what the form ranks by (reward over variance in the proportional one, else reward); equal ones share."""
        weight = as_tensor(beta, torch.float64)
        weight = torch.where(weight == 0, LIMIT_BETA, weight)
        return solve(self.reward, reference, weight, variance=self.variance, form=self.form)

    def signal(self, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Reward and KL weight for a trainer, both of the reward's shape."""
        one = torch.ones_like(self.reward)
        if self.variance is None:
            return self.reward, one
        if self.form == "proportional":
            return self.reward / self.variance, one
        return self.reward - beta * self.variance if self.form == "exact" else self.reward, self.variance

    def reshape(self, *shape: int) -> Terms:
        """The same terms in another layout, such as (prompts, candidates) from one row of them all."""
        variance = None if self.variance is None else self.variance.reshape(shape)
        return Terms(self.reward.reshape(shape), variance, self.form)


@dataclass(frozen=True)
class Objective:
    """A row of the table: called, it gives the exact policy (..., prompts, candidates).

    kind: baseline, rival, variance-aware, control, or utility (risk-averse, of quantiles of one reward). options: the
    numbers that ``reward`` takes. variance reads an Estimate and a seed, which a control alone looks at.
    """

    name: str
    kind: str
    reward: Callable[..., torch.Tensor]
    variance: Callable[[Estimate, Seed], torch.Tensor] | None = None
    form: str = "proportional"
    options: tuple[str, ...] = ()

    def terms(self, estimate: Estimate, *, seed: Seed = 0, **options: float) -> Terms:
        """What is optimised on these scores, whatever the beta. Raises PrudentError for an option it hasn't got."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise PrudentError(f"objective {self.name!r} has no option {', '.join(unknown)}; its options: {known}")
        variance = None if self.variance is None else self.variance(estimate, seed)
        return Terms(self.reward(estimate, **options), variance, self.form)

    def __call__(
        self, estimate: Estimate, reference: ArrayLike, beta: ArrayLike, *, seed: Seed = 0, **options: float
    ) -> torch.Tensor:
        return self.terms(estimate, seed=seed, **options).policy(reference, beta)


def shuffle_within(values: torch.Tensor, groups: torch.Tensor, seed: Seed) -> torch.Tensor:
    """``values`` (..., N) shuffled among the responses of equal ``groups`` (..., N), each leading index by itself."""
    keys = torch.rand(values.shape, generator=torch_generator(seed), dtype=torch.float64).to(values.device)
    groups = groups.to(values.device).expand(values.shape)
    drawn = torch.argsort(groups + keys, -1)  # by group, in random order within: the keys are below 1
    return torch.empty_like(values).scatter(-1, torch.argsort(groups, dim=-1, stable=True), values.gather(-1, drawn))


def _shuffled(estimate: Estimate, seed: Seed) -> torch.Tensor:
    """The variances shuffled among each prompt's responses: as unequal as they were, their link with them cut."""
    variance, groups = estimate.variance, estimate.groups
    if groups is None:
        groups = torch.arange(variance.shape[-2])[:, None].expand(variance.shape[-2:])
    return shuffle_within(variance.flatten(-2), groups.flatten(-2), seed).reshape(variance.shape)


def _constant(estimate: Estimate) -> torch.Tensor:
    """The reward's root mean square, one number a draw, in every response's place.

    At equal beta the tilt is then as strong as that of the methods that ``variance-only`` controls; at equal KL it
    drops out. Any gain comes from low variance going with truth, not from precision weighting.
    """
    return estimate.scale.expand(estimate.reward.shape)


def _reward(estimate: Estimate) -> torch.Tensor:
    return estimate.reward


def _variance(estimate: Estimate, seed: Seed) -> torch.Tensor:
    return estimate.variance


def _pessimism(rule: str) -> Objective:
    """The reward is a rule over members: its formula and defaults are those of ``rewards.aggregation``."""

    def reward(estimate: Estimate, **options: float) -> torch.Tensor:
        return aggregate(estimate.scores.movedim(-3, 0), rule, **options)

    return Objective(rule, "rival", reward, options=tuple(RULES[rule].options))


def _utility(kind: str) -> Objective:
    def reward(estimate: Estimate, **options: float) -> torch.Tensor:
        return utility(estimate.scores.movedim(-3, 0), kind, **options)

    return Objective(kind, "utility", reward, options=("level" if kind == "cvar" else "aversion",))


OBJECTIVES: dict[str, Objective] = {
    row.name: row
    for row in (
        Objective("vanilla", "baseline", _reward),
        Objective("mean", "rival", lambda estimate: estimate.mean),
        Objective("proportional", "variance-aware", _reward, _variance),
        Objective("bregman", "variance-aware", _reward, _variance, "bregman"),
        Objective("exact", "variance-aware", _reward, _variance, "exact"),
        *map(_pessimism, ("lcb", "min", "uwo", "entropic")),
        Objective("variance-only", "control", _constant, _variance),
        Objective("permuted", "control", _reward, _shuffled),
        *(_utility(kind) for kind in UTILITIES if kind != "expected"),
    )
}
METHODS = {name: row for name, row in OBJECTIVES.items() if row.kind != "utility"}  # of members, not of quantiles
CONTROLS = tuple(name for name, row in OBJECTIVES.items() if row.kind == "control")
VARIANCE_OBJECTIVES = tuple(name for name, row in OBJECTIVES.items() if row.variance is not None)
KL_RULES = ("bregman", "exact")  # the KL penalty is weighted per response


def objective_of(name: str) -> Objective:
    """The table's row, or PrudentError naming those there are."""
    if name not in OBJECTIVES:
        raise PrudentError(f"unknown objective {name!r}; one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def method_beta_for_kl(
    method: str,
    estimate: Estimate,
    reference: ArrayLike,
    target: ArrayLike,
    *,
    per: str = "draw",
    strict: bool = True,
    tolerance: float = 1e-6,
    seed: Seed = 0,
) -> torch.Tensor:
    """beta at which a method's mean KL over prompts is ``target``: one a draw (the leading axes), or one for "all"."""
    if per not in ("draw", "all"):
        raise PrudentError(f"per is {per!r}, must be 'draw' or 'all'")
    terms = objective_of(method).terms(estimate, seed=seed)
    reference = as_tensor(reference, torch.float64)
    shape = tuple(estimate.reward.shape[:-2]) if per == "draw" else ()
    return beta_for_kl(
        lambda beta: terms.policy(reference, beta), reference, target, shape=shape, strict=strict, tolerance=tolerance
    )


class Shaped(NamedTuple):
    """reward (N,) and kl_weight (N,) for the trainer; mean and variance (N,) for the log (variance in scale units)."""

    reward: torch.Tensor
    kl_weight: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor


def shape(
    objective: str,
    scores: ArrayLike,
    prompts: ArrayLike,
    reference: ReferenceStatistics,
    beta: float,
    *,
    member: int | None = None,
    rule_options: dict[str, float] | None = None,
    seed: Seed = 0,
) -> Shaped:
    """Reward and KL weight of each response under ``objective``.

    scores: (K, N) members' scores of the policy's responses. prompts: (N,) index into ``reference.centre``.
    member: take this member as the reward; None takes the mean. seed: of ``permuted`` alone.
    Raises PrudentError for an unknown objective, non-finite scores, or a variance objective without a variance.
    """
    row = objective_of(objective)
    found = reference.estimate(scores, prompts, member)
    if row.variance is not None and bool(torch.isnan(found.variance).any()):
        cause = (
            "one member has none" if len(found.scores) < 2 else "the members are identical on the reference's samples"
        )
        raise PrudentError(
            f"objective {objective!r} needs a variance, but {cause}; fit at least 2 members that differ "
            "(diversity='bootstrap' for heads), or use objective 'vanilla'"
        )
    reward, weight = row.terms(found, seed=seed, **(rule_options or {})).signal(beta)
    return Shaped(reward[0], weight[0], found.reward[0], found.variance[0])
