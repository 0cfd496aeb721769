"""The RL engine on a tiny model: passes, packs, learning, resuming, processes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.launch import in_two_processes
from tests.tiny import tiny_causal_lm

from prudent.errors import PrudentError
from prudent.features.rendering import Renderer
from prudent.policies.estimates import ReferenceStatistics
from prudent.policies.objectives import shape
from prudent.policies.rl.checkpoints import latest_checkpoint
from prudent.policies.rl.engine import Trainer, TrainingPrompts, TrainOptions, UpdateOptions
from prudent.policies.rl.packing import Group, fill, pack
from prudent.policies.rl.policy import LoraOptions, Policy, round_stochastically, rounding_noise
from prudent.policies.rl.rollouts import Rollouts, groups_of, pack_and_score, roll_out
from prudent.policies.rl.updates import Meter, Scored, padded, rloo_backward, segment_sums

TOP_TWO = LoraOptions(rank=4, layers=2)
PROMPTS = ["Hi there", "Name a hat", "Yes?", "Say it again, please"]


class Letters:
    """Three members that count letters: a plain function of the text."""

    shared = False

    def scores(self, prompts, texts, features):
        vowels = torch.tensor([float(sum(c in "aeiou" for c in t)) for t in texts], dtype=torch.float64)
        width = torch.tensor([float(len(t)) for t in texts], dtype=torch.float64)
        return torch.stack([vowels, vowels + 0.1 * width, vowels - 0.1 * width])


def new_policy(lora=TOP_TWO, seed=0):
    model, tokenizer = tiny_causal_lm()
    return Policy(model, lora=lora, seed=seed), tokenizer


def new_trainer(folder=None, *, steps=6, lora=TOP_TWO, scorer=None, **changes):
    policy, tokenizer = new_policy(lora)
    update = UpdateOptions(**{"beta": 0.05, **changes.pop("update", {})})
    options = TrainOptions(
        **{
            "objective": "proportional",
            "update": update,
            "steps": steps,
            "prompts": 2,
            "max_new_tokens": 6,
            "learning_rate": 3e-3,
            "save_every": 2,
            "pack_tokens": 64,
            **changes,
        }
    )
    ids = Renderer(tokenizer).prompts(PROMPTS)
    statistics = ReferenceStatistics(torch.zeros(3, 4, dtype=torch.float64), 1.0, 1e-2, torch.ones(4))
    prompts = TrainingPrompts(ids, PROMPTS)
    return Trainer(policy, tokenizer, prompts, scorer or Letters(), statistics, options, folder=folder)


def state(trainer):
    moments = trainer.optimizer.state_dict()["state"]
    return [p.detach().clone() for p in trainer.weights().values()] + [
        torch.as_tensor(moments[i][k]).clone() for i in sorted(moments) for k in sorted(moments[i])
    ]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4), LoraOptions(rank=4, layers=1)])
def test_a_pack_gives_what_separate_rows_give(lora):
    policy, _ = new_policy(lora)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    groups = [Group([4, 5, 6], [[7, 8], [9, 10, 11]], [0, 1]), Group([12, 13], [[14]], [2])]
    joint = policy.policy_pass(pack(groups)).log_probabilities
    model = policy.sampler()
    expected = []
    for prompt, segment in (([4, 5, 6], [7, 8]), ([4, 5, 6], [9, 10, 11]), ([12, 13], [14])):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + segment])).logits[0].log_softmax(-1)
        expected += [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(segment)]
    torch.testing.assert_close(joint, torch.tensor(expected), atol=2e-5, rtol=0)
    reference = policy.reference_pass(pack(groups))
    again = policy.policy_pass(pack(groups), reference.trunk).log_probabilities
    torch.testing.assert_close(again, joint)
    assert (reference.log_probabilities - joint).abs().max() > 1e-3 or lora is None


def test_a_model_that_changes_its_logits_behind_the_output_layer_is_refused():
    model, _ = tiny_causal_lm()
    model.register_forward_hook(lambda model, given, out: type(out)(logits=torch.tanh(20 * out.logits)))
    with pytest.raises(PrudentError, match="behind the output layer"):
        Policy(model, lora=TOP_TWO)


def test_a_groups_attention_and_gradients_are_the_stock_kernels(monkeypatch):
    groups = [Group([4, 5, 6], [[7, 8], [9, 10, 11]], [0, 1]), Group([12, 13], [[14, 15]], [2])]
    found = []
    for stock in (False, True):
        policy, _ = new_policy(None)
        if stock:
            monkeypatch.setattr("prudent.features.cpu.pack_attention.LONGEST", 0)
        row = pack(groups)
        policy.policy_pass(row).log_probabilities.sum().backward()
        found.append([policy.reference_pass(row).hidden, *(p.grad for p in policy.trainable().values())])
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))


def test_layers_below_the_first_adapter_are_shared():
    policy, _ = new_policy(LoraOptions(rank=4, layers=1))
    assert policy.shared_layers == 2
    assert policy.reference_pass(pack([Group([4, 5], [[6]], [0])])).trunk is not None


def test_actions_leave_closing_marks_out():
    row = pack([Group([4, 5], [[6, 7, 2]], [0], [2])])
    assert row.targets.tolist() == [6, 7] and row.sources.tolist() == [1, 2] and row.tokens == 5


def test_fill_keeps_the_budget_and_every_group():
    groups = [Group([1] * n, [[2]], [n]) for n in (5, 3, 9, 2, 30)]
    filled = fill(groups, 12)
    assert sorted(g.names[0] for content in filled for g in content) == [2, 3, 5, 9, 30]
    assert all(sum(g.tokens for g in content) <= 12 or len(content) == 1 for content in filled)


def test_answers_that_tokenise_otherwise_are_read_apart():
    rollouts = Rollouts([0, 0], [[4, 5], [4, 5]], [[6, 7], [8]], [True, False], ["a", "b"])
    together, apart = groups_of(rollouts, [[6, 7, 2], [9, 2]])
    assert together[0].segments == [[6, 7, 2], [8]] and together[0].actions == [2, 1]
    assert apart[0].segments == [[9, 2]] and apart[0].names == [1] and apart[0].actions == [0]


def test_gradients_don_t_depend_on_how_rows_are_packed():
    gradients = []
    for budget in (8, 64, 512):
        policy, tokenizer = new_policy()
        ids = Renderer(tokenizer).prompts(PROMPTS)
        rollouts = roll_out(policy.sampler(), tokenizer, ids, [0, 1, 2, 3], completions=3, max_new_tokens=5, seed=1)
        found = pack_and_score(policy, rollouts, Letters(), budget)
        statistics = ReferenceStatistics(torch.zeros(3, 4, dtype=torch.float64), 1.0, 1e-2, torch.ones(4))
        shaped = shape("bregman", found.scores, torch.tensor(rollouts.prompts), statistics, 0.1)
        update = UpdateOptions(completions=3)
        rloo_backward(policy, Scored(found.rows, found.references, shaped, 12, PROMPTS * 3), update, Meter())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def test_padding_and_sums_follow_the_segments():
    row = pack([Group([4], [[5, 6, 7], [8]], [0, 1])])
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert segment_sums(values, row).tolist() == [6.0, 10.0]
    full, mask = padded(values, row)
    assert full.tolist() == [[1, 2, 3], [10, 0, 0]] and mask.tolist() == [[True] * 3, [True, False, False]]


def test_bf16_merge_keeps_small_updates_in_the_mean_and_leaves_others_alone():
    base, noise = torch.full((200_000,), 1.0), rounding_noise(200_000, torch.Generator().manual_seed(0))
    moved = round_stochastically(base + 1e-3, torch.bfloat16, noise).float()
    assert float(moved.mean()) == pytest.approx(1.001, abs=2e-5)
    assert torch.equal(round_stochastically(base, torch.bfloat16, noise).float(), base)


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"algorithm": "ppo", "epochs": 2, "minibatches": 2},
        {"epochs": 2},
        {"advantages": "members", "beta": 0.0},
        {"advantages": "reliability", "beta": 0.0},
    ],
)
def test_training_raises_the_reward(update):
    trainer = new_trainer(steps=25, objective="vanilla", update={"beta": 0.01, **update}, prompts=4, learning_rate=1e-2)
    history = trainer.train()
    first, last = (sum(h["reward"] for h in part) / 8 for part in (history[:8], history[-8:]))
    assert last > first + 0.3
    assert all(h["kl_k3"] >= 0 and h["entropy"] >= 0 for h in history)


@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_resume_equals_an_uninterrupted_run_bit_for_bit(algorithm, tmp_path):
    update = {"algorithm": algorithm, "epochs": 2, "minibatches": 2}
    whole = new_trainer(steps=6, update=update)
    whole.train()
    part = new_trainer(tmp_path, steps=4, update=update)
    part.train()
    rest = new_trainer(tmp_path, steps=6, update=update)
    assert rest.done == 4
    rest.train()
    assert same(state(whole), state(rest))
    strip = [{k: v for k, v in h.items() if k != "seconds"} for h in whole.history]
    assert json.dumps(strip) == json.dumps([{k: v for k, v in h.items() if k != "seconds"} for h in rest.history])


def test_a_damaged_or_half_written_checkpoint_is_never_resumed(tmp_path):
    new_trainer(tmp_path, steps=2).train()
    (tmp_path / ".step-000009.1.part").mkdir()
    (tmp_path / "step-000008").mkdir()
    assert latest_checkpoint(tmp_path).name == "step-000002"
    with open(tmp_path / "step-000002" / "weights.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(PrudentError, match="differs from what was saved"):
        new_trainer(tmp_path, steps=4)


def test_a_reward_that_is_not_finite_stops_before_the_step_and_names_the_prompt():
    class Broken(Letters):
        def scores(self, prompts, texts, features):
            scores = super().scores(prompts, texts, features)
            scores[1, [i for i, p in enumerate(prompts) if p == 2]] = float("nan")
            return scores

    trainer = new_trainer(prompts=4, scorer=Broken())
    before = state(trainer)
    with pytest.raises(PrudentError, match="Yes\\?"):
        trainer.train()
    assert same(before, state(trainer))


def test_a_broken_policy_stops_before_the_step():
    trainer = new_trainer(lora=None, objective="vanilla")
    rollouts = roll_out(
        trainer.policy.sampler(),
        trainer.tokenizer,
        trainer.prompts.ids[:1],
        [0],
        completions=4,
        max_new_tokens=4,
        seed=0,
    )
    found = pack_and_score(trainer.policy, rollouts, Letters(), 64)
    with torch.no_grad():
        trainer.policy.model.lm_head.weight[0] = float("nan")
    shaped = shape("vanilla", found.scores, torch.zeros(4, dtype=torch.long), trainer.statistics, 0.1)
    with pytest.raises(PrudentError, match="log-probability of the policy is not finite"):
        rloo_backward(
            trainer.policy, Scored(found.rows, found.references, shaped, 4, PROMPTS * 4), UpdateOptions(), Meter()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "grpo"}, "unknown algorithm"),
        ({"beta": -0.1}, "at least 0"),
        ({"completions": 1}, "at least 2"),
        ({"advantages": "sure"}, "unknown advantages 'sure'"),
        ({"advantages": "reliability", "algorithm": "ppo"}, "PPO has none"),
    ],
)
def test_options_that_can_t_work_are_refused(options, message):
    with pytest.raises(PrudentError, match=message):
        UpdateOptions(**options)


def test_what_would_lose_the_objective_is_refused():
    with pytest.raises(PrudentError, match="at beta 0 there is none"):
        TrainOptions("exact", UpdateOptions(beta=0.0))
    with pytest.raises(PrudentError, match="would be lost"):
        TrainOptions("lcb", UpdateOptions(advantages="members"))


def test_reliability_of_members_who_agree_is_the_plain_run():
    class Agreeing(Letters):
        def scores(self, prompts, texts, features):
            return super().scores(prompts, texts, features)[:1].expand(3, -1) * torch.tensor([[1.0], [2.0], [3.0]])

    runs = [
        new_trainer(steps=3, objective="mean", scorer=Agreeing(), update={"advantages": kind})
        for kind in ("plain", "reliability")
    ]
    histories = [trainer.train() for trainer in runs]
    assert same(*map(state, runs)) and all(step["ordering_agreement"] == 1.0 for step in histories[1])


def test_all_equal_rewards_and_long_prompts_are_counted_and_don_t_crash():
    class Constant(Letters):
        def scores(self, prompts, texts, features):
            return torch.ones(3, len(texts), dtype=torch.float64)

    trainer = new_trainer(steps=2, objective="vanilla", scorer=Constant())
    history = trainer.train()
    assert all(h["equal_reward_groups"] == 1.0 for h in history)
    assert all(0 <= h["truncated_share"] <= 1 and 0 <= h["empty"] <= 1 for h in history)


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests.policies.test_rlhf import new_trainer
new_trainer(Path({folder!r}), steps=9, save_every=1).train(lambda s: print(s.step, flush=True))
"""


def test_kill_in_the_middle_always_resumes(tmp_path):
    """Killed, resumed, killed again and resumed: the run that nothing stopped."""
    root = str(Path(__file__).resolve().parents[2])
    code = KILLED.format(root=root, folder=str(tmp_path))
    for after in (1, 4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if int(line) >= after:
                process.kill()
                break
        process.wait()
    rest = new_trainer(tmp_path, steps=9, save_every=1)
    assert rest.done >= 4
    rest.train()
    whole = new_trainer(steps=9)
    whole.train()
    assert same(state(whole), state(rest))


TWO = """
import sys; sys.path.insert(0, {root!r})
import torch
from tests.policies.test_rlhf import new_trainer, state
trainer = new_trainer(steps=2, prompts=4)
assert trainer.accelerator.num_processes == 2, trainer.accelerator.num_processes
trainer.train()
if trainer.accelerator.is_main_process:
    torch.save(state(trainer), {out!r})
"""


@pytest.mark.slow  # align's own test of two processes is the faster one
def test_two_processes_take_one_process_s_step(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    out = str(tmp_path / "state.pt")
    in_two_processes("-c", TWO.format(root=root, out=out))
    one = new_trainer(steps=2, prompts=4)
    one.train()
    for mine, theirs in zip(state(one), torch.load(out), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-6, rtol=1e-4)
