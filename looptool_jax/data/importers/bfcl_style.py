"""Rows in the manner of BFCL: `{question, function, ground_truth}`. For your own: the benchmark's are refused by name.

question: a text, a list of `{role, content}` messages, or a list with one such list. function: a tool document or a
list. ground_truth: the calls of one step, each `{name: {parameter: [accepted values]}}`, where "" says that the
parameter may be left out and members of objects are lists of accepted values too; or as text, `name(parameter=value)`.

The first accepted values are the label; up to MAX_ALTERNATIVES further call lists that fit the tools are its
alternatives. `extra["fields"]["ground_truth"]` keeps the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any

from looptool_jax.data.importers.call_syntax import read_calls
from looptool_jax.data.importers.common import Reject, Source, Step, build_samples, read_list, read_text, read_tools
from looptool_jax.toolcall.records import Call, Message, Role, Sample, Target, Tool
from looptool_jax.toolcall.schema import check_call, find_tool

MAX_ALTERNATIVES = 63
_LEFT_OUT = object()
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per record. Raises Reject."""
    function = record.get("function")
    tools = read_tools([function] if isinstance(function, dict) else function)
    messages = _read_question(record.get("question"))
    labels = read_list(record.get("ground_truth"), "ground_truth")
    if not labels:
        raise Reject("no label", "ground_truth is empty, and these rows have no texts")
    if any(isinstance(label, list) for label in labels):
        raise Reject("several turns", "ground_truth is a list of turns; one step is read")
    accepted = [_accepted(label, tools) for label in labels]
    first, *others = islice(product(*accepted), MAX_ALTERNATIVES + 1)
    step = Step(messages, Target(calls=first, alternatives=tuple(others)))
    fields = {key: value for key, value in record.items() if key not in ("question", "function")}
    return build_samples([step], tools, source, fields)


def _read_question(raw: Any) -> tuple[Message, ...]:
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    turns = read_list(raw, "question")
    if turns and isinstance(turns[0], list):
        if len(turns) > 1:
            raise Reject("several turns", "question is a list of turns; one step is read")
        turns = turns[0]
    messages = []
    for number, turn in enumerate(turns, 1):
        role = turn.get("role") if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise Reject("unreadable message", f"message {number} of question has no role of a chat")
        messages.append(Message(_ROLES[role], read_text(turn, "content")))
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise Reject("turns out of order", "question does not end with a user turn")
    return tuple(messages)


def _accepted(label: Any, tools: Sequence[Tool]) -> list[Call]:
    """Calls that the label accepts and the tools allow, the plainest first; where none is allowed, the plainest."""
    if isinstance(label, str):
        try:
            (call,) = read_calls(f"[{label}]", [tool.name for tool in tools])
        except ValueError as error:
            raise Reject("unreadable call", f"{label[:60]!r}: {error}") from None
        return [call]
    if not isinstance(label, dict) or len(label) != 1:
        raise Reject("unreadable call", "a call of ground_truth should be {name: {parameter: [accepted values]}}")
    ((name, parameters),) = label.items()
    if not isinstance(parameters, dict) or not all(isinstance(values, list) for values in parameters.values()):
        raise Reject("unreadable call", f"{name} should hold a list of accepted values for each parameter")
    tool = find_tool(name, tools)
    required = tool.required if tool else ()
    options = [_options(values, key in required) for key, values in parameters.items()]
    calls = [Call(name, _present(parameters, values)) for values in islice(product(*options), MAX_ALTERNATIVES + 1)]
    if not calls:
        raise Reject("unreadable call", f"{name}: a parameter has an empty list of accepted values")
    return [call for call in calls if not check_call(call, tools)] or calls[:1]


def _options(accepted: list[Any], required: bool) -> list[Any]:
    """The values a parameter may have, and _LEFT_OUT last; for a required one "" is a value like any other."""
    values = [option for value in accepted if value != "" or required for option in _values(value)]
    return [*values, *([_LEFT_OUT] if "" in accepted and not required else [])]


def _values(value: Any) -> Iterator[Any]:
    """The values that an accepted value stands for, at most as many as alternatives are kept."""
    if isinstance(value, dict):
        options = [_options(item, False) if isinstance(item, list) else [item] for item in value.values()]
        yield from (_present(value, chosen) for chosen in islice(product(*options), MAX_ALTERNATIVES + 1))
    elif isinstance(value, list):
        parts = [list(_values(item)) for item in value]
        yield from (list(chosen) for chosen in islice(product(*parts), MAX_ALTERNATIVES + 1))
    else:
        yield value


def _present(keys: dict[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    return {key: value for key, value in zip(keys, values, strict=True) if value is not _LEFT_OUT}
