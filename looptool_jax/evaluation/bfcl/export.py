"""Results as the files that `bfcl evaluate` reads, so that anyone can score them with the released program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from looptool_jax.data.store import join, write_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES

MODEL = "looptool"  # the released program takes every _ of a model's name for a /


def export_results(results: Sequence[dict[str, Any]], folder: str) -> list[str]:
    """Write `folder/result/looptool/GROUP/BFCL_v4_CATEGORY_result.json` for each category there are rows of `evaluate`
    of; returns the files. The answers are calls as Qwen's function-calling models write them."""
    files = []
    for name, category in CATEGORIES.items():
        if part := [result for result in results if result["category"] == name]:
            files.append(join(folder, "result", MODEL, category.group, f"BFCL_v4_{name}_result.json"))
            write_jsonl(files[-1], [{"id": result["id"], "result": _answer(result)} for result in part])
    return files


def _answer(result: dict[str, Any]) -> Any:
    """Without think blocks. A dialogue that outgrew the prompt is given as the error that fails it there, too."""
    answer = result["answer"]
    if isinstance(answer, str):
        return answer.rpartition("</think>")[2].lstrip("\n")
    return "Error during inference: the prompt is too long" if result["finish"] == "prompt_too_long" else answer
