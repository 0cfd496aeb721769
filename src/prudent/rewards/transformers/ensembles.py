"""Trained transformers as ensembles (arXiv 2401.16635): singles, linear and lora, on transformers' Trainer and peft.

singles  K clones of the language model, each trained with a head of its own from another seed:    K (M + L) parameters
linear   one language model, trained, with K heads on it:                                             M + K L
lora     phase one as linear on a first part of the pairs, then that base is frozen and K LoRA adapters with K heads
         are trained on the rest:                                                                     M + K (L + A)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.features.models import embedded_ids, require_known
from prudent.progress import meter
from prudent.rewards.stored import part_under
from prudent.rewards.training import member_seeds, shared_seed
from prudent.rewards.transformers.external import padded, token_batches
from prudent.rewards.transformers.finetuning import Finetuning, Sampler, meta_batches, prepare, train, with_counts
from prudent.rewards.transformers.network import (
    EnsembleModel,
    average_adapters,
    keep_lower,
    put_tensors,
    trained_tensors,
    untrained_blocks,
)
from prudent.seeding import Seed, numpy_generator, spawn

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.features.rendering import Renderer

KINDS = ("singles", "linear", "lora")
CENTRED_ON = 32  # training pairs on whose responses each member's mean score is set to 0
CHUNK = 1024  # texts for which the weights of each member of singles are put in place
LORA_SHARE = 3  # by default the last third of the blocks is adapted


def parameter_counts(kind: str, backbone: int, head: int, adapter: int, members: int) -> int:
    """Parameters of an ensemble of K members (arXiv 2401.16635): of clones, of heads on one model, of adapters."""
    if kind == "singles":
        return members * (backbone + head)
    return backbone + members * head + (members * adapter if kind == "lora" else 0)


class TransformerEnsemble:
    """K members on one language model. tensors: everything that was trained. offsets (K,): each member's mean score on
    training responses. config: how the model is put together again (model, kind, members, rank, ...)."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor], offsets: torch.Tensor) -> None:
        self.config, self.tensors, self.offsets = config, tensors, offsets
        self.options: dict[str, Any] = {}  # model, dtype, device: where the base is now
        self._ready: tuple[EnsembleModel, Any] | None = None

    @property
    def family(self) -> str:
        """Name of the family: what its members share and how they are trained."""
        return self.config["kind"]

    @property
    def members(self) -> int:
        """How many members there are (K)."""
        return len(self.offsets)

    @property
    def info(self) -> dict[str, Any]:
        """How it was fitted, in plain types."""
        return self.config["info"]

    def parameters(self) -> int:
        """Number of trained numbers, all members together."""
        return self.config["info"]["parameters"]["total"]

    def _open(self) -> tuple[EnsembleModel, Any]:
        """Base model with this ensemble's structure and its tensors (``score`` puts those of singles in one by one)."""
        if self._ready is None:
            from prudent.features.models import load_language_model

            name = self.options.get("model") or self.config["model"]
            dtype = self.options.get("dtype") or self.config["dtype"]
            language_model, tokenizer = load_language_model(name, dtype=dtype, device=self.options.get("device"))
            count = 1 if self.family == "singles" else self.members
            model = EnsembleModel(language_model.base_model, spawn(0, count))
            if self.family == "lora":
                keys = ("rank", "alpha", "layers", "targets")
                model.add_adapters(spawn(0, count), *(self.config[key] for key in keys))
            if self.family != "singles":
                put_tensors(model, self.tensors)
            self._ready = model.to(language_model.device).eval(), tokenizer
        return self._ready

    def renderer(self) -> Renderer:
        """The rendering of texts that scoring uses."""
        from prudent.features.rendering import Renderer

        return Renderer(self._open()[1], self.config["max_length"])

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> torch.Tensor:
        """Scores (K, N) float32 of N responses, by products of the precision that the members were trained in."""
        model, tokenizer = self._open()
        rows = [one.ids for one in self.renderer().conversations(prompts, responses)]
        require_known(embedded_ids(model.backbone), tokenizer, rows)
        fast = (self.options.get("dtype") or self.config.get("products")) == "bfloat16"
        if self.family != "singles":
            return score_rows(model, rows, fast) - self.offsets[:, None]
        found = [torch.empty(self.members, 0)]
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            found.append(self._score_singles(model, part, fast))
        return torch.cat(found, 1) - self.offsets[:, None]

    def _score_singles(self, model: EnsembleModel, rows: Sequence[Sequence[int]], fast: bool) -> torch.Tensor:
        """Raw scores (K, N): the blocks that no member trained once, those above with each member's weights."""
        own = [part_under(f"member{member}.", self.tensors) for member in range(self.members)]
        model.shared = untrained_blocks(model, own[0])
        if self.members > 1:
            with torch.inference_mode(), products(model, fast):
                keep_lower(model, rows)
        scores = []
        for tensors in own:
            put_tensors(model, tensors)
            scores.append(score_rows(model, rows, fast))
        model.kept = {}
        return torch.cat(scores)

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        return {**self.config, "offsets": self.offsets.tolist()}, self.tensors

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> TransformerEnsemble:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        rest = {key: value for key, value in config.items() if key != "offsets"}
        for key in ("dtype", "products"):
            if key in rest and rest[key] not in ("float32", "bfloat16", "float16", "float64"):
                raise ValueError(f"{key} is {rest[key]!r:.60}, expected a precision such as float32")
        return cls(rest, tensors, torch.tensor(config["offsets"]))

    def averaged(self) -> TransformerEnsemble:
        """WARM: one member whose weights are the mean of all members' (arXiv 2401.12187). No variance is left."""
        config = {**self.config, "info": {**self.info, "averaged_members": self.members}}
        if self.family == "singles":
            names = part_under("member0.", self.tensors)
            tensors = {
                f"member0.{name}": torch.stack([self.tensors[f"member{k}.{name}"] for k in range(self.members)]).mean(0)
                for name in names
            }
        elif self.family == "lora":
            tensors = average_adapters(self.tensors, self.members)
            config |= {"rank": self.config["rank"] * self.members, "alpha": self.config["alpha"] * self.members}
        else:
            raise PrudentError(f"weights of family {self.family!r} can't be averaged; fit singles or lora")
        made = TransformerEnsemble(config, tensors, torch.zeros(1))
        made.options = dict(self.options)
        return made


def products(model: EnsembleModel, fast: bool) -> torch.autocast:
    """Context in which matrix products are taken in bfloat16, as in training; fast False: in the weights' own type."""
    return torch.autocast(model.heads.device.type, torch.bfloat16, enabled=fast)


@torch.inference_mode()
def score_rows(model: EnsembleModel, rows: Sequence[Sequence[int]], fast: bool = False) -> torch.Tensor:
    """Raw scores (K, N) float32 of token sequences, batched by length. fast: see ``products``."""
    device = model.heads.device
    scores = torch.empty(len(model.heads), len(rows))
    with products(model, fast), meter("scoring", len(rows)) as advance:
        for batch in token_batches([len(row) for row in rows]):
            ids, mask = padded([rows[row] for row in batch], 0, device)
            scores[:, batch] = model.scores(ids, mask).float().cpu()
            advance(len(batch), int(mask.sum()))
    return scores


def _numbers(model: EnsembleModel, members: int, kind: str) -> dict[str, int]:
    """Parameter counts of an ensemble, from the model's own tensors."""
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    backbone = sum(p.numel() for name, p in model.backbone.named_parameters() if "lora_" not in name)
    adapter = adapters // max(1, len(model.adapters))
    head = model.heads.shape[1]
    total = parameter_counts(kind, backbone, head, adapter, members)
    return {"backbone": backbone, "head": head, "adapter": adapter, "total": total}


@dataclass(frozen=True)
class TransformerOptions:
    """layers: blocks that are trained, counted from the top (None: all; lora: the last third is adapted). rank, alpha,
    targets: of the LoRA adapters. phase_one: share of the pairs that lora's shared base is trained on first (0 keeps
    the base as it is). diversity: "init" (heads and adapters drawn from each member's seed) or "bootstrap" (rows
    weighted by each member's own resample too). sampler(step) -> (prompts, responses): MetaRM at ``meta_rate``.
    dtype: of a frozen base and of the products; what is trained is kept in float32 (None: bfloat16 where that is fast).
    training: TrainingArguments of your own (DeepSpeed, bf16, save_steps, ...). checkpoints: folder to keep checkpoints
    in and to resume from. PrudentError for a value that is not known or out of bounds."""

    epochs: float = 1
    batch_size: int = 8
    learning_rate: float | None = None
    head_learning_rate: float = 1e-3
    max_length: int = 512
    layers: int | None = None
    rank: int = 8
    alpha: int = 16
    targets: Sequence[str] | None = None
    phase_one: float = 0.5
    diversity: str = "init"
    contrastive: str | None = None
    contrastive_on: str = "feature"
    contrastive_weight: float = 0.1
    sampler: Sampler | None = None
    meta_rate: float = 0.0
    dtype: str | None = None
    training: Mapping[str, Any] | None = None
    checkpoints: str | Path | None = None

    def __post_init__(self) -> None:
        if self.diversity not in ("init", "bootstrap"):
            raise PrudentError(f"diversity {self.diversity!r} is unknown; known are init, bootstrap")
        if not 0 <= self.phase_one < 1:
            raise PrudentError(
                f"phase_one is the share of pairs for the shared base, at least 0 and below 1; got {self.phase_one}"
            )


def fit_transformers(
    preferences: Dataset, model: str, *, kind: str, members: int = 3, seed: Seed | Sequence[Seed] = 0, **options: Any
) -> TransformerEnsemble:
    """Train ``kind`` singles, linear or lora on preference pairs. options: of ``TransformerOptions``."""
    from prudent.features.models import as_dtype, best_device, load_language_model

    if kind not in KINDS:
        raise PrudentError(f"kind {kind!r} is unknown; known are {', '.join(KINDS)}")
    own = TransformerOptions(**options)
    seeds, common = member_seeds(seed, members), shared_seed(seed)
    wide = kind != "lora" or own.phase_one  # what is trained is kept in float32
    language_model, tokenizer = load_language_model(model, dtype="float32" if wide else own.dtype)
    examples, counts = prepare(preferences, tokenizer, own.max_length)
    named = ("epochs", "batch_size", "diversity", "contrastive", "meta_rate")
    info = {"pairs": len(examples), **counts, **{name: getattr(own, name) for name in named}}
    config: dict[str, Any] = {
        "kind": kind,
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "max_length": own.max_length,
        "dtype": str(next(language_model.parameters()).dtype).removeprefix("torch."),
        "info": info,
        "products": str(as_dtype(own.dtype, best_device())).removeprefix("torch."),
    }
    plan = Finetuning(
        common,
        own.epochs,
        own.batch_size,
        own.learning_rate if own.learning_rate is not None else (2e-4 if kind == "lora" else 2e-5),
        own.head_learning_rate,
        own.max_length,
        checkpoints=Path(own.checkpoints) if own.checkpoints is not None else None,
        training=own.training or {},
        fast=config["products"] == "bfloat16",
        sampler=meta_batches(own.sampler, tokenizer, own.max_length) if own.sampler is not None else None,
        meta_rate=own.meta_rate,
    )
    job = _Job(language_model.base_model, examples, seeds, config, own, plan)
    return {"singles": _fit_singles, "linear": _fit_linear, "lora": _fit_lora}[kind](job)


@dataclass(frozen=True)
class _Job:
    """What the three kinds share: the base, the pairs, the members' seeds, the artefact's config, options and plan."""

    backbone: Any
    examples: list[dict[str, Any]]
    seeds: Sequence[np.random.SeedSequence]
    config: dict[str, Any]
    options: TransformerOptions
    plan: Finetuning

    def ensemble(self, seeds: Sequence[np.random.SeedSequence]) -> EnsembleModel:
        """Members with these seeds on the base, with the contrastive term where one is asked for."""
        made, given = EnsembleModel(self.backbone, seeds), self.options
        if given.contrastive is not None:
            made.set_contrastive(given.contrastive, given.contrastive_on, given.contrastive_weight, self.plan.seed)
        return made

    def rows(self, examples: list[dict[str, Any]], seeds: Sequence[np.random.SeedSequence]) -> list[dict[str, Any]]:
        """The pairs, weighted by each member's resample where members differ by it."""
        return with_counts(examples, seeds) if self.options.diversity == "bootstrap" else examples

    def under(self, name: str) -> Path | None:
        """Folder of that name for checkpoints, if they are kept."""
        return None if self.plan.checkpoints is None else self.plan.checkpoints / name


def _fit_linear(job: _Job) -> TransformerEnsemble:
    ensemble = job.ensemble(job.seeds)
    ensemble.train_layers(job.options.layers)
    job.config["info"]["loss"] = train(ensemble, job.rows(job.examples, job.seeds), job.plan)
    return _finish(job, ensemble, trained_tensors(ensemble))


def _fit_singles(job: _Job) -> TransformerEnsemble:
    """One member after another on one copy of the base, which is put back before each: memory of one model."""
    start = {name: tensor.detach().clone() for name, tensor in job.backbone.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    kept: dict[bytes, torch.Tensor] = {}  # what the untrained blocks give is the same for all members
    offsets, losses = [], []
    ensemble = None
    for member, seed in enumerate(job.seeds):
        with torch.no_grad():
            for name, parameter in job.backbone.named_parameters():
                parameter.copy_(start[name])
        ensemble = job.ensemble([seed])
        ensemble.train_layers(job.options.layers)
        ensemble.kept = kept
        plan = replace(job.plan, seed=seed, checkpoints=job.under(f"member-{member}"), again=True)
        losses.append(train(ensemble, job.rows(job.examples, [seed]), plan))
        found = {name: tensor for name, tensor in trained_tensors(ensemble).items() if name != "prototypes"}
        tensors |= {f"member{member}.{name}": tensor.cpu().clone() for name, tensor in found.items()}
        offsets.append(_mean_scores(ensemble, job.examples, job.config))
    assert ensemble is not None
    job.config["info"] |= {"loss": losses, "parameters": _numbers(ensemble, len(job.seeds), "singles")}
    return TransformerEnsemble(job.config, tensors, torch.cat(offsets))


def _fit_lora(job: _Job) -> TransformerEnsemble:
    config, given = job.config, job.options
    config |= {"rank": given.rank, "alpha": given.alpha, "targets": list(given.targets) if given.targets else None}
    config["layers"] = given.layers or math.ceil(job.backbone.config.num_hidden_layers / LORA_SHARE)
    order = numpy_generator(spawn(job.plan.seed, 1)[0]).permutation(len(job.examples))
    cut = round(given.phase_one * len(job.examples))
    first, rest = ([job.examples[row] for row in sorted(part)] for part in (order[:cut], order[cut:]))
    info, changed = config["info"], set()
    if first:
        base = job.ensemble(job.seeds)
        base.train_layers(None)
        slower = replace(job.plan, learning_rate=job.plan.learning_rate / 10, checkpoints=job.under("phase-one"))
        info["phase_one_loss"] = train(base, first, slower)
        changed = {id(parameter) for parameter in job.backbone.parameters()}
    ensemble = job.ensemble(job.seeds)
    ensemble.add_adapters(job.seeds, config["rank"], config["alpha"], config["layers"], config["targets"])
    plan = replace(job.plan, schedule="constant_with_warmup", checkpoints=job.under("phase-two"))
    info["loss"] = train(ensemble, job.rows(rest, job.seeds), plan)
    info |= {"phase_one_pairs": len(first), "phase_two_pairs": len(rest)}
    tensors = trained_tensors(ensemble)
    tensors |= {name: p.detach() for name, p in ensemble.named_parameters() if id(p) in changed}
    return _finish(job, ensemble, tensors)


def _finish(job: _Job, ensemble: EnsembleModel, tensors: dict[str, torch.Tensor]) -> TransformerEnsemble:
    kept = {name: tensor.cpu().clone() for name, tensor in tensors.items() if name != "prototypes"}
    job.config["info"]["parameters"] = _numbers(ensemble, len(job.seeds), job.config["kind"])
    return TransformerEnsemble(job.config, kept, _mean_scores(ensemble, job.examples, job.config))


def _mean_scores(
    ensemble: EnsembleModel, examples: Sequence[dict[str, Any]], config: Mapping[str, Any]
) -> torch.Tensor:
    """Each member's mean score (K,) on the first training responses: its origin."""
    rows = [example[side] for example in examples[:CENTRED_ON] for side in ("chosen", "rejected")]
    return score_rows(ensemble.eval(), rows, config["products"] == "bfloat16").mean(1)
