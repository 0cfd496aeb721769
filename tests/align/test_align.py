"""``prudent align`` on a tiny model: scores off the reference's pass, a whole series, resuming it, and bad input."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.launch import in_two_processes
from tests.tiny import tiny_causal_lm
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.align.options import KL_WEIGHTING, OBJECTIVES, AlignOptions
from prudent.commands.align.run import align as run_options
from prudent.commands.align.series import Models, policy_factory
from prudent.data.pools import read_prompts
from prudent.errors import DataError, PrudentError
from prudent.evaluation.overoptimization.rl_curves import read_rl_curves
from prudent.features.encoder import Encoder
from prudent.features.rendering import Renderer
from prudent.policies.rl.policy import LoraOptions, Policy
from prudent.policies.rl.rollouts import pack_and_score, roll_out
from prudent.policies.rl.scorers import HeadScorer
from prudent.rewards.heads import HeadEnsemble

PROMPTS = [[{"role": "user", "content": text}] for text in ("Name a river.", "A hat?", "Say hello to my cat.")]


def write_pairs(path, count=40):
    rows = [
        {"prompt": f"Question {i % 20}?", "chosen": f"good answer {i} " + "a" * (i % 7), "rejected": f"bad {i}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def align(settings, out, **how):
    return run_options(replace(settings, out=out), **how)


def test_the_objectives_that_can_be_named_are_those_there_are():
    from prudent.policies import objectives

    assert tuple(objectives.OBJECTIVES) == OBJECTIVES and objectives.KL_RULES == KL_WEIGHTING


def small(preferences, folder, **changes):
    options = {
        "preferences": (preferences,),
        "policy": str(folder),
        "steps": 2,
        "prompts_per_step": 2,
        "completions": 2,
        "max_new_tokens": 5,
        "train_prompts": 4,
        "eval_prompts": 4,
        "reference_samples": 3,
        "eval_samples": 2,
        "members": 3,
        "runs": 2,
        "lora_rank": 4,
        "dtype": "float32",
        "ridge": "1.0",
        "images": False,
    }
    return AlignOptions(out=Path("unused"), **{**options, **changes}).checked()


@pytest.mark.parametrize("pooling", ["last", "mean", "last+mean"])
def test_scores_off_the_reference_s_pass_equal_scoring_apart(pooling):
    model, tokenizer = tiny_causal_lm()
    encoder = Encoder((tiny_causal_lm()[0], tokenizer), pooling=pooling, cache=False, progress=False)
    features = torch.randn(2, 30, encoder.width, generator=torch.Generator().manual_seed(0))
    heads = HeadEnsemble.fit(features[0], features[1], members=3, ridge=1.0)
    policy = Policy(model, lora=LoraOptions(rank=4, layers=1))
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:  # a policy that has moved: the reward must still be read off the reference
            torch.nn.init.normal_(parameter, std=0.3)
    ids = Renderer(tokenizer).prompts(PROMPTS)
    rollouts = roll_out(policy.sampler(), tokenizer, ids, [0, 1, 2], completions=3, max_new_tokens=9, seed=3)
    shared = pack_and_score(policy, rollouts, HeadScorer(heads, encoder, PROMPTS, shared=True), 64)
    apart = pack_and_score(policy, rollouts, HeadScorer(heads, encoder, PROMPTS, shared=False), 64)
    torch.testing.assert_close(shared.scores, apart.scores, atol=1e-5, rtol=1e-5)
    assert shared.features is not None and apart.features is None


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("align") / "pairs.jsonl")


@pytest.fixture
def series(tmp_path, preferences, tiny_folder):
    return small(preferences, tiny_folder), tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, preferences, tiny_folder):
    """Summary and folder of a series that was run at once."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return align(small(preferences, tiny_folder), out), out


def test_a_series_is_judged_written_and_reported(whole):
    summary, out = whole
    assert [row["objective"] for row in summary["objectives"]] == ["vanilla", "proportional"]
    assert len(summary["runs"]) == 4 and len(summary["paired"]) == 1
    for row in summary["objectives"]:
        assert 0 <= row["low"] <= row["risk"] <= row["high"] <= 1 and row["draws"] == 2
    names = {path.name for path in out.iterdir()}
    assert {"manifest.json", "results.json", "runs.parquet", "report.html", "runs", "policies"} <= names
    assert "checkpoints" not in names
    run = json.loads((out / "runs/run-001-vanilla.json").read_text())
    assert {"reward", "truth", "truth_gain", "kl", "variance", "length_tokens", "entropy"} <= set(run["history"][0])
    with pytest.raises(PrudentError, match="2 steps; a curve needs at least three"):  # it reads what align wrote
        read_rl_curves(out)
    assert len(run["final"]["value_by_prompt"]) == 4 and len(run["samples"]) == 4


def test_an_interrupted_series_goes_on_and_ends_the_same(series, whole):
    settings, folder = series

    class Stop(Exception):
        pass

    def stop(text):
        if "run 2/2 vanilla step 1" in text:
            raise Stop

    with pytest.raises(Stop):
        align(settings, folder / "part", say=stop)
    assert not (folder / "part/manifest.json").exists()
    assert sorted(p.name for p in (folder / "part/runs").iterdir()) == [
        "run-000-proportional.json",
        "run-000-vanilla.json",
    ]
    said = []
    rest = align(settings, folder / "part", say=said.append)
    assert "going on" in said[0]
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in found["runs"]] for found in (whole[0], rest)]
    assert json.dumps(strip[0]) == json.dumps(strip[1])
    with pytest.raises(PrudentError, match="holds a finished run"):
        align(settings, folder / "part")


def test_a_monitored_series_is_watched_stopped_reported_and_resumed(series):
    settings, folder = series
    watched = replace(settings, monitor="watch", reference_samples=16, steps=3, runs=1, objectives=("vanilla",))
    said = []
    align(watched, folder / "watched", say=said.append)
    run = json.loads((folder / "watched/runs/run-000-vanilla.json").read_text())
    assert {"disagreement", "novelty", "drift", "kl"} <= set(run["history"][2]["monitor"]) and run["alarm"] is None
    assert sum(text.startswith("monitor: ") for text in said) == 3
    assert "The monitor" in (folder / "watched/report.html").read_text()

    stopped = replace(watched, monitor="drift", false_alarm=0.999999, steps=6, save_every=1)
    align(stopped, folder / "stopped")
    run = json.loads((folder / "stopped/runs/run-000-vanilla.json").read_text())
    drift = [entry["monitor"]["drift"] for entry in run["history"]]
    assert all(min(pair) < 1 for pair in pairwise(drift[:-1]))
    if run["alarm"] is None:
        assert len(drift) == 6
    else:
        assert run["alarm"]["step"] == len(drift) and min(drift[-2:]) >= 1


def test_a_monitor_without_enough_samples_or_gold_is_refused(series):
    settings, folder = series
    with pytest.raises(PrudentError, match="raise --reference-samples"):
        align(replace(settings, monitor="watch", reference_samples=2), folder / "few")
    with pytest.raises(PrudentError, match="--probe-labels needs --monitor"):
        replace(settings, probe_labels=5).checked()


def test_other_options_don_t_resume_a_series(series):
    settings, folder = series
    (folder / "out").mkdir()
    (folder / "out" / "state.json").write_text(
        json.dumps({"command": "align", "options": settings.chosen(), "seed": 0})
    )
    with pytest.raises(PrudentError, match="other options"):
        align(replace(settings, beta=0.7), folder / "out")


def test_ppo_s_first_step_takes_each_objective_s_reward_and_kl_weight(series):
    """At step 1 all objectives have the same samples, since all start at the reference: only what is made of them
    differs, and by their definitions it does so in known ways."""
    settings, folder = series
    objectives = ("vanilla", "mean", "proportional", "bregman", "exact", "lcb", "variance-only", "permuted")
    changed = replace(settings, runs=1, objectives=objectives, algorithm="ppo", steps=1, reward="mean")
    summary = align(changed, folder / "out")
    assert [row["objective"] for row in summary["objectives"]] == list(objectives)
    runs = {name: json.loads((folder / f"out/runs/run-000-{name}.json").read_text()) for name in objectives}
    first = {name: run["history"][0] for name, run in runs.items()}
    for row in first.values():
        assert all(row[key] == first["vanilla"][key] for key in ("reward", "variance", "length_tokens", "truth"))
    reward, variance = first["vanilla"]["reward"], first["vanilla"]["variance"]
    shaped = {name: row["shaped_reward"] for name, row in first.items()}
    assert shaped["vanilla"] == shaped["mean"] == shaped["bregman"] == reward
    assert shaped["exact"] == pytest.approx(reward - settings.beta * variance)
    assert shaped["lcb"] < reward and shaped["variance-only"] > 0
    assert len({shaped[name] for name in ("vanilla", "proportional", "variance-only", "permuted")}) == 4
    for name, row in first.items():
        assert row["kl_weight"] == (variance if name in ("bregman", "exact") else 1.0)
    promised = {name: run["promised"] for name, run in runs.items()}
    assert promised["vanilla"] == promised["mean"] and all(row["kl"] > 0 for row in promised.values())
    # proportional and permuted may both put all weight on one response of each prompt: equal in KL, not in gain
    assert len({(row["kl"], row["gain"]) for row in promised.values()}) == len(objectives) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("vanila",)}, "vanila"),
        ({"beta": -1.0}, "--beta"),
        ({"beta": 0.0, "objectives": ("vanilla", "exact")}, "--objective exact weights"),
        ({"advantages": "members", "objectives": ("vanilla", "lcb")}, "lose --objective lcb"),
        ({"advantages": "reliability", "algorithm": "ppo"}, "--algorithm ppo has none"),
        ({"preferences": ()}, "--preferences"),
        ({"demo": True}, "brings its own"),
        ({"members": 1}, "--members"),
        ({"reward": "best"}, "--reward"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"floor": float("nan")}, "--floor"),
        ({"ridge": "inf"}, "--ridge"),
        ({"max_pairs": 2}, "--max-pairs"),
        ({"demo_side": "left"}, "--demo-side"),
        ({"demo_slope": -1.0}, "--demo-slope"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises(PrudentError, match=message):
        replace(AlignOptions(preferences=("x",), out=Path("unused")), **changes).checked()


def test_prompts_without_text_are_all_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"other": 1}\n{"prompt": 3}\n{"prompt": "a"}\n')
    with pytest.raises(DataError) as caught:
        read_prompts(str(path))
    assert [row.line for row in caught.value.rows] == [2, 3]


def test_the_command_exits_2_and_leaves_nothing(tmp_path):
    result = CliRunner().invoke(
        app,
        ["align", "--preferences", str(tmp_path / "none.jsonl"), "--policy", "nowhere", "--out", str(tmp_path / "o")],
    )
    assert result.exit_code == 2
    assert not (tmp_path / "o").exists()


def test_full_training_is_scored_apart(tiny_folder):
    factory = policy_factory(
        lambda: tiny_causal_lm()[0], AlignOptions(preferences=("x",), out=Path("unused"), full=True)
    )
    assert factory(0).reference is not None
    assert Models(factory, None, None, False).shared is False


def test_the_trl_engine_trains_from_its_own_fields_and_refuses_unknown_ones(tmp_path, tiny_folder, monkeypatch):
    pytest.importorskip("trl", reason="needs the optional extra prudent[trl]")
    from prudent.commands.align.trl_run import train_with_trl
    from prudent.rewards.model import RewardModel

    encoder = Encoder(str(tiny_folder), cache=False, progress=False, dtype="float32")
    features = torch.randn(2, 30, encoder.width, generator=torch.Generator().manual_seed(0))
    heads = HeadEnsemble.fit(features[0], features[1], members=3, ridge=1.0)
    RewardModel(heads, encoder, model=str(tiny_folder)).save(tmp_path / "rm")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(4)))
    config = tmp_path / "trl.yaml"
    config.write_text(
        "max_steps: 1\nper_device_train_batch_size: 4\nnum_generations: 2\nuse_cpu: true\nbf16: false\n"
        "save_strategy: 'no'\nlogging_steps: 1\ndisable_tqdm: true\npeft: {r: 4}\n"
    )
    options = {
        "policy": str(tiny_folder),
        "reward_model": str(tmp_path / "rm"),
        "prompts": str(prompts),
        "objectives": ("bregman",),
        "engine": "trl",
        "algorithm": "rloo",
        "beta": 0.1,
        "reference_samples": 3,
        "max_new_tokens": 5,
        "seed": 0,
    }

    def trained(name):
        settings = AlignOptions(**options, trl_config=config, out=tmp_path / name).checked()
        return train_with_trl(settings, say=lambda text: None)

    outcome = trained("out")
    assert outcome["steps"] == 1
    assert (tmp_path / "out/policy/adapter_model.safetensors").is_file()
    logged = json.loads((tmp_path / "out/history.json").read_text())["history"][0]
    assert {"reward_model/variance", "reward_model/member_0", "kl"} <= set(logged)
    config.write_text(
        config.read_text().replace("max_steps: 1", "max_steps: 2").replace("'no'", "steps\nsave_steps: 1")
    )

    class Stop(Exception):
        pass

    def stop(self, *rest, **more):
        raise Stop

    with monkeypatch.context() as patch:  # stopped after training, before the policy was kept
        patch.setattr("trl.RLOOTrainer.save_model", stop)
        with pytest.raises(Stop):
            trained("stopped")
    before = (tmp_path / "stopped/reference.jsonl").stat().st_mtime_ns
    assert trained("stopped")["steps"] == 2
    assert (tmp_path / "stopped/reference.jsonl").stat().st_mtime_ns == before  # not sampled again
    config.write_text(config.read_text().replace("peft: {r: 4}\n", "").replace("max_steps: 2", "max_steps: 1"))
    assert trained("whole")["steps"] == 1
    assert (tmp_path / "whole/policy/model.safetensors").is_file()  # all weights, loaded again as TRL's reference
    config.write_text("num_generatoins: 2\n")
    with pytest.raises(PrudentError, match="num_generatoins"):
        trained("other")
    assert not (tmp_path / "other").exists()


def test_the_demo_trains_on_the_side_that_was_asked_for_and_says_so(tmp_path, tiny_folder):
    own = {"preferences": (), "demo": True, "demo_side": "restraint", "demo_pairs": 40, "runs": 1, "steps": 1}
    settings = replace(small("x", tiny_folder), **own).checked()
    align(settings, tmp_path / "out")
    notes = json.loads((tmp_path / "out/results.json").read_text())["notes"]
    assert any("all ask for less" in note for note in notes) and any("draws its own 40" in note for note in notes)
    with pytest.raises(PrudentError, match="80 on the side"):
        align(replace(settings, train_prompts=60, eval_prompts=30), tmp_path / "more")


def test_two_processes_write_one_series(series):
    """Launched in two processes, the command shares each step and gives one process's numbers, but for rounding."""
    settings, folder = series
    command = [
        "-m",
        "prudent.cli",
        "align",
        "--preferences",
        settings.preferences[0],
        "--policy",
        settings.policy,
        "--objective",
        "proportional",
        "--runs",
        "1",
        "--steps",
        "2",
        "--prompts-per-step",
        "2",
        "--completions",
        "2",
        "--max-new-tokens",
        "5",
        "--train-prompts",
        "4",
        "--eval-prompts",
        "4",
        "--reference-samples",
        "3",
        "--eval-samples",
        "2",
        "--members",
        "3",
        "--lora-rank",
        "4",
        "--dtype",
        "float32",
        "--ridge",
        "1.0",
        "--no-images",
        "--out",
        str(folder / "two"),
    ]
    in_two_processes(*command)
    align(replace(settings, objectives=("proportional",), runs=1), folder / "one")
    one, two = (json.loads((folder / name / "runs/run-000-proportional.json").read_text()) for name in ("one", "two"))
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for name in ("reward", "truth", "kl", "variance", "gradient_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-4), name
    assert (folder / "two/report.html").is_file() and (folder / "two/manifest.json").is_file()
