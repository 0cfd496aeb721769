"""One scoring path for a service: samples in, one reward a sample out, by a rule over the members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prudent.data.pools import Pool
from prudent.errors import PrudentError, RowsError
from prudent.features.rendering import prompt_text
from prudent.policies.estimates import ReferenceStatistics, reference_statistics
from prudent.policies.objectives import shape
from prudent.progress import silent
from prudent.rewards.aggregation import aggregate
from prudent.rewards.model import RewardModel
from prudent.serving.bodies import Sample, Score, Size

RULES = ("mean", "min", "lcb", "uwo", "entropic", "proportional")


class RewardScorer:
    """A reward model and the rule that makes one reward of its members' scores.

    rule: one of ``RULES``; proportional is the members' mean divided by their normalised variance. reference: samples
    of the reference policy; members are then centred per prompt on them, and the variance is divided by its mean over
    them. fallback: rule for prompts that the reference doesn't hold, on members as they are; None refuses such prompts.
    """

    def __init__(
        self, model: RewardModel, rule: str = "mean", *, reference: Pool | None = None, fallback: str | None = None
    ) -> None:
        for name, value in (("rule", rule), ("fallback", fallback)):
            if value is not None and value not in RULES:
                raise PrudentError(f"{name} is {value!r}; give one of {', '.join(RULES)}")
        if rule == "proportional" and reference is None:
            raise PrudentError(
                "rule proportional divides by a variance whose scale comes from samples of the reference policy; "
                "give --reference POOL, or another --rule"
            )
        if fallback == "proportional":
            raise PrudentError("fallback is for prompts without reference samples, which proportional needs")
        if model.members < 2 and {rule, fallback} & {"lcb", "uwo", "proportional"}:
            raise PrudentError(f"the reward model has one member; rule {rule} needs at least two")
        self.model, self.rule, self.fallback = model, rule, fallback
        self.renderer = model.renderer()
        self.index: dict[str, int] = {}
        self.statistics: ReferenceStatistics | None = None
        if reference is not None:
            prompts, responses, owner = reference.flat()
            with silent():
                scores = model.score(prompts, responses)
            self.statistics = reference_statistics(scores, torch.tensor(owner), together=model.one_origin)
            self.index = {self._key(prompt): number for number, prompt in enumerate(reference.prompts)}

    @property
    def tokenizer(self) -> Any:
        """The reward model's tokenizer."""
        return self.renderer.tokenizer

    def _key(self, prompt: Any) -> str:
        """A prompt as a policy reads it, so that one sent as turns and one sent rendered are the same prompt."""
        return prompt_text(self.tokenizer, prompt).removeprefix(self.tokenizer.bos_token or "")

    def sizes(self, samples: Sequence[Sample]) -> list[Size | str]:
        """Length of each sample in tokens, or why it can't be rendered."""
        found: list[Size | str] = []
        for sample in samples:
            if sample.error:
                found.append(sample.error)
                continue
            try:
                row = self.renderer.conversations([sample.prompt], [sample.response])[0]
                found.append(Size(len(row.ids), row.removed > 0))
            except RowsError as error:
                found.append(error.rows[0])
        return found

    def score(
        self, samples: Sequence[Sample], truncated: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, Score | str]]:
        """(row, its score or the reason why it has none) of each sample, as they are computed; a bad sample costs the
        others nothing."""
        cut = truncated or [False] * len(samples)
        left = dict(enumerate(samples))
        while left:
            rows = list(left)
            prompts, responses = [s.prompt for s in left.values()], [s.response for s in left.values()]
            try:
                with silent():
                    for places, scores in self.model.as_computed(prompts, responses):
                        for column, place in enumerate(places):
                            row = rows[place]
                            yield row, self._one(left.pop(row), scores[:, [column]], cut[row])
            except RowsError as error:  # names all that fail at once: the others are scored without them
                for place, reason in error.rows.items():
                    left.pop(rows[place])
                    yield rows[place], reason
            except PrudentError as error:
                if len(left) == 1:
                    yield left.popitem()[0], str(error)
                for row in list(left):
                    yield from ((row, found) for _, found in self.score([left.pop(row)], [cut[row]]))

    def _one(self, sample: Sample, scores: torch.Tensor, truncated: bool) -> Score | str:
        scores = scores.double()
        if not bool(torch.isfinite(scores).all()):
            return "the reward model's scores are not finite"
        rule, number = self.rule, self.index.get(self._key(sample.prompt)) if self.index else None
        members = scores
        if self.statistics is not None:
            if number is not None:
                members = scores - self.statistics.centre[:, [number]]
            elif self.fallback is None:
                return "the reference holds no samples of this prompt; serve with --fallback RULE or a larger pool"
            else:
                rule = self.fallback
        if rule == "proportional" and self.statistics is not None and number is not None:
            reward = float(shape("proportional", scores, torch.tensor([number]), self.statistics, 1.0).reward[0])
        else:
            reward = float(aggregate(members, rule)[0])
        variance = float(members.var(0)[0]) if len(members) > 1 else None
        return Score(
            reward, rule, tuple(members[:, 0].tolist()), float(members.mean()), variance, number is not None, truncated
        )
