"""The released BFCL evaluation: its own reading of a Qwen function-calling model's answers and its own checkers.

Reads `cases.jsonl` of the folder ({category, index, text}, and functions and labels where they are others than the
row's; of a dialogue {category, index, turns}, the answers of each turn), writes `verdicts.jsonl` ({ok, why}). "crash"
is a verdict of its own: there the released evaluation ends. A case with a language ({language, type, item, text}) is a
text to read; `why` is then the value. What only talks to models and servers is not installed; empty modules stand in
for it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import types
from functools import cache
from typing import Any

ABSENT = (
    "dotenv", "numpy", "overrides", "pandas", "tenacity", "tqdm", "bfcl_eval.constants.model_config",
    "bfcl_eval.model_handler.base_handler", "bfcl_eval.model_handler.parser.java_parser",
    "bfcl_eval.model_handler.parser.js_parser", "bfcl_eval.model_handler.local_inference.base_oss_handler",
)  # fmt: skip


class Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ABSENT:
    sys.modules[name] = Empty(name)
sys.modules["overrides"].override = lambda method: method  # type: ignore[attr-defined]
sys.modules["tenacity"].retry = lambda **options: lambda function: function  # type: ignore[attr-defined]
MODEL = "model"
config = types.SimpleNamespace(underscore_to_dot=False)
sys.modules["bfcl_eval.constants.model_config"].MODEL_CONFIG_MAPPING = {MODEL: config}  # type: ignore[attr-defined]

from bfcl_eval.constants.enums import Language, ReturnFormat  # noqa: E402
from bfcl_eval.eval_checker import eval_runner  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import java_type_converter, js_type_converter  # noqa: E402
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils  # noqa: E402
from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler  # noqa: E402
from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry  # noqa: E402

LANGUAGES = {
    "simple_java": (Language.JAVA, ReturnFormat.JAVA),
    "simple_javascript": (Language.JAVASCRIPT, ReturnFormat.JAVASCRIPT),
}


@cache
def rows(category: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    labels = None if "relevance" in category else load_ground_truth_entry(category)
    return load_dataset_entry(category, include_language_specific_hint=False), labels


def verdict(handler: QwenFCHandler, case: dict[str, Any]) -> tuple[bool, str]:
    if "language" in case:
        convert = java_type_converter if case["language"] == "java" else js_type_converter
        return True, repr(convert(case["text"], case["type"], case["item"]))
    category = case["category"]
    entries, labels = rows(category)
    entry = entries[case["index"]]
    if "turns" in case:
        assert labels is not None
        wanted = labels[case["index"]]["ground_truth"]
        found = played(handler, copy.deepcopy(entry), case["turns"], wanted, category)
        return found["valid"], str(found.get("error", {}).get("error_type", ""))
    answer = case["text"].split("</think>")[-1].lstrip("\n")
    if labels is None:
        found = eval_runner._evaluate_single_relevance_entry(handler, entry["id"], answer, entry, MODEL, category)
    else:
        entry = {**entry, "function": case.get("functions", entry["function"])}
        wanted = case.get("labels", labels[case["index"]]["ground_truth"])
        language, return_format = LANGUAGES.get(category, (Language.PYTHON, ReturnFormat.PYTHON))
        found = eval_runner._evaluate_single_ast_entry(
            handler, entry["id"], answer, wanted, entry, MODEL, category, language, return_format
        )
    return found["valid"], str(found.get("error_type", ""))


def played(
    handler: QwenFCHandler, entry: dict[str, Any], turns: list[list[str]], wanted: list[list[str]], category: str
) -> dict[str, Any]:
    """The verdict on a dialogue. The released checker keeps services of a row for the next dialogue with it."""
    try:
        return eval_runner._evaluate_single_multi_turn_entry(
            handler, entry["id"], turns, wanted, entry, MODEL, category
        )
    finally:
        for name in [name for name in vars(multi_turn_utils) if name.endswith("_instance")]:
            delattr(multi_turn_utils, name)


def main() -> None:
    folder = sys.argv[1]
    handler = object.__new__(QwenFCHandler)
    crashes = count = 0
    with open(f"{folder}/cases.jsonl") as cases, open(f"{folder}/verdicts.jsonl", "w") as out:
        for line in cases:
            case = json.loads(line)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    ok, why = verdict(handler, case)
            except Exception as error:
                ok, why = False, f"crash: {type(error).__name__}"
                crashes += 1
            count += 1
            out.write(json.dumps({"ok": ok, "why": why}) + "\n")
    print(json.dumps({"cases": count, "crashes": crashes}))


if __name__ == "__main__":
    main()
