"""ACEBench's rows (English), read from a checkout that the user has: nothing of it comes with the program. Those of
Agent are read by `agent`.

Files (JSON lines): `data_CATEGORY.json` and `possible_answer/data_CATEGORY.json`, in the same order, in
`data_all/data_en` of a checkout (commit 56dd66c of October 2025 has the latest labels) or in the folder that is given.

What a model is shown is its own chat format with tools, not the benchmark's prompt, which asks for calls as Python
source. The dialogue is one text in the data; it becomes messages. A call in it becomes a call, and what the assistant
says next stands as the tool's result, for the data has none. A system message gives the time or the user's profile, and
for special rows the sentences that the released scorer looks for, which no model would say by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from looptool_jax.data.benchmarks import json_lines, split_turns
from looptool_jax.data.store import DataError
from looptool_jax.toolcall import (
    AceTarget,
    Call,
    Message,
    RecordError,
    Sample,
    SchemaError,
    Target,
    normalise_tool,
)
from looptool_jax.toolcall.acebench_match import (
    INCORRECT,
    LIMITATIONS,
    MISSING,
    AceKind,
    Label,
    official_calls,
    properties_of,
    tool_name,
    write_calls,
)

REMEDY = "give --data a checkout of ACEBench/ACEBench, or the folder with its data_*.json"
_IN_CHECKOUT = "data_all/data_en"
_CALLS = (
    "Answer the user's last request with calls of the tools. Give every argument that the conversation names, in the "
    "user's own words where the tool asks for no format, and no argument that it does not name."
)
_SPECIAL = (
    "Answer the user's last request with calls of the tools, unless one of these is so. Then answer with its sentence "
    "and call nothing.\n"
    "1. A value that the user gives does not fit what the tool's parameter asks for: "
    f"{INCORRECT} (value) for the parameters (name) in the conversation history.\n"
    "2. The user does not say what a required parameter needs: "
    f"{MISSING} (name1, name2) for the api (tool)\n"
    f"3. No tool can do what is asked: Due to {LIMITATIONS}, I cannot solve this problem."
)


@dataclass(frozen=True)
class Category:
    """kind: what its rows want; agent rows want a state. rows: how many the benchmark has. dialogue: rows are steps,
    scored by dialogue."""

    name: str
    kind: AceKind | Literal["agent"]
    rows: int
    dialogue: bool = False

    @property
    def group(self) -> str:
        return self.name.partition("_")[0]


GROUPS = ("normal", "special", "agent")
CATEGORIES = {
    category.name: category
    for category in (
        Category("normal_single_turn_single_function", "calls", 100),
        Category("normal_single_turn_parallel_function", "calls", 100),
        Category("normal_multi_turn_user_adjust", "calls", 123, dialogue=True),
        Category("normal_multi_turn_user_switch", "calls", 100, dialogue=True),
        Category("normal_similar_api", "calls", 50),
        Category("normal_preference", "calls", 50),
        Category("normal_atom_bool", "calls", 50),
        Category("normal_atom_enum", "calls", 50),
        Category("normal_atom_number", "calls", 50),
        Category("normal_atom_list", "calls", 50),
        Category("normal_atom_object_deep", "calls", 50),
        Category("normal_atom_object_short", "calls", 50),
        Category("special_incomplete", "incomplete", 50),
        Category("special_error_param", "error_param", 50),
        Category("special_irrelevant", "irrelevant", 50),
        Category("agent_multi_step", "agent", 20),
    )
}


@dataclass(frozen=True)
class AceRow:
    """sample: what a model is asked, with a right answer as its target; never scored with the strict matcher. target:
    what the answer is held against. gold: the label in the benchmark's own format."""

    sample: Sample
    target: AceTarget
    gold: str


def choose_categories(names: Sequence[str]) -> list[Category]:
    """Categories by their names, or by normal, special, agent, all; in the benchmark's order. Raises DataError."""
    groups = {
        "all": list(CATEGORIES),
        **{group: [name for name in CATEGORIES if name.startswith(f"{group}_")] for group in GROUPS},
    }
    for name in names:
        if name not in groups and name not in CATEGORIES:
            raise DataError(f"--categories: {name!r} is not known; there are {', '.join((*groups, *CATEGORIES))}")
    chosen = {name for given in names for name in groups.get(given, [given])}
    return [category for name, category in CATEGORIES.items() if name in chosen]


def data_folder(given: str) -> Path:
    """The folder with the files, from that of a checkout or its own. Raises DataError where there is none."""
    for folder in (Path(given) / _IN_CHECKOUT, Path(given)):
        if any(folder.glob("data_*.json")):
            return folder
    raise DataError(f"{given}: no data_*.json here nor in {_IN_CHECKOUT}; {REMEDY}")


def category_files(folder: Path, category: Category) -> tuple[Path, Path]:
    """The files of a category's rows and of their labels. Raises DataError where one is missing."""
    file = folder / f"data_{category.name}.json"
    files = (file, folder / "possible_answer" / file.name)
    for needed in files:
        if not needed.is_file():
            raise DataError(f"{needed}: no such file; {REMEDY}")
    return files


def labelled_lines(folder: Path, category: Category, limit: int | None) -> list[tuple[str, Any, str, Any]]:
    """The first `limit` rows of a category, or all: where each stands, what it says, where its label stands, and what
    that says (None where there is none). Raises DataError, where there are no rows too."""
    file, label_file = category_files(folder, category)
    labels = json_lines(label_file, REMEDY)
    lines: list[tuple[str, Any, str, Any]] = []
    for number, raw in islice(json_lines(file, REMEDY), limit):
        label_number, label = next(labels, (0, None))
        lines.append((f"{file}:{number}", raw, f"{label_file}:{label_number}" if label else f"{label_file}", label))
    if not lines:
        raise DataError(f"{file}: holds no rows; {REMEDY}")
    return lines


def read_category(folder: Path, category: Category, limit: int | None = None) -> list[AceRow]:
    """The first `limit` rows of a Normal or Special category, or all. Raises DataError naming file and line."""
    assert category.kind != "agent"
    rows: list[AceRow] = []
    for place, raw, label_place, answer in labelled_lines(folder, category, limit):
        try:
            id_, functions = read_functions(raw)
            tools = tuple(normalise_tool(_document(function)) for function in functions)
            messages = (Message("system", _system(raw, category)), *_messages(raw["question"]))
        except (RecordError, SchemaError) as error:
            raise DataError(f"{place}: no ACEBench row: {error}. {REMEDY}") from None
        try:
            target = AceTarget(category.kind, functions, _labels(answer, id_, category), category.dialogue)
        except RecordError as error:
            raise DataError(f"{label_place}: no label of {id_}: {error}. {REMEDY}") from None
        sample = Sample(id_, tools, messages, _reference(target), category=category.name)
        rows.append(AceRow(sample, target, gold_text(target)))
    return rows


def gold_calls(target: AceTarget) -> tuple[Call, ...]:
    """The calls of the first label."""
    names = [function["name"] for function in target.functions]
    return tuple(Call(tool_name(key, names), wanted) for key, wanted in target.labels[0].items())


def gold_text(target: AceTarget) -> str:
    """A right answer in the benchmark's own format, made from the label."""
    label = target.labels[0]
    if target.kind == "calls":
        return write_calls(gold_calls(target))
    if target.kind == "irrelevant":
        return f"Due to {LIMITATIONS}, I cannot solve this problem."
    if target.kind == "incomplete":
        return " ".join(f"{MISSING} ({', '.join(parts)}) for the api ({name})" for name, parts in label.items())
    return " ".join(
        f"{INCORRECT} ({', '.join(values)}) for the parameters ({name}) in the conversation history."
        for name, values in label.items()
    )


def read_functions(raw: Any) -> tuple[str, tuple[dict[str, Any], ...]]:
    """A row's id and its function documents as they stand, checked as far as the matcher relies on them. Raises
    RecordError."""
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str) or not isinstance(raw.get("question"), str):
        raise RecordError("expected an object with an id and a question")
    functions = raw.get("function")
    if not isinstance(functions, list):
        raise RecordError("function: expected a list of function documents")
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError("function: expected documents with a name")
        if not all(isinstance(function.get(key, {}), dict) for key in ("parameters", "arguments")):
            raise RecordError(f"{function['name']}: expected parameters to be an object")
        if not all(isinstance(value, dict) for value in properties_of(function).values()):
            raise RecordError(f"{function['name']}: expected properties to be objects")
    return raw["id"], tuple(functions)


def _document(function: dict[str, Any]) -> dict[str, Any]:
    """What a model is shown of a function; results and tags are no part of it."""
    return {key: function[key] for key in ("name", "description", "parameters", "arguments") if key in function}


def _system(raw: dict[str, Any], category: Category) -> str:
    profile = raw.get("profile")
    parts = [
        _CALLS if category.kind == "calls" else _SPECIAL,
        str(raw.get("time") or ""),
        f"What is known of the user, where the request needs it: {json.dumps(profile, ensure_ascii=False)}"
        if profile
        else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _messages(question: str) -> list[Message]:
    """The flat dialogue as messages."""
    messages: list[Message] = []
    for role, text in split_turns(question):
        calls = tuple(official_calls(text) or ()) if role != "user" and text.startswith("[") else ()
        if role == "user":
            messages.append(Message("user", text))
        elif calls and all(call.name for call in calls):
            messages.append(Message("assistant", calls=calls))
        elif messages and messages[-1].calls:
            messages.append(Message("tool", text, name=messages[-1].calls[-1].name))
        else:
            messages.append(Message("assistant", text))
    return messages


def _labels(answer: Any, id_: str, category: Category) -> tuple[Label, ...]:
    if not isinstance(answer, dict) or answer.get("id") != id_:
        found = answer.get("id") if isinstance(answer, dict) else answer
        raise RecordError(f"found {found!r} in its place, and labels are in the order of the rows")
    wanted = answer.get("ground_truth")
    if category.kind == "irrelevant":
        return ({},)
    part = dict if category.kind == "calls" else list
    labels = wanted if isinstance(wanted, list) and category.kind == "calls" else [wanted]
    for label in labels:
        if not isinstance(label, dict) or not label or not all(isinstance(value, part) for value in label.values()):
            shape = "{function: {parameter: value}}" if part is dict else "{name: [strings]}"
            raise RecordError(f"ground_truth: expected {shape}")
        if part is list and not all(isinstance(text, str) for values in label.values() for text in values):
            raise RecordError("ground_truth: expected {name: [strings]}")
    if not labels:
        raise RecordError("ground_truth: expected at least one answer")
    return tuple(labels)


def _reference(target: AceTarget) -> Target:
    if target.kind == "calls":
        return Target(calls=gold_calls(target))
    text = gold_text(target)
    if target.kind == "incomplete":
        missing = tuple(part for parts in target.labels[0].values() for part in parts)
        return Target(text=text, intent="clarify", missing=missing)
    return Target(text=text, intent="refuse" if target.kind == "irrelevant" else "clarify")
