"""BFCL's multi-turn rows, and whether the calls of a dialogue do what a row wants.

A row is a list of user turns, services in a first state, and for every turn the calls that a label makes. The model may
take several steps in a turn, each an answer; a turn ends with the first answer without a call. What both modes share:
the calls of model and label are made to two sets of services, side by side; after a turn the public attributes of both
must be equal, and the model must have received every reply that the label's calls of this turn give, at any time so far
and in any order. More calls than the label's are allowed.

What mode "bfcl" does (bfcl-eval 2026.3.23), and "fixed" mends:

- after a turn in which the label makes no call, because a function or an argument is missing, nothing is checked: a
  model that acts on a guess passes if the guess comes true later, and 4 rows end in such a turn. Fixed: the state is
  compared there too.
- a function that is held back can be called before the user offers it. Fixed: it is not there yet.
- one row's label calls a function while it is held back. Fixed: that call is not wanted.
- a turn without a call fails even where earlier calls have done all that it wants. Fixed: state and replies decide.
- an answer is read with a regex that drops broken calls. Fixed: a dialogue with an unreadable answer is wrong.
- a model that reaches the step limit in the last turn can still pass. Fixed: it is wrong (`evaluate.py`), as is a
  dialogue with an answer that was cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from looptool_jax.data.store import DataError
from looptool_jax.evaluation.bfcl.data import REMEDY, Category, check_functions, labelled_lines
from looptool_jax.evaluation.bfcl.services import FILES, Session, different_state, load_service, read_documents
from looptool_jax.toolcall import (
    BfclMode,
    Call,
    Match,
    Message,
    ParseFailure,
    RecordError,
    SchemaError,
    Tool,
    normalise_tool,
    parse,
)
from looptool_jax.toolcall.bfcl_match import released_blocks


@dataclass(frozen=True)
class MultiTurnRow:
    """turns: what is said before the model answers; nothing where functions are added. tools: those there from the
    start. added: those that a turn adds. services, config: classes by name, and the first state of each. labels: the
    calls of each turn, `name(key=literal, ...)`."""

    id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    tools: tuple[Tool, ...]
    added: Mapping[int, tuple[Tool, ...]]
    services: Mapping[str, type]
    config: Mapping[str, Any]
    labels: tuple[tuple[str, ...], ...]

    def session(self) -> Session:
        """The row's services at its start."""
        names = [tool.name for tool in (*self.tools, *(tool for tools in self.added.values() for tool in tools))]
        return Session(self.services, self.config, names, "long_context" in self.category)

    def hidden(self, turn: int) -> set[str]:
        """Functions that are not there yet in a turn."""
        return {tool.name for number, tools in self.added.items() if number > turn for tool in tools}


def read_multi_turn(folder: Path, category: Category, limit: int | None = None) -> list[MultiTurnRow]:
    """The first `limit` rows of a multi-turn category, or all. Raises DataError naming file and line, or what to
    install."""
    services: dict[str, type] = {}
    tools: dict[str, tuple[Tool, ...]] = {}
    rows = []
    for line in labelled_lines(folder, category, limit):
        try:
            names = _service_names(line.raw)
            for name in names:
                if name not in services:
                    services[name], tools[name] = load_service(folder, name), _tools(folder, name)
            row = _row(line.raw, category, {name: services[name] for name in names}, [tools[name] for name in names])
        except RecordError as error:
            raise DataError(f"{line.place}: no multi-turn BFCL row: {error}. {REMEDY}") from None
        try:
            row.session()
        except Exception as error:  # the services raise what they like
            raise DataError(
                f"{line.place}: initial_config: the services cannot start from it ({error}). {REMEDY}"
            ) from None
        wanted = line.label.get("ground_truth") if line.label else None
        if not isinstance(wanted, list) or not all(_are_strings(calls) for calls in wanted):
            raise DataError(f"{line.label_place}: no label of {row.id}: expected a list of calls a turn. {REMEDY}")
        if len(wanted) != len(row.turns):
            raise DataError(f"{line.label_place}: {len(wanted)} turns instead of the {len(row.turns)} of {row.id}")
        rows.append(replace(row, labels=tuple(map(tuple, wanted))))
    return rows


def _service_names(raw: dict[str, Any]) -> list[str]:
    names = raw.get("involved_classes")
    if not _are_strings(names) or not names or not set(names) <= set(FILES):
        raise RecordError(f"involved_classes: expected names out of {', '.join(FILES)}")
    return names


def _row(
    raw: dict[str, Any], category: Category, services: Mapping[str, type], tools: Sequence[tuple[Tool, ...]]
) -> MultiTurnRow:
    """The row without its labels. tools: of each service."""
    question, config, missed = raw.get("question"), raw.get("initial_config"), raw.get("missed_function", {})
    if not isinstance(question, list) or not question or not all(isinstance(turn, list) for turn in question):
        raise RecordError("question: expected a list of turns, each a list of messages")
    if not isinstance(config, dict):
        raise RecordError("initial_config: expected an object")
    if not isinstance(missed, dict) or not all(turn.isdigit() and _are_strings(missed[turn]) for turn in missed):
        raise RecordError("missed_function: expected {turn: [names of functions]}")
    documented = {tool.name: tool for part in tools for tool in part}
    added = {}
    for turn, part in missed.items():
        if unknown := [name for name in part if name not in documented]:
            raise RecordError(f"missed_function: {unknown[0]!r} is not documented")
        added[int(turn)] = tuple(documented.pop(name) for name in dict.fromkeys(part))
    turns = tuple(tuple(Message.from_json(message) for message in turn) for turn in question)
    for number, turn in enumerate(turns):
        if not turn and number not in added:
            raise RecordError(f"question: turn {number} is empty and adds no function")
    return MultiTurnRow(raw["id"], category.name, turns, tuple(documented.values()), added, services, config, ())


def _tools(folder: Path, service: str) -> tuple[Tool, ...]:
    try:
        return tuple(normalise_tool(document) for document in check_functions(read_documents(folder, service)))
    except (RecordError, SchemaError) as error:
        raise DataError(f"{folder}: the documents of {service} cannot be read: {error}") from None


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def match_multi_turn(row: MultiTurnRow, turns: Sequence[Sequence[str]], mode: BfclMode = "bfcl") -> Match:
    """Compare a dialogue with its row. turns: the answers of each turn, canonical text without think blocks."""
    if len(turns) != len(row.labels):
        return Match(False, f"the dialogue ended in turn {len(turns)} of {len(row.labels)}")
    model, label = row.session(), row.session()
    replies: list[str] = []
    for number, (answers, wanted) in enumerate(zip(turns, row.labels, strict=True)):
        calls, hidden = 0, row.hidden(number) if mode == "fixed" else set()
        for answer in answers:
            if mode == "fixed":
                parsed = parse(answer)
                if isinstance(parsed, ParseFailure):
                    return Match(False, f"turn {number}: {parsed.kind}: {parsed.detail}")
                found = [model.call(call, hidden) for call in parsed.calls]
            else:
                found = [model.run(call_text(call)) for call in released_step(answer)]
            calls += len(found)
            replies += found
        expected = [label.run(text) for text in wanted if text.partition("(")[0] not in hidden]
        if mode == "bfcl" and not wanted:
            continue
        if mode == "bfcl" and not calls:
            return Match(False, f"turn {number}: no call")
        if place := different_state(model, label):
            return Match(False, f"turn {number}: {place} differs")
        if missing := _missing(expected, replies):
            return Match(False, f"turn {number}: nothing replied {missing[:120]}")
    return Match(True, "")


def released_step(answer: str) -> list[Call]:
    """The calls that the released evaluation makes out of an answer; none where that fails, which ends a turn."""
    calls = []
    for raw in released_blocks(answer):
        try:
            name, arguments = raw["name"], raw["arguments"]
            hash(name)  # the released evaluation makes it a key
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            calls.append(Call(f"{name}", dict(arguments.items())))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            return []
    return calls


def call_text(call: Call) -> str:
    """A call as the released evaluation writes it."""
    return f"{call.name}({','.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def _missing(expected: Sequence[str], replies: Sequence[str]) -> str:
    """The first expected reply that is not among the replies as often as it is expected, "" if there is none."""
    left = list(replies)
    for reply in expected:
        if reply not in left:
            return reply or "an empty text"
        left.remove(reply)
    return ""
