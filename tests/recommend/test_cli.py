"""The three commands: they work together, print strict JSON, and tell a person what is wrong."""

import json

import pytest
from typer.testing import CliRunner

from prudent.cli import app
from prudent.recommend.artefact import load
from prudent.recommend.planted import plant

QUICK = [
    "--epochs",
    "4",
    "--stage-epochs",
    "4",
    "--width",
    "8",
    "--hidden",
    "16",
    "--batch",
    "32",
    "--stage-batch",
    "32",
    "--valid-share",
    "0.2",
]


def prudent(*arguments):
    return CliRunner().invoke(app, ["recommend", *map(str, arguments)])


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "interactions.csv"
    pairs = plant(40, 30, density=0.25, rank=3).observed.pairs()
    path.write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    return path


@pytest.fixture(scope="module")
def run(table):
    out = table.parent / "run"
    result = prudent("fit", table, "--out", out, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    found = strict(result.stdout)
    assert found["data"]["users"] <= 40
    assert found["read"]["data"]["counts"]["duplicate"] == 0
    return out


def test_top_prints_and_writes(run, table):
    result = prudent("top", run, "--user", "u03", "--user", "stranger", "--k", 3, "--json")
    assert result.exit_code == 0, result.output
    found = strict(result.stdout)
    assert [row["cold"] for row in found["recommendations"]] == [False, True]
    data = load(run).data
    known = {data.items[place] for place in data.seen_with_valid()[data.users.index("u03")].indices}
    taken = {line.split(",")[1] for line in table.read_text().splitlines() if line.startswith("u03,")}
    assert known < taken  # positives held out for the test side may come back
    items = found["recommendations"][0]["items"]
    assert len(items) == 3 and not known & set(items)
    plain = prudent("top", run, "--user", "stranger", "--k", 2)
    assert "no history: popular items" in plain.stdout
    written = prudent("top", run, "--k", 2, "--out", run.parent / "top", "--json")
    assert written.exit_code == 0, written.output
    import pyarrow.parquet as pq

    rows = pq.read_table(run.parent / "top" / "top.parquet").to_pylist()
    assert {row["rank"] for row in rows} == {1, 2}
    assert len(rows) == 2 * strict(written.stdout)["users"]


def test_evaluate_writes_a_report_with_every_part(run):
    lists = run.parent / "lists.csv"
    lists.write_text("user,item,rank\nu03,i01,1\nu03,i01,2\n")
    out = run.parent / "report"
    result = prudent(
        "evaluate",
        run,
        "--out",
        out,
        "--baselines",
        "popularity,knn",
        "--lists",
        f"mine={lists}",
        "--rounds",
        100,
        "--k",
        5,
        "--json",
    )
    assert result.exit_code == 0, result.output
    found = strict(result.stdout)
    names = [row["ranking"] for row in found["rankings"]]
    assert names == ["mf: score", "mf: uncertainty", "mf: blend", "popularity", "item-kNN", "mine"]
    assert found["rankings"][-1]["notes"]["repeated recommendations, counted once"] == 1
    assert "recall@5 overall" in found["rankings"][0]
    assert strict((out / "result.json").read_text())["rankings"] == found["rankings"]
    assert found["answer"].startswith("Rank by ") and "validation positives of" in found["answer"]
    assert {"users", "positives", "gain", "low", "high"} == set(found["blend"]["validation"])
    page = (out / "report.html").read_text()
    for heading in ("From score to uncertainty", "All rankings", "Uncertainty and popularity", "Examples"):
        assert heading in page
    assert (out / "charts" / "log-variance.png").stat().st_size > 1000


def test_evaluate_on_a_file_of_its_own_counts_what_training_never_saw(run):
    test = run.parent / "test.csv"
    known = json.loads((run / "ids.json").read_text())
    lines = [f"{user},{item}" for user, item in zip(known["users"], known["items"])]
    test.write_text(
        "user,item\n" + "\n".join([*lines, f"{known['users'][3]},unheard", f"stranger,{known['items'][0]}"]) + "\n"
    )
    result = prudent("evaluate", run, "--test", test, "--out", run.parent / "own", "--baselines", "none", "--json")
    assert result.exit_code == 0, result.output
    counts = strict(result.stdout)["counts"]
    assert counts["positive pairs of items unseen in training"] == 1
    assert counts["users without training history (popularity is shown to them)"] == 1


def test_config_file_and_files_of_their_own(table, tmp_path):
    lines = table.read_text().splitlines()
    parts = {"train": lines[1::2] + lines[2::4], "valid": lines[4::8], "test": lines[8::8]}
    for name, rows in parts.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["user,item", *rows]) + "\n")
    (tmp_path / "options.yaml").write_text("epochs: 2\nstage_epochs: 2\nwidth: 4\nhidden: 8\nbackbone: lightgcn\n")
    result = prudent(
        "fit",
        tmp_path / "train.csv",
        "--valid",
        tmp_path / "valid.csv",
        "--test",
        tmp_path / "test.csv",
        "--config",
        tmp_path / "options.yaml",
        "--out",
        tmp_path / "run",
        "--json",
    )
    assert result.exit_code == 0, result.output
    found = strict(result.stdout)
    assert found["backbone"]["name"] == "lightgcn"
    assert found["data"]["test"]["pairs left out because training has them"] >= 0
    assert set(found["read"]) == {"data", "valid", "test"}


@pytest.mark.parametrize(
    ("text", "options", "word"),
    [
        ("person,item\na,x\n", [], "no user column"),
        ("user,item,rating\na,x,many\nb,y,\n", [], "2 bad rows"),
        ("user,item\na,x\na,y\n", [], "1 user ('a')"),
        ("user,item\na,x\nb,x\n", [], "1 item ('x')"),
        ("user,item,rating\na,x,3\nb,y,2\n", ["--threshold", "4"], "lower the threshold"),
        ("user,item\na,x\nb,y\n", ["--split", "time"], "no time column"),
        ("user,item\na,x\nb,y\n", ["--column", "who=user"], "choose from user, item"),
        ("user,item\na,x\nb,y\n", ["--backbone", "bert"], "choose one of mf"),
        ("user,item\na,x\nb,y\n", ["--backbone-option", "depth=3"], "choose from alpha, hidden"),
        ("user,item\na,x\nb,y\n", ["--backbone-option", "kl=much"], "give a number"),
        ("user,item\na,x\nb,y\n", [], "no known user has a validation positive"),
        ("user,user,item\na,b,x\n", [], "'user' is there twice"),
        ("user,item\na,x\nb,y\n", ["--tail-below", "0"], "choose at least 1"),
        ("user,item\na,x\nb,y\n", ["--seed", "-1"], "--seed"),
    ],
)
def test_bad_input_ends_with_status_2_and_leaves_nothing(tmp_path, text, options, word):
    path = tmp_path / "a.csv"
    path.write_text(text)
    result = prudent("fit", path, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert word in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv"]


def test_a_folder_that_is_no_fit_is_refused(tmp_path, run):
    assert "no manifest.json" in prudent("top", tmp_path).stderr
    assert prudent("evaluate", run, "--out", run).exit_code == 2


def test_a_person_is_told_what_was_read_and_held_out(table, tmp_path):
    rows = table.read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join(["user,item,rating", *(f"{row},5" for row in rows[1:]), rows[1] + ",0"]))
    (tmp_path / "test.csv").write_text("user,item\nu03,new\nstranger,i01\n")
    path = tmp_path / "a.csv"
    result = prudent("fit", path, "--test", tmp_path / "test.csv", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 0, result.output
    told = " ".join(result.stderr.split())
    assert "(positive when rating > 0)" in told and "1 zero" in told
    assert "1 positive pairs of items unseen in training" in told
    assert "1 users without training history (popularity is shown to them)" in told
