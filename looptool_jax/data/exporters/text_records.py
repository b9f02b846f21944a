"""Records that are mostly text: ToolACE, Hermes, ToolRL and LoopTool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from looptool_jax.data.exporters.losses import conversation
from looptool_jax.data.files import dump_json, parse_json
from looptool_jax.data.importers.call_syntax import write_calls
from looptool_jax.data.importers.common import Reject
from looptool_jax.toolcall.formats import get_format
from looptool_jax.toolcall.records import Call, Message, Sample, Target

_TOOLACE_HEAD = "Here are the functions that you can call, as a JSON list:\n"
_TOOLACE_TAIL = "\nTo call functions, answer with [function(parameter=value, ...), ...] and no other text."
_HERMES_HEAD = "You can call the functions in <tools></tools>:\n<tools>\n"
_HERMES_TAIL = (
    "\n</tools>\nFor each function call write a JSON object with name and arguments in tags, <tool_call>\n"
    '{"name": <function-name>, "arguments": <args-object>}\n</tool_call>'
)
_TOOLRL_STEPS = (
    "\n\n**Steps for Each Turn**\n1. **Think:** say in <think> what is wanted.\n2. **Decide on Tool Usage:** for calls "
    'write <tool_call> with one JSON object {"name": ..., "parameters": {...}} a line.\n3. **Respond:** else answer in '
    "<response>."
)


def toolace_record(sample: Sample) -> dict[str, Any]:
    """Calls are Python source, and stand without text or reasoning."""
    system, messages = _system_apart(sample)
    tools = _json([tool.to_json() for tool in sample.tools])
    turns = []
    for role, members in _turns(messages):
        if role == "tool":
            turns.append({"from": role, "value": _named_results(members)})
        else:
            turns += [{"from": role, "value": write_calls(m.calls) if m.calls else m.content} for m in members]
    return {"system": _joined(system, f"{_TOOLACE_HEAD}{tools}{_TOOLACE_TAIL}"), "conversations": turns}


def hermes_record(sample: Sample) -> dict[str, Any]:
    """Tools stand in the system turn; calls and results are blocks."""
    system, messages = _system_apart(sample)
    tools = _json([{"type": "function", "function": tool.to_json()} for tool in sample.tools])
    turns = [{"from": "system", "value": _joined(system, f"{_HERMES_HEAD}{tools}{_HERMES_TAIL}")}]
    for role, members in _turns(messages):
        if role == "tool":
            results = [f"<tool_response>\n{_hermes_result(message)}\n</tool_response>" for message in members]
            turns.append({"from": "tool", "value": "\n".join(results)})
        else:
            author = {"user": "human", "assistant": "gpt"}[role]
            turns += [{"from": author, "value": _answer(m) if role == "assistant" else m.content} for m in members]
    return {"id": sample.id, "conversations": turns}


def toolrl_record(sample: Sample) -> dict[str, Any]:
    """Tools are numbered text; a dialogue and its next turn are blocks of ToolRL's tags."""
    system, messages = _system_apart(sample)
    tools = [
        f"{number}. Name: {tool.name}\nDescription: {tool.description}\nParameters: {_json(tool.parameters)}"
        for number, tool in enumerate(sample.tools, 1)
    ]
    available = "\n".join(["**Available Tools**\nIn your response, you can use the following tools:", *tools])
    history = ["**Dialogue Records History**"]
    for role, members in _turns(messages[:-1]):
        if role == "tool":
            plain = len(members) == 1 and not members[0].name
            history.append(f"<obs> {members[0].content if plain else _named_results(members)} </obs>\n")
        else:
            history += [_blocks(message) + "\n" for message in members]
    return {
        "instruction": _joined(system, available + _TOOLRL_STEPS),
        "input": "\n".join(history),
        "output": _blocks(messages[-1]),
    }


def looptool_record(sample: Sample) -> dict[str, Any]:
    """Tools and history in Qwen's words. Raises Reject for texts that hold its marks of turns."""
    system, messages = _system_apart(sample)
    if any(mark in message.content for message in messages for mark in ("<|im_start|>", "<|im_end|>")):
        raise Reject("a text that reads as turns", "it holds a mark of ChatML")
    qwen = get_format("qwen3")
    head = qwen.render([Message("system", system)], sample.tools, thinking=False, generation_prompt=False)
    history = []
    for role, members in _turns(messages[:-1]):
        if role == "tool":
            blocks = [f"<tool_response>\n{message.content}\n</tool_response>" for message in members]
            history.append("<|im_start|>user\n" + "\n".join(blocks))
        else:
            history += [f"<|im_start|>{role}\n{_answer(m) if role == 'assistant' else m.content}" for m in members]
    return {
        "instruction": head.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n").strip(),
        "input": "<|im_end|>\n".join(history).removeprefix("<|im_start|>user\n"),
        "output": _answer(messages[-1]),
    }


def _system_apart(sample: Sample) -> tuple[str, Sequence[Message]]:
    """The system prompt, and the other turns. Raises Reject for a system turn among them."""
    messages = conversation(sample)
    system, rest = (messages[0].content, messages[1:]) if messages[0].role == "system" else ("", messages)
    if any(message.role == "system" for message in rest):
        raise Reject("a system turn inside the dialogue", "the format has one system prompt, at the start")
    return system, rest


def _turns(messages: Sequence[Message]) -> Iterator[tuple[str, list[Message]]]:
    return ((role, list(members)) for role, members in groupby(messages, lambda message: message.role))


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _answer(message: Message) -> str:
    """An assistant's turn in Qwen's and Hermes's words."""
    thought = f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""
    if not message.calls:
        return thought + message.content
    return thought + get_format("hermes").render_target(Target(message.calls, message.content))


def _blocks(message: Message) -> str:
    """A user's or an assistant's turn in ToolRL's tags."""
    if message.role == "user":
        return f"<user> {message.content} </user>\n"
    parts = [f"<think> {message.reasoning} </think>"] if message.reasoning else []
    if message.calls:
        parts += ["<tool_call>", *map(_toolrl_call, message.calls), "</tool_call>"]
    if message.content:
        parts.append(f"<response> {message.content} </response>")
    return "\n".join(parts)


def _toolrl_call(call: Call) -> str:
    return _json({"name": call.name, "parameters": call.arguments})


def _named_results(messages: Sequence[Message]) -> str:
    return _json([{"name": message.name, "results": _value(message.content)} for message in messages])


def _hermes_result(message: Message) -> str:
    if not message.name:
        return message.content
    return _json({"name": message.name, "content": _value(message.content)})


def _value(text: str) -> Any:
    """The JSON value that a result's text is, where the text can be had back from it; else the text."""
    try:
        value = parse_json(text)
        return value if not isinstance(value, str) and dump_json(value).decode() == text else text
    except ValueError:
        return text


def _json(value: Any) -> str:
    return dump_json(value).decode()
