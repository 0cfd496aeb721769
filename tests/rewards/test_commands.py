import json

import pytest
import torch
from typer.testing import CliRunner

from prudent import PrudentError, RewardModel
from prudent.cli import app
from prudent.rewards.families import FAMILIES, fit_reward_model

runner = CliRunner()


def pairs(n: int, start: int = 0) -> list[dict]:
    return [
        {
            "prompt": f"ask {start + row}",
            "chosen": "good " * (row % 3 + 1),
            "rejected": "bad " * (row % 2 + 1),
            "gap": 1.0 + row % 3,
            "kind": "odd" if row % 2 else "even",
        }
        for row in range(n)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "train.jsonl", pairs(24)), write(tmp_path / "test.jsonl", pairs(20, 100))


def run(*arguments: object, status: int = 0):
    result = runner.invoke(app, [str(one) for one in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


def test_fit_then_score_from_the_command_line(tiny_folder, tmp_path, files):
    train, test = files
    fitted = run(
        "fit",
        "--preferences",
        train,
        "--test",
        test,
        "--model",
        tiny_folder,
        "--members",
        4,
        "--out",
        tmp_path / "rm",
        "--dtype",
        "float32",
        "--json",
    )
    found = json.loads(fitted.stdout)
    assert found["members"] == 4 and found["pairs"] == 24 and found["test"]["pairs"] == 20
    assert found["test"]["accuracy"]["low"] <= found["test"]["accuracy"]["value"] <= found["test"]["accuracy"]["high"]
    assert found["test"]["longer_answer_accuracy"]["value"] is not None
    assert {"reward_model.json", "weights.safetensors", "golden.safetensors", "fit.json", "manifest.json"} <= {
        path.name for path in (tmp_path / "rm").iterdir()
    }
    rows = [{"prompt": "ask 1", "response": "good", "id": 7}, {"prompt": "ask 2", "responses": ["bad", "good good"]}]
    data = write(tmp_path / "rows.jsonl", rows)
    summary = json.loads(
        run(
            "score",
            "--model",
            tmp_path / "rm",
            "--data",
            data,
            "--output",
            tmp_path / "scored.jsonl",
            "--rule",
            "lcb",
            "--out",
            tmp_path / "scores",
            "--json",
        ).stdout
    )
    assert summary["responses"] == 3 and summary["ddof"] == 1 and "ddof=1" in summary["rule"]
    first, second = (json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines())
    assert first["id"] == 7 and len(first["members"]) == 4 and len(second["members"]) == 2
    members = torch.tensor(first["members"])
    assert first["mean"] == pytest.approx(float(members.mean()), abs=1e-5)
    assert first["standard_deviation"] == pytest.approx(float(members.std()), abs=1e-5)
    assert first["reward"] == pytest.approx(first["mean"] - first["standard_deviation"], abs=1e-5)
    assert "standard_deviation_centred" not in first  # one response: nothing to centre on
    pool = torch.tensor(second["members"]).double()  # (responses, members)
    inner = pool - pool.mean(0)
    assert second["standard_deviation"] == pytest.approx(pool.std(1).tolist(), abs=1e-5)
    assert second["standard_deviation_centred"] == pytest.approx(inner.std(1).tolist(), abs=1e-5)
    assert second["reward"] == pytest.approx((inner.mean(1) - inner.std(1)).tolist(), abs=1e-5)
    assert (tmp_path / "scores" / "scores.jsonl").read_text() == (tmp_path / "scored.jsonl").read_text()
    model = RewardModel.load(tmp_path / "rm")
    assert torch.allclose(model.score(["ask 1"], ["good"])[:, 0], members, atol=1e-6)
    plain = run("score", "--model", tmp_path / "rm", "--data", data)
    assert len(plain.stdout.splitlines()) == 2


def test_one_member_has_null_for_its_spread(tiny_folder, tmp_path, files):
    run("fit", "--preferences", files[0], "--model", tiny_folder, "--members", 1, "--out", tmp_path / "rm")
    data = write(tmp_path / "rows.jsonl", [{"prompt": "ask", "response": "good"}])
    result = run("score", "--model", tmp_path / "rm", "--data", data, "--output", tmp_path / "s.jsonl", "--json")
    assert json.loads(result.stdout)["mean_standard_deviation"] is None
    assert json.loads((tmp_path / "s.jsonl").read_text())["standard_deviation"] is None


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("external", "quantile")])
def test_every_family_fits_and_comes_back(tiny_folder, tmp_path, name):
    from prudent.data.preferences import read_preferences

    data = read_preferences(write(tmp_path / "train.jsonl", pairs(24)))
    quick = {"encoder_options": {"max_length": 128, "dtype": "float32"}, "members": 2}
    model = fit_reward_model(data, name, model=tiny_folder, **quick)
    model.save(tmp_path / "rm")
    again = RewardModel.load(tmp_path / "rm")
    prompts, answers = list(data["prompt"])[:5], list(data["chosen"])[:5]
    scores = model.score(prompts, answers)
    assert again.family == name and scores.shape == (2, 5)
    assert torch.allclose(again.score(prompts, answers), scores, atol=1e-5)


def test_ratings_train_a_quantile_model(tiny_folder, tmp_path, files):
    rated = [
        {
            "prompt": f"ask {row}",
            "response": ("good " if row % 2 else "bad ") * (row % 3 + 1),
            "kind": row % 2 if row % 5 else None,
            "long": row % 3,
        }
        for row in range(30)
    ]
    ratings = write(tmp_path / "ratings.jsonl", rated)
    run(
        "fit",
        "--preferences",
        files[0],
        "--family",
        "quantile",
        "--ratings",
        ratings,
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "rm",
        "--levels",
        9,
        "--epochs",
        5,
        "--gate-hidden",
        8,
    )
    model = RewardModel.load(tmp_path / "rm")
    scores = model.score(["ask 1", "ask 2"], ["good", "bad"])
    assert scores.shape == (9, 2) and bool((scores.diff(dim=0) >= -1e-6).all())
    assert model.scorer.attributes == ["kind", "long"]


def classifier(folder, labels: int = 1, head: bool = True):
    from tests.tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
        num_labels=labels,
    )
    torch.manual_seed(int(folder.name[-1]) if folder.name[-1].isdigit() else 0)
    (LlamaForSequenceClassification if head else LlamaForCausalLM)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_outside_models_are_members_on_one_scale(tmp_path, files):
    models = [classifier(tmp_path / f"outside{number}") for number in (1, 2)]
    alone = RewardModel.load(models[0])
    prompts = [f"ask {row}" for row in range(6)]
    answers = ["word " * (row + 1) for row in range(6)]
    scores = alone.score(prompts, answers)
    assert scores.shape == (1, 6)
    each = torch.cat([alone.score(prompts[row : row + 1], answers[row : row + 1]) for row in range(6)], 1)
    assert torch.allclose(each, scores, atol=1e-5)  # nothing depends on what else is in the batch
    run(
        "fit",
        "--preferences",
        files[0],
        "--family",
        "external",
        "--models",
        models[0],
        "--models",
        models[1],
        "--out",
        tmp_path / "rm",
    )
    both = RewardModel.load(tmp_path / "rm")
    found = both.score(prompts, answers)
    assert found.shape == (2, 6) and "preference pairs" in both.scorer.reference
    assert torch.allclose((scores[0] - both.scorer.centre[0]) / both.scorer.scale[0], found[0], atol=1e-5)


def test_classifiers_and_headless_models_are_refused(tmp_path):
    with pytest.raises(PrudentError, match=r"2 labels .*one output"):
        RewardModel.load(classifier(tmp_path / "two", labels=2))
    with pytest.raises(PrudentError, match=r"weights score\.weight are missing"):
        RewardModel.load(classifier(tmp_path / "none", head=False))
    with pytest.raises(PrudentError, match="no reward model found"):
        RewardModel.load(tmp_path / "nowhere")


def test_another_language_model_is_noticed(tiny_folder, tmp_path, files):
    from tests.tiny import tiny_causal_lm

    run("fit", "--preferences", files[0], "--model", tiny_folder, "--out", tmp_path / "rm")
    tiny_causal_lm(tmp_path / "other", seed=1)
    with pytest.raises(PrudentError, match="fingerprint"):
        RewardModel.load(tmp_path / "rm", model=str(tmp_path / "other")).score(["ask"], ["good"])


def test_a_users_own_training_arguments_win(tiny_folder, tmp_path, files):
    (tmp_path / "own.yaml").write_text("learning_rate: 1e-3\nsave_strategy: steps\nsave_steps: 2\nmax_steps: 3\n")
    run(
        "fit",
        "--preferences",
        files[0],
        "--model",
        tiny_folder,
        "--family",
        "lora",
        "--members",
        2,
        "--phase-one",
        0,
        "--batch-size",
        4,
        "--training-args",
        tmp_path / "own.yaml",
        "--checkpoints",
        tmp_path / "kept",
        "--out",
        tmp_path / "rm",
    )
    assert {path.name for path in (tmp_path / "kept" / "phase-two").glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-3",
    }
    (tmp_path / "own.yaml").write_text("- 1")
    found = run(
        "fit",
        "--preferences",
        files[0],
        "--family",
        "lora",
        "--training-args",
        tmp_path / "own.yaml",
        "--out",
        tmp_path / "other",
        status=2,
    )
    assert "must hold names and values" in found.stderr


def test_compare_gives_one_table(tiny_folder, tmp_path, files):
    train, test = files
    result = run(
        "compare",
        "--preferences",
        train,
        "--test",
        test,
        "--families",
        "heads",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "c",
        "--target",
        "gap",
        "--group",
        "kind",
        "--level",
        "0.8",
        "--members",
        4,
        "--set",
        "heads.ridge=1e-1",
        "--json",
    )
    found = json.loads(result.stdout)
    assert [row["family"] for row in found["families"]] == ["heads"]
    for row in found["families"]:
        assert row["info"]["ridge"] == 0.1 and row["members"] == 4 and row["fit_seconds"] > 0 and row["peak_mib"] > 0
        assert row["accuracy"]["n"] == 20 and 0 <= row["conformal"]["share"] <= 1
        assert set(row["conformal"]["groups"]) <= {"odd", "even"}
    assert (tmp_path / "c" / "report.html").is_file() and (tmp_path / "c" / "charts" / "families.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "none"], "unknown family"),
        (["--rank", "4"], "--family heads has no --rank"),
        (["--preferences", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--family", "quantile"], "--ratings"),
        (["--model", "./nowhere"], "nowhere"),
        (["--family", "lora", "--pooling", "mean"], "last token"),
    ],
)
def test_what_fit_refuses(tiny_folder, tmp_path, files, arguments, message):
    base = ["fit", "--out", tmp_path / "rm"]
    if "--preferences" not in arguments:
        base += ["--preferences", files[0]]
    if "--model" not in arguments:
        base += ["--model", tiny_folder]
    assert message in run(*base, *arguments, status=2).stderr
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}], "response"),
        ([{"response": "a"}], "prompt"),
        ([{"prompt": "a", "responses": []}], "responses"),
        ([{"prompt": "a", "response": None}], "line 1"),
        ([], "empty"),
    ],
)
def test_what_score_refuses(tmp_path, rows, message):
    data = write(tmp_path / "rows.jsonl", rows)
    result = run("score", "--model", tmp_path, "--data", data, "--output", tmp_path / "out.jsonl", status=2)
    assert message in result.stderr and not (tmp_path / "out.jsonl").exists()
