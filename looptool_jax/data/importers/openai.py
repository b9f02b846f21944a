"""OpenAI-style records: `{messages, tools}` (the STAR release writes xLAM this way).

One sample per assistant message. Calls may be bare `{name, arguments}` or wrapped in `function`, with arguments as
an object or as a JSON string; contents may be null or a list of text parts. Chat formats have no call ids, a result
belongs to the call in its place: where ids tell which call a result answers, results are put in the calls' order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from looptool_jax.data.importers.common import (
    Reject,
    Source,
    build_samples,
    read_call,
    read_list,
    read_tools,
    split_steps,
)
from looptool_jax.toolcall.records import Message, Role, Sample

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per assistant message that answers something. Raises Reject."""
    messages = read_messages(read_list(record.get("messages"), "messages"))
    fields = {key: value for key, value in record.items() if key not in ("messages", "tools")}
    return build_samples(split_steps(messages), read_tools(record.get("tools")), source, fields)


def read_messages(turns: list[Any]) -> list[Message]:
    """The messages of a conversation, with results in the order of the calls that they answer. Raises Reject."""
    return _in_call_order(turns, [_read_message(raw, number) for number, raw in enumerate(turns, 1)])


def _read_message(raw: Any, number: int) -> Message:
    if not isinstance(raw, dict):
        raise Reject("unreadable message", f"message {number} should be an object, found {type(raw).__name__}")
    role = raw.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise Reject("unknown role", f"message {number} is by {role!r}")
    content = _read_content(raw.get("content"), number)
    name = raw.get("name")
    if role != "assistant":
        return Message(_ROLES[role], content, name=name if isinstance(name, str) else "")
    calls = [read_call(call) for call in read_list(raw.get("tool_calls"), f"tool_calls of message {number}")]
    if raw.get("function_call") is not None:
        calls.append(read_call(raw["function_call"]))
    reasoning = raw.get("reasoning_content")
    return Message("assistant", content, tuple(calls), reasoning=reasoning if isinstance(reasoning, str) else "")


def _in_call_order(turns: list[dict[str, Any]], messages: list[Message]) -> list[Message]:
    """The messages with the results behind each assistant turn in the order of its calls, named by the called tool."""
    out = list(messages)
    for start, message in enumerate(messages, 1):
        end = start
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        calls = read_list(turns[start - 1].get("tool_calls"), "tool_calls") if message.calls else []
        ids = [call.get("id") for call in calls]
        answered = [turn.get("tool_call_id") for turn in turns[start:end]]
        if all(isinstance(id_, str) and ids.count(id_) == 1 for id_ in answered):
            places = [ids.index(id_) for id_ in answered]
            results = sorted(zip(places, messages[start:end], strict=True), key=lambda pair: pair[0])
            out[start:end] = [
                replace(result, name=result.name or message.calls[place].name) for place, result in results
            ]
    return out


def _read_content(raw: Any, number: int) -> str:
    if raw is None:
        return ""
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list):
        raise Reject("unreadable message", f"content of message {number} is a {type(raw).__name__}")
    texts = []
    for part in raw:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Reject("unreadable message", f"content of message {number} is more than text")
        texts.append(part["text"])
    return "".join(texts)
