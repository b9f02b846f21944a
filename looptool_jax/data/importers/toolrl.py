"""ToolRL's format (rlla): `{instruction, input, output}`, or the same inside verl parquet rows.

instruction: a system sentence, the tools as numbered text, then how to answer in ToolRL's own tags (dropped: it would
contradict the chat format). input: the dialogue so far in `<user>`, `<think>`, `<tool_call>`, `<obs>`, `<response>`
blocks. output: `<think>`, then `<tool_call>` with one `{name, parameters}` per line, or `<response>`, or both.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from looptool_jax.data.files import parse_json
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    Step,
    answer_target,
    build_samples,
    read_call,
    read_results,
    read_text,
    read_tools,
)
from looptool_jax.toolcall.records import Call, Message, Sample

_TOOLS = re.compile(r"\*\*Available Tools\*\*(.*?)(?=\n\*\*Steps for Each Turn\*\*|\Z)", re.DOTALL)
_TOOL = re.compile(r"(\d+)\. Name: (.*?)\nDescription: (.*)\nParameters: (.*)", re.DOTALL)
_HISTORY = "**Dialogue Records History**"
_NAMES = "user|think|tool_call|response|obs"
_BLOCK = re.compile(rf"\s*<({_NAMES})>(.*?)</\1>\s*(?=<(?:{_NAMES})>|\Z)", re.DOTALL)


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per record. Raises Reject."""
    if "prompt" in record and "reward_model" in record:
        return _convert_verl(record, source)
    fields = {key: value for key, value in record.items() if key not in ("instruction", "input", "output")}
    instruction, history, output = (read_text(record, key) for key in ("instruction", "input", "output"))
    return _convert(instruction, history, output, source, fields)


def _convert_verl(record: dict[str, Any], source: Source) -> list[Sample]:
    prompt, reward = record["prompt"], record["reward_model"]
    turns = prompt if isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt) else []
    if [turn.get("role") for turn in turns] != ["system", "user"] or not isinstance(reward, dict):
        raise Reject("unexpected field", "prompt should be a system and a user turn, reward_model an object")
    instruction, history = (read_text(turn, "content") for turn in turns)
    fields = {key: value for key, value in record.items() if key not in ("prompt", "reward_model")}
    return _convert(instruction, history, read_text(reward, "ground_truth"), source, fields)


def _convert(instruction: str, history: str, output: str, source: Source, fields: dict[str, Any]) -> list[Sample]:
    system, documents = _read_instruction(instruction)
    messages = [Message("system", system)] if system else []
    messages += _read_dialogue(history.strip().removeprefix(_HISTORY))
    answer = _read_dialogue(output)
    if len(answer) != 1 or answer[0].role != "assistant":
        raise Reject("unreadable assistant turn", "output should be one turn of <think>, <tool_call>, <response>")
    label = answer[0]
    if not label.calls and not label.content:
        raise Reject("empty assistant turn", "output has neither text nor calls")
    step = Step(
        tuple(messages),
        answer_target(label.calls, label.content),
        {"reasoning": label.reasoning} if label.reasoning else {},
    )
    if not messages or messages[-1].role not in ("user", "tool"):
        raise Reject("turns out of order", "input does not end with a user turn or a tool result")
    return build_samples([step], read_tools(documents), source, fields)


def _read_instruction(text: str) -> tuple[str, list[dict[str, Any]]]:
    section = _TOOLS.search(text)
    blocks = _tool_blocks(section[1]) if section else []
    if section is None or not blocks:
        raise Reject("no tool block", "instruction has no **Available Tools** section with a first tool")
    return text[: section.start()].strip(), [_read_tool(block) for block in blocks]


def _tool_blocks(text: str) -> list[str]:
    """Cut before `1. Name: `, `2. Name: `, ... in that order, so a numbered list in a description cuts nothing."""
    starts: list[int] = []
    while (start := text.find(f"\n{len(starts) + 1}. Name: ", starts[-1] if starts else 0)) >= 0:
        starts.append(start)
    return [text[start:end].strip() for start, end in pairwise([*starts, len(text)])]


def _read_tool(block: str) -> dict[str, Any]:
    match = _TOOL.fullmatch(block)
    if match is None:
        raise Reject("unreadable tool", f"expected Name, Description and Parameters lines, found {block[:60]!r}")
    try:
        parameters = parse_json(match[4])
    except ValueError as error:
        raise Reject("unreadable tool", f"parameters of {match[2]}: {error}") from None
    return {"name": match[2], "description": match[3], "parameters": parameters}


def _read_dialogue(text: str) -> list[Message]:
    """Blocks to messages: think, calls and response that follow one another are one assistant turn."""
    messages: list[Message] = []
    turn: dict[str, Any] = {}

    def close_turn() -> None:
        if turn:
            messages.append(
                Message("assistant", turn.get("response", ""), turn.get("tool_call", ()), "", turn.get("think", ""))
            )
            turn.clear()

    for name, content in _blocks(text):
        if name in ("user", "obs"):
            close_turn()
            messages += [Message("user", content)] if name == "user" else read_results(content)
            continue
        if name in turn:
            close_turn()
        turn[name] = _read_calls(content) if name == "tool_call" else content
    close_turn()
    return messages


def _blocks(text: str) -> list[tuple[str, str]]:
    text = text.strip()
    blocks, position = [], 0
    while position < len(text):
        match = _BLOCK.match(text, position)
        if match is None:
            raise Reject(
                "unreadable dialogue", f"expected a <user>, <think>, ... block, found {text[position:][:60]!r}"
            )
        blocks.append((match[1], match[2].strip()))
        position = match.end()
    return blocks


def _read_calls(text: str) -> tuple[Call, ...]:
    calls = []
    for line in text.split("\n"):
        if line.strip():
            try:
                calls.append(read_call(parse_json(line)))
            except Reject:
                raise
            except ValueError as error:
                raise Reject("unreadable call", f"{line.strip()[:60]!r}: {error}") from None
    if not calls:
        raise Reject("unreadable call", "a <tool_call> block is empty")
    return tuple(calls)
