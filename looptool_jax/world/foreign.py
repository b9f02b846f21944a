"""Wrong answers for tools that are not of this world: from their schemas and the dialogue alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from looptool_jax.toolcall.records import Call, Message, Target, Tool
from looptool_jax.toolcall.schema import find_tool, property_schema
from looptool_jax.world import wording

Corrupted = tuple[Target, str, str]
_KINDS = (
    "wrong_value",
    "wrong_value",
    "wrong_tool",
    "missing_argument",
    "call_dropped",
    "call_duplicated",
    "text_instead",
)


def wrong_target(target: Target, tools: Sequence[Tool], messages: Sequence[Message], rng: Random) -> Corrupted | None:
    """One try at a wrong answer: the answer, its kind, and a few words on what is wrong; None where it fails.

    Whether the answer is wrong is for the caller to check: a new value can mean the same as the old one.
    """
    if not target.is_call:
        return _call_instead(tools, messages, rng)
    index = rng.randrange(len(target.calls))
    call = target.calls[index]

    def put(*calls: Call) -> Target:
        return Target((*target.calls[:index], *calls, *target.calls[index + 1 :]))

    kind = rng.choice(_KINDS)
    if kind == "call_dropped":
        return (put(), kind, f"one call of {call.name} is missing") if len(target.calls) > 1 else None
    if kind == "call_duplicated":
        return put(call, call), kind, f"one call of {call.name} too many"
    if kind == "text_instead":
        return Target(text=wording.refuse(rng), intent="refuse"), kind, f"declines although {call.name} fits"
    if kind == "wrong_tool":
        others = [tool for tool in tools if tool.name != call.name]
        if not others:
            return None
        other = rng.choice(others)
        arguments = {
            name: call.arguments.get(name, invented(schema, messages, rng))
            for name, schema in other.properties.items()
            if name in other.required or name in call.arguments
        }
        return put(Call(other.name, arguments)), kind, f"calls {other.name} instead of {call.name}"
    if not call.arguments:
        return None
    name = rng.choice(list(call.arguments))
    if kind == "missing_argument":
        return (
            put(Call(call.name, {k: v for k, v in call.arguments.items() if k != name})),
            kind,
            f'"{name}" is left out',
        )
    tool = find_tool(call.name, tools)
    schema = property_schema(tool.parameters, name) if tool else {}
    value = call.arguments[name]
    choices = [choice for choice in schema.get("enum", ()) if choice != value]
    value = rng.choice(choices) if choices else other_value(value, messages, rng)
    return put(Call(call.name, call.arguments | {name: value})), kind, f'wrong value for "{name}"'


def other_value(value: Any, messages: Sequence[Message], rng: Random) -> Any:
    """Another value of the same JSON type: mangled, or taken from elsewhere in the dialogue."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(re.sub(r"\D", "", _mangled(str(value), rng)) or "1")
    if isinstance(value, float):
        return round(value + rng.choice([-10, -1, -0.1, 0.1, 1, 10]), 2)
    if isinstance(value, list) and value:
        i = rng.randrange(len(value))
        return [*value[:i], other_value(value[i], messages, rng), *value[i + 1 :]]
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return value | {key: other_value(value[key], messages, rng)}
    if isinstance(value, str) and value:
        return _words_of(messages, len(value.split()), rng) if rng.random() < 0.3 else _mangled(value, rng)
    return value


def invented(schema: dict[str, Any], messages: Sequence[Message], rng: Random) -> Any:
    """A value of the declared type that nobody gave."""
    if schema.get("enum"):
        return rng.choice(list(schema["enum"]))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return rng.randrange(1, 100)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("array", "object"):
        return [] if kind == "array" else {}
    return _words_of(messages, rng.choice((1, 1, 2)), rng)


def _call_instead(tools: Sequence[Tool], messages: Sequence[Message], rng: Random) -> Corrupted | None:
    if not tools:
        return None
    tool = rng.choice(list(tools))
    arguments = {name: invented(tool.properties.get(name, {}), messages, rng) for name in tool.required}
    return Target((Call(tool.name, arguments),)), "call_instead", f"calls {tool.name}, which cannot do this"


def _mangled(text: str, rng: Random) -> str:
    """The text with one piece (word, digit) dropped, doubled or exchanged."""
    pieces = re.findall(r"\d|[^\W\d]+|\W", text)
    places = [i for i, piece in enumerate(pieces) if piece.isalnum()]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.choice(["drop", "double", "exchange", "exchange"])
    if kind == "double":
        pieces.insert(i, pieces[i])
    elif pieces[i].isdigit():
        pieces[i] = "" if kind == "drop" else rng.choice("0123456789")
    elif kind == "drop" and len(places) > 1:
        pieces[i] = ""
    else:
        cut = rng.randrange(len(pieces[i]))
        pieces[i] = pieces[i][:cut] + rng.choice("aeiourstln") + pieces[i][cut + rng.randrange(2) :]
    return "".join(pieces).strip()


def _words_of(messages: Sequence[Message], count: int, rng: Random) -> str:
    """`count` words in a row of what was said last."""
    words = re.findall(r"[\w@.:'-]*\w", messages[-1].content) or ["?"]
    start = rng.randrange(max(1, len(words) - count + 1))
    return " ".join(words[start : start + count])
