"""The released ACEBench evaluation on single answers: its own reading, checkers and dialogue scores.

    python check_acebench.py CHECKOUT FOLDER

Reads `cases.jsonl` of the folder ({category, row, label, text}, a row and its label as the benchmark has them), writes
`verdicts.jsonl` ({ok, why}). "crash" is a verdict of its own: there the released evaluation ends. What it needs for
spreadsheets is not installed; empty modules stand in.
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

warnings.simplefilter("ignore")
eval_main.OUTPUT_PATH = ""
eval_main.save_score_as_json = lambda *args: None
eval_main.convert_result_to_excel = lambda *args: None
EVALUATIONS = {
    "normal_multi_turn": eval_main.normal_multi_turn_eval,
    "normal": eval_main.normal_single_turn_eval,
    "special": eval_main.special_eval,
}


def verdict(case: dict) -> tuple[bool, str]:
    category = case["category"]
    evaluate = next(function for prefix, function in EVALUATIONS.items() if category.startswith(prefix))
    result = [{"id": case["row"]["id"], "result": case["text"]}]
    try:
        return evaluate(result, [case["row"]], [case["label"]], category, "model", {}) == 1.0, ""
    except Exception as error:
        return False, f"crash: {type(error).__name__}"


with open(os.path.join(folder, "cases.jsonl"), encoding="utf-8") as cases, contextlib.redirect_stdout(io.StringIO()):
    verdicts = [verdict(json.loads(line)) for line in cases]
with open(os.path.join(folder, "verdicts.jsonl"), "w", encoding="utf-8") as out:
    out.writelines(json.dumps({"ok": ok, "why": why}) + "\n" for ok, why in verdicts)
