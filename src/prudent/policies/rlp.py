"""Reward learning on policy (arXiv 2403.19279) over pools: the reward model is refreshed with the policy's own samples.

One repetition: preferences on labelled prompts -> reward model -> exact policy at a chosen KL -> n samples a prompt on
unlabelled prompts -> synthetic pairs (SPG) or views (UML) -> reward model again -> policy again, from the reference.
Everything is arrays, so hundreds of repetitions test the claim; gold is only looked at to keep score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prudent.errors import PrudentError
from prudent.policies.answer_groups import NO_ANSWER, synthetic_pair
from prudent.policies.finite import beta_for_kl, kl, solve, value
from prudent.policies.views import ViewModel, ViewOptions, fit_views
from prudent.rewards.accuracy import credit, differences
from prudent.rewards.containers import GoldCandidates
from prudent.rewards.draws import bootstrap_counts, fit_resamples
from prudent.rewards.uncertainty import centre
from prudent.seeding import Seed, numpy_generator, spawn, torch_generator

KINDS = ("spg", "uml", "spg-reference", "self")
DESCRIPTIONS = {
    "fixed": "the first reward model, not refreshed",
    "spg": "synthetic pairs from the policy's samples: best of the largest group of equal answers against another one",
    "spg-reference": "control: as spg, from samples of the reference policy",
    "self": "control: as many pairs of the same samples, ordered by the reward model itself, without groups",
    "uml": "two samples of one prompt as views of a multi-view information bottleneck; no synthetic pairs",
    "fixed-views": "the network that uml trains, with the bottleneck's weight at 0",
}


@dataclass(frozen=True)
class PoolProblem(GoldCandidates):
    """Candidates with gold; labels (P, C): group of each candidate (NO_ANSWER: none). labelled, unlabelled, test:
    indices of the prompts of preferences, of sampling, and of judging."""

    labels: torch.Tensor
    labelled: torch.Tensor
    unlabelled: torch.Tensor
    test: torch.Tensor


@dataclass(frozen=True)
class Options:
    """pairs, slope: labelled preferences (Bradley-Terry on gold). members: heads. target_kl: of every policy, mean over
    prompts, nats. samples, gamma: of SPG. repeats: count a candidate as often as it was drawn (a pool's policy draws
    few candidates again and again: that says how sharp it is, not that answers agree; so by default each counts once).
    weight: of UML's loss. ridge: of heads ("cv" on the first preferences)."""

    pairs: int = 200
    slope: float = 4.0
    members: int = 5
    target_kl: float = 0.5
    samples: int = 10
    gamma: float = 0.5
    weight: float = 0.5
    ridge: float | str = "cv"
    steps: int = 200
    repeats: bool = False


@dataclass
class Model:
    """A reward model: linear heads (weights (K, d) on standardised features), or a trained network."""

    weights: torch.Tensor | None
    network: ViewModel | None = None

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (K, ...)"""
        if self.network is not None:
            return self.network(features)[None].double()
        assert self.weights is not None
        return torch.einsum("...d,kd->k...", features.float(), self.weights.float()).double()


@dataclass
class Pairs:
    """Preferences by index: prompt, chosen and rejected candidate, (n,) each."""

    prompt: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    facts: dict[str, float | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    def joined(self, other: Pairs) -> Pairs:
        """These pairs and the other's, with the other's facts."""
        return Pairs(
            torch.cat([self.prompt, other.prompt]),
            torch.cat([self.chosen, other.chosen]),
            torch.cat([self.rejected, other.rejected]),
            dict(other.facts),
        )


def labelled_pairs(problem: PoolProblem, options: Options, seed: Seed) -> Pairs:
    """Noisy preferences on the labelled prompts."""
    return Pairs(*problem.preferences(problem.labelled, options.pairs, options.slope, seed))


def fit(
    features: torch.Tensor, pairs: Pairs, options: Options, seed: Seed, ridge: float | None = None
) -> tuple[Model, float]:
    """Heads on standardised features (P, N, d), bootstrapping whole prompts; and the ridge used."""
    difference = features[pairs.prompt, pairs.chosen] - features[pairs.prompt, pairs.rejected]
    counts_seed, ridge_seed = spawn(seed, 2)
    counts = None
    if options.members > 1:
        counts = bootstrap_counts(len(pairs), spawn(counts_seed, options.members), groups=pairs.prompt)
    strength = options.ridge if ridge is None else ridge
    found = fit_resamples(difference, counts, ridge=strength, groups=pairs.prompt, seed=ridge_seed)
    return Model(found.weights), found.ridge


def mean_reward(model: Model, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Members' mean, centred per prompt under the reference: (P, N)."""
    return centre(model.scores(features).mean(0), weights=reference)


def policy_at(reward: torch.Tensor, reference: torch.Tensor, target_kl: float) -> torch.Tensor:
    """Exact policy pi0 exp(r / beta) whose KL, averaged over prompts, is ``target_kl``; the argmax's where none is."""
    beta = beta_for_kl(lambda b: solve(reward, reference, b), reference, target_kl, strict=False)
    return solve(reward, reference, beta if bool(torch.isfinite(beta)) else 1e-6)


def sampled(policy: torch.Tensor, count: int, seed: Seed) -> torch.Tensor:
    """``count`` candidates of every prompt drawn from the policy: (P, count)."""
    return torch.multinomial(policy.clamp_min(0).float(), count, replacement=True, generator=torch_generator(seed))


def pairs_of(made: Sequence[tuple[int, int, int]]) -> Pairs:
    """Pairs from (prompt, chosen, rejected) triples."""
    table = torch.tensor(list(made), dtype=torch.long).reshape(-1, 3)
    return Pairs(table[:, 0], table[:, 1], table[:, 2])


def spg_pairs(
    problem: PoolProblem,
    prompts: torch.Tensor,
    samples: torch.Tensor,
    reward: torch.Tensor,
    gamma: float,
    seed: Seed,
    repeats: bool = False,
) -> Pairs:
    """Synthetic pairs from samples (P, n) of ``prompts``. reward: (P, N) on these prompts. repeats: see ``Options``.

    facts: coverage (share of prompts that give a pair), precision (share of pairs of unequal gold that gold agrees
    with), confidence (mean), unanimous and below_gamma (shares of prompts).
    """
    made: list[tuple[int, int, int]] = []
    reasons: dict[str, int] = {}
    confidence = 0.0
    for row, (prompt, child) in enumerate(zip(prompts.tolist(), spawn(seed, len(prompts)))):
        drawn = samples[row] if repeats else samples[row].unique()
        found = synthetic_pair(problem.labels[prompt, drawn].tolist(), reward[row, drawn].tolist(), gamma, child)
        confidence += found.confidence
        if found.chosen is None or found.rejected is None:
            reasons[found.reason or ""] = reasons.get(found.reason or "", 0) + 1
        else:
            made.append((prompt, int(drawn[found.chosen]), int(drawn[found.rejected])))
    pairs = pairs_of(made)
    pairs.facts = {
        "coverage": len(made) / len(prompts),
        "precision": precision(problem, pairs),
        "confidence": confidence / len(prompts),
        "unanimous": reasons.get("unanimous", 0) / len(prompts),
        "below_gamma": reasons.get("below gamma", 0) / len(prompts),
        "pairs": float(len(made)),
    }
    return pairs


def self_pairs(
    problem: PoolProblem, prompts: torch.Tensor, samples: torch.Tensor, reward: torch.Tensor, count: int, seed: Seed
) -> Pairs:
    """Control: ``count`` pairs of two different samples of a prompt, ordered by the reward model itself."""
    generator = numpy_generator(seed)
    made: list[tuple[int, int, int]] = []
    for row in generator.permutation(len(prompts)).tolist():
        different = samples[row].unique()
        if len(different) < 2 or len(made) == count:
            continue
        a, b = (int(x) for x in different[torch.from_numpy(generator.permutation(len(different))[:2])])
        better, worse = (a, b) if reward[row, a] >= reward[row, b] else (b, a)
        made.append((int(prompts[row]), better, worse))
    pairs = pairs_of(made)
    pairs.facts = {
        "precision": precision(problem, pairs),
        "pairs": float(len(made)),
        "coverage": len(made) / len(prompts),
    }
    return pairs


def precision(problem: PoolProblem, pairs: Pairs) -> float | None:
    """Share of pairs of unequal gold whose chosen one gold prefers; None without such a pair."""
    margin = problem.gold[pairs.prompt, pairs.chosen] - problem.gold[pairs.prompt, pairs.rejected]
    unequal = margin != 0
    return float((margin[unequal] > 0).double().mean()) if bool(unequal.any()) else None


def judge(problem: PoolProblem, features: torch.Tensor, model: Model, options: Options) -> dict[str, float]:
    """How a reward model does on the test prompts; gold counts from the reference's.

    gold, kl: of its exact policy. best: of its argmax. accuracy: on pairs of test candidates of unequal gold.
    policy_accuracy: the same, pairs weighted by how often the policy draws both. variance: members' variance of the
    centred score where the policy samples, relative to the reward's own variance (0 for one member);
    variance_reference: the same under the reference.
    """
    reference = problem.reference_on(problem.test)
    gold, test = problem.gold[problem.test], features[problem.test]
    scores = centre(model.scores(test), weights=reference)
    reward = scores.mean(0)
    policy = policy_at(reward, reference, options.target_kl)
    base = value(reference, gold)
    allowed = reward.masked_fill(reference == 0, -torch.inf)
    highest = (allowed == allowed.amax(1, keepdim=True)).double()
    best = highest / highest.sum(1, keepdim=True)  # ties share, whatever their order
    better = (differences(gold) > 0) & (reference > 0)[:, :, None] & (reference > 0)[:, None, :]
    agreed = credit(differences(reward))
    both = policy[:, :, None] * policy[:, None, :] * better
    size = (reference * reward.square()).sum(-1).mean()
    variance = scores.var(0) if len(scores) > 1 else torch.zeros_like(reward)
    return {
        "gold": float((value(policy, gold) - base).mean()),
        "kl": float(kl(policy, reference).mean()),
        "best": float((value(best, gold) - base).mean()),
        "accuracy": float(agreed[better].mean()),
        "policy_accuracy": float((agreed * both).sum() / both.sum().clamp_min(1e-300)),
        "variance": float((policy * variance).sum(-1).mean() / size),
        "variance_reference": float((reference * variance).sum(-1).mean() / size),
    }


def check(problem: PoolProblem, options: Options) -> None:
    """PrudentError for splits that are empty, and for groups that can't give a pair anywhere."""
    for name in ("labelled", "unlabelled", "test"):
        if not len(getattr(problem, name)):
            raise PrudentError(f"no {name} prompts; give more prompts")
    labels = problem.labels[problem.unlabelled]
    there = problem.present[problem.unlabelled] & (labels != NO_ANSWER)
    several = [len(row[mask].unique()) > 1 for row, mask in zip(labels, there)]
    if not any(several):
        raise PrudentError("every prompt's answers are one group (or none), so no synthetic pair can be made")


def retrain(
    problem: PoolProblem,
    features: torch.Tensor,
    kind: str,
    model: Model,
    labelled: Pairs,
    options: Options,
    ridge: float,
    seed: Seed,
) -> tuple[Model, dict[str, float | None]]:
    """One refresh of a reward model on samples of its own policy: the new model, and what the samples gave."""
    prompts = problem.unlabelled
    reference = problem.reference_on(prompts)
    sample_seed, pair_seed, fit_seed = spawn(seed, 3)
    reward = mean_reward(model, features[prompts], reference)
    source = reference if kind == "spg-reference" else policy_at(reward, reference, options.target_kl)
    samples = sampled(source, options.samples, sample_seed)
    synthetic = spg_pairs(problem, prompts, samples, reward, options.gamma, pair_seed, options.repeats)
    if kind == "self":
        count = int(synthetic.facts["pairs"] or 0)
        synthetic = self_pairs(problem, prompts, samples, reward, count, pair_seed)
    if not len(synthetic):
        return model, synthetic.facts
    return fit(features, labelled.joined(synthetic), options, fit_seed, ridge)[0], synthetic.facts


def fit_network(
    features: torch.Tensor,
    labelled: Pairs,
    views: tuple[torch.Tensor, torch.Tensor] | None,
    options: Options,
    seed: Seed,
) -> Model:
    """UML's network on the labelled pairs, with or without views."""
    network = fit_views(
        features[labelled.prompt, labelled.chosen].float(),
        features[labelled.prompt, labelled.rejected].float(),
        views,
        ViewOptions(options.weight, steps=options.steps),
        seed=seed,
    )
    return Model(None, network)


@dataclass
class Repetition:
    """What is kept of one repetition between rounds: its seed, preferences, ridge, and its reward models by kind."""

    seed: Any
    labelled: Pairs
    ridge: float
    models: dict[str, Model]


def begin(
    problem: PoolProblem, features: torch.Tensor, kinds: Sequence[str], options: Options, seed: Seed
) -> Repetition:
    """Round 0: preferences and the first reward model, which every kind starts from."""
    pair_seed, fit_seed, network_seed = spawn(seed, 3)
    labelled = labelled_pairs(problem, options, pair_seed)
    first, ridge = fit(features, labelled, options, fit_seed)
    models = {"fixed": first} | {kind: first for kind in kinds if kind != "uml"}
    if "uml" in kinds:
        network = fit_network(features, labelled, None, options, network_seed)
        models |= {"fixed-views": network, "uml": network}
    return Repetition(seed, labelled, ridge, models)


def advance(
    problem: PoolProblem, features: torch.Tensor, state: Repetition, kinds: Sequence[str], options: Options, number: int
) -> dict[str, dict[str, float | None]]:
    """Refresh every kind's reward model once (round ``number``, from 1); returns the facts of the samples by kind.

    Synthetic pairs are those of this round's samples alone. UML's networks restart from their own seed, so that a
    round differs from the fixed one by the views.
    """
    found = {}
    for kind in kinds:
        seed = spawn(spawn(state.seed, 3 + number)[-1], len(KINDS))[KINDS.index(kind)]
        if kind == "uml":
            seed_views = spawn(state.seed, 3)[2]
            state.models[kind], found[kind] = retrain_views(problem, features, state, options, seed, seed_views)
        else:
            state.models[kind], found[kind] = retrain(
                problem, features, kind, state.models[kind], state.labelled, options, state.ridge, seed
            )
    return found


def retrain_views(
    problem: PoolProblem, features: torch.Tensor, state: Repetition, options: Options, seed: Seed, start: Seed
) -> tuple[Model, dict[str, float | None]]:
    """UML's refresh: two samples a prompt as views; the start and the order of pairs are those of the fixed network."""
    prompts = problem.unlabelled
    reference = problem.reference_on(prompts)
    reward = mean_reward(state.models["uml"], features[prompts], reference)
    samples = sampled(policy_at(reward, reference, options.target_kl), 2, seed)
    different = torch.nonzero(samples[:, 0] != samples[:, 1])[:, 0]
    facts: dict[str, float | None] = {"views": float(len(different)), "coverage": len(different) / len(prompts)}
    if len(different) < 2:
        return state.models["uml"], facts
    one, other = (features[prompts[different], samples[different, side]].float() for side in (0, 1))
    return fit_network(features, state.labelled, (one, other), options, start), facts
