"""Runs compared: groups, what is paired with what, figures beside SciPy's, and what is said of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from looptool_jax.config import keep_config, load_config
from looptool_jax.data.store import DataError, write_jsonl, write_text
from looptool_jax.sweep.compare import compare_runs
from looptool_jax.sweep.space import keep_sweep, read_sweep
from looptool_jax.sweep.values import SweepError

HOSTILE = "<script>alert(1)</script>|*x*[y](z)"


def verdicts(*right: int, items: int = 40, prefix: str = "item") -> list[list[dict]]:
    """Results before training and after each round, of which so many are right, the first ones."""
    return [
        [{"id": f"{prefix}-{i}", "category": "ab"[i % 2], "correct": i < count} for i in range(items)]
        for count in right
    ]


def make_run(folder: Path, rounds: Sequence[list[dict]], *overrides: str, items: str = "one file") -> str:
    """A run directory with such evaluations of the held-out items whose file has this hash."""
    run_dir = str(folder)
    cfg = load_config("micro", [f"rounds={len(rounds) - 1}", *overrides, f"run_dir={run_dir}"])
    keep_config(cfg)
    stages = {}
    for round_, rows in enumerate(rounds):
        name = f"round-{round_}/eval" if round_ else "eval-0"
        write_jsonl(folder / name / "results.jsonl", rows)
        by_category = {
            c: {"items": len(part), "accuracy": sum(row["correct"] for row in part) / len(part)}
            for c in sorted({row["category"] for row in rows})
            for part in [[row for row in rows if row["category"] == c]]
        }
        accuracy = sum(row["correct"] for row in rows) / len(rows)
        metrics = {"items": len(rows), "accuracy": accuracy, "interval95": 0.1, "by_category": by_category}
        stages[name] = {"inputs": {"seed/heldout.jsonl": items}, "outputs": {}, "metrics": metrics}
    write_text(folder / "manifest.json", json.dumps({"stages": stages}))
    write_jsonl(folder / "ledger.jsonl", [{"stage": "eval-0", "seconds": 2.0, "tokens": 100}])
    return run_dir


def table(found, title: str) -> list[list[str]]:
    return next([*map(list, one.rows)] for one in found.tables if one.title.startswith(title))


def test_groups_paired_by_seed(tmp_path):
    """Three seeds of each; the t-test is on differences of gains within a seed."""
    gains = {"a": [(10, 16), (10, 14), (12, 15)], "b": [(10, 20), (10, 21), (12, 19)]}
    paths = [
        make_run(tmp_path / f"{name}{seed}", verdicts(*counts), f"seed={seed}", f"train.batch={batch}")
        for (name, runs), batch in zip(gains.items(), (4, 8), strict=True)
        for seed, counts in enumerate(runs)
    ]
    found = compare_runs(paths)
    assert [(group.name, len(group.runs)) for group in found.groups] == [("a0", 3), ("b0", 3)]
    (one,) = found.differences
    differences = np.array([(20 - 10) - (16 - 10), (21 - 10) - (14 - 10), (19 - 12) - (15 - 12)]) / 40
    theirs = stats.ttest_1samp(differences, 0.0)
    assert one.paired and one.seeds.n == 3 and one.seeds.mean == pytest.approx(differences.mean())
    assert (one.seeds.p, one.p_seeds) == (pytest.approx(theirs.pvalue), pytest.approx(theirs.pvalue))
    assert one.permuted == 2 / 2**3
    # Items are averaged over the seeds: 20, 21, 19 right in b, 16, 14, 15 in a.
    assert one.items.n == 40 and one.items.mean == pytest.approx((60 - 45) / 120)
    assert table(found, "Settings that differ") == [["a0", "4", "3", "0, 1, 2"], ["b0", "8", "3", "0, 1, 2"]]
    assert table(found, "Held-out accuracy")[0][:4] == ["a0", "3", "26.7 ± 2.9", "37.5 ± 2.5"]
    # Items of category a, the even ones: 8, 7 and 8 right of 20 in a, 10, 11 and 10 in b.
    assert table(found, "By category") == [["a0", "38.3 %", "36.7 %"], ["b0", "51.7 %", "48.3 %"]]
    assert table(found, "Cost") == [["a0", "3", "2", "100"], ["b0", "3", "2", "100"]]
    (said,) = found.conclusions
    assert "b0 gains +12.5 points beyond a0 (3 paired seeds" in said
    assert "more than chance between seeds explains" in said and "cannot fall below p 0.250" in said


def test_a_difference_that_chance_may_explain(tmp_path):
    counts = {("a", 0): (10, 16), ("a", 1): (10, 22), ("b", 0): (10, 20), ("b", 1): (10, 19)}
    paths = [
        make_run(tmp_path / f"{name}{seed}", verdicts(*right), f"seed={seed}", f"train.batch={4 if name == 'a' else 8}")
        for (name, seed), right in counts.items()
    ]
    (said,) = compare_runs(paths).conclusions
    assert "which chance between seeds may explain" in said
    assert "On the 40 held-out items these very policies cannot be told apart" in said


def test_one_run_each_says_nothing_of_settings(tmp_path):
    a = make_run(tmp_path / "a", verdicts(10, 12), "static=true")
    b = make_run(tmp_path / "b", verdicts(10, 30))
    found = compare_runs([a, b])
    (one,) = found.differences
    assert one.seeds is None and one.items.mean == pytest.approx(18 / 40) and one.items.p < 0.001
    assert "1 and 1 runs do not show how much the seed alone matters" in found.conclusions[0]
    assert "On the 40 held-out items these very policies differ (+45.0 points" in found.conclusions[0]
    assert not any(one.title.startswith("Over seeds") for one in found.tables)


def test_other_seeds_are_not_paired(tmp_path):
    first, second = [(10, 14), (10, 18)], [(10, 20), (10, 27), (10, 22)]
    paths = [make_run(tmp_path / f"a{i}", verdicts(*c), f"seed={i}") for i, c in enumerate(first)]
    paths += [make_run(tmp_path / f"b{i}", verdicts(*c), f"seed={i + 5}", "static=true") for i, c in enumerate(second)]
    (one,) = compare_runs(paths).differences
    a, b = ([(after - before) / 40 for before, after in part] for part in (first, second))
    theirs = stats.ttest_ind(b, a, equal_var=False)
    assert not one.paired and one.seeds.p == pytest.approx(theirs.pvalue) and one.permuted == 2 / 10


def test_two_runs_a_side_are_a_claim_of_the_t_test_alone(tmp_path):
    paths = [make_run(tmp_path / f"a{i}", verdicts(10, 12 + i, items=400), f"seed={i}") for i in range(2)]
    paths += [
        make_run(tmp_path / f"b{i}", verdicts(10, 60 + i, items=400), f"seed={i + 5}", "static=true") for i in range(2)
    ]
    found = compare_runs(paths)
    assert found.differences[0].p_seeds < 0.01 and found.differences[0].permuted == 2 / 6
    assert "permutation test has p 0.333, and with so few runs cannot fall below p 0.333" in found.conclusions[0]


def test_items_that_differ_from_seed_to_seed_are_paired_within_a_seed(tmp_path):
    """As in a user's own data, of which each seed holds out other items."""
    paths = []
    for name, counts, static in (("a", (10, 12), "true"), ("b", (10, 30), "false")):
        for seed in (0, 1):
            rows = verdicts(*counts, prefix=f"seed-{seed}")
            paths.append(make_run(tmp_path / f"{name}{seed}", rows, f"seed={seed}", f"static={static}"))
    (one,) = compare_runs(paths).differences
    assert one.items.n == 80 and one.items.mean == pytest.approx(18 / 40)
    other = make_run(tmp_path / "c", verdicts(10, 20, prefix="other"), "train.batch=4")
    found = compare_runs([paths[0], other])
    assert found.differences[0].items is None and "were asked different held-out items" in found.conclusions[0]


def test_an_item_that_two_seeds_hold_out_counts_once(tmp_path):
    """Seeds hold out 40 items each of a user's data, 30 of them the same."""
    paths = []
    for static, right in (("true", (10, 12)), ("false", (10, 30))):
        for seed in (0, 1):
            rows = [[row | {"id": f"item-{i + 10 * seed}"} for i, row in enumerate(part)] for part in verdicts(*right)]
            paths.append(make_run(tmp_path / f"{static}{seed}", rows, f"seed={seed}", f"static={static}"))
    items = compare_runs(paths).differences[0].items
    assert items.n == 50
    changes = [(12 <= i < 30) * (i < 40) + (12 <= i - 10 < 30) * (i >= 10) for i in range(50)]
    asked = [(i < 40) + (i >= 10) for i in range(50)]
    assert items.mean == pytest.approx(np.mean(np.array(changes) / asked))


def test_items_of_two_sources_are_not_paired_by_ids_that_are_alike(tmp_path):
    """Imported samples are named after format, file name and line, so two folders of data can give the same ids."""
    a = make_run(tmp_path / "a", verdicts(10, 12), "data.source=a/messages.jsonl", "data.noise=0", items="a file")
    b = make_run(tmp_path / "b", verdicts(10, 30), "data.source=b/messages.jsonl", "data.noise=0", items="another")
    found = compare_runs([a, b])
    assert found.differences[0].items is None and "were asked different held-out items" in found.conclusions[0]


def test_runs_of_other_lengths_are_compared_where_both_have_been(tmp_path):
    a = make_run(tmp_path / "a", verdicts(10, 12, 30))
    b = make_run(tmp_path / "b", verdicts(10, 20))
    found = compare_runs([a, b])
    assert found.differences[0].round == 1 and found.differences[0].items.mean == pytest.approx(8 / 40)
    assert table(found, "Settings that differ") == [["a", "2", "1", "0"], ["b", "1", "1", "0"]]


def test_p_values_are_corrected_for_the_number_of_groups(tmp_path):
    paths = []
    for batch, shift in ((4, 0), (8, 5), (16, 6)):
        for seed in range(3):
            rows = verdicts(10, 12 + shift + seed * (batch == 8))
            paths.append(make_run(tmp_path / f"{batch}-{seed}", rows, f"seed={seed}", f"train.batch={batch}"))
    found = compare_runs(paths)
    first, second = found.differences
    assert first.p_seeds == pytest.approx(first.seeds.p) and second.seeds.p is None and second.p_seeds is None
    assert "in each of 3 paired seeds; without a spread" in found.conclusions[1]
    assert ", corrected" not in found.conclusions[0].partition(" On the ")[0]  # of seeds there is one test
    assert all("corrected for 2 comparisons" in said.partition(" On the ")[2] for said in found.conclusions)
    smaller = min(first.items.p, second.items.p)
    assert min(first.p_items, second.p_items) == pytest.approx(min(1.0, 2 * smaller))


def test_a_sweeps_folder_is_its_trials(tmp_path):
    sweep = read_sweep(None, "micro", ["train.batch=4,8", "seed=range(2)"])
    keep_sweep(sweep, str(tmp_path))
    for trial in reversed(sweep.trials()):
        make_run(tmp_path / "trials" / trial.name, verdicts(10, 20, 25), *trial.overrides, "rounds=2")
    found = compare_runs([str(tmp_path)])
    assert [(group.name, len(group.runs)) for group in found.groups] == [("batch=4", 2), ("batch=8", 2)]
    assert len(found.conclusions) == 1


def test_a_run_that_is_there_again_counts_once(tmp_path):
    """As a variant whose settings are the base's own: its runs are no further seeds."""
    (tmp_path / "of.yaml").write_text(
        json.dumps({
            "config": "micro", "grid": {"seed": "range(3)"},
            "variants": {"full": {}, "same": {"static": False}, "static": {"static": True}},
        })
    )  # fmt: skip
    sweep = read_sweep(str(tmp_path / "of.yaml"))
    keep_sweep(sweep, str(tmp_path))
    for i, trial in enumerate(sweep.trials()):
        make_run(tmp_path / "trials" / trial.name, verdicts(10, 20 + i % 3, 25), *trial.overrides, "rounds=2")
    found = compare_runs([str(tmp_path)])
    assert [(group.name, len(group.runs)) for group in found.groups] == [("full", 3), ("static", 3)]
    assert found.differences[0].paired
    assert found.conclusions[0].startswith(
        "The same run, settings and seed, counts once: same,seed=0 that of full,seed=0, same,seed=1 that of "
    )


def test_trials_that_are_missing_are_named(tmp_path):
    sweep = read_sweep(None, "micro", ["train.batch=4,8", "seed=range(8)"])
    keep_sweep(sweep, str(tmp_path))
    for trial in sweep.trials():
        if trial.group == "batch=4" or trial.seed in ("3", "5"):
            rounds = verdicts(10, 20) if trial.seed == "5" else verdicts(10, 20, 25)
            make_run(tmp_path / "trials" / trial.name, rounds, *trial.overrides, "rounds=2")
    first, *_ = compare_runs([str(tmp_path)]).conclusions
    assert first.startswith(f"{tmp_path}: 8 of 16 trials are not finished: batch=4,seed=5, batch=8,seed=0, ")
    assert first.endswith("batch=8,seed=7.") and "seed=3" not in first
    many = read_sweep(None, "micro", ["train.batch=4,8", "seed=range(9)"])
    keep_sweep(many, str(tmp_path))
    assert "batch=8,seed=6, and 2 more." in compare_runs([str(tmp_path)]).conclusions[0]


def test_pages_hold_text_as_text(tmp_path):
    rows = [[{**row, "category": HOSTILE} for row in part] for part in verdicts(10, 20)]
    a = make_run(tmp_path / "a", rows, "static=true")
    b = make_run(tmp_path / "b", verdicts(10, 25), f"data.source={json.dumps(HOSTILE)}", "data.noise=0.25")
    found = compare_runs([a, b])
    found.write(str(tmp_path / "out"))
    page = (tmp_path / "out/comparison.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "script-src 'none'" in page
    markdown = (tmp_path / "out/comparison.md").read_text()
    assert "\\<script>alert(1)\\</script>\\|\\*x\\*\\[y](z)" in markdown and "<script" not in markdown.replace(
        "\\<", ""
    )
    with open(tmp_path / "out/comparison.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["group"], row["reference"], row["items_n"], row["seeds_n"]) == ("b", "a", "40", "")
    assert float(row["items_mean"]) == pytest.approx(5 / 40)


def test_what_cannot_be_compared_is_one_line(tmp_path):
    a = make_run(tmp_path / "a", verdicts(10, 20), "seed=0")
    b = make_run(tmp_path / "b", verdicts(10, 20), "seed=1")
    for paths, words in (
        ([a, b], "2 runs with the same settings but for the seed"),
        ([a, a], "given twice"),
        ([a, str(tmp_path / "gone")], "no finished stage of a run here"),
    ):
        with pytest.raises((SweepError, DataError), match=words):
            compare_runs(paths)
    write_text(tmp_path / "b/manifest.json", '{"stages": {}}')
    c = make_run(tmp_path / "c", verdicts(10), "rounds=1")
    for unfinished in (b, c):
        with pytest.raises(DataError, match="no held-out accuracy after a round"):
            compare_runs([a, unfinished])
    write_text(tmp_path / "b/manifest.json", "{")
    with pytest.raises(DataError, match="not a manifest"):
        compare_runs([a, b])
    keep_sweep(read_sweep(None, "micro", ["seed=range(2)"]), str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no trial of this sweep has a held-out accuracy after a round yet"):
        compare_runs([str(tmp_path / "empty")])
