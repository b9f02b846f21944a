"""Samples held against benchmarks: rows in the benchmarks' file formats, written for these tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.data import benchmarks
from looptool_jax.data.benchmarks import ToolSignature, installed_folder, split_turns
from looptool_jax.data.contamination import (
    FEWEST,
    ContaminationConfig,
    check_samples,
    clean_samples,
    fingerprint,
    fingerprints,
    read_fingerprints,
    words,
    write_fingerprints,
)
from looptool_jax.data.store import DataError, read_jsonl, write_samples
from looptool_jax.toolcall import Call, Message, Sample, Target, Tool
from looptool_jax.world import generate

REQUEST = "Please book me a quiet room for three nights in Ulm from the second of May."
SHORT = "Book a room now."


def document(name: str = "room.book", *parameters: str, key: str = "parameters") -> dict[str, Any]:
    properties = {parameter: {"type": "string", "description": "A word."} for parameter in parameters or ("city",)}
    return {"name": name, "description": "Books.", key: {"type": "dict", "properties": properties}}


def bfcl_row(id_: str, *turns: str, **more: Any) -> dict[str, Any]:
    question = [[{"role": "user", "content": turn}] for turn in turns]
    return {"id": id_, "question": question, "function": [document()], **more}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def sample(*turns: str, id_: str = "s", tools: Sequence[Tool] = ()) -> Sample:
    messages = [message for turn in turns for message in (Message("user", turn), Message("assistant", "Well."))]
    return Sample(id_, tuple(tools), tuple(messages[:-1]), Target((Call("f"),)))


def found(row: dict[str, Any], of: Sample, folder: Path) -> list[tuple[str, str]]:
    """What of a BFCL row a sample has."""
    write(folder / "BFCL_v4_multiple.json", row)
    prints, _ = fingerprints(ContaminationConfig(str(folder), "off"))
    return [(overlap.row, overlap.kind) for overlap in check_samples([of], prints).overlaps]


@pytest.mark.parametrize(
    ("request_", "turns", "kind"),
    [
        (REQUEST, [REQUEST], "exact"),
        (REQUEST, [f"  {REQUEST}\n"], "exact"),
        (REQUEST, ["Hello there.", REQUEST], "exact"),
        (REQUEST, [REQUEST.upper().replace(" ", ", ")], "normalised"),
        (REQUEST, ["Please book me a quiet room for three nights in Köln, will you? Thanks."], "ngram"),
        (REQUEST, [f"Hello! {REQUEST} And breakfast, of course, with eggs."], "ngram"),
        (REQUEST, ["Please book me a quiet room for", "three nights in Ulm from the second of May."], "normalised"),
        (REQUEST, ["Please book me a quiet room for three adults and their dog."], None),  # 8 words of 16
        (REQUEST, ["Book three quiet rooms in May: please me for a second night in Ulm."], None),
        (SHORT, [SHORT], "exact"),
        (SHORT, ["book a room now"], "normalised"),
        (SHORT, ["Hello there.", SHORT], None),  # a short turn of a dialogue says nothing
        (SHORT, ["Book a room now in Ulm."], None),
        ("Hello there.", ["Hello there."], None),  # everybody's
        ("今天北京的天气怎么样呢？", ["请问今天北京的天气怎么样呢"], "ngram"),
        ("今天北京的天气怎么样呢？", ["今天上海的天气怎么样呢"], None),
    ],
)
def test_requests(tmp_path, request_, turns, kind):
    assert found(bfcl_row("r", request_), sample(*turns), tmp_path) == ([("r", kind)] if kind else [])


def test_more_than_half_of_the_words_is_needed(tmp_path):
    text = " ".join(f"word{place}" for place in range(16))
    head = " ".join(text.split()[:8])
    assert found(bfcl_row("r", text), sample(f"{head} and no more"), tmp_path) == []
    assert found(bfcl_row("r", text.rsplit(" ", 1)[0]), sample(f"{head} and no more"), tmp_path) == [("r", "ngram")]


def test_turns_of_a_row(tmp_path):
    row = bfcl_row("r", "Yes.", REQUEST, "No.")
    assert found(row, sample(REQUEST), tmp_path) == [("r", "exact")]
    assert found(row, sample("yes", "no"), tmp_path) == []
    short = bfcl_row("r", "Yes, please.", "Not now.")
    assert found(short, sample("Yes, please.", "Not now."), tmp_path) == [("r", "exact")]
    assert found(short, sample("yes please", "not now"), tmp_path) == [("r", "normalised")]
    assert found(short, sample("Yes, please."), tmp_path) == []


def test_what_has_no_word_matches_nothing(tmp_path):
    for request in ("", "???", " \n"):
        assert found(bfcl_row("r", request), sample(""), tmp_path) == []
        assert found(bfcl_row("r", request, "!"), sample("?", "!"), tmp_path) == []
    assert (
        found(bfcl_row("r", SHORT), Sample("s", (), (Message("system", SHORT),), Target((Call("f"),))), tmp_path) == []
    )


def overlap_by_definition(request: str, texts: Sequence[str], n: int = 8) -> float:
    """The share of a request's words that lie in an 8-gram of a text, word by word."""
    wanted, seen = words(request), [words(text) for text in texts]
    grams = [text[i : i + n] for text in seen for i in range(len(text) - n + 1)]
    lying = [
        any(wanted[start : start + n] in grams for start in range(max(0, at - n + 1), at + 1))
        for at in range(len(wanted))
    ]
    return sum(lying) / len(wanted)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_overlap_is_as_defined(data):
    vocabulary = st.sampled_from(["a", "b", "c"])
    request = data.draw(st.lists(vocabulary, min_size=8, max_size=30).map(" ".join))
    cut = data.draw(st.integers(0, 20))
    turns = data.draw(st.lists(st.lists(vocabulary, min_size=1, max_size=20).map(" ".join), min_size=1, max_size=2))
    turns[0] = f"{' '.join(request.split()[cut:])} {turns[0]}"
    item = fingerprint("bfcl", "", [benchmarks.BenchmarkRow("r", (request,), ())])
    overlaps = check_samples([sample(*turns)], [item]).overlaps
    share = overlap_by_definition(request, turns)
    if request in (turn.strip() for turn in turns):
        assert overlaps[0].kind == "exact"
    elif share > 0.5:
        assert overlaps[0].overlap in (share, 1.0) and overlaps[0].kind in ("ngram", "normalised")
    else:
        assert overlaps == []


def tools_found(theirs: dict[str, Any], ours: Tool, folder: Path) -> list[str]:
    write(folder / "BFCL_v4_multiple.json", bfcl_row("r", REQUEST, function=[theirs]))
    prints, _ = fingerprints(ContaminationConfig(str(folder), "off"))
    report = check_samples([sample("Hello.", tools=[ours])] * 3, prints)
    assert not report.contaminated, "a tool is no question"
    assert all(overlap.samples == 3 for overlap in report.tools)
    return [overlap.kind for overlap in report.tools]


def tool(name: str, *parameters: str) -> Tool:
    return Tool(name, "", {"type": "object", "properties": {parameter: {} for parameter in parameters}})


@pytest.mark.parametrize(
    ("ours", "kinds"),
    [
        (tool("room.book", "city", "nights"), ["same"]),
        (tool("roomBook", "Nights", "city"), ["same"]),
        (tool("room.book", "city"), []),
        (tool("room.book", "city", "nights", "rate"), ["similar"]),
        (tool("book_room", "city", "nights"), ["similar"]),
        (tool("hotel.book", "city", "nights"), []),
        (tool("room.book"), []),
    ],
)
def test_tools(tmp_path, ours, kinds):
    assert tools_found(document("room.book", "city", "nights"), ours, tmp_path) == kinds


def test_the_files_of_bfcl(tmp_path):
    write(tmp_path / "BFCL_v4_multiple.json", bfcl_row("a", REQUEST))
    write(tmp_path / "BFCL_v4_multi_turn_base.json", {**bfcl_row("b", "Hi there.", "Go on."), "function": []})
    write(tmp_path / "multi_turn_func_doc" / "files.json", document("cd", "folder"))
    write(tmp_path / "BFCL_v4_format_sensitivity.json", '{"ids":', "[]}")
    write(tmp_path / "possible_answer" / "BFCL_v4_multiple.json", {"id": "a", "ground_truth": []})
    [item], lines = fingerprints(ContaminationConfig(str(tmp_path), "off"))
    assert item.rows == 2 and [request.row for request in item.requests] == ["b", "a"]
    assert [tool.row for tool in item.tools] == ["a", "files.cd"]
    assert lines == ["acebench: data is not held against it (switched off)"]


@pytest.mark.parametrize("place", ["", "data_all/data_en", "data_all/data_zh"])
def test_the_files_of_acebench(tmp_path, place):
    dialogue = f"user: {REQUEST}\nsystem: Which hotel?\nuser: Any\nof them.\n"
    rows = [
        {"id": "a_0", "question": dialogue, "function": [document(key="arguments")]},
        {"id": "b_0", "question": SHORT, "function": [{"name": "f", "description": "", "parameters": {}}]},
    ]
    write(tmp_path / place / "data_normal_atom_bool.json", *rows)
    [item], _ = fingerprints(ContaminationConfig("off", str(tmp_path)))
    overlaps = check_samples([sample(REQUEST, id_="x"), sample("book a room now", id_="y")], [item]).overlaps
    assert [(overlap.sample, overlap.row, overlap.kind) for overlap in overlaps] == [
        ("x", "a_0", "exact"), ("y", "b_0", "normalised"),
    ]  # fmt: skip
    assert split_turns(dialogue) == [("user", REQUEST), ("system", "Which hotel?"), ("user", "Any\nof them.")]


def test_fingerprints_hold_no_text_and_come_back(tmp_path):
    write(tmp_path / "data" / "BFCL_v4_multiple.json", bfcl_row("a", REQUEST), bfcl_row("b", "Hi.", REQUEST))
    prints, _ = fingerprints(ContaminationConfig(str(tmp_path / "data"), "off"))
    write_fingerprints(tmp_path / "prints.jsonl", prints)
    assert read_fingerprints(tmp_path / "prints.jsonl") == prints
    text = (tmp_path / "prints.jsonl").read_text()
    assert not any(word in text for word in ("quiet", "Ulm", "room", "city"))
    before = prints[0].sha256
    write(tmp_path / "data" / "BFCL_v4_multiple.json", bfcl_row("a", f"{REQUEST} "), bfcl_row("b", "Hi.", REQUEST))
    assert fingerprints(ContaminationConfig(str(tmp_path / "data"), "off"))[0][0].sha256 != before
    write(tmp_path / "prints.jsonl", {"row": "a", "same": 1, "parts": []})
    with pytest.raises(DataError, match=r"prints\.jsonl: no fingerprints"):
        read_fingerprints(tmp_path / "prints.jsonl")


def test_auto_takes_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "_BFCL_PACKAGE", "bfcl_eval_that_is_not_there")
    monkeypatch.delenv(benchmarks.ACEBENCH_VARIABLE, raising=False)
    prints, lines = fingerprints(ContaminationConfig())
    assert prints == [] and len(lines) == 2
    assert "bfcl: data is not held against it (no copy is here; pip install --no-deps bfcl-eval" in lines[0]
    assert (
        "acebench: data is not held against it (no copy is here" in lines[1]
        and benchmarks.ACEBENCH_VARIABLE in lines[1]
    )
    write(tmp_path / "data_normal_x.json", {"id": "a", "question": f"user: {REQUEST}", "function": []})
    monkeypatch.setenv(benchmarks.ACEBENCH_VARIABLE, str(tmp_path))
    assert [item.benchmark for item in fingerprints(ContaminationConfig())[0]] == ["acebench"]


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        (None, None, "no files of bfcl are here; pip install --no-deps bfcl-eval"),
        ("BFCL_v4_multiple.json", "{broken", r"BFCL_v4_multiple\.json:1: not JSON"),
        ("BFCL_v4_multiple.json", {"id": "a"}, r"BFCL_v4_multiple\.json:1: no row of bfcl \('question'\)"),
        ("BFCL_v4_multiple.json", [1], r"BFCL_v4_multiple\.json:1: no row of bfcl"),
    ],
)
def test_bad_files_are_one_line(tmp_path, file, row, said):
    if file:
        write(tmp_path / file, row)
    with pytest.raises(DataError, match=said) as caught:
        fingerprints(ContaminationConfig(str(tmp_path), "off"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        fingerprints(ContaminationConfig("nowhere", "off"))


def test_contaminated_samples_are_dropped_or_only_reported(tmp_path):
    write(tmp_path / "BFCL_v4_multiple.json", bfcl_row("r", REQUEST))
    prints, _ = fingerprints(ContaminationConfig(str(tmp_path), "off"))
    samples = [sample(REQUEST, id_="bad"), sample("Hello.", id_="good", tools=[tool("room.book", "city")])]
    kept, metrics = clean_samples(samples, prints, "drop", tmp_path / "pairs.jsonl")
    assert [item.id for item in kept] == ["good"] and metrics["contaminated"] == 1
    counts = metrics["contamination"]["benchmarks"]["bfcl"]
    assert counts["sha256"] == prints[0].sha256
    assert (counts["exact"], counts["normalised"], counts["ngram"], counts["tools_same"]) == (1, 0, 0, 1)
    assert list(read_jsonl(tmp_path / "pairs.jsonl")) == [
        {"sample": "bad", "kind": "exact", "benchmark": "bfcl", "row": "r", "overlap": 1.0},
        {"tool": "room.book", "samples": 1, "kind": "same", "benchmark": "bfcl", "row": "r", "overlap": 1.0},
    ]
    kept, reported = clean_samples(samples, prints, "report", tmp_path / "pairs.jsonl")
    assert kept == samples and reported["contaminated"] == 1


def test_settings():
    assert ContaminationConfig(bfcl="False").bfcl == "off"  # what YAML makes of off
    with pytest.raises(ValueError, match=r"contamination\.action: expected drop or report, found 'keep'"):
        ContaminationConfig(action="keep")


BFCL = installed_folder("bfcl_eval")


@pytest.mark.skipif(BFCL is None, reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval")
def test_every_row_of_bfcl_is_found_and_20000_samples_take_seconds():
    prints, _ = fingerprints(ContaminationConfig(acebench="off"))
    files = benchmarks.benchmark_files("bfcl", BFCL)
    rows = [row for row in benchmarks.read_benchmark("bfcl", files) if len(words(" ".join(row.requests))) >= FEWEST]
    own = [
        Sample(row.id, (), tuple(Message("user", text) for text in row.requests), Target(intent="answer"))
        for row in rows
    ]
    hits = {(overlap.sample, overlap.row) for overlap in check_samples(own, prints).overlaps if overlap.kind == "exact"}
    assert len(rows) > 4000 and all((row.id, row.id) in hits for row in rows)
    world = generate("train", 20_000, seed=0)
    start = time.process_time()
    report = check_samples(world, prints)
    assert time.process_time() - start < 20
    assert len(report.contaminated) < 20, "the world is not made from the benchmark"


def test_signatures_of_documents():
    assert benchmarks._signature(document("f", "a", "b", key="arguments")) == ToolSignature("f", ("a", "b"))
    assert benchmarks._signature({"name": "f"}) == ToolSignature("f", ())


def test_the_command(tmp_path):
    write(tmp_path / "bench" / "BFCL_v4_multiple.json", bfcl_row("r", REQUEST))
    write_samples(tmp_path / "mine.jsonl", [sample(REQUEST, id_="bad"), sample("Hello.", id_="good")])
    args = ["data", "contamination", "mine.jsonl", "--out", "out", "--acebench", "off"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "from looptool_jax.cli import main; main()", *args]
    done = subprocess.run([*command, "--bfcl", "bench"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "bfcl (1 rows)" in done.stdout and "acebench: data is not held against it (switched off)" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 of 2 samples are in a benchmark  -> out"
    assert [pair["sample"] for pair in read_jsonl(tmp_path / "out" / "contamination.jsonl")] == ["bad"]
    for bfcl, said in (
        ("nowhere", "nowhere: no such folder"),
        ("off", "bfcl: data is not held against it (switched off)"),
    ):
        failed = subprocess.run([*command, "--bfcl", bfcl], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1 and said in failed.stderr
