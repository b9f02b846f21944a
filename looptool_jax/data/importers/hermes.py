"""Hermes function calling: `{conversations}` with the tools in `<tools>` of the system turn, or in a field `tools`.

conversations: `{from, value}` turns by system, human, gpt and tool. Tools, calls in `<tool_call>` and results in
`<tool_response>` are JSON or Python source. Sentences of the system turn about functions and how to call them are
dropped, they would contradict the chat format, and kept in `extra["fields"]["instructions"]`. A result may be `{name,
content}`.
"""

from __future__ import annotations

from typing import Any

from looptool_jax.data.importers.call_syntax import read_literal
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    build_samples,
    json_text,
    read_answer,
    read_call,
    read_list,
    read_responses,
    read_text,
    read_tools,
    split_steps,
    without_instructions,
)
from looptool_jax.toolcall.parser import CALL_CLOSE, CALL_OPEN
from looptool_jax.toolcall.records import Call, Message, Sample

_OPEN, _CLOSE = "<tools>", "</tools>"


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per assistant turn that answers something. Raises Reject."""
    documents = read_list(record.get("tools"), "tools")
    fields = {key: value for key, value in record.items() if key not in ("conversations", "tools")}
    messages: list[Message] = []
    for number, raw in enumerate(read_list(record.get("conversations"), "conversations"), 1):
        if not isinstance(raw, dict):
            raise Reject("unreadable turn", f"turn {number} should be an object, found {type(raw).__name__}")
        author, value = read_text(raw, "from"), read_text(raw, "value")
        if author == "system" and number == 1:
            before, block, after = _read_system(value)
            own, fields["instructions"] = without_instructions(f"{before}\n{after}")
            documents = documents or block
            messages += [Message("system", own)] if own else []
        else:
            messages += _read_turn(author, value, number)
    if not documents:
        raise Reject("no tool block", f"the system turn has no {_OPEN} with tools in it, and there is no field tools")
    return build_samples(split_steps(messages), read_tools(documents), source, fields)


def _read_system(text: str) -> tuple[str, list[Any], str]:
    """What stands before the tools, the tools, and what stands behind them."""
    start = text.find(_OPEN)
    while start >= 0 and text[start + len(_OPEN) :].lstrip()[:1] not in ("[", "{"):  # `<tools></tools>` in a sentence
        start = text.find(_OPEN, start + 1)
    if start < 0:
        return text, [], ""
    documents: list[Any] = []
    position = start + len(_OPEN)
    while not text[position:].lstrip().startswith(_CLOSE):
        try:
            value, position = read_literal(text, position)
        except ValueError as error:
            raise Reject("unreadable tool", f"tool {len(documents) + 1} in the system turn: {error}") from None
        documents += value if isinstance(value, list) else [value]
    return text[:start], documents, text[text.index(_CLOSE, position) + len(_CLOSE) :]


def _read_turn(author: str, value: str, number: int) -> list[Message]:
    if author in ("human", "user"):
        return [Message("user", value)]
    if author in ("gpt", "assistant"):
        start = value.find(CALL_OPEN, value.find("</think>") + 1)
        said = value if start < 0 else value[:start]
        _, text, reasoning = read_answer(said, f"turn {number}")
        return [Message("assistant", text, _read_blocks(value, start, number), reasoning=reasoning)]
    if author == "tool":
        return [_read_result(text) for text in read_responses(value, f"turn {number}")]
    if author == "system":
        return [Message("system", value)]
    raise Reject("unknown role", f"turn {number} is by {author!r}")


def _read_blocks(text: str, start: int, number: int) -> tuple[Call, ...]:
    """The calls from the offset of the first `<tool_call>` on."""
    calls = []
    position = start if start >= 0 else len(text)
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        if not text.startswith(CALL_OPEN, position):
            raise Reject("unreadable assistant turn", f"turn {number}: text after a call")
        try:
            value, position = read_literal(text, position + len(CALL_OPEN))
        except ValueError as error:
            raise Reject("unreadable call", f"turn {number}: {error}") from None
        rest = text[position:].lstrip()
        if not rest.startswith(CALL_CLOSE):
            raise Reject("unreadable call", f"turn {number}: expected {CALL_CLOSE}, found {rest[:40]!r}")
        position = len(text) - len(rest) + len(CALL_CLOSE)
        calls.append(read_call(value))
    return tuple(calls)


def _read_result(text: str) -> Message:
    try:
        value, end = read_literal(text)
    except ValueError:
        return Message("tool", text)
    if text[end:].strip() or not isinstance(value, dict) or set(value) - {"tool_call_id"} != {"name", "content"}:
        return Message("tool", text)
    name, content = value["name"], value["content"]
    if not isinstance(name, str):
        return Message("tool", text)
    return Message("tool", json_text(content), name=name)
