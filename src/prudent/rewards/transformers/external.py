"""Reward models from elsewhere: any sequence-classification model with one output, alone or as an ensemble.

Each model renders with its own tokenizer and template. Members of an ensemble come from different training runs, so
their units differ: each is standardised (mean 0, standard deviation 1) on a stated reference set before standard
deviations are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prudent.errors import PrudentError
from prudent.features.adapters import Adapter, find_adapter, merged_classifier
from prudent.features.models import (
    context_of,
    embedded_ids,
    padding_id,
    require_finite_weights,
    require_known,
    require_loaded,
)
from prudent.files import damage_named, refuse_pickle
from prudent.hub import hub_or_offline, hub_words
from prudent.progress import meter

if TYPE_CHECKING:
    from prudent.features.rendering import Renderer

TOKEN_BUDGET = 8192


def check_labels(config: Any, name: str) -> None:
    """PrudentError unless a model's config states one output."""
    labels = getattr(config, "num_labels", None)
    if labels != 1:
        named = ", ".join(str(label) for label in (getattr(config, "id2label", None) or {}).values())
        raise PrudentError(
            f"{name} has {labels} labels ({named}); a reward model has one output. A classifier's logits are not "
            "rewards: if one of them is meant as a reward, save a model with num_labels=1 that gives it"
        )


def load_classifier(name: str, dtype: str | None = None, device: str | None = None) -> tuple[Any, Any]:
    """Sequence-classification model with one output, and its tokenizer. A head missing in the files stops the load."""
    from transformers import AutoConfig

    path = Path(name)
    if path.exists():
        refuse_pickle(path)
    with hub_or_offline(name):
        if adapter := find_adapter(name):
            return _with_adapter(adapter, dtype, device)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise PrudentError(
                f"no reward model found at {name!r} ({str(error).splitlines()[0]}); give a folder written by prudent "
                "fit, the folder or hub id of a sequence-classification model, or an adapter's. Looked for here and on "
                f"{hub_words()}"
            ) from error
        check_labels(config, name)
        return load_headed("AutoModelForSequenceClassification", "reward model", name, dtype, device)


def _with_adapter(adapter: Adapter, dtype: str | None, device: str | None) -> tuple[Any, Any]:
    """An adapter merged into its base, and the tokenizer."""
    from transformers import AutoTokenizer

    with hub_or_offline(adapter.base), damage_named(f"reward model {adapter.folder}", "copy or download it again"):
        model = merged_classifier(adapter, dtype or torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(adapter.tokenizer, trust_remote_code=False)
    require_finite_weights(model, adapter.folder)
    return model.eval().to(device or "cpu"), tokenizer


def load_headed(factory: str, what: str, name: str, dtype: Any = None, device: str | None = None) -> tuple[Any, Any]:
    """A model with a head of its own, and its tokenizer: from safetensors alone, its own code never run, every weight
    there and finite. factory: the auto class of transformers; what: how messages call the model."""
    import transformers

    path = Path(name)
    if path.exists():
        refuse_pickle(path)
    with hub_or_offline(name), damage_named(f"{what} {name}", "copy or download it again"):
        model, report = getattr(transformers, factory).from_pretrained(
            name, dtype=dtype or torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    require_loaded(report, name, "it may be a language model without such a head, or its head was not saved")
    require_finite_weights(model, name)
    return model.eval().to(device or "cpu"), tokenizer


def token_batches(lengths: Sequence[int], budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within ``budget`` tokens."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) padded on the right and the attention mask (B, T)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row))
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def last_state(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States (B, ...) of the last token by attention mask, never by pad id. (B, T, ...) -> (B, ...).

    An all-zero row raises PrudentError naming it. Works for either padding side.
    """
    empty = torch.nonzero(mask.sum(1) == 0)
    if len(empty):
        raise PrudentError(f"row {int(empty[0])} has no token (its attention mask is all zero)")
    index = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    return states[torch.arange(len(states), device=states.device), index]


@torch.inference_mode()
def classify(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One float32 score a row. Decoders: their head on the last real token's state, in float32; others: their logit."""
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear):
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = head.weight.float()
        bias = None if head.bias is None else head.bias.float()
        return torch.nn.functional.linear(last_state(states, mask).float(), weight, bias)[:, 0]
    return model(input_ids=ids, attention_mask=mask).logits[:, 0].float()


class ExternalModels:
    """K outside reward models. models: folders or hub ids. centre, scale (K,): their mean and standard deviation on
    ``reference``, a description of the set (None for a model alone, in its own units)."""

    family = "external"

    def __init__(
        self,
        models: list[str],
        centre: list[float] | None = None,
        scale: list[float] | None = None,
        reference: str | None = None,
        max_length: int = 2048,
    ) -> None:
        self.models, self.reference, self.max_length = models, reference, max_length
        self.centre, self.scale = centre or [0.0] * len(models), scale or [1.0] * len(models)
        self.options: dict[str, Any] = {}
        self._loaded: dict[str, tuple[Any, Any]] = {}

    @classmethod
    def open(
        cls, models: list[str], dtype: str | None = None, device: str | None = None, max_length: int | None = None
    ) -> ExternalModels:
        """Load every model now, so that one that isn't there or has no head is named at once. Raw units."""
        if not models:
            raise PrudentError("give at least one reward model")
        scorer = cls(models) if max_length is None else cls(models, max_length=max_length)
        scorer.options = {"dtype": dtype, "device": device}
        for name in models:
            scorer._open(name)
        return scorer

    @property
    def members(self) -> int:
        """How many outside models there are (K)."""
        return len(self.models)

    def _open(self, name: str) -> tuple[Any, Any]:
        if name not in self._loaded:
            self._loaded[name] = load_classifier(name, self.options.get("dtype"), self.options.get("device"))
        return self._loaded[name]

    def renderer(self, name: str | None = None) -> Renderer:
        """The rendering of texts that a model is given: the first one's without a name."""
        from prudent.features.rendering import Renderer

        model, tokenizer = self._open(name or self.models[0])
        return Renderer(tokenizer, min(self.max_length, context_of(model) or self.max_length))

    def renderers(self) -> list[Renderer]:
        """The rendering of every model, in order."""
        return [self.renderer(name) for name in self.models]

    def _score_one(self, name: str, prompts: Sequence[Any], responses: Sequence[Any]) -> torch.Tensor:
        model, tokenizer = self._open(name)
        rows = [one.ids for one in self.renderer(name).conversations(prompts, responses)]
        require_known(embedded_ids(model), tokenizer, rows)
        pad = padding_id(model, tokenizer)
        scores = torch.empty(len(rows))
        with meter(f"scoring with {name}", len(rows)) as advance:
            for batch in token_batches([len(row) for row in rows]):
                ids, mask = padded([rows[row] for row in batch], pad, model.device)
                scores[batch] = classify(model, ids, mask).cpu()
                advance(len(batch), int(mask.sum()))
        return scores

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> torch.Tensor:
        """Scores (K, N) float32, standardised where a reference set was given."""
        raw = torch.stack([self._score_one(name, prompts, responses) for name in self.models])
        return (raw - torch.tensor(self.centre)[:, None]) / torch.tensor(self.scale)[:, None]

    def standardised_on(self, prompts: Sequence[Any], responses: Sequence[Any], reference: str) -> ExternalModels:
        """The same models with mean 0 and standard deviation 1 on these responses; ``reference`` says what they are."""
        raw = torch.stack([self._score_one(name, prompts, responses) for name in self.models])
        deviation = raw.std(1)
        for name, value in zip(self.models, deviation.tolist()):
            if not value > 0:
                raise PrudentError(f"{name} gives every reference response the same score; it can't be standardised")
        made = ExternalModels(self.models, raw.mean(1).tolist(), deviation.tolist(), reference, self.max_length)
        made.options, made._loaded = self.options, self._loaded
        return made

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, no tensors): the models stay where they are."""
        return {
            "models": self.models,
            "centre": self.centre,
            "scale": self.scale,
            "reference": self.reference,
            "max_length": self.max_length,
        }, {}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ExternalModels:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        return cls(**config)
