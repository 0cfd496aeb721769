"""A reward model as a plain reward function, in the call contract of TRL's trainers.

``GRPOTrainer(reward_funcs=[model.as_reward_function(objective="proportional", reference=pool)])`` works unchanged: the
objective is in the reward. Objectives that also weight the KL penalty per completion (``bregman``, ``exact``) need the
trainers of ``prudent.policies.trl``, which read ``kl_weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from prudent.data.pools import read_pool
from prudent.errors import PrudentError
from prudent.files import dumps, hash_text
from prudent.policies.estimates import ReferenceStatistics, reference_statistics
from prudent.policies.objectives import KL_RULES, VARIANCE_OBJECTIVES, Shaped, shape
from prudent.seeding import Seed, spawn

Conversation = str | list[dict[str, Any]]


class ScoresText(Protocol):
    """Anything that scores text: prompts (N), responses (N) -> (K, N)."""

    def score(self, prompts: Any, responses: Any) -> torch.Tensor:
        """Members' scores (K, N) of N responses (text or messages) to their prompts."""
        ...


def prompt_key(prompt: Conversation) -> str:
    """Hash of a prompt given as a string or as messages (a string is one user turn)."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return hash_text(dumps([[m["role"], m["content"]] for m in turns], indent=None))


def flat_reference(reference: Any) -> tuple[dict[str, int], list[Any], list[str], torch.Tensor]:
    """Samples of the reference policy, one entry a response: index of each prompt by ``prompt_key``, then prompts (n),
    texts (n) and prompt index of each (n,).

    reference: a pool (``Pool`` or a pool file's path), or (prompts, responses), a list of responses a prompt.
    """
    found: Any = read_pool(reference) if isinstance(reference, str | Path) else reference
    prompts, responses = (found.prompts, found.responses) if hasattr(found, "responses") else found
    flat = [(prompt, i, text) for i, prompt in enumerate(prompts) for text in responses[i]]
    index = {prompt_key(prompt): i for i, prompt in enumerate(prompts)}
    return index, [p for p, _, _ in flat], [t for _, _, t in flat], torch.tensor([i for _, i, _ in flat])


class RewardFunction:
    """Shaped rewards of completions. ``kl_weight``, ``last`` and ``scores`` (members', (K, N)) hold what the last call
    gave, for a trainer to read.

    reference: samples of the *reference* policy for every prompt that is trained on: the file that ``prudent sample``
    writes, a ``prudent.data.pools.Pool``, or (prompts (P), responses (P lists)). The centre per prompt and the
    variance's scale are taken from it once. None is allowed where the objective needs neither (vanilla).

    What it logs is on one scale: the mean and each member's score, less what the reference scores on the prompt (raw
    scores without a reference).
    """

    def __init__(
        self,
        model: ScoresText,
        objective: str = "proportional",
        *,
        beta: float = 0.1,
        reference: Any = None,
        member: int | None = None,
        floor: float = 1e-2,
        rule_options: dict[str, float] | None = None,
        seed: Seed = 0,
    ) -> None:
        self.model, self.objective, self.beta, self.member = model, objective, beta, member
        self.rule_options, self.seed = rule_options, seed
        self.__name__ = f"prudent_{objective.replace('-', '_')}"  # trainers log under this name
        self.calls = 0
        self.kl_weight: torch.Tensor | None = None
        self.last: Shaped | None = None
        self.observer: Callable[..., None] | None = None  # a monitor's: what each call was given and gave
        self.scores: torch.Tensor | None = None
        self.index: dict[str, int] = {}
        self.statistics: ReferenceStatistics | None = None
        if reference is not None:
            self._take_reference(reference, floor)
        elif objective in VARIANCE_OBJECTIVES:
            raise PrudentError(
                f"objective {objective!r} centres each prompt and scales the variance on samples of the reference; "
                "give reference=FILE, which prudent sample writes, or reference=(prompts, responses)"
            )

    @property
    def members(self) -> int:
        """K, by the reference's scores where there are any, else by the model."""
        return self.model.members if self.statistics is None else len(self.statistics.centre)  # type: ignore[attr-defined]

    def _take_reference(self, reference: Any, floor: float) -> None:
        self.index, prompts, texts, owner = flat_reference(reference)
        scores = self.model.score(prompts, texts)
        together = getattr(self.model, "one_origin", False)
        self.statistics = reference_statistics(scores, owner, floor=floor, together=together)

    def _indices(self, prompts: Sequence[Any]) -> torch.Tensor:
        missing = [prompt for prompt in prompts if prompt_key(prompt) not in self.index]
        if missing:
            raise PrudentError(
                f"{len(missing)} prompts have no samples of the reference, the first being {str(missing[0])[:200]!r}; "
                "sample the reference for every training prompt first (prudent sample --prompts FILE --policy MODEL)"
            )
        return torch.tensor([self.index[prompt_key(prompt)] for prompt in prompts])

    def shaped(self, prompts: Sequence[Any], responses: Sequence[Any]) -> tuple[torch.Tensor, Shaped]:
        """Members' scores (K, N), centred on the reference if there is one, and the shaped rewards of N responses."""
        scores = self.model.score(list(prompts), list(responses))
        if self.statistics is None:
            self.index = {prompt_key(p): 0 for p in prompts}
            statistics = ReferenceStatistics(
                torch.zeros(len(scores), 1), float("nan"), 1.0, torch.full((len(scores) + 1,), float("nan"))
            )
        else:
            statistics = self.statistics
        seed = spawn(self.seed, self.calls + 1)[-1]
        indices = self._indices(prompts)
        return scores - statistics.centre[:, indices].to(scores), shape(
            self.objective,
            scores,
            indices,
            statistics,
            self.beta,
            member=self.member,
            rule_options=self.rule_options,
            seed=seed,
        )

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        scores, shaped = self.shaped(prompts, completions)
        self.calls += 1
        self.kl_weight, self.last, self.scores = shaped.kl_weight, shaped, scores
        if log_metric is not None:
            log_metric("reward_model/mean", float(shaped.mean.mean()))
            if len(scores) > 1 and self.statistics is not None:
                log_metric("reward_model/variance", float(shaped.variance.mean()))
            for k, row in enumerate(scores):
                log_metric(f"reward_model/member_{k}", float(row.mean()))
        if log_extra is not None:
            log_extra("reward_mean", shaped.mean.tolist())
            log_extra("reward_variance", shaped.variance.tolist())
            log_extra("reward_members", scores.T.tolist())
        rewards = shaped.reward.tolist()
        if self.observer is not None:
            self.observer(prompts, completions, rewards, scores, log_metric)
        return rewards


def member_columns(function: RewardFunction, members: int) -> list[Callable[..., list[float]]]:
    """A reward function a member, for a trainer that normalises several rewards apart (TRL's GRPO with
    ``multi_objective_aggregation="normalize_then_sum"``). The first one scores the batch and writes ``function``'s log,
    the others read what it found, so a trainer must call them in order on the same completions, as TRL does."""

    def column(member: int) -> Callable[..., list[float]]:
        def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
            if member == 0:
                function(prompts, completions, **columns)
            if function.scores is None or function.scores.shape != (members, len(completions)):
                raise PrudentError(f"member {member}'s rewards were asked for before member 0 scored these completions")
            return function.scores[member].tolist()

        reward.__name__ = f"prudent_member_{member}"  # trainers log under this name
        return reward

    return [column(member) for member in range(members)]


def for_plain_trainer(function: RewardFunction) -> RewardFunction:
    """``function``, or PrudentError where its objective would be half applied by a trainer that reads rewards alone."""
    if function.objective in KL_RULES:
        raise PrudentError(
            f"objective {function.objective!r} weights the KL penalty per completion, which a plain reward function "
            "can't; use VarianceAwareRLOOTrainer of prudent.policies.trl and say weighted_kl=True, or take "
            "objective='proportional'"
        )
    return function
