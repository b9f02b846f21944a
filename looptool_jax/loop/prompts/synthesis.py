"""Prompts of seed synthesis (paper, section 3), and the readers of what comes back.

A reader takes a reply for what was asked for or raises Unreadable; nothing is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from looptool_jax.data.files import parse_json
from looptool_jax.inference.openai_api import spelled_out
from looptool_jax.loop.prompts import conversation_text, fill, tools_text, with_tags, without_thinking
from looptool_jax.toolcall import Call, Message, ParseFailure, SchemaError, Tool, normalise_tool, parse

Kind = Literal["single", "multi_step", "parallel", "missing_parameter", "no_tool", "tool_error"]

KINDS: dict[Kind, int] = {
    "single": 4,
    "multi_step": 5,
    "parallel": 4,
    "missing_parameter": 3,
    "no_tool": 2,
    "tool_error": 2,
}
"""Kinds of user turns, with the weights with which they are drawn."""

STYLES = (
    "friendly and talkative",
    "terse, hardly a full sentence",
    "formal and polite",
    "in a hurry",
    "precise, in the order in which things are to be done",
    "colloquial, with a contraction or two",
    "unsure what such services are called",
    "dry and humorous",
    "plain and calm",
    "thinking aloud, the wish at the end",
)
"""How users speak."""

_TAGS = re.compile(r"</?(?:tool_call|tool_response|tools|think)>")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n```", re.DOTALL)
_ROLE = re.compile(r"^(?:SYSTEM|USER|ASSISTANT|TOOL):", re.MULTILINE)


class Unreadable(ValueError):
    """A reply that is not what was asked for; the text says why."""


@dataclass(frozen=True)
class Need:
    """One user turn of a plan. tools: names in the order of their calls. missing: required parameters that the user
    leaves out until asked."""

    kind: Kind
    text: str
    tools: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def context_tree_messages(domain: str) -> list[Message]:
    """The request for the context tree of a domain (section 3.1, App. D)."""
    return fill("context_tree", "full", domain=domain)


def constraint_tree_messages(domain: str) -> list[Message]:
    """The request for the constraint tree of a domain (section 3.1, App. D)."""
    return fill("constraint_tree", "full", domain=domain)


def api_messages(place: Sequence[str], constraints: Sequence[str]) -> list[Message]:
    """The request for an API document: a path of the context tree, and what the drawn constraints say."""
    return fill("api", "full", place=" > ".join(place), constraints=_bullets(constraints))


def plan_messages(tools: Sequence[Tool], facts: str, date: str, kinds: Sequence[Kind]) -> list[Message]:
    """The planner's request. facts: what exists behind executable tools ("": nothing is known)."""
    turns = "\n".join(f"{number}. {kind}" for number, kind in enumerate(kinds, 1))
    known = facts or "The functions are simulated: any plausible value exists."
    return fill("plan", "full", tools=tools_text(tools), facts=known, date=date, turns=turns)


def user_messages(messages: Sequence[Message], need: Need, withhold: Sequence[str], style: str) -> list[Message]:
    """The user's request: what a user can see of the conversation, and the present need."""
    seen = [
        Message(turn.role, turn.content) for turn in messages if turn.role in ("user", "assistant") and turn.content
    ]
    leave_out = f"Leave out for now: {', '.join(withhold)}.\n" if withhold else ""
    conversation = conversation_text(seen) or "(none yet)"
    return fill("user", "full", conversation=conversation, need=need.text, withhold=leave_out, style=style)


def assistant_messages(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The assistant's request."""
    return fill("assistant", "full", tools=tools_text(tools), conversation=conversation_text(messages))


def tool_messages(
    messages: Sequence[Message], tools: Sequence[Tool], calls: Sequence[Call], failing: bool
) -> list[Message]:
    """The request for the results of calls. failing: the first of them has to fail."""
    failure = "The first call fails this time: its result is an error that a program could give here.\n"
    return fill(
        "tool", "full", tools=tools_text(tools), conversation=conversation_text(messages),
        calls="\n".join(json.dumps(call.to_json(), ensure_ascii=False) for call in calls),
        failure=failure if failing else "",
    )  # fmt: skip


def parse_object(reply: str) -> dict[str, Any]:
    """Read one JSON object, alone or in a code fence. Raises Unreadable."""
    value = _json(reply)
    if not isinstance(value, dict):
        raise Unreadable(f"expected a JSON object, found {type(value).__name__}")
    return value


def parse_api(reply: str) -> Tool:
    """Read an API document. Raises Unreadable."""
    raw = parse_object(reply)
    if strangers := set(raw) - {"name", "description", "parameters"}:
        raise Unreadable(f"the document has keys of its own: {', '.join(sorted(strangers))}")
    try:
        return normalise_tool(raw)
    except SchemaError as error:
        raise Unreadable(str(error)) from None


def parse_plan(reply: str, kinds: Sequence[Kind], tools: Sequence[Tool]) -> tuple[Need, ...]:
    """Read a plan with a turn of each kind, in order, over these tools. Raises Unreadable."""
    turns = _json(reply)
    if not isinstance(turns, list) or len(turns) != len(kinds):
        found = f"{len(turns)}" if isinstance(turns, list) else type(turns).__name__
        raise Unreadable(f"expected a list of {len(kinds)} turns, found {found}")
    known = {tool.name: tool for tool in tools}
    return tuple(
        _need(raw, kind, known, f"turn {i}") for i, (raw, kind) in enumerate(zip(turns, kinds, strict=True), 1)
    )


def parse_user(reply: str) -> str:
    """Read what the user says. Raises Unreadable."""
    text = _text(reply)
    if not re.search(r"\w", text):
        raise Unreadable("the user says nothing")
    if _ROLE.search(text):
        raise Unreadable("the reply speaks for a role by its marker")
    _check_plain(text)
    return text


def parse_step(reply: str) -> Message:
    """Read an assistant's step: calls, or plain text. Raises Unreadable."""
    written = with_tags(_text(reply))
    parsed = parse(written)
    if isinstance(parsed, ParseFailure):
        raise Unreadable(f"{parsed.kind}: {parsed.detail}")
    if parsed.text:
        if _ROLE.search(parsed.text):
            raise Unreadable("the reply speaks for a role by its marker")
        _check_plain(parsed.text)
    if not parsed.calls and not re.search(r"\w", parsed.text):
        raise Unreadable("the assistant does nothing")
    _check_text(json.dumps([call.arguments for call in parsed.calls], ensure_ascii=False))
    return Message("assistant", parsed.text, parsed.calls)


def parse_results(reply: str, calls: Sequence[Call]) -> list[Any]:
    """Read the results of calls, in their order. Raises Unreadable."""
    rows = _json(reply)
    if not isinstance(rows, list) or len(rows) != len(calls):
        found = f"{len(rows)}" if isinstance(rows, list) else type(rows).__name__
        raise Unreadable(f"expected a list of {len(calls)} results, found {found}")
    for row, call in zip(rows, calls, strict=True):
        if not isinstance(row, dict) or set(row) != {"name", "result"} or row["name"] != call.name:
            raise Unreadable(f"expected the name and the result of {call.name}, found {json.dumps(row)[:80]}")
    return [row["result"] for row in rows]


def _need(raw: Any, kind: Kind, known: dict[str, Tool], where: str) -> Need:
    """One turn of a plan, held against its kind."""
    if not isinstance(raw, dict) or not set(raw) <= {"need", "tools", "missing"}:
        raise Unreadable(f"{where}: expected an object with need, tools and missing")
    text, names, missing = raw.get("need"), raw.get("tools", []), raw.get("missing", [])
    if not isinstance(text, str) or not text.strip():
        raise Unreadable(f"{where}: need is no text")
    _check_plain(text)
    for value, what in ((names, "tools"), (missing, "missing")):
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise Unreadable(f"{where}: {what} is no list of names")
        if len(set(value)) < len(value):
            raise Unreadable(f"{where}: {what} has a name twice")
    if unknown := [name for name in names if name not in known]:
        raise Unreadable(f"{where}: there is no function {unknown[0]}")
    one = kind in ("single", "missing_parameter", "tool_error")
    if (kind == "no_tool") == bool(names) or (one and len(names) != 1):
        raise Unreadable(f"{where}: {kind} with {len(names)} functions")
    if (kind == "missing_parameter") != bool(missing):
        raise Unreadable(f"{where}: {kind} with {len(missing)} missing parameters")
    if strange := [name for name in missing if name not in known[names[0]].required]:
        raise Unreadable(f"{where}: {strange[0]} is no required parameter of {names[0]}")
    return Need(kind, text.strip(), tuple(names), tuple(missing))


def _text(reply: str) -> str:
    text = without_thinking(reply)
    if text is None:
        raise Unreadable("the think block is not closed")
    return text


def _json(reply: str) -> Any:
    """The one JSON value of a reply, alone or in a code fence."""
    text = _text(reply)
    fenced = _FENCE.fullmatch(text)
    try:
        value = parse_json(fenced[1] if fenced else text)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    _check_text(json.dumps(value, ensure_ascii=False))
    return value


def _check_plain(text: str) -> None:
    """Raises Unreadable for a text that holds what only calls and templates are made of."""
    _check_text(text)
    if re.search(r"^\s*(?:[{\[]|```)", text, re.MULTILINE):
        raise Unreadable("JSON or code where text was wanted")


def _check_text(text: str) -> None:
    if spelled_out(text) != text:
        raise Unreadable("the reply holds a control token of chat templates")
    if found := _TAGS.search(text):
        raise Unreadable(f"the reply holds the tag {found[0]}")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise Unreadable("the reply holds half a surrogate pair")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- none"
