"""BFCL's categories, and its single-turn rows read from a folder that the user has: nothing of the benchmark comes with
the program. Rows of several turns are read in `multi_turn.py`.

Files (JSON lines, whatever their ending): `BFCL_v4_CATEGORY.json` or `BFCL_v3_CATEGORY.json`, labels of the same name
in `possible_answer/`, in the same order. v3 has the same rows but for a few labels; its simple categories have other
names. The package bfcl-eval has v4 in `bfcl_eval/data`; it is found without being imported, for its dependencies clash
with JAX's (`pip install --no-deps bfcl-eval` is enough).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from looptool_jax.data.benchmarks import installed_folder, json_lines
from looptool_jax.data.store import DataError
from looptool_jax.toolcall import (
    BfclCall,
    BfclTarget,
    Call,
    Message,
    RecordError,
    Sample,
    SchemaError,
    Target,
    Tool,
    normalise_tool,
)
from looptool_jax.toolcall.bfcl_literals import Language, source_text
from looptool_jax.toolcall.bfcl_match import BfclKind, item_type_name

PACKAGE = "bfcl_eval"
REMEDY = "give --data a folder with BFCL_v4_*.json, or: pip install --no-deps bfcl-eval"
_V3_NAMES = {"simple_python": "simple", "simple_java": "java", "simple_javascript": "javascript"}


@dataclass(frozen=True)
class Category:
    """live: made of users' prompts. rows: how many the benchmark has (bfcl-eval 2026.3.23)."""

    name: str
    kind: BfclKind | Literal["multi_turn"]
    live: bool
    rows: int

    @property
    def language(self) -> Language:
        suffix = self.name.rpartition("_")[2]
        return suffix if suffix in ("java", "javascript") else "python"  # type: ignore[return-value]

    @property
    def wants_calls(self) -> bool:
        return self.kind not in ("irrelevance", "relevance")

    @property
    def group(self) -> str:
        """Where the benchmark keeps its results: live, non_live or multi_turn."""
        return "multi_turn" if self.kind == "multi_turn" else "live" if self.live else "non_live"


CATEGORIES = {
    category.name: category
    for category in (
        Category("simple_python", "single", False, 400),
        Category("simple_java", "single", False, 100),
        Category("simple_javascript", "single", False, 50),
        Category("multiple", "multiple", False, 200),
        Category("parallel", "parallel", False, 200),
        Category("parallel_multiple", "parallel", False, 200),
        Category("irrelevance", "irrelevance", False, 240),
        Category("live_simple", "single", True, 258),
        Category("live_multiple", "multiple", True, 1053),
        Category("live_parallel", "parallel", True, 16),
        Category("live_parallel_multiple", "parallel", True, 24),
        Category("live_irrelevance", "irrelevance", True, 884),
        Category("live_relevance", "relevance", True, 16),
        Category("multi_turn_base", "multi_turn", False, 200),
        Category("multi_turn_miss_func", "multi_turn", False, 200),
        Category("multi_turn_miss_param", "multi_turn", False, 200),
        Category("multi_turn_long_context", "multi_turn", False, 200),
    )
}


@dataclass(frozen=True)
class BfclRow:
    """sample: what a model is asked, with a right answer as its target (text where none is known); never scored with
    the strict matcher. target: what the answer is held against."""

    sample: Sample
    target: BfclTarget


@dataclass(frozen=True)
class LabelledLine:
    """A row and its label as they stand in their files, and where (file:line). label: None where there are none."""

    place: str
    raw: dict[str, Any]
    label_place: str
    label: dict[str, Any] | None


def choose_categories(names: Sequence[str]) -> list[Category]:
    """Categories by their names, or by all, single_turn, live, non_live, multi_turn; in the benchmark's order. Raises
    DataError."""
    groups = {"all": list(CATEGORIES)}
    groups["single_turn"] = [name for name, category in CATEGORIES.items() if category.kind != "multi_turn"]
    for group in ("live", "non_live", "multi_turn"):
        groups[group] = [name for name, category in CATEGORIES.items() if category.group == group]
    for name in names:
        if name not in groups and name not in CATEGORIES:
            raise DataError(f"--categories: {name!r} is not known; there are {', '.join((*groups, *CATEGORIES))}")
    chosen = {name for given in names for name in groups.get(given, [given])}
    return [category for name, category in CATEGORIES.items() if name in chosen]


def data_folder(given: str | None) -> Path:
    """The folder that is given, or that of the installed package. Raises DataError where there is none."""
    if given is not None:
        if not Path(given).is_dir():
            raise DataError(f"{given}: no such folder; {REMEDY}")
        return Path(given)
    folder = installed_folder(PACKAGE)
    if folder is None:
        raise DataError(f"the package bfcl-eval is not installed; {REMEDY}")
    return folder


def read_category(folder: Path, category: Category, limit: int | None = None) -> list[BfclRow]:
    """The first `limit` rows of a single-turn category, or all. Raises DataError naming file and line."""
    assert category.kind != "multi_turn"
    rows = []
    for line in labelled_lines(folder, category, limit):
        raw = line.raw
        try:
            functions, messages = check_functions(raw.get("function")), _messages(raw)
            tools = tuple(_tool(function, category.language) for function in functions)
        except (RecordError, SchemaError) as error:
            raise DataError(f"{line.place}: no BFCL row: {error}. {REMEDY}") from None
        try:
            calls = _calls(line.label) if line.label is not None else ()
        except RecordError as error:
            raise DataError(f"{line.label_place}: no label of {raw['id']}: {error}. {REMEDY}") from None
        target = BfclTarget(category.kind, category.language, functions, calls)
        rows.append(BfclRow(Sample(raw["id"], tools, messages, _reference(target), category=category.name), target))
    return rows


def labelled_lines(folder: Path, category: Category, limit: int | None) -> list[LabelledLine]:
    """The first `limit` rows of a category, or all. Raises DataError where the file is empty, a row has no id or a
    label is not its row's."""
    file, *label_files = category_files(folder, category)
    labels = json_lines(label_files[0], REMEDY) if label_files else iter(())
    lines: list[LabelledLine] = []
    for number, raw in json_lines(file, REMEDY):
        if len(lines) == limit:
            break
        if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
            raise DataError(f"{file}:{number}: no BFCL row: expected an object with an id. {REMEDY}")
        label_number, label = next(labels, (0, None))
        label_place = ":".join(map(str, (*label_files, *([label_number] if label_number else ()))))
        if label_files and (not isinstance(label, dict) or label.get("id") != raw["id"]):
            found = label.get("id") if isinstance(label, dict) else label
            raise DataError(
                f"{label_place}: no label of {raw['id']}: found {found!r} in its place, and labels are in the order of "
                f"the rows. {REMEDY}"
            )
        lines.append(LabelledLine(f"{file}:{number}", raw, label_place, label))
    if not lines:
        raise DataError(f"{file}: holds no rows; {REMEDY}")
    return lines


def category_files(folder: Path, category: Category) -> list[Path]:
    """The file of a category's rows, and that of its labels where it has any. Raises DataError where one is missing."""
    names = [f"BFCL_v4_{category.name}.json", f"BFCL_v3_{_V3_NAMES.get(category.name, category.name)}.json"]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise DataError(f"{folder}: neither {names[0]} nor {names[1]} is here; {REMEDY}")
    if not category.wants_calls:
        return [file]
    labels = file.parent / "possible_answer" / file.name
    if not labels.is_file():
        raise DataError(f"{labels}: no such file; it has the labels of {file.name}. {REMEDY}")
    return [file, labels]


def _messages(raw: dict[str, Any]) -> tuple[Message, ...]:
    turns = raw.get("question")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], list) or not turns[0]:
        raise RecordError("question: expected a list of one turn, a list of messages")
    return tuple(Message.from_json(message) for message in turns[0])


def check_functions(functions: Any) -> tuple[dict[str, Any], ...]:
    """The function documents as they stand, checked as far as the program relies on them. Raises RecordError."""
    if not isinstance(functions, list):
        raise RecordError("function: expected a list of function documents")
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError("function: expected documents with a name")
        parameters = function.get("parameters")
        parameters = parameters if isinstance(parameters, dict) else {}
        properties = parameters.get("properties")
        if not isinstance(properties, dict) or not all(isinstance(value, dict) for value in properties.values()):
            raise RecordError(f"{function['name']}: expected parameters with properties")
        if not isinstance(parameters.get("required", []), list):
            raise RecordError(f"{function['name']}: expected required to be a list")
    return tuple(functions)


def _calls(label: dict[str, Any]) -> tuple[BfclCall, ...]:
    wanted = label.get("ground_truth")
    if not isinstance(wanted, list) or not wanted:
        raise RecordError("ground_truth: expected a list of calls")
    calls = []
    for call in wanted:
        [(name, accepted)] = call.items() if isinstance(call, dict) and len(call) == 1 else [("", None)]
        if not isinstance(accepted, dict) or not all(isinstance(values, list) for values in accepted.values()):
            raise RecordError("ground_truth: expected {function: {parameter: [accepted values]}}")
        calls.append(BfclCall(name, accepted))
    return tuple(calls)


def _tool(function: dict[str, Any], language: Language) -> Tool:
    """The document as the model is shown it. Java and JavaScript parameters are strings of source text, for JSON has no
    values of theirs; their description says of which type. A parameter listed as required is not optional."""
    parameters = function["parameters"]
    properties = {}
    for key, document in parameters["properties"].items():
        if key in parameters.get("required", ()):
            document = {name: value for name, value in document.items() if name != "optional"}
        properties[key] = document if language == "python" else _source_property(document, language)
    return normalise_tool({**function, "parameters": {**parameters, "properties": properties}})


def _source_property(document: dict[str, Any], language: Language) -> dict[str, Any]:
    kind = str(document.get("type", "any"))
    if items := item_type_name(document):
        kind += f" of {items}"
    name = {"java": "Java", "javascript": "JavaScript"}[language]
    said = f"{document.get('description', '')} (A string with {name} source of type {kind}.)"
    return {"type": "string", "description": said.lstrip()}


def _reference(target: BfclTarget) -> Target:
    """One right answer where calls are wanted; else a text."""
    if not target.calls:
        return Target(intent="refuse" if target.kind == "irrelevance" else "answer")
    return Target(calls=tuple(reference_call(call, target) for call in target.calls))


def reference_call(call: BfclCall, target: BfclTarget, with_optional: bool = False) -> Call:
    """A wanted call with the first accepted value of each documented parameter; of those that may be left out if asked
    for. A required parameter without a value gets the empty one that its label means."""
    functions = [function["parameters"] for function in target.functions if function["name"] == call.name]
    parameters: dict[str, Any] = functions[0] if functions else {}
    arguments = {}
    for key, accepted in call.accepted.items():
        document = parameters.get("properties", {}).get(key)
        required = key in parameters.get("required", ())
        values = [value for value in accepted if value != ""]
        if document is None or not (required or with_optional or "" not in accepted) or not (required or values):
            continue
        value = _first_values(values[0] if values else "" if accepted else [])
        if target.language != "python":
            value = source_text(value, document.get("type", "any"), item_type_name(document), target.language)
        arguments[key] = value
    return Call(call.name, arguments)


def _first_values(value: Any) -> Any:
    """An accepted value as an argument: the members of objects are lists of accepted values."""
    if isinstance(value, list):
        return [_first_values(part) for part in value]
    if not isinstance(value, dict):
        return value
    first = {key: options[0] if isinstance(options, list) and options else options for key, options in value.items()}
    return {key: option for key, option in first.items() if option != ""}
