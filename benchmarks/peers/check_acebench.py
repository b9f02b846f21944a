"""The released ACEBench evaluation on single answers: its own reading, checkers and dialogue scores.

    python check_acebench.py CHECKOUT FOLDER

Reads `cases.jsonl` of the folder ({category, row, label, text}, a row and its label as the benchmark has them; of agent
rows the text is a list, an answer a step), writes `verdicts.jsonl` ({ok, why}; of agent rows also {process}). "crash"
is a verdict of its own: there the released evaluation ends. What it needs for spreadsheets is not installed; empty
modules stand in. Agent rows are executed by the checkout's own executor.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import types
import warnings

checkout, folder = sys.argv[1:]
sys.path.insert(0, checkout)
for name, attributes in (("pandas", ()), ("openpyxl", ("Workbook",)), ("openpyxl.styles", ("Alignment",))):
    module = types.ModuleType(name)
    for attribute in attributes:
        setattr(module, attribute, object)
    sys.modules[name] = module

import eval_main  # noqa: E402
from model_inference.multi_step.execution_role_step import EXECUTION_STEP  # noqa: E402

warnings.simplefilter("ignore")
eval_main.OUTPUT_PATH = ""
eval_main.save_score_as_json = lambda *args: None
eval_main.convert_result_to_excel = lambda *args: None
eval_main.language = "en"
NAME = "agent_multi_step"
SAVED = {
    "BaseApi": ["wifi", "logged_in"],
    "MessageApi": ["inbox"],
    "ReminderApi": ["reminder_list"],
    "FoodPlatform": ["users", "logged_in_users", "orders"],
}
EVALUATIONS = {
    "normal_multi_turn": eval_main.normal_multi_turn_eval,
    "normal": eval_main.normal_single_turn_eval,
    "special": eval_main.special_eval,
}


def executed(case: dict, number: int) -> dict:
    """What the released harness keeps of a task: final states and the messages that were executed."""
    row = case["row"]
    executor = EXECUTION_STEP("model", row["initial_config"], row["involved_classes"], f"task_{number}", "en")
    kept: list = []
    for text in case["text"]:
        _, instances = executor.respond([{"message": text}])
        if instances not in kept:
            kept.append(instances)
    states = [
        {name: {key: vars(instance)[key] for key in SAVED[name]}} for found in kept for name, instance in found.items()
    ]
    return json.loads(json.dumps({"result": states, "process": case["text"]}))


def agent_verdict(case: dict, number: int) -> dict:
    end, process = eval_main.agent_eval([executed(case, number)], [case["row"]], [case["label"]], NAME, "model")
    return {"ok": end == 1.0, "why": "", "process": process}


def verdict(case: dict) -> tuple[bool, str]:
    category = case["category"]
    evaluate = next(function for prefix, function in EVALUATIONS.items() if category.startswith(prefix))
    result = [{"id": case["row"]["id"], "result": case["text"]}]
    try:
        return evaluate(result, [case["row"]], [case["label"]], category, "model", {}) == 1.0, ""
    except Exception as error:
        return False, f"crash: {type(error).__name__}"


os.chdir(folder)
os.makedirs("score_all/score_en/model")
verdicts = []
with open("cases.jsonl", encoding="utf-8") as cases, contextlib.redirect_stdout(io.StringIO()):
    for number, line in enumerate(cases):
        case = json.loads(line)
        if case["category"] == NAME:
            verdicts.append(agent_verdict(case, number))
        else:
            ok, why = verdict(case)
            verdicts.append({"ok": ok, "why": why})
with open("verdicts.jsonl", "w", encoding="utf-8") as out:
    out.writelines(json.dumps(found) + "\n" for found in verdicts)
