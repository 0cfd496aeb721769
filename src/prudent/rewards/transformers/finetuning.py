"""Fine-tuning of an ``EnsembleModel`` on token ids: examples, the trainer's call, and a policy's samples for MetaRM."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prudent.data.failing import by_pair
from prudent.errors import PrudentError
from prudent.progress import meter
from prudent.rewards.beside import PoolSampler
from prudent.rewards.draws import bootstrap_counts
from prudent.rewards.transformers.external import padded
from prudent.rewards.transformers.network import EnsembleModel, keep_lower

if TYPE_CHECKING:
    from datasets import Dataset

Sampler = Callable[[int], tuple[Sequence[Any], Sequence[Sequence[str]]]]


def prepare(preferences: Dataset, tokenizer: Any, max_length: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Examples of token ids with their columns, and what was cut or left out: both sides equal after truncation or
    after the template (they train nothing; the check uses the very ids that training uses)."""
    from prudent.data.preferences import training_columns
    from prudent.data.rules import identical_after_truncation
    from prudent.features.rendering import Renderer

    prompts = list(preferences["prompt"])
    n = len(prompts)
    both = [*preferences["chosen"], *preferences["rejected"]]
    with by_pair(n):
        texts = Renderer(tokenizer, max_length).conversations(prompts * 2, both)
    ids = [one.ids for one in texts]
    columns = training_columns(preferences)
    if "weight" in columns:
        columns["weight"] = columns["weight"] / columns["weight"].mean()
    examples, same_cut, same_uncut = [], 0, 0
    for row in range(n):
        if identical_after_truncation(ids[row], ids[n + row], max_length):
            cut = texts[row].removed or texts[n + row].removed
            same_cut, same_uncut = same_cut + bool(cut), same_uncut + (not cut)
            continue
        numbers = {name: float(column[row]) for name, column in columns.items()}
        examples.append({"chosen": ids[row], "rejected": ids[n + row], "row": row, **numbers})
    if not examples:
        raise PrudentError(
            f"all {n} pairs are the same for the model: {same_cut} identical after truncation at {max_length} tokens "
            f"(give a larger --max-length), {same_uncut} after its template"
        )
    return examples, {
        "trained_pairs": len(examples),
        "truncated": sum(text.removed > 0 for text in texts),
        "answerless": sum(text.removed > 0 and not text.response for text in texts),
        "identical_after_truncation": same_cut,
        "identical_after_template": same_uncut,
    }


def with_counts(examples: list[dict[str, Any]], seeds: Sequence[np.random.SeedSequence]) -> list[dict[str, Any]]:
    """Examples with ``counts``: how often each of the members' bootstrap resamples holds them, one a seed."""
    counts = bootstrap_counts(len(examples), seeds).T.tolist()
    return [{**example, "counts": row} for example, row in zip(examples, counts)]


@dataclass(frozen=True)
class Finetuning:
    """How an ensemble is fine-tuned. seed: of the order of examples. schedule: of the rate, as transformers names it.
    length: longest text in tokens. checkpoints: folder to keep them in and to resume from. training: a user's own
    TrainingArguments, which win. fast: compute in bfloat16. sampler, meta_rate: of MetaRM. again: the same texts train
    another member, too, so that it pays to keep what the shared blocks give even in one epoch."""

    seed: np.random.SeedSequence
    epochs: float
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    length: int
    schedule: str = "cosine"
    checkpoints: Path | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False
    sampler: Any = None
    meta_rate: float = 0.0
    again: bool = False

    def arguments(self, folder: Path, rows: int) -> Any:
        """The TrainingArguments for so many rows. PrudentError names a user's own that transformers refuses."""
        from transformers import TrainingArguments

        steps = math.ceil(rows / self.batch_size) * self.epochs
        number = int(self.seed.generate_state(1)[0]) >> 1
        options: dict[str, Any] = {
            "per_device_train_batch_size": self.batch_size,
            "num_train_epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": math.ceil(0.03 * steps),
            "weight_decay": 0.0,
            # a norm over all members' gradients would couple them
            "max_grad_norm": 0.0,
            "logging_steps": max(1, int(steps // 20)),
            "report_to": "none",
            "save_strategy": "steps" if self.checkpoints else "no",
            "save_steps": max(1, int(steps // 4)),
            "save_total_limit": 2,
            "remove_unused_columns": False,
            "seed": number,
            "data_seed": number,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "bf16": self.fast,
        }
        try:
            return TrainingArguments(output_dir=str(folder), **{**options, **self.training})
        except (TypeError, ValueError, ImportError) as error:
            if not self.training:
                raise
            raise PrudentError(f"training arguments {', '.join(self.training)}: {error}") from error


def train(model: EnsembleModel, examples: list[dict[str, Any]], plan: Finetuning) -> list[float]:
    """Train what requires a gradient; the logged losses (summed over members). Resumes from the plan's checkpoints
    when there is a whole one."""
    from functools import partial

    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from prudent.rewards.transformers.trainer import EnsembleTrainer, collate, explain_memory, last_checkpoint

    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as until:
        folder = Path(plan.checkpoints or temporary)
        arguments = plan.arguments(folder, len(examples))
        trainer = EnsembleTrainer(
            model=model, args=arguments, train_dataset=examples, data_collator=partial(collate, pad=0)
        )
        trainer.head_rate, trainer.sampler, trainer.meta_rate = plan.head_learning_rate, plan.sampler, plan.meta_rate
        for callback in (PrinterCallback, ProgressCallback):  # they write to stdout
            trainer.remove_callback(callback)
        trainer.add_callback(_progress(until))
        if plan.again or arguments.num_train_epochs > 1:
            with trainer.accelerator.autocast():
                keep_lower(model, [example[side] for example in examples for side in ("chosen", "rejected")])
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(folder) if plan.checkpoints else None)
        except RuntimeError as error:
            explained = explain_memory(error, plan.batch_size, plan.length, len(model.heads))
            if explained is None:
                raise
            raise explained from error
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _progress(until: contextlib.ExitStack) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Steps and loss, shown until ``until`` is closed."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            shown = bool(state.is_world_process_zero)
            self.advance = until.enter_context(meter("fine-tuning", state.max_steps, shown))
            self.advance(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            self.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
            if logs and "loss" in logs:
                self.advance(0, 0, f"loss {logs['loss']:.4f}")

    return Progress()


def meta_batches(
    sampler: Sampler, tokenizer: Any, max_length: int
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """A policy sampler's texts as token batches: step -> ids and mask, each (prompts, k, T)."""
    from prudent.features.rendering import Renderer

    renderer = Renderer(tokenizer, max_length)
    if isinstance(sampler, PoolSampler):
        sampler.use(renderer)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        prompts, responses = sampler(step)
        k = min(len(texts) for texts in responses)
        flat = [(prompt, text) for prompt, texts in zip(prompts, responses) for text in texts[:k]]
        rows = [one.ids for one in renderer.conversations([p for p, _ in flat], [text for _, text in flat])]
        ids, mask = padded(rows, 0)
        return ids.unflatten(0, (-1, k)), mask.unflatten(0, (-1, k))

    return batch
