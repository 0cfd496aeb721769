"""A trained transformer with K reward heads, and optionally one LoRA adapter a member above shared, frozen layers.

What members share is computed once. Below the first block that is adapted or trained everything is the same for all
members, and stays the same throughout training: the states that enter that block are computed once a batch for all
members, or once for good where texts are read again (``keep_lower``).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.features.backbone import BUDGETS, batches, cut
from prudent.progress import meter
from prudent.rewards.columns import PairColumns
from prudent.rewards.losses import pair_difference
from prudent.rewards.transformers.contrastive import contrastive_term, views
from prudent.rewards.transformers.external import last_state, padded
from prudent.seeding import numpy_generator, seeded, torch_generator

HEAD_SCALE = 0.02  # transformers' own for new score heads
PROTOTYPES = 16
KEPT_BYTES = 2**31  # of states that enter the first trained block, held while texts are read again and again


def decoder_layers(backbone: torch.nn.Module) -> torch.nn.ModuleList:
    """The stack of transformer blocks, whatever its name: the module list as long as the config says."""
    count = backbone.config.num_hidden_layers  # type: ignore[union-attr]
    for module in backbone.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise PrudentError(
        f"{type(backbone).__name__} has no list of {count} blocks, so its upper layers can't be "
        "distinguished from the lower; use family singles or linear without layers"
    )


class EnsembleModel(torch.nn.Module):
    """heads (K, d) float32 on the last token's state of ``backbone``. adapters: names of LoRA adapters, one a member,
    or empty; shared: how many of the lowest blocks are neither adapted nor trained; kept: what left them, by text.

    ``forward`` takes pairs: input_ids, attention_mask (B, 2, T) with chosen first, and per-pair columns; it gives the
    loss *summed over members* and the scores (K, B, 2). So any Trainer, DeepSpeed or DDP can drive it.
    """

    def __init__(self, backbone: torch.nn.Module, seeds: Sequence[np.random.SeedSequence]) -> None:
        super().__init__()
        self.backbone = backbone
        width = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
        draws = [numpy_generator(seed).standard_normal(width) * HEAD_SCALE for seed in seeds]
        self.heads = torch.nn.Parameter(torch.from_numpy(np.stack(draws)).float())
        self.prototypes: torch.nn.Parameter | None = None
        self.adapters: list[str] = []
        self.shared = 0
        self.share_lower = True
        self.kept: dict[bytes, torch.Tensor] = {}
        self.contrastive: tuple[str, str, float] | None = None  # kind, on, weight
        self.dropout = 0.1  # of the representation, between the two passes of a contrastive term

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Turn on the backbone's checkpointing, as transformers' Trainer asks for it."""
        self.backbone.gradient_checkpointing_enable(**options)  # type: ignore[operator]

    def set_contrastive(self, kind: str, on: str, weight: float, seed: np.random.SeedSequence) -> None:
        """Add a contrastive term on the representation (see ``contrastive``); swav brings prototypes of its own."""
        self.contrastive = (kind, on, weight)
        if kind == "swav":
            width = self.heads.shape[1]
            start = torch.randn(PROTOTYPES, width, generator=torch_generator(seed))
            self.prototypes = torch.nn.Parameter(start)

    def add_adapters(
        self, seeds: Sequence[np.random.SeedSequence], rank: int, alpha: int, layers: int, targets: Sequence[str] | None
    ) -> None:
        """One LoRA adapter a member on the linear maps of the last ``layers`` blocks, each drawn from its own seed.

        targets: names of linear maps (q_proj, ...), None for all of a block's. Everything else is frozen.
        """
        from peft import LoraConfig, inject_adapter_in_model

        stack = decoder_layers(self.backbone)
        if not 0 < layers <= len(stack):
            raise PrudentError(f"layers is {layers}; this model has {len(stack)} blocks to adapt")
        self.shared = len(stack) - layers
        chosen = {id(module) for block in list(stack)[self.shared :] for module in block.modules()}
        names = [
            name
            for name, module in self.backbone.named_modules()
            if id(module) in chosen
            and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
            and (targets is None or name.rpartition(".")[2] in targets)
        ]
        if not names:
            raise PrudentError(f"no linear map named {', '.join(targets or ())} in the last {layers} blocks")
        for member, seed in enumerate(seeds):
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none")
            number, device = int(seed.generate_state(1)[0]), next(self.backbone.parameters()).device
            with seeded(number, device), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
                inject_adapter_in_model(config, self.backbone, f"member{member}")
            self.adapters.append(f"member{member}")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name or not name.startswith("backbone."))

    def train_layers(self, layers: int | None) -> None:
        """Train the last ``layers`` blocks (and the final norm) only; None trains the whole backbone."""
        if layers is None:
            self.backbone.requires_grad_(True)
            return
        stack = decoder_layers(self.backbone)
        self.shared = max(0, len(stack) - layers)
        self.backbone.requires_grad_(False)
        for block in list(stack)[self.shared :]:
            block.requires_grad_(True)
        for name in ("norm", "ln_f", "final_layer_norm"):
            if isinstance(module := getattr(self.backbone, name, None), torch.nn.Module):
                module.requires_grad_(True)

    def _states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Last token's states (N, d) of the backbone as it stands."""
        states = self.backbone(input_ids=ids, attention_mask=mask, **self._no_cache()).last_hidden_state
        return last_state(states, mask).float()

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if hasattr(self.backbone.config, "use_cache") else {}

    def represent(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Representations (K, N, d), or (1, N, d) where members share the whole backbone; ids, mask (N, T), padded on
        the right. Texts of like length run together: padding to the longest of a batch can double the work."""
        lengths = mask.sum(1).tolist()
        parts = list(batches(lengths, *BUDGETS.get(ids.device.type, BUDGETS["cuda"])))
        states = []
        for part in parts:
            width = max(1, lengths[part[0]])  # longest first
            states.append(self._represent(ids[part, :width], mask[part, :width]))
        order = torch.tensor([row for part in parts for row in part], device=ids.device)
        return torch.cat(states, 1)[:, torch.argsort(order)]

    def _represent(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lower = list(decoder_layers(self.backbone))[: self.shared] if self.share_lower else []
        if not lower or not (self.kept or self.adapters):
            return torch.stack([self._states(ids, mask) for _ in self._members()])
        with replaced(lower, self.entering(ids, mask)):
            return torch.stack([self._states(ids, mask) for _ in self._members()])

    def _members(self) -> Iterator[None]:
        """One turn for each member that has a backbone of its own, with its adapter active."""
        for name in self.adapters:
            activate(self.backbone, name)
            yield
        if not self.adapters:
            yield

    @torch.no_grad()
    def entering(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        """What the last shared block gives for a batch: from what is kept, or computed now."""
        lengths = mask.sum(1).tolist()
        held = [self.kept.get(_text_key(row[:length].tolist())) for row, length in zip(ids, lengths)]
        found = [states for states in held if states is not None]
        if len(found) == len(held):
            return torch.nn.utils.rnn.pad_sequence(found, batch_first=True).to(ids.device)
        body = cut(self.backbone, self.shared)
        left: list[Any] = []
        handle = decoder_layers(body)[-1].register_forward_hook(lambda module, args, output: left.append(output))
        try:
            body(input_ids=ids, attention_mask=mask, **self._no_cache())
        finally:
            handle.remove()
        return left[0]

    def scores(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores (K, N) float32 of N token sequences (N, T)."""
        return self._heads(self.represent(ids, mask))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(states.device.type, enabled=False):
            if len(states) == 1:
                return self.heads @ states[0].float().T
            return (states.float() @ self.heads[:, :, None])[..., 0]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        weight: torch.Tensor | None = None,
        soft_label: torch.Tensor | None = None,
        margin: torch.Tensor | None = None,
        counts: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss and scores of B pairs. weight, soft_label, margin (B,); counts (B, K): rows' weights for each member."""
        pairs = len(input_ids)
        states = self.represent(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        scores = self._heads(states).unflatten(1, (pairs, 2))
        losses = PairColumns(None, soft_label, margin).losses(pair_difference(scores[..., 0], scores[..., 1]))
        if weight is not None:
            losses = losses * weight
        if counts is not None:
            losses = losses * counts.T
        loss = losses.mean(1).sum()
        if self.contrastive is not None:
            loss = loss + self._contrastive_loss(states.unflatten(1, (pairs, 2)))
        return {"loss": loss, "scores": scores.detach()}

    def _contrastive_loss(self, states: torch.Tensor) -> torch.Tensor:
        assert self.contrastive is not None
        kind, on, strength = self.contrastive
        sides = [torch.nn.functional.dropout(states, self.dropout) for _ in range(2)]
        first, second = (views(side[:, :, 0], side[:, :, 1], on) for side in sides)
        return strength * contrastive_term(kind, first, second, self.prototypes).sum()


def untrained_blocks(model: EnsembleModel, tensors: dict[str, torch.Tensor]) -> int:
    """How many of the lowest blocks hold none of these tensors, nor do the embeddings: they are the base's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if any(names[id(p)] in tensors for p in model.backbone.get_input_embeddings().parameters()):  # type: ignore[operator]
        return 0
    held = [any(names[id(p)] in tensors for p in block.parameters()) for block in decoder_layers(model.backbone)]
    return [*held, True].index(True)


def _text_key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int64).tobytes()


def keep_lower(model: EnsembleModel, texts: Sequence[Sequence[int]], room: int = KEPT_BYTES) -> None:
    """Compute what leaves the shared blocks for these texts (token ids) and keep it for all members and epochs, as far
    as ``room`` bytes reach. Batches depend on the texts alone, so each member trains on the same numbers as it would
    alone. Nothing is kept where there are no shared blocks, or where dropout makes every pass another one."""
    settings = model.backbone.config.to_dict()  # type: ignore[union-attr, operator]
    if model.shared == 0 or any("drop" in name and value for name, value in settings.items()):
        return
    left = room - sum(states.nbytes for states in model.kept.values())
    missing = {key: ids for ids in texts if (key := _text_key(ids)) not in model.kept}
    keys, rows = list(missing), list(missing.values())
    budget = BUDGETS.get(model.heads.device.type, BUDGETS["cuda"])
    with meter("running the shared blocks", len(rows)) as advance:
        for batch in batches([len(row) for row in rows], *budget):
            ids, mask = padded([rows[row] for row in batch], 0, model.heads.device)
            states = model.entering(ids, mask)
            if not isinstance(states, torch.Tensor):
                return
            left -= states.nbytes
            if left < 0:
                return
            for row, one in zip(batch, states):
                model.kept[keys[row]] = one[: len(rows[row])].cpu().clone()
            advance(len(batch), int(mask.sum()))


def activate(backbone: torch.nn.Module, name: str) -> None:
    """Make one adapter the active one and leave every adapter's requires_grad alone (peft's own switch changes it)."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in backbone.modules():
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = [name]


@contextlib.contextmanager
def replaced(layers: Sequence[torch.nn.Module], output: Any) -> Iterator[None]:
    """Inside, each of these blocks gives ``output`` at once: they were computed already, with the same weights."""
    for layer in layers:
        layer.forward = lambda *arguments, **options: output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def trained_tensors(model: EnsembleModel) -> dict[str, torch.Tensor]:
    """The tensors that training may have changed, by name: what an artefact must hold."""
    return {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}


def put_tensors(model: EnsembleModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the parameters of the same names; PrudentError for a name that the model doesn't have."""
    known = dict(model.named_parameters())
    unknown = sorted(set(tensors) - set(known))
    if unknown:
        raise PrudentError(f"weights {', '.join(unknown[:5])} have no place in this model; is it another base model?")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if known[name].shape != tensor.shape:
                raise PrudentError(
                    f"weight {name} has shape {tuple(tensor.shape)}, the model's is {tuple(known[name].shape)}; "
                    "is it another base model?"
                )
            known[name].copy_(tensor)


def average_adapters(tensors: dict[str, torch.Tensor], members: int) -> dict[str, torch.Tensor]:
    """Tensors of one member whose weights are the mean of K adapted members' (WARM, arXiv 2401.12187).

    The mean of the K products B_k A_k is one product of rank K r: [B_1 ... B_K] / K times the stacked A. Heads are
    averaged. The adapter's alpha must grow by K too, since LoRA scales by alpha / rank.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "lora_" not in name:
            found[name] = tensor.mean(0, keepdim=True) if name == "heads" else tensor
        elif ".member0." in name:
            parts = [tensors[name.replace(".member0.", f".member{member}.")] for member in range(members)]
            found[name] = torch.cat(parts, 1) / members if "lora_B" in name else torch.cat(parts, 0)
    return found
