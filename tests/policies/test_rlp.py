"""Reward learning on policy: groups, synthetic pairs, the bottleneck, and the loop on worlds whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from prudent.cli import app
from prudent.errors import PrudentError
from prudent.policies import answer_groups as groups
from prudent.policies import rlp, views
from prudent.seeding import spawn


def test_largest_group_confidence_and_threshold() -> None:
    labels = [0] * 6 + [1, 1] + [2, 2]
    rewards = [0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 5, 5, 5, 5]
    kept = groups.synthetic_pair(labels, rewards, 0.5, 0)
    assert (kept.size, kept.confidence, kept.chosen) == (6, 0.6, 1) and kept.rejected in (6, 7, 8, 9)
    assert groups.synthetic_pair(labels, rewards, 0.7, 0).reason == "below gamma"
    alone = groups.synthetic_pair(list(range(10)), rewards, 0.5, 0)
    assert alone.confidence == 0.1 and alone.chosen is None
    assert groups.synthetic_pair([3] * 10, rewards, 0.5, 0).reason == "unanimous"
    assert groups.synthetic_pair([-1] * 4, [0.0] * 4, 0.0, 0).reason == "no sample has an answer"
    assert {groups.synthetic_pair(labels, rewards, 0.5, seed).rejected for seed in range(60)} == {6, 7, 8, 9}


def test_groups_need_both_directions() -> None:
    forth = {(0, 1), (0, 0), (1, 1), (2, 2), (1, 2), (2, 1)}
    assert groups.greedy_groups(3, lambda a, b: (a, b) in forth) == [0, 1, 1]
    test = lambda pairs: [(a, b) in {("x", "y"), ("y", "x"), ("x", "z")} for a, b in pairs]  # noqa: E731
    assert groups.groups_by_entailment(["x", "y", "z"], test) == [0, 0, 1]


def test_entailment_by_a_classifier(tmp_path: Path) -> None:
    """Groups of a tiny random NLI model are those of its own labels, asked pair by pair in both directions."""
    from tests.tiny import tiny_causal_lm
    from transformers import LlamaForSequenceClassification

    base, tokenizer = tiny_causal_lm()
    folders = {"nli": ["Contradiction", "entailment"], "other": ["no", "yes"]}
    for name, labels in folders.items():
        config = type(base.config)(**{**base.config.to_dict(), "num_labels": 2})
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).eval().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    texts = ["It is red.", "Red it is.", "No.", "Blue, or so they say."]
    test = groups.entailment_test(str(tmp_path / "nli"))
    alone = {(a, b): test([(a, b)])[0] for a in texts for b in texts if a != b}
    assert len(set(alone.values())) == 2  # some entail, some don't
    expected = groups.greedy_groups(4, lambda a, b: alone[(texts[a], texts[b])])
    assert groups.label_pool([texts], "entailment", nli=str(tmp_path / "nli")) == [expected]
    with pytest.raises(PrudentError, match="none is entailment"):
        groups.entailment_test(str(tmp_path / "other"))
    with pytest.raises(PrudentError, match="name one with --nli"):
        groups.label_pool([texts], "entailment")


def test_answers_are_read_as_people_write_them() -> None:
    for text, answer in (
        ("So 3 bolts\nA: 3", "3"),
        ("A: $70,000", "70000"),
        ("A: 1,000.0", "1000"),
        ("thus \\boxed{1600}.", "1600"),
        ("Answer: about 2.50 dollars", "2.5"),
        ("A: Paris.", "paris"),
        ("no mark here 7", None),
        ("A: -4", "-4"),
    ):
        assert groups.final_answer(text) == answer, text
    assert groups.groups_by_answer(["A: 3", "A: 3.0", "none", "A: 4"]) == [0, 0, -1, 1]
    vectors = torch.tensor([[1.0, 0], [0.99, 0.05], [0, 1]])
    assert groups.groups_by_embedding(vectors, 0.9) == [0, 0, 1]
    with pytest.raises(PrudentError, match="'nearly' is unknown"):
        groups.label_pool([["a"]], "nearly")


def test_gaussian_divergences() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    assert float(views.gaussian_kl(zero, zero, one, zero)) == 0.5
    assert float(views.symmetric_kl(zero, zero, one, zero)) == 0.5
    x = torch.randn(3, 4)
    assert float(views.symmetric_kl(x, x, x, x).abs().max()) == 0.0
    p, q = stats.norm(0.3, 1.5), stats.norm(-0.2, 0.7)
    grid = np.linspace(-12, 12, 200_001)
    numeric = float(np.trapezoid(p.pdf(grid) * (p.logpdf(grid) - q.logpdf(grid)), grid))
    found = views.gaussian_kl(*(torch.tensor([v]) for v in (0.3, 2 * math.log(1.5), -0.2, 2 * math.log(0.7))))
    assert float(found) == pytest.approx(numeric, abs=1e-4)


def test_information_rises_with_correlation_and_is_lowest_at_independence() -> None:
    rng = np.random.default_rng(0)
    found = []
    for rho in (0.0, 0.5, 0.9):
        x = rng.normal(size=20_000)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=20_000)
        shuffled = rng.permutation(y)

        def critic(a: np.ndarray, b: np.ndarray, rho: float = rho) -> torch.Tensor:
            """The best critic: the log-ratio of joint and product densities."""
            joint = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).logpdf(np.stack([a, b], 1))
            return torch.from_numpy(joint - stats.norm.logpdf(a) - stats.norm.logpdf(b))

        found.append(float(views.jensen_shannon_information(critic(x, y), critic(x, shuffled))))
    assert found[0] == pytest.approx(-2 * math.log(2), abs=1e-6) and found[0] < found[1] < found[2] < 0


def test_weight_zero_is_ordinary_training_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, one, other = torch.randn(4, 40, 6, generator=generator).unbind(0)
    options = views.ViewOptions(steps=30, hidden=8, latent=4)
    plain = views.fit_views(chosen, rejected, options=options, seed=3)
    zero = views.fit_views(chosen, rejected, (one, other), replace(options, weight=0.0), seed=3)
    moved = views.fit_views(chosen, rejected, (one, other), options, seed=3)
    probe = torch.randn(9, 6, generator=generator)
    assert torch.equal(plain(probe), zero(probe)) and not torch.equal(plain(probe), moved(probe))
    assert torch.equal(views.view_model_of(moved.state_dict())(probe), moved(probe))
    better = views.fit_views(chosen + 1, rejected, options=replace(options, steps=200))
    assert float((better(chosen + 1) > better(rejected)).double().mean()) > 0.9
    with pytest.raises(PrudentError, match="at least two prompts"):
        moved.bottleneck(one[:1], other[:1], generator)


def world(prompts: int = 150, shift: float = 0.0, accurate: float = 0.45, seed: int = 0) -> rlp.PoolProblem:
    """Answers that are right or one of five wrong ones; features lean to right ones. Majorities tell the right ones."""
    g = torch.Generator().manual_seed(seed)
    right = torch.rand(prompts, 8, generator=g) < accurate
    labels = torch.where(right, 0, 1 + torch.randint(5, (prompts, 8), generator=g))
    direction = torch.randn(30, generator=g)
    direction = direction / direction.norm()
    features = torch.randn(prompts, 8, 30, generator=g) + (right.float()[..., None] - 0.5) * direction + shift
    third = prompts // 3
    parts = [torch.arange(i * third, (i + 1) * third) for i in range(3)]
    return rlp.PoolProblem(features, right.double(), torch.ones(prompts, 8, dtype=torch.bool), labels, *parts)


OPTIONS = rlp.Options(pairs=60, slope=2.0, members=3, target_kl=0.6, ridge=0.1, steps=20)


def test_without_synthetic_pairs_it_is_ordinary_training() -> None:
    problem = world()
    features = problem.standardised_on(problem.labelled)
    labelled = rlp.labelled_pairs(problem, OPTIONS, 1)
    empty = rlp.pairs_of([])
    a, _ = rlp.fit(features, labelled, OPTIONS, 5, 0.1)
    b, _ = rlp.fit(features, labelled.joined(empty), OPTIONS, 5, 0.1)
    assert torch.equal(a.weights, b.weights)


def test_labels_follow_bradley_terry() -> None:
    problem = world()
    for slope, expected in ((0.0, 0.5), (2.0, 1 / (1 + math.exp(-2.0)))):
        pairs = rlp.labelled_pairs(problem, rlp.Options(pairs=4000, slope=slope), 0)
        assert rlp.precision(problem, pairs) == pytest.approx(expected, abs=0.03)
        assert bool((pairs.chosen != pairs.rejected).all()) and set(pairs.prompt.tolist()) <= set(
            problem.labelled.tolist()
        )


def test_gamma_trades_coverage_for_precision() -> None:
    problem = world(prompts=900, accurate=0.35)
    reference = problem.reference_on(problem.unlabelled)
    samples = rlp.sampled(reference, 10, 0)
    reward = torch.zeros(reference.shape, dtype=torch.float64)
    facts = [rlp.spg_pairs(problem, problem.unlabelled, samples, reward, gamma, 0).facts for gamma in (0.2, 0.5, 0.7)]
    assert facts[0]["coverage"] > facts[1]["coverage"] > facts[2]["coverage"]
    assert facts[0]["precision"] < facts[1]["precision"] < facts[2]["precision"]


def test_refreshing_on_policy_helps_where_majorities_are_right() -> None:
    problem = world(prompts=300)
    features = problem.standardised_on(problem.labelled)
    gains, accuracy, precision, ratios = [], [], [], []
    for seed in spawn(0, 12):
        state = rlp.begin(problem, features, ["spg"], OPTIONS, seed)
        facts = rlp.advance(problem, features, state, ["spg"], OPTIONS, 1)
        found = {kind: rlp.judge(problem, features, model, OPTIONS) for kind, model in state.models.items()}
        gains.append(found["spg"]["gold"] - found["fixed"]["gold"])
        accuracy.append(found["spg"]["policy_accuracy"] - found["fixed"]["policy_accuracy"])
        precision.append(facts["spg"]["precision"])
        ratios.append(found["spg"]["variance"] / found["fixed"]["variance"])
        assert found["spg"]["kl"] == pytest.approx(0.6, abs=1e-4)
    assert np.mean(gains) > 0.01 and np.mean(accuracy) > 0 and np.mean(precision) > 0.7 and np.mean(ratios) < 0.9


def test_controls_and_views_run_and_facts_are_there() -> None:
    problem = world()
    features = problem.standardised_on(problem.labelled)
    kinds = list(rlp.KINDS)
    state = rlp.begin(problem, features, kinds, OPTIONS, 0)
    facts = rlp.advance(problem, features, state, kinds, OPTIONS, 1)
    assert set(state.models) == {"fixed", "fixed-views", *kinds}
    assert 0 < facts["self"]["pairs"] <= len(problem.unlabelled) and 0 < facts["uml"]["coverage"] <= 1
    probe = features[:3]
    assert not torch.equal(state.models["uml"].scores(probe), state.models["fixed-views"].scores(probe))


def test_worlds_that_can_not_work_say_why() -> None:
    problem = world()
    flat = rlp.PoolProblem(
        problem.features,
        torch.zeros_like(problem.gold),
        problem.present,
        problem.labels,
        problem.labelled,
        problem.unlabelled,
        problem.test,
    )
    with pytest.raises(PrudentError, match="constant within every prompt"):
        rlp.labelled_pairs(flat, OPTIONS, 0)
    one = rlp.PoolProblem(
        problem.features,
        problem.gold,
        problem.present,
        torch.zeros_like(problem.labels),
        problem.labelled,
        problem.unlabelled,
        problem.test,
    )
    with pytest.raises(PrudentError, match="one group"):
        rlp.check(one, OPTIONS)


@pytest.fixture
def solutions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "solutions.jsonl"
    rows = []
    for i in range(36):
        listed = []
        for j in range(4):
            correct = bool(rng.random() < 0.5)
            answer = i if correct else i + int(rng.integers(1, 4))
            listed.append(
                {
                    "model": f"m{j}",
                    "is_correct": correct,
                    "solution": f"So it is {'surely' if correct else 'perhaps'}\nA: {answer}",
                }
            )
        rows.append({"problem_id": i, "question": f"What is {i}?", "solutions": listed})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_command_runs_resumes_and_reports(solutions: Path, tiny_folder: Path, tmp_path: Path) -> None:
    def run(out: Path, *more: str):
        return CliRunner().invoke(
            app,
            [
                "rlp",
                "--pool",
                str(solutions),
                "--language-model",
                str(tiny_folder),
                "--repetitions",
                "3",
                "--rounds",
                "2",
                "--pairs",
                "30",
                "--members",
                "2",
                "--steps",
                "5",
                "--kind",
                "spg",
                "--kind",
                "uml",
                "--out",
                str(out),
                "--json",
                *more,
            ],
        )

    whole = run(tmp_path / "whole")
    assert whole.exit_code == 0, whole.stderr
    found = json.loads(whole.stdout)
    assert found["groups"] == "the final answer" and len(found["table"]) == 3 * 4
    assert found["table"][0]["gold_over_fixed"]["value"] == 0
    for name in ("round-0/manifest.json", "round-2/models.safetensors", "rlp.json", "rounds.parquet", "report.html"):
        assert (tmp_path / "whole" / name).is_file()
    # An interrupted run: the last round and the summary are missing. It goes on, to the same numbers.
    import shutil

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "round-2")
    for name in ("manifest.json", "rlp.json", "report.html"):
        (cut / name).unlink()
    again = run(cut)
    assert again.exit_code == 0, again.stderr
    assert "going on" in again.stderr and json.loads(again.stdout)["table"] == found["table"]
    refused = run(tmp_path / "other", "--kind", "nothing")
    assert refused.exit_code == 2 and "'nothing' is unknown" in refused.stderr


def test_loop_by_reinforcement_learning(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rl"
    arguments = [
        "rlp",
        "--policy",
        "align",
        "--language-model",
        str(tiny_folder),
        "--prompts",
        "16",
        "--steps",
        "1",
        "--samples",
        "3",
        "--members",
        "2",
        "--pairs",
        "30",
        "--threshold",
        "0.2",
        "--gamma",
        "0.3",
        "--out",
        str(out),
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    rounds = json.loads(result.stdout)["rounds"]
    assert [row["round"] for row in rounds] == [0, 1] and rounds[0]["more"]["value"] == 0
    assert rounds[1]["pairs"] == 30 + round(rounds[0]["samples"]["coverage"] * 8) > 30
    assert (out / "round-1" / "manifest.json").is_file() and (out / "report.html").is_file()
    refused = CliRunner().invoke(app, [*arguments[:-3], "--pool", __file__, "--out", str(tmp_path / "no")])
    assert refused.exit_code == 2 and "only the embedded world has" in refused.stderr
