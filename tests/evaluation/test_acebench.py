"""ACEBench's rows, averages and command, on rows of these tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from looptool_jax.data.store import DataError, read_jsonl
from looptool_jax.evaluation.acebench import data as acebench
from looptool_jax.evaluation.acebench.evaluate import evaluate, summary
from looptool_jax.evaluation.acebench.scores import accuracy, averages
from looptool_jax.inference.answers import AnswerConfig
from looptool_jax.report.acebench import acebench_tables
from looptool_jax.toolcall import Call, Message, Target, get_format, match_acebench
from looptool_jax.world import generate

from .scripted import Scripted

MAIN = "from looptool_jax.cli import main; main()"
SINGLE = acebench.CATEGORIES["normal_single_turn_single_function"]
DIALOGUE = acebench.CATEGORIES["normal_multi_turn_user_switch"]
LABEL = {"room_book": {"city": "Ulm", "nights": 2}}


def function(name: str = "room_book", key: str = "parameters") -> dict[str, Any]:
    properties = {"city": {"type": "string", "description": "Where."}, "nights": {"type": "integer"}}
    schema = {"type": "dict", "properties": properties, "required": ["city"]}
    return {"name": name, "description": "Books a room.", key: schema, "results": {"type": "object"}, "tags": ["x"]}


def row(id_: str, question: str = "user: Two nights in Ulm.\n", **more: Any) -> dict[str, Any]:
    return {"id": id_, "question": question, "function": [function()], "time": "It is Monday.", **more}


def label(id_: str, truth: Any = LABEL) -> dict[str, Any]:
    return {"id": id_, "ground_truth": truth}


def write(folder: Path, category: acebench.Category, rows: list[Any], labels: list[Any] | None) -> Path:
    (folder / "possible_answer").mkdir(exist_ok=True, parents=True)
    name = f"data_{category.name}.json"
    for file, content in ((folder / name, rows), (folder / "possible_answer" / name, labels)):
        if content is not None:
            file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in content))
    return folder


def test_a_row_becomes_a_sample_and_a_target(tmp_path):
    write(tmp_path, SINGLE, [row("a_0"), {**row("a_1"), "function": [function(key="arguments")]}], [
        label("a_0"), label("a_1", [LABEL, {"room_book": {"city": "Ulm"}}])
    ])  # fmt: skip
    first, second = acebench.read_category(tmp_path, SINGLE)
    assert first.sample.id == "a_0" and first.sample.category == SINGLE.name
    system, user = first.sample.messages
    assert system.role == "system" and system.content.endswith("It is Monday.")
    assert user == Message("user", "Two nights in Ulm.")
    [tool] = first.sample.tools
    assert (tool.name, tool.required, tool.parameters["type"]) == ("room_book", ("city",), "object")
    assert first.target.functions[0]["parameters"]["type"] == "dict", "kept for the scorer"
    assert first.target.labels == (LABEL,) and len(second.target.labels) == 2
    assert first.sample.target == Target(calls=(Call("room_book", {"city": "Ulm", "nights": 2}),))
    assert first.gold == "[room_book(city='Ulm', nights=2)]"
    assert second.sample.tools[0].properties == tool.properties


def test_a_dialogue_becomes_messages(tmp_path):
    question = (
        "user: A room in Ulm.\nsystem: How many nights?\nuser: Two\nor three.\n"
        'system: [room_book(city="Ulm", nights=2)]\nsystem: It is booked.\nuser: Now one in Rome.\n'
    )
    write(tmp_path, DIALOGUE, [row("a_0_1", question)], [label("a_0_1")])
    [found] = acebench.read_category(tmp_path, DIALOGUE)
    assert found.sample.messages[1:] == (
        Message("user", "A room in Ulm."),
        Message("assistant", "How many nights?"),
        Message("user", "Two\nor three."),
        Message("assistant", calls=(Call("room_book", {"city": "Ulm", "nights": 2}),)),
        Message("tool", "It is booked.", name="room_book"),
        Message("user", "Now one in Rome."),
    )
    assert found.target.dialogue


def test_profiles_repeated_calls_and_special_rows(tmp_path):
    preference = acebench.CATEGORIES["normal_preference"]
    truth = {"room_book_1": {"city": "Ulm"}, "room_book_2": {"city": "Rome"}}
    write(tmp_path, preference, [{**row("p"), "profile": {"city": "Ulm"}}], [label("p", truth)])
    [found] = acebench.read_category(tmp_path, preference)
    assert '{"city": "Ulm"}' in found.sample.messages[0].content
    assert [call.name for call in found.sample.target.calls] == ["room_book", "room_book"]
    for name, truth, intent, missing in (
        ("special_incomplete", {"room_book": ["city", "nights"]}, "clarify", ("city", "nights")),
        ("special_error_param", {"nights": ["many"]}, "clarify", ()),
        ("special_irrelevant", "Due to ...", "refuse", ()),
    ):
        category = acebench.CATEGORIES[name]
        write(tmp_path, category, [row("s", "Two nights in Ulm.")], [label("s", truth)])
        [found] = acebench.read_category(tmp_path, category)
        assert (found.sample.target.intent, found.sample.target.missing) == (intent, missing)
        assert found.sample.messages[1] == Message("user", "Two nights in Ulm.")
        assert "Missing necessary parameters" in found.sample.messages[0].content
        for mode in ("official", "fixed"):
            assert match_acebench(found.sample.target.text, found.target, mode).ok, (name, mode)


@pytest.mark.parametrize(
    ("rows", "labels", "words"),
    [
        (None, None, ["data_normal_single_turn_single_function.json: no such file", "--data"]),
        ([row("x")], None, ["possible_answer/data_normal_single_turn_single_function.json: no such file"]),
        ([], [], ["holds no rows"]),
        ([row("x"), "{broken"], [label("x")], ["function.json:2: not JSON"]),
        ([[1]], [label("x")], ["function.json:1: no ACEBench row: expected an object with an id and a question"]),
        ([{**row("x"), "function": {}}], [label("x")], ["function.json:1", "function: expected a list"]),
        ([{**row("x"), "function": [{"name": "f", "parameters": 1}]}], [label("x")], ["f: expected parameters"]),
        ([{**row("x"), "function": [{"name": "f", "parameters": {"properties": {"a": 1}}}]}], [label("x")],
         ["f: expected properties"]),
        ([row("x"), row("y")], [label("x")], ["function.json: no label of y"]),
        ([row("x")], [label("y")], ["possible_answer/", "function.json:1: no label of x: found 'y'"]),
        ([row("x")], [label("x", [])], ["ground_truth: expected at least one answer"]),
        ([row("x")], [label("x", {"f": 1})], ["ground_truth: expected {function: {parameter: value}}"]),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_with_file_and_line(tmp_path, rows, labels, words):
    if rows is not None:
        write(tmp_path, SINGLE, rows, labels)
    with pytest.raises(DataError) as caught:
        acebench.read_category(tmp_path, SINGLE)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_checkout_or_its_data(tmp_path):
    write(tmp_path / "data_all" / "data_en", SINGLE, [row("x")], [label("x")])
    assert acebench.data_folder(str(tmp_path)) == acebench.data_folder(str(tmp_path / "data_all" / "data_en"))
    with pytest.raises(DataError, match=r"nothing: no data_\*\.json here"):
        acebench.data_folder(str(tmp_path / "nothing"))


def test_categories_by_name_and_by_group():
    assert [category.group for category in acebench.choose_categories(["special"])] == ["special"] * 3
    assert len(acebench.choose_categories(["all"])) == 16
    assert sum(category.rows for category in acebench.choose_categories(["normal"])) == 823
    with pytest.raises(DataError, match="'agent_multi_turn' is not known"):
        acebench.choose_categories(["agent_multi_turn"])


def test_dialogues_count_as_a_whole():
    ids = ["u_0_0", "u_0_1", "u_1_0", "u_10_0", "u_10_1"]
    assert accuracy(DIALOGUE, ids, [True, False, True, True, True]) == pytest.approx(2 / 3)
    assert accuracy(SINGLE, ids, [True, False, True, True, True]) == pytest.approx(4 / 5)
    values = dict.fromkeys(acebench.CATEGORIES, 0.5) | {"normal_preference": 1.0, "special_incomplete": 0.8}
    assert averages(values) == pytest.approx({"Normal": 6.5 / 12, "Special": 0.6})
    del values["normal_atom_bool"]
    assert averages(values)["Normal"] is None


def test_answers_are_scored_and_written(tmp_path):
    irrelevant = acebench.CATEGORIES["special_irrelevant"]
    write(
        tmp_path, SINGLE, [row(id_) for id_ in ("a", "b", "c", "long")], [label(id_) for id_ in ("a", "b", "c", "long")]
    )
    write(tmp_path, irrelevant, [row("i")], [label("i", "No.")])
    rows = [found for category in (SINGLE, irrelevant) for found in acebench.read_category(tmp_path, category)]
    right = get_format("qwen3").render_target(rows[0].sample.target)
    wrong = get_format("qwen3").render_target(Target(calls=(Call("room_book", {"city": "Ulm", "nights": 3}),)))
    policy = Scripted((right, "stop"), (right, "length"), (wrong, "stop"), ("<tool_call>\n{", "stop"))
    sizes, out, done = AnswerConfig(prompt_tokens=100), str(tmp_path / "out"), []
    scores = evaluate(policy, rows, sizes, out, lambda tokens: None, done.append)
    assert sum(done) == 5
    assert evaluate(None, rows, sizes, out, lambda tokens: None, done.append) == scores, "answers are kept"
    assert scores["categories"] == {
        SINGLE.name: {"rows": 4, "official": 0.75, "fixed": 0.25, "ceiling": 1.0, "unreadable": 0, "truncated": 1,
                      "unanswered": 1},
        irrelevant.name: {"rows": 1, "official": 0.0, "fixed": 0.0, "ceiling": 1.0, "unreadable": 1, "truncated": 0,
                          "unanswered": 0},
    }  # fmt: skip
    results = list(read_jsonl(tmp_path / "out" / "results.jsonl"))
    assert [result["correct"] for result in results] == [True, True, True, False, False]
    assert [result["correct_fixed"] for result in results] == [True, False, False, False, False]
    assert results[3]["reason"] == "the prompt is longer than 100 tokens"
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores == summary(results)
    by_category, average = acebench_tables(scores)
    assert list(by_category.rows[0][:5]) == [SINGLE.name, "4", "75.0 %", "25.0 %", "100.0 %"]
    assert "no leaderboard figure" in by_category.note
    assert all(set(line[1:]) == {"–"} for line in average.rows)


CHECKOUT = os.environ.get("ACEBENCH_DIR")


@pytest.mark.skipif(not CHECKOUT, reason="no ACEBench here: name a checkout in ACEBENCH_DIR")
def test_the_ceilings_of_the_benchmark_itself():
    folder, ceilings = acebench.data_folder(str(CHECKOUT)), {}
    for category in acebench.choose_categories(["normal", "special"]):
        name, rows = category.name, acebench.read_category(folder, category)
        assert len(rows) == category.rows
        ids = [found.sample.id for found in rows]
        texts = [get_format("qwen3").render_target(found.sample.target) for found in rows]
        right = {
            mode: [match_acebench(text, found.target, mode).ok for text, found in zip(texts, rows, strict=True)]
            for mode in ("official", "fixed")
        }
        assert all(right["fixed"]), name
        ceilings[name] = round(accuracy(category, ids, right["official"]), 3)
    below = {name: value for name, value in ceilings.items() if value < 1}
    assert below == {
        "normal_multi_turn_user_adjust": 0.76, "normal_multi_turn_user_switch": 0.74, "normal_preference": 0.98,
        "normal_single_turn_parallel_function": 0.99,
    }  # fmt: skip


def looptool(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", MAIN, *args], capture_output=True, text=True, cwd=cwd, env=env)


def test_the_command_on_the_embedded_model(tmp_path):
    """Rows of the world that the model knows, in the benchmark's format; what it gets depends on the labels."""
    rows, labels, swapped = [], [], []
    for sample in generate("heldout", 6, 3, ["single"]):
        question = "".join(f"{message.role}: {message.content}\n" for message in sample.messages)
        functions = [tool.to_json() for tool in sample.tools]
        rows.append({"id": f"r_{sample.id}", "question": question, "function": functions})
        [call] = sample.target.calls
        labels.append(label(f"r_{sample.id}", {call.name: call.arguments}))
        swapped.append(label(f"r_{sample.id}", {call.name: {"nothing": "x"}}))
    folder = write(tmp_path / "data", SINGLE, rows, labels)
    write(folder, acebench.CATEGORIES["normal_similar_api"], rows, swapped)
    names = f"{SINGLE.name},normal_similar_api"
    result = looptool("eval", "acebench", "--data", "data", "--categories", names, "--out", "out", "--limit", "5",
                      "evaluate.answers.prompt_tokens=640", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Not measured: Agent multi-turn" in result.stdout and "normal_similar_api" in result.stdout
    results = list(read_jsonl(tmp_path / "out" / "results.jsonl"))
    right = {name: [row["correct_fixed"] for row in results if row["category"] == name] for name in names.split(",")}
    assert len(right[SINGLE.name]) == 5 and any(right[SINGLE.name])
    assert right["normal_similar_api"] == [False] * 5
    answers = [row["answer"] for row in results]
    assert answers[:5] == answers[5:], "the same prompts"
    for args, word in (
        (["--data", "nowhere"], "nowhere: no data"),
        (["--data", "data"], "no such file; give --data"),
        (["--data", "data", "--categories", "agent"], "data: the scenarios of agent_multi_step are not here"),
    ):
        failed = looptool("eval", "acebench", *args, "--out", "out", cwd=tmp_path)
        assert failed.returncode == 2 and len(failed.stderr.strip().splitlines()) == 1 and word in failed.stderr
