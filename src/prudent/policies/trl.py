"""Variance-aware RLOO and GRPO on TRL, for scale: its YAML, LoRA, DeepSpeed, FSDP, vLLM, checkpoints and trackers go on
working, since nothing of TRL's training code is copied. Tested with TRL 1.16 alone (private hooks; the alarm tests fail
when they move).

RLOO holds its KL as a per-sequence penalty in the reward, ``rewards - self.beta * kl``: exactly the method's shape. The
coefficient is replaced by a float that carries a weight per completion. GRPO holds its KL in the loss, per token; the
same coefficient there is a heuristic, with another fixed point, and says so when it starts.

Both weight a group's advantages on request (``advantages``, see ``rl.advantages.weighted_rewards``), which also acts at
beta 0: "reliability" scales them by how much the members agree on the group's order, "members" normalises each member's
rewards apart (in GRPO by TRL's own ``normalize_then_sum``).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate.utils import gather
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from prudent.errors import PrudentError
from prudent.features.models import embedded_ids
from prudent.policies.objectives import KL_RULES
from prudent.policies.reward_function import RewardFunction, member_columns
from prudent.policies.rl.advantages import WEIGHTINGS, ordering_agreement, weighted_rewards

TESTED = "1.16"


class WeightedBeta(float):
    """A KL coefficient that multiplies a tensor by ``beta * weight``, elementwise; a plain float everywhere else."""

    weight: torch.Tensor | None = None

    def _coefficient(self, other: torch.Tensor) -> torch.Tensor | float:
        if self.weight is None:
            return float(self)
        return (float(self) * self.weight.double()).to(device=other.device, dtype=other.dtype)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return self._coefficient(other) * other
        return float(self) * other

    __rmul__ = __mul__


def check_tested() -> None:
    """Warn where the installed TRL is not the minor that the private hooks were tested with."""
    import trl

    if not trl.__version__.startswith(f"{TESTED}."):
        warnings.warn(
            f"TRL {trl.__version__} is not the tested {TESTED}.x; run tests/policies/test_trl_adapter.py first",
            stacklevel=3,
        )


def check_config(args: RLOOConfig | GRPOConfig, objective: str) -> None:
    """Raise PrudentError where a setting would make the KL that TRL computes another than the objective's."""
    problems = []
    if args.temperature != 1.0:
        problems.append(f"temperature={args.temperature}: the KL is the policy's only at temperature=1.0")
    if args.top_p not in (None, 1.0) or args.top_k not in (None, 0) or args.min_p not in (None, 0.0):
        problems.append(
            f"truncated sampling (top_p={args.top_p}, top_k={args.top_k}, min_p={args.min_p}): samples are not the "
            "policy's; set top_p=1.0, top_k=0, min_p=null"
        )
    if args.beta == 0.0 and objective in KL_RULES:
        problems.append(f"beta=0.0: without a KL penalty there is nothing for {objective!r} to weight; set beta > 0")
    if getattr(args, "sync_ref_model", False):
        problems.append("sync_ref_model=true moves the reference during training; set it to false")
    if getattr(args, "mask_truncated_completions", False):
        problems.append("mask_truncated_completions=true drops the KL of a truncated completion but keeps its reward")
    if problems:
        raise PrudentError("these settings change the objective:\n  " + "\n  ".join(problems))


def check_reference(trainer: Any) -> None:
    """Raise PrudentError where TRL reloaded a reference that is not the policy it was given.

    Without adapters TRL loads the reference again from the model's name or path, so a model changed in memory, or never
    saved, would be held to somebody else.
    """
    if trainer.ref_model is None:
        return
    policy = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    for name, parameter in trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters():
        mine = policy.get(name)
        if mine is None or mine.shape != parameter.shape or not torch.equal(mine.to(parameter), parameter):
            raise PrudentError(
                f"the reference that TRL reloaded differs from the policy at {name!r}; save the policy to a folder "
                "and give that folder as the model, or train adapters (peft_config=...)"
            )


def pad_with_known_token(trainer: Any) -> None:
    """Pad with a token that the policy's embedding holds where the tokenizer's pad token was added after the model was
    trained: TRL writes its id into masked positions, which no attention and no loss reads but the embedding looks up.
    """
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer._tokenizer
    size, late = embedded_ids(model), tokenizer.pad_token
    if tokenizer.pad_token_id < size:
        return
    known = next(token for token in (*trainer.eos_token_ids, 0) if token < size)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(known)
    for config in (model.config.get_text_config(), model.generation_config, trainer.generation_config):
        config.pad_token_id = known
    trainer.generation_kwargs["pad_token_id"] = known
    warnings.warn(
        f"pad token {late!r} isn't in the policy's embedding of {size}: {tokenizer.pad_token!r} stands at masked "
        "positions instead, in training and in the saved tokenizer",
        stacklevel=4,
    )


class _VarianceAware:
    """What both trainers share; ``prudent_reward`` is the reward function whose weights they apply."""

    prudent_reward: RewardFunction
    weighting: str

    def _prepare(self, arguments: dict[str, Any]) -> None:
        check_tested()
        function = arguments.pop("reward_function")
        if not isinstance(function, RewardFunction):
            raise PrudentError("reward_function must come from RewardModel.as_reward_function(...)")
        check_config(arguments["args"], function.objective)
        self.weighting = arguments.pop("advantages", "plain")
        if self.weighting not in WEIGHTINGS:
            raise PrudentError(f"unknown advantages {self.weighting!r}; one of {', '.join(WEIGHTINGS)}")
        if self.weighting == "members" and function.objective not in ("vanilla", "mean"):
            raise PrudentError(
                f"advantages 'members' would lose objective {function.objective!r}: take vanilla or mean"
            )
        if function.beta != arguments["args"].beta:
            raise PrudentError(
                f"the reward function was made for beta={function.beta}, the trainer has {arguments['args'].beta}"
            )
        arguments["reward_funcs"] = [function]
        self.prudent_reward = function

    def _gathered_scores(self, device: torch.device) -> torch.Tensor:
        """Members' scores (K, N) of all processes' completions, in the order of the gathered rewards."""
        scores = self.prudent_reward.scores
        assert scores is not None, "the reward function was not called"
        return gather(scores.T.contiguous().to(device=device, dtype=torch.float32)).T

    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval  # type: ignore[attr-defined]

    def _local_weight(self, device: torch.device) -> torch.Tensor:
        weight = self.prudent_reward.kl_weight
        assert weight is not None, "the reward function was not called"
        return weight.to(device=device, dtype=torch.float32)


class VarianceAwareRLOOTrainer(_VarianceAware, RLOOTrainer):
    """TRL's RLOOTrainer with a KL weight per completion. Takes ``reward_function`` (from
    ``RewardModel.as_reward_function``) in the place of ``reward_funcs``, and ``advantages``; everything else is
    RLOOTrainer's."""

    def __init__(self, **arguments: Any) -> None:
        self._prepare(arguments)
        super().__init__(**arguments)
        check_reference(self)
        pad_with_known_token(self)
        self.beta: WeightedBeta = WeightedBeta(self.beta)

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments, **options)
        self.beta.weight = gather(
            self._local_weight(rewards.device)
        )  # the rewards are gathered, so the weights must be
        _require_finite(rewards, arguments)
        if self.weighting == "plain":
            return rewards
        scores = self._gathered_scores(rewards.device)
        return weighted_rewards(self.weighting, rewards[:, 0], scores, self._group_size()).unsqueeze(1)


class VarianceAwareGRPOTrainer(_VarianceAware, GRPOTrainer):
    """TRL's GRPOTrainer with a KL weight per completion: a heuristic (its KL is a per-token loss term, not a reward, so
    the fixed point is not the objective's). Takes ``reward_function`` in the place of ``reward_funcs``, and
    ``advantages``."""

    def __init__(self, **arguments: Any) -> None:
        self._prepare(arguments)
        if self.weighting == "members":
            arguments["reward_funcs"] = member_columns(self.prudent_reward, self.prudent_reward.members)
            args = arguments["args"]
            args.multi_objective_aggregation = "normalize_then_sum"
            args.reward_weights = args.reward_weights or [1 / self.prudent_reward.members] * self.prudent_reward.members
        if self.prudent_reward.objective in KL_RULES:
            warnings.warn(
                "GRPO's KL sits in the loss: a KL weight per completion is a heuristic there; RLOO has the objective",
                stacklevel=2,
            )
        super().__init__(**arguments)
        check_reference(self)
        pad_with_known_token(self)
        self.beta: WeightedBeta = WeightedBeta(self.beta)

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments, **options)
        _require_finite(rewards, arguments)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.weighting == "reliability":  # behind TRL's normalisation, which would undo a scale in the rewards
            device, size = output["advantages"].device, len(output["advantages"])
            agreement = ordering_agreement(self._gathered_scores(device), self._group_size())
            start = self.accelerator.process_index * size
            weight = agreement.repeat_interleave(self._group_size())[start : start + size].to(output["advantages"])
            output["advantages"] = output["advantages"] * weight
        # A tensor of one value per completion is shuffled and split with the rest of the rollouts.
        output["kl_weight"] = self._local_weight(output["completion_ids"].device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.beta.weight = inputs["kl_weight"].unsqueeze(1)
        return super()._compute_loss(model, inputs)


def _require_finite(rewards: torch.Tensor, arguments: tuple[Any, ...]) -> None:
    """Stop before the optimiser step where a reward is not finite, naming its prompt where this process holds it."""
    bad = (~torch.isfinite(rewards)).any(dim=1)
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        prompts = arguments[1] if len(arguments) > 1 else []
        named = str(prompts[index])[:200] if index < len(prompts) else f"completion {index} of the batch"
        raise PrudentError(f"the reward of {named!r} is {rewards[index].tolist()}; the step was not taken")
