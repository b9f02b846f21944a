"""LoopTool's own format: `{instruction, input, output}` (paper, Figure 7; released as LoopTool-23k).

instruction: policy text and Qwen's tool block. The text becomes the system message; the block becomes the tools
(Qwen's fixed words around it are dropped, the chat format writes them again). input: the first user text, then
ChatML turns; tool results are user turns of `<tool_response>` blocks. output: `<tool_call>` blocks, or text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from looptool_jax.data.files import parse_json
from looptool_jax.data.importers.common import (
    Reject,
    Source,
    Step,
    answer_target,
    build_samples,
    read_answer,
    read_responses,
    read_text,
    read_tools,
)
from looptool_jax.toolcall.records import Message, Sample

_TOOLS_OPEN = re.compile(r"<tools>\s*(?=[\[{]|</tools>\s*\n)")
_HOW_TO = re.compile(
    r"\s*For each function call, return a json object.*?XML tags:\s*<tool_call>\s*\{.*?\}\s*</tool_call>\.?", re.DOTALL
)
_TURN = re.compile(r"<\|im_end\|>\s*<\|im_start\|>(\w*)\n")


def convert(record: dict[str, Any], source: Source) -> list[Sample]:
    """One sample per record. Raises Reject."""
    system, documents = _read_instruction(read_text(record, "instruction"))
    messages = [Message("system", system)] if system else []
    messages += _read_history(read_text(record, "input"))
    calls, text, reasoning = read_answer(read_text(record, "output"), "output")
    if not calls and not text:
        raise Reject("empty assistant turn", "output has neither text nor calls")
    fields = {key: value for key, value in record.items() if key not in ("instruction", "input", "output")}
    step = Step(tuple(messages), answer_target(calls, text), {"reasoning": reasoning} if reasoning else {})
    return build_samples([step], read_tools(documents), source, fields)


def _read_instruction(text: str) -> tuple[str, list[Any]]:
    """The policy text, and the tool documents of the block: JSON values one after another, or lists of them."""
    opening = _TOOLS_OPEN.search(text)
    if opening is None:
        raise Reject("no tool block", "instruction has no <tools> with JSON in it")
    documents: list[Any] = []
    position = opening.end()
    while not text.startswith("</tools>", position):
        try:
            _, end = _SCANNER.raw_decode(text, position)
            value = parse_json(text[position:end])
        except (ValueError, RecursionError) as error:
            raise Reject("unreadable tool", f"tool {len(documents) + 1} in instruction: {error}") from None
        documents += value if isinstance(value, list) else [value]
        position = end
        while text[position : position + 1].isspace():
            position += 1
    before = text[: opening.start()]
    head = before[: before.rfind("# Tools")] if "# Tools" in before else before
    tail = text[position + len("</tools>") :]
    how_to = _HOW_TO.match(tail)
    tail = tail[how_to.end() :] if how_to else tail
    return "\n\n".join(part for part in (head.strip(), tail.strip()) if part), documents


def _read_history(text: str) -> list[Message]:
    text = text.strip().removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>")
    roles = ["user", *_TURN.findall(text)]
    contents = _TURN.split(text)[::2]
    messages: list[Message] = []
    for number, (role, content) in enumerate(zip(roles, contents, strict=True), 1):
        if "<|im_start|>" in content or "<|im_end|>" in content:
            raise Reject("turns out of order", f"turn {number} of input holds a stray chat marker")
        if role == "assistant":
            calls, said, reasoning = read_answer(content, f"turn {number} of input")
            messages.append(Message("assistant", said, calls, reasoning=reasoning))
        elif role in ("user", "tool"):
            messages += _read_user_turn(content, number)
        else:
            raise Reject("unknown role", f"turn {number} of input is by {role!r}")
    if messages[-1].role == "assistant":
        raise Reject("turns out of order", "input ends with an assistant turn, so nothing is asked")
    return messages


def _read_user_turn(content: str, number: int) -> list[Message]:
    if not content.lstrip().startswith("<tool_response>"):
        if not content.strip():
            raise Reject("empty user turn", f"turn {number} of input")
        return [Message("user", content)]
    return [Message("tool", text) for text in read_responses(content, f"turn {number} of input")]


_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)
