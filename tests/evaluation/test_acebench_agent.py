"""ACEBench's Agent rows on scenarios and rows of these tests' own, laid out like a checkout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from looptool_jax.data.store import DataError, read_jsonl
from looptool_jax.evaluation.acebench import agent, data
from looptool_jax.evaluation.acebench.evaluate import evaluate
from looptool_jax.evaluation.kept_answers import KeptAnswers
from looptool_jax.inference.answers import Answer, AnswerConfig
from looptool_jax.report.acebench import acebench_tables
from looptool_jax.toolcall import Call

BASE = """
class BaseApi:
    def __init__(self):
        self.wifi = False

    def _load_scenario(self, scenario, long_context=False):
        self.wifi = scenario.get("wifi", False)

    def turn_on_wifi(self):
        self.wifi = True
        return {"status": True}
"""
NOTES = """
from model_inference.multi_step.scenariosen.base import BaseApi


class NotesApi(BaseApi):
    def __init__(self):
        super().__init__()
        self.notes = {1: "milk"}
        self.secret = "x"

    def add_note(self, text: str, copies: int = 1):
        if not self.wifi:
            return {"status": False, "message": "no Wi-Fi"}
        print("noise")
        for _ in range(copies):
            self.notes[len(self.notes) + 1] = text
        return {"status": True, "note": len(self.notes)}

    def _erase(self):
        self.notes = {}
"""
FUNCTIONS = [
    {"name": "turn_on_wifi", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}},
    {"name": "add_note", "description": "",
     "parameters": {"type": "dict", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
]  # fmt: skip
TASK = {
    "id": "agent_multi_step_0", "question": "Note eggs.", "function": FUNCTIONS, "path": [],
    "involved_classes": ["BaseApi", "NotesApi"], "initial_config": {"BaseApi": {"wifi": False}},
}  # fmt: skip
LABEL = {
    "id": "agent_multi_step_0",
    "ground_truth": [{"BaseApi": {"wifi": True}}, {"NotesApi": {"notes": {"1": "milk", "2": "eggs"}}}],
    "mile_stone": ["[turn_on_wifi()]", "[add_note(text='eggs')] "],
}


def checkout(folder: Path, tasks: Any = (TASK,), labels: Any = (LABEL,)) -> Path:
    code = folder / "model_inference" / "multi_step" / "scenariosen"
    code.mkdir(parents=True, exist_ok=True)
    (code / "base.py").write_text(BASE)
    (code / "notes.py").write_text(NOTES)
    rows = folder / "data_all" / "data_en"
    (rows / "possible_answer").mkdir(parents=True, exist_ok=True)
    for file, content in ((rows, tasks), (rows / "possible_answer", labels)):
        (file / "data_agent_multi_step.json").write_text("".join(json.dumps(row) + "\n" for row in content))
    return rows


def scenario(folder: Path, *steps: Call, label: dict[str, Any] = LABEL) -> tuple[agent.Scenario, agent.AgentRow]:
    rows = checkout(folder, labels=(label,))
    [row] = agent.read_rows(rows)
    played = agent.Scenario(row, agent.scenario_classes(rows) or {})
    for call in steps:
        played.call([call], f"[{call.name}]")
    return played, row


WIFI, EGGS = Call("turn_on_wifi"), Call("add_note", {"text": "eggs"})


def test_classes_come_from_the_checkout_and_leave_nothing_behind(tmp_path):
    before = list(sys.path)
    classes = agent.scenario_classes(checkout(tmp_path))
    assert set(classes or {}) == {"BaseApi", "NotesApi"} and sys.path == before
    assert not [name for name in sys.modules if name.startswith("model_inference")]
    (tmp_path / "alone").mkdir()
    assert agent.scenario_classes(tmp_path / "alone") is not None, "a folder of the checkout"
    broken = tmp_path / "model_inference" / "multi_step" / "scenariosen" / "broken.py"
    broken.write_text("import nothing_of_that_name")
    with pytest.raises(DataError, match=r"broken\.py: cannot be imported \(ModuleNotFoundError"):
        agent.scenario_classes(tmp_path / "data_all" / "data_en")


def test_scenarios_are_those_of_the_checkout_alone(tmp_path):
    checkout(tmp_path)
    rows = tmp_path / "somewhere" / "data_all" / "data_en"
    rows.mkdir(parents=True)
    assert agent.scenario_classes(rows) is None, "what lies in a folder further out is not run"
    for file in (tmp_path / "model_inference" / "multi_step" / "scenariosen").iterdir():
        file.unlink()
    assert agent.scenario_classes(tmp_path / "data_all" / "data_en") is None


def test_a_row_without_its_label_is_an_error(tmp_path):
    rows = checkout(tmp_path, (TASK, {**TASK, "id": "agent_multi_step_1"}), (LABEL,))
    with pytest.raises(DataError, match="no label of agent_multi_step_1"):
        agent.read_rows(rows)
    assert len(agent.read_rows(rows, 1)) == 1


def test_calls_are_executed(tmp_path, capsys):
    played, row = scenario(tmp_path)
    assert played.state(row) == {}, "nothing was called"
    assert played.call([EGGS], "") == ['{"status": false, "message": "no Wi-Fi"}']
    assert played.call([WIFI, EGGS], "") == ['{"status": true}', '{"status": true, "note": 2}']
    assert capsys.readouterr().out == ""
    assert played.state(row) == {"BaseApi": {"wifi": True}, "NotesApi": {"notes": {"1": "milk", "2": "eggs"}}}
    assert played.call([Call("add_note", {"words": 1})], "")[0].startswith("Error during execution: ")
    for name in ("nothing", "_erase", "notes", "__init__", "secret"):
        assert played.call([Call(name)], "") == [f"Error during execution: there is no function {name}"]


def test_verdicts(tmp_path):
    right, row = scenario(tmp_path / "right", WIFI, EGGS)
    assert agent.official_match(right, row) and agent.fixed_match(right, row)
    more, row = scenario(tmp_path / "more", WIFI, EGGS, Call("add_note", {"text": "rice"}))
    assert agent.official_match(more, row) and not agent.fixed_match(more, row), "one note beyond the label"
    other, row = scenario(tmp_path / "other", WIFI, Call("add_note", {"text": "rice"}))
    assert not agent.official_match(other, row) and not agent.fixed_match(other, row)
    none, row = scenario(tmp_path / "none")
    assert not agent.official_match(none, row) and not agent.fixed_match(none, row)
    states = [LABEL["ground_truth"][0], {"NotesAPI": {"notes": {"1": "milk", "2": "eggs"}}}]
    renamed = {**LABEL, "ground_truth": states}
    wrong, row = scenario(tmp_path / "renamed", WIFI, label=renamed)
    assert agent.official_match(wrong, row), "a class under another name is not compared"
    assert not agent.fixed_match(wrong, row)
    right, row = scenario(tmp_path / "renamed_right", WIFI, EGGS, label=renamed)
    assert agent.fixed_match(right, row)


def test_milestones(tmp_path):
    ways = {**LABEL, "mile_stone": [["[a()]", "[b()]", "[c()] "], ["[b()]", "[x()]"]]}
    played, row = scenario(tmp_path, label=ways)
    for called, met in (([], 0), (["[a()]"], 1 / 3), (["[b()]"], 1 / 2), (["[c()]", "[a()]", "[b()]"], 2 / 3)):
        played.called = called
        assert agent.milestones_met(played, row) == pytest.approx(met)
    classes = agent.scenario_classes(tmp_path / "data_all" / "data_en") or {}
    assert not agent.official_match(agent.gold_scenario(row, classes), row)
    [row] = agent.read_rows(checkout(tmp_path))
    assert agent.official_match(agent.gold_scenario(row, classes), row)


class Scripted:
    """Answers that are given, one a step; keeps the dialogues."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.answers, self.asked = list(answers), []

    def prompt_length(self, sample) -> int:
        return len(sample.messages)

    def greedy(self, samples, cfg, on_tokens):
        self.asked += samples
        return [Answer(text, [], [], finish) for text, finish in (self.answers.pop(0) for _ in samples)]


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def written(*calls: Call) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>" for call in calls
    )


def test_a_task_is_played_and_scored(tmp_path):
    rows = checkout(tmp_path)
    tasks, classes = agent.read_rows(rows), agent.scenario_classes(rows)
    policy = Scripted(
        ("Shall I?", "stop"), ("<tool_call>\n{", "stop"), (written(WIFI), "stop"), (written(EGGS), "stop"),
        ("All done: finish conversation", "stop"),
    )  # fmt: skip
    scores = evaluate(policy, [], AnswerConfig(), str(tmp_path / "out"), ignore, ignore, tasks, classes)
    [result] = read_jsonl(tmp_path / "out" / "results.jsonl")
    assert (result["correct"], result["correct_fixed"], result["gold"], result["milestones"]) == (True, True, True, 1.0)
    roles = [message["role"] for message in result["answer"]]
    assert roles == ["assistant", "user", "assistant", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert "cannot be read" in result["answer"][3]["content"]
    assert policy.asked[-1].messages[-1].content == '{"status": true, "note": 2}'
    assert scores["categories"]["agent_multi_step"] == {
        "rows": 1, "official": 1.0, "fixed": 1.0, "ceiling": 1.0, "unreadable": 0, "truncated": 0, "unanswered": 0,
        "milestones": 1.0,
    }  # fmt: skip
    assert scores["averages"]["official"] == {"Normal": None, "Special": None}
    assert "agent_multi_step: 100.0 % of milestones met" in acebench_tables(scores)[0].note


@pytest.mark.parametrize(
    ("answers", "prompt_tokens", "end"),
    [
        ([("No.", "stop")] * agent.STEPS, 4096, "steps"),
        ([(written(WIFI), "stop"), ("No", "length")], 4096, "length"),
        ([(written(WIFI), "stop")], 3, "prompt_too_long"),
    ],
)
def test_how_a_task_ends(tmp_path, answers, prompt_tokens, end):
    rows = checkout(tmp_path)
    policy = Scripted(*answers)
    done: list[int] = []
    kept = KeptAnswers(policy, AnswerConfig(prompt_tokens=prompt_tokens), str(tmp_path), ignore)  # type: ignore[arg-type]
    [played] = agent.play(agent.read_rows(rows), agent.scenario_classes(rows) or {}, kept.ask, done.append)
    assert played[2] == end and policy.answers == [] and sum(done) == 1


@pytest.mark.parametrize(
    ("task", "label", "words"),
    [
        ({**TASK, "involved_classes": 1}, LABEL, "json:1: no ACEBench row: expected involved_classes"),
        ({**TASK, "function": 1}, LABEL, "json:1: no ACEBench row: function: expected a list"),
        (TASK, {**LABEL, "id": "x"}, "json:1: no label of agent_multi_step_0: labels are in the order"),
        (TASK, {**LABEL, "ground_truth": {}}, "ground_truth: expected a list of"),
        (TASK, {**LABEL, "mile_stone": [1]}, "mile_stone: expected a list of calls"),
    ],
)
def test_bad_rows_are_one_line(tmp_path, task, label, words):
    with pytest.raises(DataError, match=words) as caught:
        agent.read_rows(checkout(tmp_path, (task,), (label,)))
    assert "\n" not in str(caught.value)


def test_an_unknown_class_is_one_line(tmp_path):
    [row] = agent.read_rows(checkout(tmp_path, ({**TASK, "involved_classes": ["Travel"]},)))
    with pytest.raises(DataError, match="agent_multi_step_0: there is no scenario Travel"):
        agent.Scenario(row, {})


CHECKOUT = os.environ.get("ACEBENCH_DIR", "")


@pytest.mark.skipif(not (Path(CHECKOUT) / "model_inference").is_dir(), reason="no checkout named in ACEBENCH_DIR")
def test_the_ceiling_of_the_benchmark_itself():
    folder = data.data_folder(CHECKOUT)
    rows, classes = agent.read_rows(folder), agent.scenario_classes(folder) or {}
    gold = [agent.gold_scenario(row, classes) for row in rows]
    assert len(rows) == data.CATEGORIES[agent.NAME].rows
    assert sum(agent.official_match(played, row) for played, row in zip(gold, rows, strict=True)) == 10
