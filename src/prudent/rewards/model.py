"""Any reward model from text: ``RewardModel.load(folder_or_hub_id).score(prompts, responses) -> (K, N)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prudent.errors import PrudentError, RowsError
from prudent.files import refuse_pickle
from prudent.rewards import artefact
from prudent.rewards.uncertainty import warn_if_identical
from prudent.runs import Run, new_run

if TYPE_CHECKING:
    from prudent.features.limits import Shown
    from prudent.features.rendering import Renderer
    from prudent.policies.reward_function import RewardFunction

Prompt = str | Sequence[dict[str, str]]
TEXT_TOLERANCE = 1e-3
HALF_TOLERANCE = 0.1  # bfloat16 kernels differ between processors


def encoder_card(encoder: Any, model: str) -> dict[str, Any]:
    """What an artefact keeps of the encoder that made its features. A folder is kept as its absolute path."""
    return {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "pooling": encoder.pooling,
        "max_length": encoder.max_length,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "layer": getattr(encoder, "layer", None),
        "fingerprint": encoder.fingerprint,
    }


class RewardModel:
    """K members that score text. Made from a scorer and, where it works on features, their encoder.

    scorer: feature family (``scores(features)``) or text family (``score(prompts, responses)``).
    """

    def __init__(
        self, scorer: Any, encoder: Any = None, *, model: str = "", card: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        """model: name of the encoder's language model, kept in the artefact. card, name: of a loaded artefact."""
        self.scorer, self.name = scorer, name
        self._encoder, self._model, self._card = encoder, model, card or {}
        self._checked = not self._card.get("golden_texts")
        self._encoding: dict[str, Any] = {}

    @property
    def members(self) -> int:
        """How many members there are (K)."""
        return self.scorer.members

    @property
    def family(self) -> str:
        """Name of the family, as in ``prudent fit --family``."""
        return self.scorer.family

    @property
    def one_origin(self) -> bool:
        """Whether members share one origin, as the quantiles of one reward do; those of an ensemble have their own."""
        return self.family == "quantile"

    def parameters(self) -> int:
        """Number of trained numbers, all members together (what is shared and frozen is not counted)."""
        if hasattr(self.scorer, "parameters"):
            return self.scorer.parameters()
        return sum(tensor.numel() for tensor in self.scorer.state()[1].values())

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        model: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        keep_features: bool = True,
    ) -> RewardModel:
        """Reward model from a folder that ``prudent fit`` wrote, or a sequence-classification model (folder or hub id).

        model: language model to use in place of the one named in the folder (moved, not changed: the fingerprint and
        the golden scores are still compared). dtype, device: of the language model. max_length: tokens kept of a text,
        of a classifier alone (by default its context, 2,048 at most); a folder keeps the limit it was fitted with.
        keep_features: whether features of what is scored are kept on disk and progress is shown; a service does
        neither. Raises PrudentError where a weight is missing, for pickles, and for a classifier with other than one
        output.
        """
        path = Path(source)
        if not artefact.is_artefact(path):
            if path.exists():
                refuse_pickle(path)
            from prudent.rewards.transformers.external import ExternalModels

            outside = ExternalModels.open([str(source)], dtype=dtype, device=device, max_length=max_length)
            return cls(outside, name=str(source))
        with artefact.folder_named(path):
            card = artefact.read_card(path)
        if max_length is not None:
            raise PrudentError(
                f"{source} was fitted with a length limit of its own, so --max-length doesn't apply to it; leave it "
                "out, or fit again with another --max-length"
            )
        scorer = artefact.load(path)
        for option, value in (("model", model), ("dtype", dtype), ("device", device)):
            if value is not None:
                target = card["encoder"] if card["encoder"] is not None else getattr(scorer, "options", {})
                target[option] = value
        found = cls(scorer, card=card, name=str(source))
        found._encoding = {} if keep_features else {"cache": False, "progress": False}
        return found

    @property
    def encoder(self) -> Any:
        """Encoder of the features, loaded on first use and held to the fingerprint kept in the artefact."""
        if self._encoder is None:
            kept = self._card.get("encoder")
            if kept is None:
                raise PrudentError(f"{self.name or 'this reward model'} names no encoder; give it features, not text")
            from prudent.features.encoder import Encoder

            options = {key: kept[key] for key in ("pooling", "max_length", "dtype", "device", "layer") if kept.get(key)}
            with artefact.damage_named(f"encoder of {self.name}", artefact.REMEDY):
                found = Encoder(kept["model"], **options, **self._encoding)
            if found.fingerprint != kept["fingerprint"]:
                raise PrudentError(
                    f"language model {kept['model']!r} (pooling {found.pooling}, dtype {found.dtype}) is not the one "
                    f"that {self.name} was fitted on: its fingerprint is {found.fingerprint[:12]}, expected "
                    f"{kept['fingerprint'][:12]}; give the same weights, template and precision"
                )
            self._encoder = found
        return self._encoder

    def renderer(self) -> Renderer:
        """The rendering of texts that scoring uses: its tokenizer, template and length limit."""
        return self.scorer.renderer() if hasattr(self.scorer, "renderer") else self.encoder.renderer

    def shown(self, prompts: Sequence[Any], responses: Sequence[Any]) -> Shown:
        """How the model is shown N texts: which ones its length limit cuts, and which are the same for it."""
        from prudent.features.limits import joined, shown

        scorer = self.scorer
        if hasattr(scorer, "renderers"):
            return joined([shown(renderer, prompts, responses) for renderer in scorer.renderers()])
        return shown(scorer.renderer() if hasattr(scorer, "renderer") else self.encoder, prompts, responses)

    def check(self) -> None:
        """Load everything now and compare the scores of the built-in texts with those kept in the artefact."""
        if self._checked:
            self._score(artefact.PROBE_PROMPTS, artefact.PROBE_RESPONSES)
        else:
            self._check_texts()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Any]) -> torch.Tensor:
        """Scores (K, N) float32 of N responses, each with its prompt (a text or messages).

        The first call also scores eight built-in texts and compares them with the scores kept in the artefact.
        RowsError names every row that can't be rendered or scored.
        """
        if len(prompts) != len(responses):
            raise PrudentError(f"{len(prompts)} prompts and {len(responses)} responses; give one prompt a response")
        if not self._checked:
            self._check_texts()
        return self._score(prompts, responses)

    def as_computed(
        self, prompts: Sequence[Prompt], responses: Sequence[Any]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """What ``score`` gives, in pieces (row numbers, scores (K, rows)) as they are computed, for clients that wait;
        features are neither looked up nor kept."""
        if not self._checked:
            self._check_texts()
        return self._pieces(prompts, responses, early=True)

    def _score(self, prompts: Sequence[Prompt], responses: Sequence[Any]) -> torch.Tensor:
        scores = torch.empty(self.members, len(prompts))
        for rows, part in self._pieces(prompts, responses):
            scores[:, torch.from_numpy(rows)] = part.float()
        return scores

    def _pieces(
        self, prompts: Sequence[Prompt], responses: Sequence[Any], early: bool = False
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        if hasattr(self.scorer, "score"):
            yield np.arange(len(prompts)), self.scorer.score(prompts, responses)
        elif getattr(self.scorer, "needs_prompts", False):
            features = self.encoder.encode(prompts, responses)
            gates = encode_prompts(self.encoder, prompts)
            yield np.arange(len(prompts)), self.scorer.scores(features=features, prompts=gates)
        else:  # features go as they come: memory stays flat
            encode = self.encoder.as_computed if early else self.encoder.pieces
            for rows, part in encode(prompts, responses):
                yield rows, self.scorer.scores(part)

    def _check_texts(self) -> None:
        with artefact.damage_named(f"reward model {self.name}", artefact.REMEDY):
            try:
                found = self._score(artefact.PROBE_PROMPTS, artefact.PROBE_RESPONSES)
            except RowsError as error:  # not one of the texts that are to be scored
                raise PrudentError(f"the built-in texts can't be scored: {next(iter(error.rows.values()))}") from error
        own = (self._card.get("encoder") or {}, getattr(self.scorer, "config", {}), getattr(self.scorer, "options", {}))
        exact = all(held.get(key) in (None, "float32") for held in own for key in ("dtype", "products"))
        tolerance = TEXT_TOLERANCE if exact else HALF_TOLERANCE
        artefact.compare_golden(found, torch.tensor(self._card["golden_texts"]), tolerance, f"{self.name}: probe text")
        if len(found) > 1:
            warn_if_identical(found)
        self._checked = True

    def as_reward_function(
        self, objective: str = "proportional", *, weighted_kl: bool = False, **options: Any
    ) -> RewardFunction:
        """This model as a reward function of a trainer: ``GRPOTrainer(reward_funcs=[model.as_reward_function(...)])``.

        options: ``reference`` (the file of ``prudent sample``, a Pool, or prompts and samples of the reference),
        ``beta`` and others of ``RewardFunction``. weighted_kl: the trainer reads the KL weights too
        (``prudent.policies.trl``); without it, objectives that need them (bregman, exact) are refused rather than half
        applied.
        """
        # a convenience: the one import that runs upward, taken when asked for
        from prudent.policies.reward_function import RewardFunction, for_plain_trainer

        function = RewardFunction(self, objective, **options)
        return function if weighted_kl else for_plain_trainer(function)

    def write(self, run: Run) -> None:
        """Write the artefact, with its scores of the built-in texts, into a run folder that is being made."""
        kept = self._card.get("encoder") or (encoder_card(self._encoder, self._model) if self._encoder else None)
        artefact.write(
            run, self.scorer, encoder=kept, texts=self._score(artefact.PROBE_PROMPTS, artefact.PROBE_RESPONSES)
        )

    def save(self, folder: str | Path) -> None:
        """Write a reward-model folder, which appears whole or not at all; ``RewardModel.load`` reads it."""
        with new_run(folder, "reward-model", {"family": self.family}) as run:
            self.write(run)


def encode_prompts(encoder: Any, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Features (N, d) of the prompts alone, for families that gate by prompt: the state at the assistant turn's start.

    Rendered with an empty response, each distinct prompt once.
    """
    keys = [repr(prompt) for prompt in prompts]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    distinct = list(first)
    where = {key: index for index, key in enumerate(distinct)}
    indices = [where[key] for key in keys]
    try:
        encoded = encoder.encode([prompts[first[key]] for key in distinct], [""] * len(distinct))
    except RowsError as error:
        bad = {row: error.rows[index] for row, index in enumerate(indices) if index in error.rows}
        raise RowsError(bad) from error
    return encoded[torch.tensor(indices)]
