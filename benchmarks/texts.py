"""The texts that the benchmarks of reward models share: a user's files, or the embedded data split by prompt."""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="under two minutes on two cores")
    parser.add_argument("--preferences", help="a file of yours in place of the embedded data")
    parser.add_argument("--test")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--test-pairs", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--pooling", default="last", help="of the features: last, mean or last+mean")


def read(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training and test pairs: a user's files, or the embedded data split by prompt."""
    if arguments.preferences:
        from prudent.data.preferences import read_preferences, split_by_prompt

        data = read_preferences(arguments.preferences, on_error="skip")
        if arguments.test:
            train, test = data, read_preferences(arguments.test, on_error="skip")
        else:
            train, test = split_by_prompt(data, 0.7, 0)
    else:
        from prudent.demo.world import load_world, preferences_dataset, split

        world = load_world()
        first, second = split(world, 0.7, 0)
        train = preferences_dataset(world, first, arguments.pairs, 4.0, 0)
        test = preferences_dataset(world, second, arguments.test_pairs, 4.0, 1)
    train = train.select(range(min(arguments.pairs, len(train))))
    test = test.select(range(min(arguments.test_pairs, len(test))))
    return {
        "train": train,
        "test": test,
        "model": arguments.model,
        "max_length": arguments.max_length,
        "pooling": arguments.pooling,
    }


def encode(texts: dict[str, Any]) -> dict[str, torch.Tensor]:
    from prudent.features.encoder import Encoder
    from prudent.rewards.families import encode_pairs

    encoder = Encoder(texts["model"], pooling=texts["pooling"], max_length=texts["max_length"])
    names = ("chosen", "rejected"), ("test_chosen", "test_rejected")
    return {
        name: side
        for keys, data in zip(names, (texts["train"], texts["test"]))
        for name, side in zip(keys, encode_pairs(encoder, data))
    }
