"""BFCL dialogues: rows, services, both verdicts and the loop, on a service and rows of these tests' own."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from looptool_jax.data.store import DataError, read_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES, data_folder
from looptool_jax.evaluation.bfcl.dialogue import ADDED, STEPS, converse
from looptool_jax.evaluation.bfcl.evaluate import evaluate
from looptool_jax.evaluation.bfcl.export import export_results
from looptool_jax.evaluation.bfcl.multi_turn import MultiTurnRow, match_multi_turn, read_multi_turn
from looptool_jax.evaluation.kept_answers import CHUNK, Given, KeptAnswers
from looptool_jax.inference.answers import Answer, AnswerConfig
from looptool_jax.toolcall import Call, Message, Sample, Target, get_format

BASE, MISS_FUNC, LONG = (CATEGORIES[f"multi_turn_{name}"] for name in ("base", "miss_func", "long_context"))
SOURCES = "eval_checker/multi_turn_eval/func_source_code"
SERVICE = """
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.long_context import EXTRA


class TicketAPI:
    def _load_scenario(self, scenario, long_context=False):
        self.notes = [*scenario["notes"], *(EXTRA if long_context else [])]
        self._reads = 0

    def add(self, text, times=1):
        self.notes += [text] * times
        return {"notes": len(self.notes)}

    def read(self, place):
        self._reads += 1
        return self.notes[place]

    def clear(self):
        self.notes = []

    def odd(self):
        return {"odd": {1}}

    def undocumented(self):
        self.notes = ["undocumented"]
"""
PLACE = {"type": "dict", "properties": {"place": {"type": "integer"}}, "required": ["place"]}
TEXT = {"type": "dict", "properties": {"text": {"type": "string"}, "times": {"type": "integer", "default": 1}},
        "required": ["text"]}  # fmt: skip
NOTHING: dict[str, Any] = {"type": "dict", "properties": {}, "required": []}
DOCUMENTS = [
    {"name": "add", "description": "Adds a note.", "parameters": TEXT},
    {"name": "read", "description": "Reads a note.", "parameters": PLACE},
    {"name": "clear", "description": "Forgets all notes.", "parameters": NOTHING},
    {"name": "odd", "description": "Is odd.", "parameters": NOTHING},
]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def row(id_: str, *turns: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    config = {"TicketAPI": {"notes": ["first"]}}
    return {"id": id_, "question": list(turns), "initial_config": config, "involved_classes": ["TicketAPI"], **more}


def write(root: Path, category: str, rows: list[Any], labels: list[list[list[str]]]) -> Path:
    """A copy of bfcl-eval as far as this program needs it; returns its data folder."""
    data, sources = root / "data", root / SOURCES
    for folder in (data / "possible_answer", data / "multi_turn_func_doc", sources):
        folder.mkdir(parents=True, exist_ok=True)
    (sources / "ticket_api.py").write_text(SERVICE)
    (sources / "long_context.py").write_text("EXTRA = ['long'] * 3\n")
    name = f"BFCL_v4_{category}.json"
    answers = [{"id": raw["id"], "ground_truth": label} for raw, label in zip(rows, labels, strict=True)]
    for file, content in (
        (data / name, rows),
        (data / "possible_answer" / name, answers),
        (data / "multi_turn_func_doc" / "ticket_api.json", DOCUMENTS),
    ):
        file.write_text("".join(f"{json.dumps(line)}\n" for line in content))
    return data


@pytest.fixture
def base(tmp_path) -> MultiTurnRow:
    label = [["add(text='x', times=2)", "read(2)"], ["clear()"]]
    [found] = read_multi_turn(
        write(tmp_path, BASE.name, [row("multi_turn_base_0", said("A"), said("B"))], [label]), BASE
    )
    return found


@pytest.fixture
def held_back(tmp_path) -> MultiTurnRow:
    raw = row("multi_turn_miss_func_0", said("A"), [], missed_function={"1": ["clear"]})
    [found] = read_multi_turn(write(tmp_path, MISS_FUNC.name, [raw], [[[], ["clear()"]]]), MISS_FUNC)
    return found


def block(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_row_and_its_services(base, held_back, tmp_path):
    assert base.turns == ((Message("user", "A"),), (Message("user", "B"),)) and base.labels[1] == ("clear()",)
    assert [tool.name for tool in base.tools] == ["add", "read", "clear", "odd"]
    assert base.tools[0].properties["times"]["type"] == "integer"
    assert [tool.name for tool in held_back.tools] == ["add", "read", "odd"]
    assert [tool.name for tool in held_back.added[1]] == ["clear"]
    assert held_back.hidden(0) == {"clear"} and held_back.hidden(1) == set()
    assert "bfcl_eval.eval_checker.multi_turn_eval.func_source_code.long_context" not in sys.modules
    rows = [row(f"multi_turn_long_context_{i}", said("A")) for i in range(2)]
    [found] = read_multi_turn(write(tmp_path, LONG.name, rows, [[["clear()"]]] * 2), LONG, limit=1)
    assert found.session().instances["TicketAPI"].notes == ["first", "long", "long", "long"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": "A"}, "question: expected a list of turns"),
        ({"question": [[]]}, "turn 0 is empty and adds no function"),
        ({"question": [said("A"), said("B")]}, "1 turns instead of the 2"),
        ({"question": [[{"role": "bot", "content": ""}]]}, "role"),
        ({"involved_classes": ["Odd"]}, "involved_classes: expected names out of GorillaFileSystem"),
        ({"initial_config": []}, "initial_config: expected an object"),
        ({"initial_config": {}}, "initial_config: the services cannot start from it ('notes')"),
        ({"missed_function": {"0": ["nothing"]}}, "'nothing' is not documented"),
        ({"missed_function": {"0": ["add"], "1": ["add"]}}, "'add' is not documented"),
        ({"involved_classes": ["MathAPI"]}, "math_api.py: no such file"),
    ],
)
def test_bad_rows_are_one_line(tmp_path, change, words):
    raw = {**row("multi_turn_base_0", said("A")), **change}
    data = write(tmp_path, BASE.name, [raw], [[["clear()"]]])
    with pytest.raises(DataError) as caught:
        read_multi_turn(data, BASE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path):
    data = write(tmp_path, BASE.name, [row("multi_turn_base_0", said("A"))], [[["clear()"]]])
    (tmp_path / SOURCES / "ticket_api.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(DataError, match=r"TicketAPI needs the package a_package_that_is_not_there: pip install .*bfcl"):
        read_multi_turn(data, BASE)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("add(text='x')", '{"notes": 2}'),
        (" read(0)", "first"),
        ("clear()", "None"),
        ("odd()", "{'odd': {1}}"),
        ("read(place=7)", "Error during execution: list index out of range"),
        ("read(wrong=7)", "Error during execution: TicketAPI.read() got an unexpected keyword argument 'wrong'"),
        ("read(place=nan)", "Error during execution: name 'nan' is not defined"),
        ("nothing(place=0)", "Error during execution: name 'nothing' is not defined"),
        ("TicketAPI.read(place=0)", "Error during execution: name 'TicketAPI' is not defined"),
        ("undocumented()", "Error during execution: name 'undocumented' is not defined"),
        ("_load_scenario(scenario={})", "Error during execution: name '_load_scenario' is not defined"),
    ],
)
def test_a_call_gets_the_reply_of_the_released_harness(base, text, reply):
    assert base.session().run(text) == reply


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getpid()", "read(place=__import__('os').getpid())", "clear() or clear()", "[clear()][0]",
        "clear.__self__.clear()", "print('x')", "read(*[0])", "read(**{'place': 0})", "read(0", "clear() #",
        "(clear)()()", "add(text='x' * 3)", "(lambda: clear())()", "clear().x()", "read(place=(x := 0))", "",
        "clear", "\x00",
    ],
)  # fmt: skip
def test_nothing_but_a_call_with_literals_does_anything(base, text):
    session = base.session()
    reply = session.run(text)
    if text != "clear() #":  # a remark is no expression
        assert reply.startswith("Error during execution: ") and session.instances["TicketAPI"].notes == ["first"]


X2, READ, CLEAR, DONE = block("add", text="x", times=2), block("read", place=2), block("clear"), "Done."
CUT = '<tool_call>\n{"name": "clear", "arg'
RIGHT = [[X2, READ, DONE], [CLEAR, DONE]]


@pytest.mark.parametrize(
    ("turns", "bfcl", "fixed"),
    [
        (RIGHT, "", ""),
        ([[f"{X2}\n{READ}", DONE], [CLEAR, DONE]], "", ""),
        ([[X2, block("odd"), READ, READ, DONE], [block("nothing"), CLEAR, DONE]], "", ""),
        ([[block("add", text="x"), block("add", text="x"), READ, DONE], [CLEAR, DONE]], "", ""),
        ([[READ, X2, DONE], [CLEAR, DONE]], "nothing replied x", "nothing replied x"),
        ([[X2, DONE], [CLEAR, DONE]], "turn 0: nothing replied x", "turn 0: nothing replied x"),
        ([[X2, READ, DONE], [DONE]], "turn 1: no call", "TicketAPI.notes differs"),
        (
            [[X2, READ, CLEAR, DONE], [CLEAR, DONE]],
            "turn 0: TicketAPI.notes differs",
            "turn 0: TicketAPI.notes differs",
        ),
        ([[X2, READ, DONE]], "ended in turn 1 of 2", "ended in turn 1 of 2"),
        ([*RIGHT, [DONE]], "ended in turn 3 of 2", "ended in turn 3 of 2"),
        ([[X2, READ, DONE], [CLEAR, CUT]], "", "turn 1: unclosed_call"),
        ([[X2, READ, DONE], [f"{CLEAR}\nDone."]], "", "turn 1: text_after_call"),
        ([[X2, READ, DONE], [CLEAR.replace("{}", '"{}"'), DONE]], "", "turn 1: not_a_call"),
        ([[], []], "turn 0: no call", "turn 0: TicketAPI.notes differs"),
    ],
)
def test_verdicts(base, turns, bfcl, fixed):
    for mode, words in (("bfcl", bfcl), ("fixed", fixed)):
        found = match_multi_turn(base, turns, mode)
        assert found.ok == (not words) and words in found.reason


def one_turn(tmp_path: Path, *labels: list[str]) -> MultiTurnRow:
    raw = row("multi_turn_base_0", *(said("A") for _ in labels))
    return read_multi_turn(write(tmp_path, BASE.name, [raw], [list(labels)]), BASE)[0]


def test_strings_stay_as_they_are(tmp_path):
    found = one_turn(tmp_path, ["add(text='clear (x)')"])
    turns = [[block("add", text="clear (x)"), DONE]]
    assert match_multi_turn(found, turns).ok and match_multi_turn(found, turns, "fixed").ok
    other = [[block("add", text="clear(x)"), DONE]]
    assert not match_multi_turn(found, other).ok and not match_multi_turn(found, other, "fixed").ok


def test_a_turn_that_wants_nothing_new_needs_no_call(tmp_path):
    found = one_turn(tmp_path, ["read(place=0)"], ["read(place=0)"])
    turns = [[block("read", place=0), DONE], [DONE]]
    assert not match_multi_turn(found, turns).ok and match_multi_turn(found, turns, "fixed").ok


def test_where_no_call_is_wanted(held_back, tmp_path):
    honest, early = [[DONE], [CLEAR, DONE]], [[CLEAR, DONE], [CLEAR, DONE]]
    assert match_multi_turn(held_back, honest).ok and match_multi_turn(held_back, honest, "fixed").ok
    assert match_multi_turn(held_back, early).ok
    assert match_multi_turn(held_back, early, "fixed").ok, "the early call failed: the function was not there"
    found = one_turn(tmp_path, [], ["clear()"])
    assert match_multi_turn(found, early).ok
    assert "turn 0: TicketAPI.notes differs" in match_multi_turn(found, early, "fixed").reason, "acted on a guess"


def test_a_label_that_calls_what_is_held_back(tmp_path):
    raw = row("multi_turn_miss_func_0", said("A"), [], missed_function={"1": ["read"]})
    label = [["add(text='x')", "read(place=0)"], ["read(place=1)"]]
    [found] = read_multi_turn(write(tmp_path, MISS_FUNC.name, [raw], [label]), MISS_FUNC)
    turns = [[block("add", text="x"), DONE], [block("read", place=1), DONE]]
    assert "turn 0: nothing replied first" in match_multi_turn(found, turns).reason
    assert match_multi_turn(found, turns, "fixed").ok


class Played:
    """Answers of a script by the place that is asked, `id:turn.step`; a place beyond it is answered without a call."""

    def __init__(self, script: dict[str, str | Given], dies_at: int | None = None) -> None:
        self.script, self.asked, self.batches, self.dies_at = script, [], [], dies_at

    def ask(self, samples) -> list[Given]:
        self.batches.append([sample.id for sample in samples])
        self.asked += samples
        answers = [self.script.get(sample.id, DONE) for sample in samples]
        return [Given(answer, "stop") if isinstance(answer, str) else answer for answer in answers]

    def prompt_length(self, sample) -> int:
        return 1

    def greedy(self, samples, cfg, on_tokens) -> list[Answer]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        return [Answer(given.text, [], [], given.finish) for given in self.ask(samples)]


def test_dialogues_advance_together(base, held_back):
    m = "multi_turn_miss_func_0"
    script = {"multi_turn_base_0:0.0": f"<think>\nHm.\n</think>\n\n{X2}", "multi_turn_base_0:0.1": f"Now:\n{READ}",
              "multi_turn_base_0:1.0": CLEAR, f"{m}:1.0": CLEAR}  # fmt: skip
    played, over = Played(script), []
    first, second = converse([base, held_back], played.ask, over.append)
    assert played.batches == [
        ["multi_turn_base_0:0.0", f"{m}:0.0"], ["multi_turn_base_0:0.1", f"{m}:1.0"],
        ["multi_turn_base_0:0.2", f"{m}:1.1"], ["multi_turn_base_0:1.0"], ["multi_turn_base_0:1.1"],
    ]  # fmt: skip
    assert sum(over) == 4
    assert first.turns == ((X2, f"Now:\n{READ}", DONE), (CLEAR, DONE)) and first.finish == second.finish == "stop"
    assert match_multi_turn(base, first.turns).ok and match_multi_turn(held_back, second.turns).ok
    last = next(sample for sample in played.asked if sample.id == "multi_turn_base_0:1.1")
    assert last.messages == (
        Message("user", "A"), Message("assistant", "", (Call("add", {"text": "x", "times": 2}),), reasoning="Hm."),
        Message("tool", '{"notes": 3}', name="add"), Message("assistant", "", (Call("read", {"place": 2}),)),
        Message("tool", "x", name="read"), Message("assistant", DONE), Message("user", "B"),
        Message("assistant", "", (Call("clear"),)), Message("tool", "None", name="clear"),
    )  # fmt: skip
    before, after = (sample for sample in played.asked if sample.id in (f"{m}:0.0", f"{m}:1.0"))
    assert [tool.name for tool in before.tools] == ["add", "read", "odd"]
    assert [tool.name for tool in after.tools] == ["add", "read", "odd", "clear"]
    assert after.messages[-1] == Message("user", ADDED)


def test_dialogues_that_end_too_soon(base):
    places = [f"multi_turn_base_0:0.{step}" for step in range(STEPS + 1)]
    played = Played(dict.fromkeys(places, block("odd")))
    [found] = converse([base], played.ask)
    assert found.finish == "steps" and len(played.asked) == STEPS and len(found.turns) == 1
    [found] = converse([base], Played({places[0]: X2, places[1]: Given("", "prompt_too_long")}).ask)
    assert found.finish == "prompt_too_long" and found.turns == ((X2,),)
    [found] = converse([base], Played({places[0]: Given(CUT, "length")}).ask)
    assert found.finish == "length" and found.turns == ((CUT,), (DONE,))


def test_what_no_chat_format_can_write_stays_text(base):
    nan = '<tool_call>\n{"name": "read", "arguments": {"place": NaN}}\n</tool_call>'
    half = '<tool_call>\n{"name": "add", "arguments": {"text": "\\ud83d"}}\n</tool_call>'
    name = '<tool_call>\n{"name": "\\ud83d", "arguments": {}}\n</tool_call>'
    played = Played({"multi_turn_base_0:0.0": nan, "multi_turn_base_0:0.1": half,
                     "multi_turn_base_0:0.2": block("read", place=1), "multi_turn_base_0:0.3": name})  # fmt: skip
    converse([base], played.ask)
    messages = played.asked[4].messages
    assert messages[1] == Message("assistant", nan) and messages[3] == Message("assistant", half)
    assert messages[7] == Message("assistant", name) and messages[8].content.startswith("Error during execution: ")
    get_format("qwen3").render(messages, base.tools, thinking=False).encode()


def test_a_killed_evaluation_goes_on(tmp_path, base, held_back):
    script = {"multi_turn_base_0:0.0": X2, "multi_turn_base_0:0.1": READ, "multi_turn_base_0:1.0": CLEAR}
    cfg = AnswerConfig(slots=1)

    def run(out: str, dies_at: int | None) -> tuple[Played, list[int]]:
        policy, done = Played(script, dies_at), []
        evaluate(policy, [], [base, held_back], cfg, str(tmp_path / out), lambda tokens: None, done.append)  # type: ignore[arg-type]
        return policy, done

    whole, done = run("whole", None)
    assert sum(done) == 4
    for dies_at in (0, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            run("killed", dies_at)
    resumed, done = run("killed", None)
    assert len(resumed.batches) == len(whole.batches) - 3 and sum(done) == 4
    for name in ("results.jsonl", "scores.json", "progress.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not run("killed", 0)[0].asked, "all answers are there"
    results = list(read_jsonl(tmp_path / "whole" / "results.jsonl"))
    assert [(result["correct"], result["correct_fixed"]) for result in results] == [(True, True), (False, False)]
    assert results[0]["answer"] == [[X2, READ, DONE], [CLEAR, DONE]]


def test_kept_answers_are_to_the_same_rows(tmp_path, base):
    cfg = AnswerConfig(slots=2)
    samples = [Sample(f"s_{i}", (), (Message("user", "A"),), Target(intent="answer")) for i in range(2 * CHUNK + 1)]
    policy, counts = Played({}), []
    KeptAnswers(policy, cfg, str(tmp_path), lambda tokens: None).ask(samples, counts.append)  # type: ignore[arg-type]
    assert [len(batch) for batch in policy.batches] == counts == [2 * CHUNK, 1]
    with pytest.raises(DataError, match=r"progress\.jsonl: answers to other rows"):
        KeptAnswers(policy, cfg, str(tmp_path), lambda tokens: None).ask(samples[1:])  # type: ignore[arg-type]


def test_results_as_the_released_program_reads_them(tmp_path):
    thought = f"<think>\nHm.\n</think>\n\n{CLEAR}"
    results = [
        {"id": "live_simple_1-0-0", "category": "live_simple", "answer": thought, "finish": "stop"},
        {"id": "simple_python_2", "category": "simple_python", "answer": DONE, "finish": "length"},
        {"id": "multi_turn_base_3", "category": "multi_turn_base", "answer": RIGHT, "finish": "stop"},
        {"id": "multi_turn_base_4", "category": "multi_turn_base", "answer": RIGHT[:1], "finish": "steps"},
        {"id": "multi_turn_base_5", "category": "multi_turn_base", "answer": RIGHT, "finish": "prompt_too_long"},
    ]
    files = export_results(results, str(tmp_path))
    folder = tmp_path / "result" / "looptool"
    assert [Path(file).relative_to(folder).as_posix() for file in files] == [
        "non_live/BFCL_v4_simple_python_result.json", "live/BFCL_v4_live_simple_result.json",
        "multi_turn/BFCL_v4_multi_turn_base_result.json",
    ]  # fmt: skip
    assert list(read_jsonl(files[1])) == [{"id": "live_simple_1-0-0", "result": CLEAR}]
    assert [line["result"] for line in read_jsonl(files[2])] == [
        RIGHT, RIGHT[:1], "Error during inference: the prompt is too long"
    ]  # fmt: skip


def test_the_command_resumes_and_exports(tmp_path):
    rows = [row(f"multi_turn_base_{i}", said("Forget all notes.")) for i in range(2)]
    data = write(tmp_path / "bfcl", BASE.name, rows, [[["clear()"]]] * 2)
    command = ("eval", "bfcl", "--data", str(data), "--categories", "multi_turn_base", "--export", "official", "--out",
               "out", "evaluate.answers.prompt_tokens=512")  # fmt: skip

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        main = "from looptool_jax.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", main, *command, *more], capture_output=True, text=True, cwd=tmp_path, env=env
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert "multi_turn_base" in first.stdout and "v4 Overall, missing as 0" in first.stdout
    exported = tmp_path / "official" / "result" / "looptool" / "multi_turn" / "BFCL_v4_multi_turn_base_result.json"
    answers = [result["answer"] for result in read_jsonl(tmp_path / "out" / "results.jsonl")]
    assert [line["id"] for line in read_jsonl(exported)] == ["multi_turn_base_0", "multi_turn_base_1"]
    assert answers[0] == answers[1] and answers[0][0], "the same prompts"
    progress, results = ((tmp_path / "out" / name) for name in ("progress.jsonl", "results.jsonl"))
    kept, whole = progress.read_bytes(), results.read_bytes()
    progress.write_bytes(kept[: kept.index(b"\n") + 1])  # as after a kill behind the first answers
    results.unlink()
    assert run().returncode == 0
    assert progress.read_bytes() == kept and results.read_bytes() == whole
    other = run("evaluate.answers.answer_tokens=16")
    assert other.returncode == 2 and "holds results of other settings (evaluate.answers.answer_tokens" in other.stderr


HERE = all(importlib.util.find_spec(name) for name in ("bfcl_eval", "mpmath"))


@pytest.mark.skipif(not HERE, reason="bfcl-eval and mpmath are not installed")
@pytest.mark.parametrize("name", [name for name, category in CATEGORIES.items() if category.kind == "multi_turn"])
def test_the_labels_of_the_benchmark_fulfil_themselves(name):
    rows = read_multi_turn(data_folder(None), CATEGORIES[name])
    assert len(rows) == 200
    for found in rows:
        turns = [[*(positional(found, text) for text in wanted), DONE] for wanted in found.labels]
        assert match_multi_turn(found, turns).ok and match_multi_turn(found, turns, "fixed").ok, found.id


def positional(found: MultiTurnRow, text: str) -> str:
    """A label's call as an answer; arguments by place get the document's names."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    tools = {tool.name: tool for tool in (*found.tools, *(tool for part in found.added.values() for tool in part))}
    arguments = dict(zip(tools[call.func.id].properties, map(ast.literal_eval, call.args), strict=False))
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return block(call.func.id, **arguments)
