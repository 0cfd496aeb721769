"""Adapter ensembles: our pass a member above shared blocks, against one mixed batch by peft's ``adapter_names``.

    python benchmarks/adapter_names.py [--layers 10] [--members 4]

Four texts of 32 tokens under the embedded model in float32; sides take turns, ratios are of processor seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import results
import torch
from peft.tuners.lora import LoraLayer

from prudent.features.models import load_language_model
from prudent.rewards.transformers.network import EnsembleModel
from prudent.seeding import spawn


@torch.no_grad()
def mixed(model: EnsembleModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Representations (K, N, d) by peft: every text once a member, in one batch."""
    names = [name for name in model.adapters for _ in range(len(ids))]
    hooks = [
        module.register_forward_pre_hook(lambda _, a, k: (a, {**k, "adapter_names": names}), with_kwargs=True)
        for module in model.modules()
        if isinstance(module, LoraLayer)
    ]
    try:
        members = len(model.adapters)
        return model._states(ids.repeat(members, 1), mask.repeat(members, 1)).view(members, len(ids), -1)
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="highest blocks that have adapters, of 30")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "adapter_names.json")
    given = parser.parse_args()
    body = load_language_model("smollm2", dtype=torch.float32)[0].model
    model = EnsembleModel(body, spawn(0, given.members)).eval()
    model.add_adapters(spawn(1, given.members), 8, 16, given.layers, None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.randint(5, 4000, (4, 32))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        equal = torch.equal(model.represent(ids, mask), mixed(model, ids, mask))
        times = results.interleaved(
            {"ours": lambda: model.represent(ids, mask), "peft": lambda: mixed(model, ids, mask)},
            given.repeats,
            time.process_time,
        )
    note = f"adapters on {given.layers} of 30 blocks; {'the same bits' if equal else 'not the same bits'}"
    figure = results.ratio("peft's adapter_names over ours", times["peft"], times["ours"], note=note)
    results.write(given.out, "Scoring by an adapter ensemble", [figure])


if __name__ == "__main__":
    main()
