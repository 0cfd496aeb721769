"""Training and scoring on a stand-in for a GPU (``tests.second_device``), against the same on the processor."""

from __future__ import annotations

import pytest
import torch
from tests.second_device import CPU, CUDA, SecondDevice, moved, place
from tests.tiny import tiny_causal_lm

from prudent.evaluation.benchmarks.scorers import response_log_probabilities
from prudent.features.encoder import Encoder
from prudent.features.rendering import Renderer
from prudent.policies.estimates import ReferenceStatistics
from prudent.policies.objectives import shape
from prudent.policies.rl.engine import Trainer, TrainingPrompts, TrainOptions, UpdateOptions
from prudent.policies.rl.policy import LoraOptions, Policy
from prudent.policies.rl.scorers import HeadScorer
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.transformers.ensembles import score_rows
from prudent.rewards.transformers.external import padded
from prudent.rewards.transformers.network import EnsembleModel, keep_lower
from prudent.seeding import spawn

PROMPTS = ["Hi there", "Name a hat", "Yes?", "Say it again, please"]
TEXTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


def trained(elsewhere: bool, lora: LoraOptions | None, algorithm: str, shared: bool) -> Trainer:
    """Two steps of RL with heads on the policy's own features."""
    (model, tokenizer), (frozen, _) = tiny_causal_lm(), tiny_causal_lm()
    if elsewhere:
        model, frozen = moved(model), moved(frozen)
    encoder = Encoder((frozen, tokenizer), pooling="mean", cache=None, progress=False)
    ridge = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    heads = HeadEnsemble.fit(*ridge, members=3, ridge=1.0)
    policy = Policy(model, lora=lora, seed=0)
    assert policy.device == (CUDA if elsewhere else CPU)
    options = TrainOptions(
        objective="proportional",
        update=UpdateOptions(algorithm, 0.05, epochs=2),
        steps=2,
        prompts=2,
        max_new_tokens=6,
        learning_rate=3e-3,
        pack_tokens=64,
    )
    statistics = ReferenceStatistics(torch.zeros(3, 4, dtype=torch.float64), 1.0, 1e-2, torch.ones(4))
    scorer = HeadScorer(heads, encoder, PROMPTS, shared=shared)
    prompts = TrainingPrompts(Renderer(tokenizer).prompts(PROMPTS), PROMPTS)
    trainer = Trainer(policy, tokenizer, prompts, scorer, statistics, options)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("lora", "algorithm", "shared"),
    [(LoraOptions(rank=4, layers=2), "rloo", True), (LoraOptions(rank=4), "ppo", False), (None, "rloo", False)],
)
def test_a_policy_is_trained_as_on_the_processor(second_device: SecondDevice, lora, algorithm, shared) -> None:
    here, there = (trained(elsewhere, lora, algorithm, shared) for elsewhere in (False, True))
    assert {"index_add", "log_softmax"} <= second_device.seen or algorithm == "ppo"
    assert all(place(weight) == CUDA for weight in there.weights().values())
    for name in ("reward", "kl", "entropy", "gradient_norm", "length_tokens"):
        assert there.history[0][name] == pytest.approx(here.history[0][name], rel=1e-2, abs=1e-5), name
    assert there.history[1]["reward"] != there.history[0]["reward"]


def test_scores_from_a_gpu_meet_statistics_from_the_processor(second_device: SecondDevice) -> None:
    statistics = ReferenceStatistics(torch.zeros(3, 2, dtype=torch.float64), 1.0, 1e-2, torch.ones(4))
    scores = torch.arange(12.0).reshape(3, 4).sin()
    wanted = shape("proportional", scores, torch.tensor([0, 0, 1, 1]), statistics, 0.1)
    found = shape("proportional", scores.to("cuda"), torch.tensor([0, 0, 1, 1]).to("cuda"), statistics, 0.1)
    assert torch.equal(found.reward, wanted.reward) and torch.equal(found.kl_weight, wanted.kl_weight)


def test_an_ensemble_with_adapters_scores_and_learns_there(second_device: SecondDevice) -> None:
    found = []
    for elsewhere in (False, True):
        model, _ = tiny_causal_lm()
        ensemble = EnsembleModel(moved(model).base_model if elsewhere else model.base_model, spawn(0, 3))
        ensemble.add_adapters(spawn(0, 3), rank=2, alpha=4, layers=1, targets=None)
        ensemble.set_contrastive("swav", "feature", 0.1, spawn(0, 1)[0])
        ensemble.dropout = 0.0
        ensemble = ensemble.to(model.device).eval()
        assert all(place(p) == model.device for p in ensemble.parameters())
        keep_lower(ensemble, TEXTS)
        assert ensemble.kept and all(place(states) == CPU for states in ensemble.kept.values())
        ids, mask = padded([*TEXTS, TEXTS[0]], 0, model.device)
        loss = ensemble(ids.view(2, 2, -1), mask.view(2, 2, -1))["loss"]
        loss.backward()
        found.append([loss.detach().cpu(), score_rows(ensemble, TEXTS), ensemble.heads.grad.cpu()])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here)


def test_log_probabilities_of_responses_are_those_of_the_processor(second_device: SecondDevice) -> None:
    answers = ["a cap", "x", "no", "again"]
    model, tokenizer = tiny_causal_lm()
    wanted = response_log_probabilities(model, tokenizer, PROMPTS, answers)
    torch.testing.assert_close(response_log_probabilities(moved(model), tokenizer, PROMPTS, answers), wanted)
