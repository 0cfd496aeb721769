"""Alarm tests of the TRL adapter: a constant variance is stock TRL bit for bit, a scaled one is a scaled beta."""

import hashlib

import pytest
import torch

trl = pytest.importorskip("trl", reason="needs the optional extra prudent[trl]")

from datasets import Dataset
from tests.tiny import tiny_causal_lm

from prudent.errors import PrudentError
from prudent.policies.objectives import Shaped
from prudent.policies.reward_function import RewardFunction
from prudent.policies.trl import VarianceAwareGRPOTrainer, VarianceAwareRLOOTrainer, WeightedBeta

PROMPTS = ["Name a river.", "Name a hat.", "Say hi.", "Why?"]


def text_of(turns) -> str:
    return turns if isinstance(turns, str) else " ".join(m["content"] for m in turns)


class HashedScores:
    """Three members whose scores are functions of the text alone."""

    members = 3

    def score(self, prompts, responses):
        digests = [
            hashlib.sha256(f"{text_of(p)}|{text_of(r)}".encode("utf-8", "replace")).digest()
            for p, r in zip(prompts, responses)
        ]
        return torch.tensor([[d[k] / 128 - 1 for d in digests] for k in range(3)], dtype=torch.float64)


class FixedWeight(RewardFunction):
    """The mean score with a constant KL weight, whatever the objective."""

    constant = 1.0

    def shaped(self, prompts, responses):
        scores = self.model.score(prompts, responses)
        mean = scores.mean(0)
        weight = torch.full_like(mean, self.constant)
        return scores, Shaped(mean, weight, mean, weight)


class Agreeing(HashedScores):
    """Members that order all texts alike, on other scales."""

    def score(self, prompts, responses):
        return super().score(prompts, responses)[:1] * torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)


class Opposed(HashedScores):
    """Members that agree on no order: the mean still has one."""

    def score(self, prompts, responses):
        first = super().score(prompts, responses)[:1]
        return torch.cat([2 * first, -first])


def train(
    kind, folder, out, *, constant=None, beta=0.1, steps=3, model=None, objective="vanilla", late=False, **options
):
    """Parameters after a few steps of stock TRL (constant None) or of the adapter with a constant weight."""
    how = {"advantages": options.pop("advantages")} if "advantages" in options else {}
    stock, ours, config = {
        "rloo": (trl.RLOOTrainer, VarianceAwareRLOOTrainer, trl.RLOOConfig),
        "grpo": (trl.GRPOTrainer, VarianceAwareGRPOTrainer, trl.GRPOConfig),
    }[kind]
    args = config(
        output_dir=str(out),
        beta=beta,
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=8,
        max_steps=steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=3,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        top_k=0,
        **options,
    )
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS])
    _, tokenizer = tiny_causal_lm(folder)
    if late:  # a pad token that was added after the model was trained
        tokenizer.add_special_tokens({"pad_token": "<late>"})
    reward = FixedWeight(model or HashedScores(), "vanilla", beta=beta)
    reward.objective = objective
    reward.__name__ = "reward"
    common = {"model": str(folder), "args": args, "train_dataset": data, "processing_class": tokenizer}
    if constant is None:
        trainer = stock(reward_funcs=[reward], **common)
    else:
        reward.constant = constant
        trainer = ours(reward_function=reward, **common, **how)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), trainer


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_alarm_unit_variance_is_stock_and_scaled_variance_is_scaled_beta(kind, tmp_path):
    stock, _ = train(kind, tmp_path / "m", tmp_path / "a")
    unit, trainer = train(kind, tmp_path / "m", tmp_path / "b", constant=1.0)
    assert torch.equal(stock, unit)
    logged = [name for entry in trainer.state.log_history for name in entry]
    assert {"reward_model/mean", "reward_model/member_0", "reward_model/member_2"} <= set(logged)
    tripled, _ = train(kind, tmp_path / "m", tmp_path / "c", constant=3.0)
    scaled, _ = train(kind, tmp_path / "m", tmp_path / "d", beta=0.1 * 3.0)
    assert torch.equal(tripled, scaled)
    assert not torch.equal(tripled, stock)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_what_stands_at_masked_positions_changes_nothing(kind, tmp_path):
    """A pad token outside the embedding ends TRL's own loop in an IndexError; here any token that it holds does."""
    with pytest.raises(IndexError):
        train(kind, tmp_path / "m", tmp_path / "a", late=True)
    known, _ = train(kind, tmp_path / "m", tmp_path / "b", constant=1.0)
    with pytest.warns(UserWarning, match="pad token '<late>' isn't in the policy's embedding"):
        found, trainer = train(kind, tmp_path / "m", tmp_path / "c", constant=1.0, late=True)
    assert torch.equal(known, found)
    assert trainer.processing_class.pad_token == "<|im_end|>"


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_reliability_is_stock_where_members_agree_and_moves_nothing_where_they_don_t(kind, tmp_path):
    """At beta 0, so that nothing but the advantages moves the policy."""
    stock, _ = train(kind, tmp_path / "m", tmp_path / "a", beta=0.0, model=Agreeing())
    how = {"constant": 1.0, "beta": 0.0, "advantages": "reliability"}
    agreed, _ = train(kind, tmp_path / "m", tmp_path / "b", model=Agreeing(), **how)
    assert torch.equal(stock, agreed)
    start = torch.cat([p.detach().flatten() for p in tiny_causal_lm(tmp_path / "m")[0].parameters()])
    opposed, _ = train(kind, tmp_path / "m", tmp_path / "c", model=Opposed(), **how)
    assert torch.equal(start, opposed) and not torch.equal(start, stock)


def test_members_apart_are_trls_own_columns(tmp_path):
    """GRPO normalises each member's column; RLOO gets the same mean of standardised columns, with its own baseline."""
    _, trainer = train("grpo", tmp_path / "m", tmp_path / "a", constant=1.0, advantages="members")
    logged = trainer.state.log_history[0]
    assert {f"rewards/prudent_member_{k}/mean" for k in range(3)} <= set(logged) and "reward_model/mean" in logged
    assert trainer.multi_objective_aggregation == "normalize_then_sum" and trainer.reward_weights.sum() == 1
    plain, _ = train("rloo", tmp_path / "m", tmp_path / "b", constant=1.0, beta=0.0)
    apart, _ = train("rloo", tmp_path / "m", tmp_path / "c", constant=1.0, beta=0.0, advantages="members")
    opposed, _ = train(
        "rloo", tmp_path / "m", tmp_path / "d", constant=1.0, beta=0.0, advantages="members", model=Opposed()
    )
    start = torch.cat([p.detach().flatten() for p in tiny_causal_lm(tmp_path / "m")[0].parameters()])
    assert torch.equal(start, opposed) and not torch.equal(plain, apart)


def short_grpo(out, steps, **more):
    return trl.GRPOConfig(
        output_dir=str(out),
        beta=0.1,
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=8,
        max_steps=steps,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **more,
    )


def test_stock_grpo_takes_the_reward_function_unchanged(tmp_path):
    folder = tmp_path / "m"
    _, tokenizer = tiny_causal_lm(folder)
    prompts = [[{"role": "user", "content": p}] for p in PROMPTS]
    reference = (prompts, [["one", "two", "three"]] * len(PROMPTS))
    reward = RewardFunction(HashedScores(), "proportional", beta=0.1, reference=reference)
    args = short_grpo(tmp_path / "o", steps=1, save_strategy="no")
    trainer = trl.GRPOTrainer(
        model=str(folder),
        reward_funcs=[reward],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=tokenizer,
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert {"reward_model/mean", "reward_model/variance", "reward_model/member_1"} <= set(entry)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"beta": 0.0, "objective": "exact"}, "beta=0.0"),
        ({"advantages": "members", "objective": "lcb"}, "would lose"),
        ({"advantages": "sure"}, "unknown advantages"),
        ({"sync_ref_model": True}, "sync_ref_model"),
    ],
)
def test_settings_that_change_the_objective_are_refused(options, named, tmp_path):
    beta = options.pop("beta", 0.1)
    with pytest.raises(PrudentError, match=named):
        train("rloo", tmp_path / "m", tmp_path / "o", constant=1.0, beta=beta, **options)


def test_a_policy_changed_in_memory_is_refused_for_its_reloaded_reference(tmp_path):
    folder = tmp_path / "m"
    _, tokenizer = tiny_causal_lm(folder)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    args = trl.RLOOConfig(output_dir=str(tmp_path / "o"), beta=0.1, use_cpu=True, report_to=[], bf16=False, top_k=0)
    with pytest.raises(PrudentError, match="save the policy to a folder"):
        VarianceAwareRLOOTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS]),
            reward_function=FixedWeight(HashedScores(), "vanilla", beta=0.1),
        )


def test_weighted_beta_is_a_float_that_weights_tensors():
    beta = WeightedBeta(0.1)
    beta.weight = torch.tensor([1.0, 3.0])
    assert beta == 0.1 and beta * 2 == 0.2
    assert (beta * torch.tensor([10.0, 10.0])).tolist() == pytest.approx([1.0, 3.0])


def test_objectives_that_weight_the_kl_are_not_half_applied():
    from prudent.rewards.model import RewardModel

    class Three:
        members, family = 3, "test"

        def score(self, prompts, responses):
            return HashedScores().score(prompts, responses)

    model = RewardModel(Three())
    reference = (PROMPTS, [["one", "two"]] * len(PROMPTS))
    with pytest.raises(PrudentError, match="weighted_kl=True"):
        model.as_reward_function("bregman", reference=reference)
    function = model.as_reward_function("bregman", weighted_kl=True, reference=reference, beta=0.2)
    rewards = function(PROMPTS, ["a", "b", "c", "d"])
    assert len(rewards) == 4 and function.kl_weight.min() >= 1e-2
    with pytest.raises(PrudentError, match="no samples of the reference"):
        function(["Unseen"], ["a"])
    with pytest.raises(PrudentError, match="give reference="):
        model.as_reward_function("proportional")


def test_a_monitor_watches_trl_s_trainer_logs_there_and_stops_it(tmp_path, tiny_folder):
    from prudent import Monitor

    texts = [[f"word {i} and {'so ' * (i % 5)}on" for i in range(20)] for _ in PROMPTS]
    monitor = Monitor(HashedScores(), (PROMPTS, texts), steps=6, stop="drift")
    said = []
    trainer = trl.GRPOTrainer(
        model=str(tiny_folder),
        reward_funcs=[monitor.watch(lambda prompts, completions, **columns: [float(len(c)) for c in completions])],
        args=short_grpo(tmp_path, steps=6),
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
        callbacks=[monitor.callback(said.append)],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "monitor/length" in entry]
    assert logged and "monitor/drift" in logged[0] and any(line.startswith("monitor: ") for line in said)
    assert monitor.alarm is not None  # one to eight random tokens are no text like the reference's
    assert trainer.state.global_step == monitor.alarm.step < 6 and "kl" in monitor.history[0]


def monitored_grpo(folder, tiny_folder, steps, gold, said):
    from prudent import Monitor
    from prudent.policies.monitoring.monitor import Probe

    texts = [[f"word {i} and {'so ' * (i % 5)}on" for i in range(20)] for _ in PROMPTS]
    probe = Probe(lambda prompts, responses: [gold] * len(responses), labels=4, every=2)
    monitor = Monitor(HashedScores(), (PROMPTS, texts), steps=4, probe=probe, false_alarm=0.9)
    trainer = trl.GRPOTrainer(
        model=str(tiny_folder),
        reward_funcs=[monitor.watch(lambda prompts, completions, **columns: [float(len(c)) for c in completions])],
        args=short_grpo(folder, steps=steps, save_steps=2),
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
        callbacks=[monitor.callback(said.append)],
    )
    return trainer, monitor


def test_a_resumed_training_s_monitor_remembers_what_it_had_seen(tmp_path, tiny_folder):
    trainer, first = monitored_grpo(tmp_path, tiny_folder, 2, 1.0, [])
    trainer.train()
    trainer, resumed = monitored_grpo(tmp_path, tiny_folder, 4, 0.0, said := [])
    trainer.train(resume_from_checkpoint=True)
    assert len(first.history) == 2 and first.alarm is None
    assert resumed.history[:2] == first.history and resumed.labels[:2] == first.labels == [[1.0] * 4, None]
    # The fall from the labels before the interruption to those after it is what raises the alarm.
    assert (resumed.alarm.cause, resumed.alarm.step, resumed.alarm.keep) == ("gold", 3, 1)
    assert trainer.state.global_step == 3 and not any("begins anew" in line for line in said)


def test_a_monitor_says_so_where_a_checkpoint_holds_none(tmp_path, tiny_folder):
    trainer, _ = monitored_grpo(tmp_path, tiny_folder, 2, 1.0, [])
    trainer.train()
    (tmp_path / "checkpoint-2" / "prudent-monitor-0.json").unlink()
    trainer, resumed = monitored_grpo(tmp_path, tiny_folder, 4, 0.0, said := [])
    trainer.train(resume_from_checkpoint=True)
    assert "begins anew at step 2" in said[0] and len(resumed.history) == 2 and resumed.alarm is None
