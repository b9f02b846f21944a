"""ShareGPT-style dialogues with function calls, as LLaMA-Factory ships Glaive: `{conversations, tools}`.

conversations: `{from, value}` turns by human, gpt, function_call and observation (or user, assistant, tool_call,
tool, system). tools: a JSON string or a list. One sample per assistant step: a function_call turn is a call target;
a gpt turn, whether it talks or sums up a tool's result, is a text target with intent "answer".
"""

from __future__ import annotations

from typing import Any

from looptool_jax.data.files import parse_json
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    build_samples,
    read_answer,
    read_call,
    read_list,
    read_text,
    read_tools,
    split_steps,
)
from looptool_jax.toolcall.records import Message, Sample

_USER = {"human", "user"}
_ASSISTANT = {"gpt", "assistant"}
_CALL = {"function_call", "tool_call"}
_RESULT = {"observation", "tool", "function_response"}


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per assistant step. Raises Reject."""
    turns = read_list(record.get("conversations"), "conversations")
    messages = [Message("system", read_text(record, "system"))] if record.get("system") else []
    messages += [_read_turn(raw, number) for number, raw in enumerate(turns, 1)]
    fields = {key: value for key, value in record.items() if key not in ("conversations", "tools", "system")}
    return build_samples(split_steps(messages), read_tools(record.get("tools")), source, fields)


def _read_turn(raw: Any, number: int) -> Message:
    if not isinstance(raw, dict):
        raise Reject("unreadable turn", f"turn {number} should be an object, found {type(raw).__name__}")
    author, value = read_text(raw, "from"), read_text(raw, "value")
    if author in _USER:
        return Message("user", value)
    if author in _ASSISTANT:
        calls, text, reasoning = read_answer(value, f"turn {number}")
        return Message("assistant", text, calls, reasoning=reasoning)
    if author in _CALL:
        return Message("assistant", "", _read_calls(value, number))
    if author in _RESULT:
        return Message("tool", value)
    if author == "system":
        return Message("system", value)
    raise Reject("unknown role", f"turn {number} is by {author!r}")


def _read_calls(text: str, number: int) -> tuple[Any, ...]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise Reject("unreadable call", f"turn {number}: {error}") from None
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Reject("unreadable call", f"turn {number} is an empty list of calls")
    return tuple(read_call(call) for call in calls)
