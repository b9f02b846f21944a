"""The report of a run: what it says is what the run's files say, and texts of models and users never become markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import re
import shutil
import statistics
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import rich.console

from looptool_jax.data.store import DataError, read_text
from looptool_jax.evaluation.statistics import wilson
from looptool_jax.report import html
from looptool_jax.report.html import write_report
from looptool_jax.report.tables import run_tables

from .conftest import ATTACK, rows_of
from .scripted_run import make_run

TAG_NAMES = """html head meta link title style body a header h1 h2 h3 h4 p nav ul li main section dl div dt dd b span
table caption thead tbody tr th td figure figcaption svg desc path text g circle rect polyline polygon details summary
pre blockquote del ins br code form label input select option button ol article script"""
TAGS = set(TAG_NAMES.split())
VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """The elements of a document, their attributes and texts; fails where tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = self.style = ""
        self.open: list[str] = []
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows: list[list[str]] = []
            self.caption = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open[-1:] == ["style"]:
            self.style += data
        elif "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        else:
            self.text += data


def page_of(run: str) -> Page:
    return Page(read_text(f"{run}/report.html"))


def parts_of(page: Page) -> dict[str, object]:
    """The samples that the page carries, by the name of the part."""
    packed = {attributes["data-part"]: text for attributes, text in page.scripts if "data-part" in attributes}
    return {name: json.loads(gzip.decompress(base64.b64decode(text, validate=True))) for name, text in packed.items()}


def joined(parts: dict, kind: str) -> list:
    names = sorted((name for name in parts if name.startswith(f"{kind}-")), key=lambda name: int(name.split("-")[1]))
    return [item for name in names for item in parts[name]]


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_first_figures_say_what_they_leave_out(run_dir):
    stages = {
        name: entry["metrics"]
        for name, entry in json.loads(Path(run_dir, "manifest.json").read_text())["stages"].items()
    }
    found = [stages[f"round-{number}/score"]["expansion"] for number in (1, 2)]
    accepted, valid = (
        sum(values) for values in zip(*((f["samples"], f["samples"] * f["valid"]) for f in found), strict=True)
    )
    page = page_of(run_dir)
    assert accepted and f"; {100 * valid / accepted:.1f} % of them valid" in page.text
    assert "Label noise of seeds" in page.text and "new samples left out" in page.text


def test_every_table_of_the_terminal_is_in_the_page_as_it_is(run_dir):
    page = page_of(run_dir)
    tables = run_tables(run_dir)
    assert len(tables) == (9 if find_spec("bfcl_eval") else 8)  # samples beside benchmarks, where there is one
    for table in tables:
        assert page.tables[table.title] == [list(table.columns), *map(list, table.rows)]


def test_the_headline_says_the_difference_with_its_paired_interval(run_dir):
    before, after = (
        {row["id"]: row["correct"] for row in rows_of(f"{run_dir}/{name}/results.jsonl")}
        for name in ("eval-0", "round-2/eval")
    )
    differences = [after[id_] - before[id_] for id_ in before]
    mean, n = statistics.mean(differences), len(differences)
    won, lost = differences.count(1) + 0.5, differences.count(-1) + 0.5  # with half an item more in each cell
    middle, error = (won - lost) / (n + 2), math.sqrt((won + lost - (won - lost) ** 2 / (n + 2)) / (n + 2) ** 2)
    shares = [f"{100 * statistics.mean(side.values()):.1f}" for side in (before, after)]
    ends = " to ".join(f"{100 * end:+.1f}" for end in (middle - 1.96 * error, middle + 1.96 * error))
    words = f"rose from {shares[0]} % to {shares[1]} % after 2 rounds of training: {100 * mean:+.1f} points"
    text = page_of(run_dir).text.replace("−", "-")
    assert words in text and f"(95 % interval {ends}, paired over 24 items)" in text
    assert f"{shares[0]} → {shares[1]} %" in text


def test_charts_say_their_values_in_words(run_dir):
    page = read_text(f"{run_dir}/report.html")
    stages = json.loads(Path(run_dir, "manifest.json").read_text())["stages"]
    metrics = [stages[name]["metrics"] for name in ("eval-0", "round-1/eval", "round-2/eval")]
    shares = [f"{100 * one['accuracy']:.1f} %" for one in metrics]
    assert f"<desc>accuracy: before {shares[0]}, round 1 {shares[1]}, round 2 {shares[2]}</desc>" in page
    for name, part in metrics[2]["by_category"].items():
        assert f"<title>{name}, round 2: {100 * part['accuracy']:.1f} % (" in page
    parts = {part["part"]: part["taken"] for part in stages["round-1/compose"]["metrics"]["parts"]}
    assert f"D2: seeds 0, error seeds {parts['error']}, expanded {parts['expanded']}" in page
    rewards = [row["reward"] for j in (1, 2) for row in rows_of(f"{run_dir}/round-{j}/train/steps.jsonl")]
    assert len(rewards) == 12
    assert f"mean reward: step 1 {100 * rewards[0]:.1f} %" in page.replace("mean reward: 1 ", "mean reward: step 1 ")
    for title in ("Gradient norm", "Entropy", "Clipped tokens", "Answer tokens"):
        assert f"<figcaption>{title}</figcaption>" in page


def test_the_samples_of_the_page_are_those_of_the_files(run_dir):
    parts = parts_of(page_of(run_dir))
    index, details = parts["index"], joined(parts, "samples")
    rows = {row[0]: row for row in index["rows"]}
    detail = {row[0]: detail for row, detail in zip(index["rows"], details, strict=True)}
    data = {j: {row["id"]: row for row in rows_of(f"{run_dir}/round-{j}/data.jsonl")} for j in (1, 2, 3)}
    probes = {j: {row["id"]: row for row in rows_of(f"{run_dir}/round-{j}/probe/probes.jsonl")} for j in (1, 2)}
    judged = {j: {row["id"]: row for row in rows_of(f"{run_dir}/round-{j}/judge/judgements.jsonl")} for j in (1, 2)}
    heldout = {row["id"] for row in rows_of(f"{run_dir}/seed/heldout.jsonl")}
    grown = [row["id"] for j in (1, 2) for row in rows_of(f"{run_dir}/round-{j}/expand/expanded.jsonl")]
    rejected = [row for j in (1, 2) for row in rows_of(f"{run_dir}/round-{j}/expand/rejected.jsonl")]
    ids = {id_ for part in data.values() for id_ in part} | heldout | set(grown) | {row["id"] for row in rejected}
    assert set(rows) == ids and index["total"] == len(ids) and index["trained"] == [1, 2]
    for id_, (_, title, category, kind, entries, answers, verdicts) in rows.items():
        assert entries == [[j, data[j][id_]["origin"]["kind"]] for j in data if id_ in data[j]]
        assert verdicts == [[j, judged[j][id_]["verdict"]] for j in judged if id_ in judged[j]]
        if id_ in heldout:
            assert kind == "held-out" and [j for j, _ in answers] == [0, 1, 2]
        else:
            assert answers == [[j, int(probes[j][id_]["correct"])] for j in probes if id_ in probes[j]]
        for answer in detail[id_].get("answers", ()):
            if id_ not in heldout:
                assert answer["perplexity"] == probes[answer["round"]][id_]["perplexity"]
                assert answer.get("reason", "") == probes[answer["round"]][id_]["reason"]
        assert title and category
    for row in rejected:
        assert detail[row["id"]]["tier"] == row["tier"] and detail[row["id"]]["reason"] == row["reason"]
        assert row["id"] in detail[row["parent"]]["children"] and detail[row["id"]]["parent"] == row["parent"]
    assert all(detail[id_]["valid"] in (True, False) for id_ in grown)


def test_whether_a_repair_was_right_is_what_the_score_says(run_dir):
    """Counts over the stories of the page against the metrics that the score stage got from the truth."""
    parts = parts_of(page_of(run_dir))
    details = joined(parts, "samples")
    for j in (1, 2):
        score = json.loads(Path(run_dir, "manifest.json").read_text())["stages"][f"round-{j}/score"]["metrics"]
        repair = score["label_repair"]
        replaced = [
            one for detail in details for one in detail.get("judged", ())
            if one["round"] == j and one["verdict"] == "label_wrong" and "was_right" in one
        ]  # fmt: skip
        assert len(replaced) == repair["replaced"] > 0
        assert sum(not one["was_right"] for one in replaced) == round(repair["precision"] * len(replaced))
        repaired = sum(one["right"] and not one["was_right"] for one in replaced)
        assert repaired == round(repair["repaired"] * repair["wrong_labels"])
    truths = {row["sample_id"] for row in rows_of(f"{run_dir}/seed/truth.jsonl")}
    told = {row[0] for row, detail in zip(parts["index"]["rows"], details, strict=True) if "truth" in detail}
    assert told and told <= truths


def test_the_ledger_is_told_with_estimated_operations(run_dir):
    rows = {row["stage"]: row for row in rows_of(f"{run_dir}/ledger.jsonl")}
    shown = {row[0]: row for row in page_of(run_dir).tables["Cost"]}
    assert shown["round-1/train"][2:4] == ["2,400", "5,400"]
    assert rows["round-1/train"]["prompt_tokens"] == 2400 and rows["round-1/eval"]["prompt_tokens"] == 2400
    assert float(shown["round-1/train"][-1]) == 8 * 1_000_000 * (2400 + 5400)
    assert float(shown["round-1/eval"][-1]) == 2 * 1_000_000 * 2400
    assert shown["seed"][-1] == "–"
    versions = {row[0]: row[1] for row in page_of(run_dir).tables["Versions and devices"]}
    assert versions["parameters of the policy"] == "1,000,000" and versions["jax"] and versions["devices"]


@pytest.mark.parametrize(("share", "items"), [(0.5, 10), (0.0, 20), (1.0, 7), (0.0112, 89), (0.488, 1000)])
def test_wilson_intervals_end_where_the_score_test_does(share, items):
    low, high = wilson(share, items)
    for end in (low, high):
        assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / items), abs=1e-9)
    assert 0 <= low <= share <= high <= 1


def test_the_same_run_gives_the_same_page(run_dir):
    first = read_text(write_report(run_dir))
    assert read_text(write_report(run_dir)) == first


# --- runs of other kinds ----------------------------------------------------------------------------------------------


def test_unfinished_and_static_runs_are_told_as_far_as_they_are(tmp_path, monkeypatch, run_dir):
    static = make_run(tmp_path / "static", monkeypatch, "static=true", "data.pool=80")
    page = Page(read_text(write_report(static)))
    assert "Held-out accuracy" in page.tables and "Judging (JGLV)" not in page.tables
    assert {kind for row in parts_of(page)["index"]["rows"] for _, kind in row[4]} <= {"seed", "seed_new"}
    stages = json.loads(Path(run_dir, "manifest.json").read_text())["stages"]
    for number in range(1, len(stages)):
        (tmp_path / "part").mkdir(exist_ok=True)
        for file in Path(run_dir).rglob("*.jsonl"):
            (target := tmp_path / "part" / file.relative_to(run_dir)).parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        done = dict(list(stages.items())[:number])
        (tmp_path / "part/manifest.json").write_text(json.dumps({"stages": done}))
        page = Page(read_text(write_report(str(tmp_path / "part"))))
        assert ("round-1/train" in done) == ("Training" in page.tables)
        assert ("Samples of each data set" in page.text) == ("round-1/compose" in done)


def test_a_round_that_is_trained_and_not_evaluated_has_no_accuracy_yet(tmp_path, run_dir):
    part = Path(shutil.copytree(run_dir, tmp_path / "part"))
    stages = json.loads((part / "manifest.json").read_text())["stages"]
    for last, words in (
        ("eval-0", "before training; no round has been evaluated yet."),
        ("round-1/train", "before training; no round has been evaluated yet."),
        ("round-1/eval", "after 1 round of training"),
        ("round-2/train", "after 1 round of training"),
        ("round-2/eval", "after 2 rounds of training"),
    ):
        done = list(stages)[: list(stages).index(last) + 1]
        (part / "manifest.json").write_text(json.dumps({"stages": {name: stages[name] for name in done}}))
        text = Page(read_text(write_report(str(part)))).text
        assert words in text and "Nothing is held out" not in text
        assert f"Not finished: {len(done)} of {len(stages)} stages are done." in text
    assert "Not finished" not in read_text(write_report(run_dir))


def test_a_set_that_is_smaller_than_the_first_leaves_the_first_as_it_is(tmp_path, monkeypatch):
    """As in the paper's ablation, which drops the expanded part."""
    run = make_run(tmp_path / "run", monkeypatch, "compose.expanded_part=drop")
    sizes = [len(rows_of(f"{run}/round-{j}/data.jsonl")) for j in (1, 2, 3)]
    assert sizes[0] == 24 > max(sizes[1:])
    assert f"D1: seeds {sizes[0]}, " in read_text(write_report(run))


def test_nothing_held_out(tmp_path, monkeypatch):
    page = Page(read_text(write_report(make_run(tmp_path / "run", monkeypatch, "data.heldout=0"))))
    assert "Nothing is held out, so no accuracy is known; after 2 rounds of training." in page.text
    assert "Held-out accuracy" not in page.tables


def test_held_out_items_that_are_all_too_long_are_none(tmp_path, run_dir):
    """Prompts over the limit are left out, so nothing may be left of what was held out."""
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    for name in ("eval-0", "round-1/eval", "round-2/eval"):
        stages[name]["metrics"] |= {"items": 0, "accuracy": 0.0, "interval95": 0.0, "by_category": {}}
        (run / name / "results.jsonl").write_text("")
    (run / "seed/heldout.jsonl").write_text("")
    (run / "manifest.json").write_text(json.dumps({"stages": stages}))
    assert (
        "Nothing is held out, so no accuracy is known; after 2 rounds" in Page(read_text(write_report(str(run)))).text
    )


def test_more_samples_than_a_page_holds(run_dir, monkeypatch):
    whole = parts_of(page_of(run_dir))
    try:
        monkeypatch.setattr(html, "MOST_SAMPLES", 20)
        page = Page(read_text(write_report(run_dir)))
    finally:
        monkeypatch.undo()
        write_report(run_dir)
    index = parts_of(page)["index"]
    assert f"This page holds 20 of the {whole['index']['total']:,} samples of the run" in page.text
    assert len(index["rows"]) == 20 and index["total"] == len(whole["index"]["rows"])
    assert all(row[6] or row[3] == "expanded" for row in index["rows"]), "judged and grown ones come first"


def test_fewer_large_samples_than_small_ones(run_dir, monkeypatch):
    total = parts_of(page_of(run_dir))["index"]["total"]
    sizes = [len(json.dumps(row, ensure_ascii=False).encode()) for row in rows_of(f"{run_dir}/round-1/data.jsonl")]
    try:
        monkeypatch.setattr(html, "MOST_BYTES", 30 * sum(sizes) // len(sizes))
        index = parts_of(Page(read_text(write_report(run_dir))))["index"]
    finally:
        monkeypatch.undo()
        write_report(run_dir)
    assert 29 <= len(index["rows"]) <= 30 and index["total"] == total


def test_a_directory_without_a_run_gets_no_report(tmp_path):
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept/sweep.yaml").write_text("config: micro")
    with pytest.raises(DataError, match=r"it is a sweep's; give one of its trials, in .*/swept/trials"):
        write_report(f"{tmp_path}/swept")
    with pytest.raises(DataError, match="no finished stage of a run here"):
        write_report(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


# --- hostile texts ----------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text(hostile_run):
    page = page_of(hostile_run)
    assert {tag for tag, _ in page.elements} <= TAGS
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "action")}, tag
        assert (attributes.get("href") or "#").startswith("#") or attributes.get("href") == "data:,"
    code = [text for attributes, text in page.scripts if attributes.get("type") != "text/plain"]
    assert code == [(Path(html.__file__).parent / "report.js").read_text("utf-8")]
    for attributes, text in page.scripts:
        assert "data-part" not in attributes or re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    assert page.text.count("document.title='owned'") > 20
    assert page.text.count("\\u202eevil\\u2066") > 20


def test_what_would_turn_or_break_the_text_is_written_out(hostile_run):
    """U+2028 and U+2029 are plain white space in HTML; what reorders, and what has no UTF-8, is not in the file."""
    raw = Path(hostile_run, "report.html").read_bytes()
    source = raw.decode("utf-8")
    assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069]", source)
    parts = json.dumps(parts_of(Page(source)), ensure_ascii=False)
    assert "\\\\u202eevil" in parts and not re.search("[\x00\x1b\ud800-\udfff\u202a-\u202e\u2066-\u2069]", parts)
    assert len(raw) < 3_000_000, "a text of a megabyte is cut"
    assert "more characters in the files of the run" in parts


def test_the_page_may_run_its_own_script_and_ask_for_nothing(run_dir):
    page = page_of(run_dir)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (code,) = (text for attributes, text in page.scripts if attributes.get("type") != "text/plain")
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (page.style, code)]
    assert rules == {
        "default-src": "'none'", "style-src": f"'sha256-{digests[0]}'", "script-src": f"'sha256-{digests[1]}'",
        "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert "http://" not in read_text(f"{run_dir}/report.html").replace("http-equiv", "")


def test_headings_are_in_order_and_tables_have_captions_and_heads(run_dir):
    page = page_of(run_dir)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for tag, a in page.elements if tag == "th")
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    assert {a["href"][1:] for tag, a in page.elements if tag == "a" and "=" not in a["href"]} <= set(names)


def test_the_terminal_shows_names_with_brackets_as_they_are(hostile_run):
    out = io.StringIO()
    console = rich.console.Console(file=out, width=2000)
    for table in run_tables(hostile_run):
        console.print(table.rich())
    assert "[bold]" in out.getvalue() and "\x1b[2J" not in out.getvalue() and ATTACK not in out.getvalue()
