"""Records whose parts are JSON: OpenAI messages, ShareGPT as LLaMA-Factory reads it, xLAM."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from looptool_jax.data.exporters.losses import conversation
from looptool_jax.data.files import dump_json
from looptool_jax.data.importers.common import Reject
from looptool_jax.toolcall.formats.base import tool_json
from looptool_jax.toolcall.records import Sample, Tool

_PYTHON_TYPES = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict",
    "null": "None",
}  # fmt: skip


def openai_record(sample: Sample) -> dict[str, Any]:
    """Calls get ids, by which results name the call that they answer."""
    messages = []
    open_calls: list[str] = []
    for number, message in enumerate(conversation(sample)):
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            open_calls = [f"call_{number}_{index}" for index in range(len(message.calls))]
            turn["content"] = message.content or None
            turn["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": call.name, "arguments": _json(call.arguments)}}
                for id_, call in zip(open_calls, message.calls, strict=True)
            ]
        if message.role == "tool" and open_calls:
            turn["tool_call_id"] = open_calls.pop(0)
        if message.name:
            turn["name"] = message.name
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        messages.append(turn)
    return {"id": sample.id, "messages": messages, "tools": [tool_json(tool) for tool in sample.tools]}


def sharegpt_record(sample: Sample) -> dict[str, Any]:
    """Turns alternate: several results are one turn with a list. Calls stand without text or reasoning."""
    turns: list[dict[str, Any]] = []
    messages = conversation(sample)
    system = messages[0].content if messages[0].role == "system" else ""
    for role, group in groupby(messages[1:] if system else messages, lambda message: message.role):
        members = list(group)
        if role == "tool":
            results = [message.content for message in members]
            turns.append({"from": "observation", "value": results[0] if len(results) == 1 else _json(results)})
            continue
        for message in members:
            if message.calls:
                calls = [call.to_json() for call in message.calls]
                turns.append({"from": "function_call", "value": _json(calls if len(calls) > 1 else calls[0])})
                continue
            thought = f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""
            author = {"user": "human", "assistant": "gpt"}.get(role, role)
            turns.append({"from": author, "value": thought + message.content})
    record = {"conversations": turns, "tools": _json([tool.to_json() for tool in sample.tools])}
    return {**record, "system": system} if system else record


def xlam_record(sample: Sample) -> dict[str, Any]:
    """A question and the calls that answer it. Raises Reject for anything more."""
    if not sample.target.calls:
        raise Reject("a label that is a text", "the format has calls only")
    if [message.role for message in sample.messages] != ["user"]:
        raise Reject("more than one user turn", "the format has one query and nothing before it")
    tools = [{**tool.to_json(), "parameters": _flat_parameters(tool)} for tool in sample.tools]
    answers = [call.to_json() for call in sample.target.calls]
    query = sample.messages[0].content
    return {"id": sample.id, "query": query, "tools": _json(tools), "answers": _json(answers)}


def _flat_parameters(tool: Tool) -> dict[str, Any]:
    """Parameters by their names, each with a Python type that says whether it is optional."""
    flat: dict[str, Any] = {}
    for key, schema in tool.properties.items():
        kinds = schema.get("type", []) if isinstance(schema, dict) else [None]
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not all(kind in tuple(_PYTHON_TYPES) for kind in kinds):
            raise Reject("a schema that the format cannot write", f"{tool.name}: {key}")
        names = [_PYTHON_TYPES[kind] for kind in kinds]
        entry = dict(schema)
        optional = key not in tool.required
        if names:
            kind = names[0] if len(names) == 1 else f"Union[{', '.join(names)}]"
            entry["type"] = f"{kind}, optional" if optional else kind
        elif optional:
            entry["optional"] = True
        if not optional and "default" in schema:
            entry["required"] = True
        flat[key] = entry
    return flat


def _json(value: Any) -> str:
    return dump_json(value).decode()
