"""BFCL's rows, averages and command, on rows of these tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from looptool_jax.data.store import DataError, read_jsonl
from looptool_jax.evaluation.bfcl import data as bfcl
from looptool_jax.evaluation.bfcl.evaluate import evaluate, summary
from looptool_jax.evaluation.bfcl.scores import averages, official_overall
from looptool_jax.inference.answers import AnswerConfig
from looptool_jax.report.bfcl import bfcl_tables
from looptool_jax.toolcall import BfclCall, Call, Message, Target, get_format, match_bfcl_calls
from looptool_jax.world import generate

from .scripted import Scripted

MAIN = "from looptool_jax.cli import main; main()"


def function(name: str = "room.book", **properties: Any) -> dict[str, Any]:
    properties = properties or {"nights": {"type": "integer", "description": "How many."}, "rate": {"type": "float"}}
    parameters = {"type": "dict", "properties": properties, "required": ["nights"]}
    return {"name": name, "description": "Books a room.", "parameters": parameters}


def row(id_: str, *functions: dict[str, Any], **more: Any) -> dict[str, Any]:
    question = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two nights."}]]
    return {"id": id_, "question": question, "function": list(functions or (function(),)), **more}


def label(id_: str, **accepted: list[Any]) -> dict[str, Any]:
    return {"id": id_, "ground_truth": [{"room.book": accepted or {"nights": [2], "rate": [80.5, ""]}}]}


def write(folder: Path, name: str, rows: list[Any], labels: list[Any] | None = None) -> Path:
    (folder / "possible_answer").mkdir(exist_ok=True, parents=True)
    for file, content in ((folder / name, rows), (folder / "possible_answer" / name, labels)):
        if content is not None:
            file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in content))
    return folder


SIMPLE = bfcl.CATEGORIES["simple_python"]
FILE = "BFCL_v4_simple_python.json"


def test_a_row_becomes_a_sample_and_a_target(tmp_path):
    write(tmp_path, FILE, [row("simple_python_0")], [label("simple_python_0")])
    [found] = bfcl.read_category(tmp_path, SIMPLE)
    assert found.sample.id == "simple_python_0" and found.sample.category == "simple_python"
    assert found.sample.messages == (Message("system", "Be brief."), Message("user", "Two nights."))
    [tool] = found.sample.tools
    assert tool.name == "room.book" and tool.required == ("nights",)
    assert tool.parameters["type"] == "object" and tool.properties["rate"] == {"type": "number"}
    assert found.target.functions[0]["parameters"]["properties"]["rate"] == {"type": "float"}, "kept for the checker"
    assert found.target.calls == (BfclCall("room.book", {"nights": [2], "rate": [80.5, ""]}),)
    assert found.sample.target == Target(calls=(Call("room.book", {"nights": 2}),))


def test_v3_files_have_other_names(tmp_path):
    write(tmp_path, "BFCL_v3_simple.json", [row("simple_0")], [label("simple_0")])
    assert bfcl.read_category(tmp_path, SIMPLE)[0].sample.id == "simple_0"
    write(tmp_path, FILE, [row("simple_python_0")], [label("simple_python_0")])
    assert bfcl.read_category(tmp_path, SIMPLE)[0].sample.id == "simple_python_0", "v4 goes first"


def test_the_first_rows_of_a_category(tmp_path):
    rows, labels = [row(f"s_{i}") for i in range(3)], [label(f"s_{i}") for i in range(3)]
    write(tmp_path, FILE, rows, labels)
    assert [found.sample.id for found in bfcl.read_category(tmp_path, SIMPLE, 2)] == ["s_0", "s_1"]
    assert len(bfcl.read_category(tmp_path, SIMPLE)) == 3


def test_rows_that_want_no_call_need_no_labels(tmp_path):
    write(tmp_path, "BFCL_v4_live_irrelevance.json", [{**row("x"), "function": []}])
    [found] = bfcl.read_category(tmp_path, bfcl.CATEGORIES["live_irrelevance"])
    assert found.sample.tools == () and found.sample.target.intent == "refuse"
    assert found.target.kind == "irrelevance" and found.target.calls == ()


@pytest.mark.parametrize(("name", "language"), [("simple_java", "java"), ("simple_javascript", "javascript")])
def test_java_and_javascript_parameters_are_shown_as_strings(tmp_path, name, language):
    kinds = {"java": ("long", "ArrayList"), "javascript": ("integer", "array")}[language]
    wanted = {"java": ("2L", 'new ArrayList<String>(Arrays.asList("a b"))'), "javascript": ("2", '["a b"]')}[language]
    properties = {"nights": {"type": kinds[0]}, "names": {"type": kinds[1], "items": {"type": "String"}}}
    write(
        tmp_path, f"BFCL_v4_{name}.json", [row("x", function(**properties))], [label("x", nights=[2], names=[["a b"]])]
    )
    [found] = bfcl.read_category(tmp_path, bfcl.CATEGORIES[name])
    shown = found.sample.tools[0].properties
    assert {shown[key]["type"] for key in shown} == {"string"} and f"{kinds[1]} of String" in shown["names"][
        "description"
    ]
    assert found.target.language == language
    assert found.sample.target.calls == (Call("room.book", dict(zip(("nights", "names"), wanted, strict=True))),)
    assert match_bfcl_calls(found.sample.target.calls, found.target).ok


def test_a_required_parameter_is_not_optional_whatever_else_it_says(tmp_path):
    properties = {"nights": {"type": "integer", "optional": True}, "rate": {"type": "float", "optional": True}}
    write(tmp_path, FILE, [row("x", function(**properties))], [label("x")])
    assert bfcl.read_category(tmp_path, SIMPLE)[0].sample.tools[0].required == ("nights",)


@pytest.mark.parametrize(
    ("rows", "labels", "words"),
    [
        (None, None, ["neither BFCL_v4_simple_python.json nor BFCL_v3_simple.json", "--data"]),
        ([row("x")], None, ["possible_answer/BFCL_v4_simple_python.json: no such file", "--data"]),
        ([], [], ["holds no rows"]),
        ([row("x"), "{broken"], [label("x")], [f"{FILE}:2: not JSON"]),
        ([row("x"), [1]], [label("x")], [f"{FILE}:2: no BFCL row: expected an object with an id"]),
        ([{**row("x"), "question": "Hi"}], [label("x")], [f"{FILE}:1", "question: expected a list of one turn"]),
        ([{**row("x"), "question": [[{"role": "bot"}]]}], [label("x")], [f"{FILE}:1", "role"]),
        ([{**row("x"), "function": {}}], [label("x")], [f"{FILE}:1", "function: expected a list"]),
        ([row("x", {"name": "f"})], [label("x")], [f"{FILE}:1", "f: expected parameters with properties"]),
        ([row("x", function(nights={"type": "odd"}))], [label("x")], [f"{FILE}:1", "unknown type 'odd'"]),
        ([row("x")], ["{broken"], [f"possible_answer/{FILE}:1: not JSON"]),
        ([row("x"), row("y")], [label("x")], [f"possible_answer/{FILE}: no label of y"]),
        ([row("x")], [label("y")], [f"possible_answer/{FILE}:1: no label of x: found 'y'"]),
        ([row("x")], [{"id": "x", "ground_truth": []}], ["ground_truth: expected a list of calls"]),
        ([row("x")], [{"id": "x", "ground_truth": [{"f": {"a": 1}}]}], ["expected {function: {parameter:"]),
    ],
)
def test_bad_files_are_one_line_with_file_and_line(tmp_path, rows, labels, words):
    if rows is not None:
        write(tmp_path, FILE, rows, labels)
    with pytest.raises(DataError) as caught:
        bfcl.read_category(tmp_path, SIMPLE)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_the_installed_package_is_found_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "bfcl_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert bfcl.data_folder(None) == package / "data"
    monkeypatch.setattr(bfcl, "PACKAGE", "bfcl_eval_that_is_not_there")
    with pytest.raises(DataError, match=r"not installed; .*pip install --no-deps bfcl-eval"):
        bfcl.data_folder(None)
    with pytest.raises(DataError, match="no such folder"):
        bfcl.data_folder(str(tmp_path / "nothing"))


def test_categories_by_name_and_by_group():
    names = [category.name for category in bfcl.choose_categories(["live", "multiple"])]
    assert names == ["multiple", *(name for name in bfcl.CATEGORIES if name.startswith("live_"))]
    single = bfcl.choose_categories(["single_turn"])
    assert len(single) == 13 and sum(category.rows for category in single) == 3641
    several = bfcl.choose_categories(["multi_turn"])
    assert [category.group for category in several] == ["multi_turn"] * 4
    assert bfcl.choose_categories(["all"]) == [*single, *several] == list(bfcl.CATEGORIES.values())
    assert {category.group for category in single} == {"live", "non_live"}
    with pytest.raises(DataError, match="'multi' is not known"):
        bfcl.choose_categories(["multi"])


def test_averages_of_v3_and_v4():
    accuracy = {
        "simple_python": 0.9, "simple_java": 0.6, "simple_javascript": 0.3, "multiple": 0.8, "parallel": 0.7,
        "parallel_multiple": 0.5, "irrelevance": 0.4, "live_simple": 1.0, "live_multiple": 0.5, "live_parallel": 0.0,
        "live_parallel_multiple": 0.25, "live_irrelevance": 0.8, "live_relevance": 1.0, "multi_turn_base": 0.4,
        "multi_turn_miss_func": 0.2, "multi_turn_miss_param": 0.1, "multi_turn_long_context": 0.3,
    }  # fmt: skip
    rows = {name: category.rows for name, category in bfcl.CATEGORIES.items()}
    found = averages(accuracy, rows)
    v3 = [(0.6 + 0.8 + 0.7 + 0.5 + 0.4) / 5, (258 + 526.5 + 6 + 0.8 * 884 + 16) / 2251, 0.25]
    v4 = [(0.6 + 0.8 + 0.7 + 0.5) / 4, (258 + 526.5 + 6) / 1351, 0.6, 0.25]
    names = ["v3 Non-Live", "v3 Live", "v3 Multi-Turn", "v3 Overall",
             "v4 Non-Live", "v4 Live", "v4 Irrelevance", "v4 Multi-Turn", "v4 Agentic", "v4 Overall"]  # fmt: skip
    assert list(found) == names
    assert list(found.values())[:8] == pytest.approx([*v3, sum(v3) / 3, *v4])
    assert found["v4 Agentic"] is None and found["v4 Overall"] is None, "agentic is not measured"
    official = 0.1 * v4[0] + 0.1 * v4[1] + 0.1 * v4[2] + 0.3 * v4[3]
    assert official_overall(accuracy, rows) == pytest.approx(official)
    del accuracy["simple_java"], accuracy["live_relevance"], rows["simple_java"], rows["live_relevance"]
    assert [name for name, value in averages(accuracy, rows).items() if value is None] == [
        "v3 Non-Live", "v3 Live", "v3 Overall", "v4 Non-Live", "v4 Agentic", "v4 Overall"
    ]  # fmt: skip
    assert official_overall(accuracy, rows) == pytest.approx(official - 0.1 * 0.2 / 4), "simple_java counts as 0"
    del accuracy["live_multiple"], rows["live_multiple"]
    live = 0.1 * (v4[1] - (258 + 6) / 1351)
    assert official_overall(accuracy, rows) == pytest.approx(official - 0.1 * 0.2 / 4 - live), "with all of its rows"


def test_answers_are_scored_and_written(tmp_path):
    ids = ["s_0", "s_1", "s_2", "s_long"]
    write(tmp_path, FILE, [row(id_) for id_ in ids], [label(id_) for id_ in ids])
    write(tmp_path, "BFCL_v4_irrelevance.json", [row("i_0")])
    rows = [found for name in ("simple_python", "irrelevance")
            for found in bfcl.read_category(tmp_path, bfcl.CATEGORIES[name])]  # fmt: skip
    right = get_format("qwen3").render_target(rows[0].sample.target)
    policy = Scripted((right, "stop"), (right, "length"), ("No.", "stop"), ("<tool_call>\n{", "stop"))
    done = []
    scores = evaluate(policy, rows, [], AnswerConfig(100), str(tmp_path / "out"), lambda tokens: None, done.append)
    assert done == [5]
    assert scores["categories"] == {
        "simple_python": {"rows": 4, "accuracy": 0.5, "fixed": 0.25, "unreadable": 0, "truncated": 1, "unanswered": 1},
        "irrelevance": {"rows": 1, "accuracy": 1.0, "fixed": 0.0, "unreadable": 1, "truncated": 0, "unanswered": 0},
    }
    results = list(read_jsonl(tmp_path / "out" / "results.jsonl"))
    assert [result["id"] for result in results] == [*ids, "i_0"]
    assert [result["correct"] for result in results] == [True, True, False, False, True]
    assert results[1]["reason_fixed"] == "truncated at the token limit"
    assert results[2]["reason"] == "0 calls instead of 1" and results[2]["answer"] == "No."
    assert results[3]["reason"] == "the prompt is longer than 100 tokens"
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores == summary(results)
    by_category, average = bfcl_tables(scores)
    assert list(by_category.rows[0][:4]) == ["simple_python", "4", "50.0%", "25.0%"]
    assert by_category.rows[1][4] == "100.0%", "of unreadable answers beside irrelevance"
    assert "no leaderboard figure" in by_category.note
    assert "live_simple" in scores["missing"] and scores["missing"][-1] == "agentic" and len(scores["missing"]) == 16
    *others, official = average.rows
    assert all(set(line[1:]) == {"–"} for line in others)
    assert official == ["v4 Overall, missing as 0", f"{0.1 * 0.5 / 12 + 0.1 * 1 / 2:.1%}", f"{0.1 * 0.25 / 12:.1%}"]


def as_bfcl(schema: dict[str, Any]) -> dict[str, Any]:
    names = {"object": "dict", "number": "float"}
    out = {**schema, "type": names.get(schema.get("type", "string"), schema.get("type", "string"))}
    if "properties" in out:
        out["properties"] = {name: as_bfcl(part) for name, part in out["properties"].items()}
    if isinstance(out.get("items"), dict):
        out["items"] = as_bfcl(out["items"])
    return out


def looptool(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", MAIN, *args], capture_output=True, text=True, cwd=cwd, env=env)


def test_the_command_on_the_embedded_model(tmp_path):
    """Rows of the world that the model knows: some it answers rightly, and what it gets depends on the labels."""
    samples = generate("heldout", 6, 3, ["single"])
    rows, labels, swapped = [], [], []
    for sample in samples:
        functions = [{**tool.to_json(), "parameters": as_bfcl(tool.parameters)} for tool in sample.tools]
        question = [[{"role": message.role, "content": message.content} for message in sample.messages]]
        rows.append({"id": sample.id, "question": question, "function": functions})
        [call] = sample.target.calls
        labels.append({"id": sample.id, "ground_truth": [{call.name: {k: [v] for k, v in call.arguments.items()}}]})
        swapped.append({"id": sample.id, "ground_truth": [{call.name: {"nothing": [1]}}]})
    folder = write(tmp_path / "data", "BFCL_v4_multiple.json", rows, labels)
    write(folder, "BFCL_v4_live_multiple.json", rows, swapped)
    result = looptool("eval", "bfcl", "--data", "data", "--categories", "multiple,live_multiple", "--out", "out",
                      "--limit", "5", "evaluate.answers.prompt_tokens=512", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Not measured: simple_python, simple_java" in result.stdout and "live_multiple" in result.stdout
    results = list(read_jsonl(tmp_path / "out" / "results.jsonl"))
    right = {
        name: [row["correct"] for row in results if row["category"] == name] for name in ("multiple", "live_multiple")
    }
    assert len(right["multiple"]) == 5 and any(right["multiple"])
    assert right["live_multiple"] == [False] * 5
    answers = [row["answer"] for row in results]
    assert answers[:5] == answers[5:], "the same prompts"


def test_mistakes_are_one_line(tmp_path):
    for args, word in (
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", ".", "--categories", "agentic"], "'agentic' is not known"),
        (["--data", "."], "neither BFCL_v4_simple_python.json"),
    ):
        result = looptool("eval", "bfcl", *args, "--out", "out", cwd=tmp_path)
        assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1 and word in result.stderr


def test_eval_without_a_name_is_on_samples(tmp_path):
    for args in (["eval"], ["eval", "samples"]):
        result = looptool(*args, "--data", "missing.jsonl", "--out", "out", cwd=tmp_path)
        assert result.returncode == 2 and "missing.jsonl: no such file" in result.stderr
