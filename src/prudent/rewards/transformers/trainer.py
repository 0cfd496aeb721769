"""A transformers Trainer for ensembles: stops before a step that isn't finite, and checkpoints without pickles.

Checkpoints hold only what is trained, as safetensors; optimiser, schedule and random state as safetensors and JSON.
``trainer_state.json`` is written last, so a folder without it is a half-written one and is not resumed from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from prudent.errors import PrudentError
from prudent.files import write_atomic
from prudent.rewards.transformers.meta import ascended, difference_objective
from prudent.rewards.transformers.network import EnsembleModel, put_tensors, trained_tensors

WEIGHTS, STATE, OPTIMISER, PLAN = "model.safetensors", "trainer_state.json", "optimiser.safetensors", "optimiser.json"

MetaSampler = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class EnsembleTrainer(Trainer):
    """Trainer of an ``EnsembleModel``. head_rate: learning rate of heads and prototypes (the arguments' own is the
    backbone's). sampler(step) -> (ids, mask), each (prompts, k, T): a policy's responses for MetaRM at ``meta_rate``.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any

    head_rate: float = 1e-3
    sampler: MetaSampler | None = None
    meta_rate: float = 0.0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimiser with the heads' own learning rate."""
        if self.optimizer is None:
            groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups[not name.startswith("backbone.")].append(parameter)
            decay = self.args.weight_decay
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            wanted = [
                {"params": groups[False], "weight_decay": decay},
                {"params": groups[True], "weight_decay": decay, "lr": self.head_rate},
            ]
            self.optimizer = kind([group for group in wanted if group["params"]], **options)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss; PrudentError naming members and rows where it is not finite, before the step."""
        rows = inputs.pop("rows")
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not bool(torch.isfinite(loss)):
            bad = torch.nonzero(~torch.isfinite(outputs["scores"]).all(2).all(1))[:, 0].tolist()
            raise PrudentError(
                f"the loss is {float(loss.detach())} at step {self.state.global_step} (members {bad}, rows "
                f"{rows.tolist()}); stopped before the step: lower the learning rate or fix these rows"
            )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One step, its gradient taken where the shifted pairs' difference loss leads, if that is asked for
        (meta_rate)."""
        if self.sampler is None or self.meta_rate == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        ids, mask = (part.to(self.args.device) for part in self.sampler(self.state.global_step))

        def objective() -> torch.Tensor:
            scores = self.accelerator.unwrap_model(model).scores(ids.flatten(0, 1), mask.flatten(0, 1))
            return difference_objective(scores.unflatten(1, ids.shape[:2]))

        leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with ascended(leaves, objective, self.meta_rate):
            return super().training_step(model, inputs, num_items_in_batch)

    def _plain(self) -> bool:
        """Whether this process holds the whole state itself (with DeepSpeed or FSDP their own formats are used)."""
        return not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_tensors(self.model).items()}
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._plain():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target = model if isinstance(model, EnsembleModel) else self.model
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        missing = sorted(set(trained_tensors(target)) - set(tensors))
        if missing:
            raise PrudentError(
                f"checkpoint {resume_from_checkpoint} lacks weights {', '.join(missing[:5])}; start again"
            )
        put_tensors(target, tensors)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._plain():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if not self.args.should_save:
            return
        state = self.optimizer.state_dict()
        tensors = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                tensors[f"{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        save_file(tensors, Path(output_dir) / OPTIMISER)
        plan = {"groups": state["param_groups"], "schedule": self.lr_scheduler.state_dict()}
        write_atomic(Path(output_dir) / PLAN, json.dumps(plan, default=str))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self._plain():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        plan = json.loads((Path(checkpoint) / PLAN).read_text(encoding="utf-8"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in load_file(Path(checkpoint) / OPTIMISER).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": plan["groups"]})
        self.lr_scheduler.load_state_dict(plan["schedule"])

    def _save_rng_state(self, output_dir: str) -> None:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        save_file(state, Path(output_dir) / f"random-{self.args.process_index}.safetensors")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "") / f"random-{self.args.process_index}.safetensors"
        if checkpoint is None or not path.is_file():
            return
        state = load_file(path)
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint below a folder, or None. One without its last file is left alone."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and all((path / name).is_file() for name in (STATE, WEIGHTS)):
            try:
                json.loads((path / STATE).read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                continue
            found.append((int(number), str(path)))
    return max(found)[1] if found else None


def explain_memory(error: Exception, batch: int, length: int, members: int) -> PrudentError | None:
    """A PrudentError that says what to lower, when an error is about memory; else None."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return PrudentError(
            f"out of memory with batch size {batch}, length {length} tokens and {members} members "
            f"({text.splitlines()[0]}); lower --batch-size first, then --max-length, --layers or --members"
        )
    return None


def collate(examples: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Batch of B pairs: input_ids and attention_mask (B, 2, T), chosen first, padded on the right; rows (B,); and where
    the examples have them weight, soft_label, margin (B,) and counts (B, K)."""
    sides = [example[name] for example in examples for name in ("chosen", "rejected")]
    width = max(map(len, sides))
    ids = torch.full((len(sides), width), pad, dtype=torch.long)
    mask = torch.zeros(len(sides), width, dtype=torch.long)
    for index, side in enumerate(sides):
        ids[index, : len(side)] = torch.tensor(side)
        mask[index, : len(side)] = 1
    batch = {"input_ids": ids.view(-1, 2, width), "attention_mask": mask.view(-1, 2, width)}
    batch["rows"] = torch.tensor([example["row"] for example in examples])
    for name in ("weight", "soft_label", "margin", "counts"):
        if name in examples[0]:
            batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
    return batch
