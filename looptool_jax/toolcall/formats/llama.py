"""Llama 3.1 and 3.2: header turns, tools in the first user turn, calls as JSON objects with name and parameters.

Where the family's template refuses, this one decides: several calls of a turn are one JSON object a line; tools
without a user message to carry them get a user turn of their own. As in the template, a turn with calls loses the text
beside them, and a tool's result is a JSON string. "Today" is the template's fixed date, so that prompts stay the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from looptool_jax.toolcall.formats.base import ChatFormat, Segment, call_block, content, template, to_json, tool_json
from looptool_jax.toolcall.parser import CALL_CLOSE, CALL_OPEN, ParseFailure, parse, read_call
from looptool_jax.toolcall.records import Call, Message, Target, Tool

_GUIDANCE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"
)
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

_START = re.compile(r"[ \t\r\n]*(?:<\|python_tag\|>)?[ \t\r\n]*")
_SEPARATOR = re.compile(r"[ \t\r]*[;\n][ \t\r\n]*")
# What looks like a call, whole or broken, in this family's syntax or in another: such an answer is no text answer.
_ATTEMPT = re.compile(
    r"\A[ \t\r\n]*(?:\{|\[[ \t\r\n]*(?:\{|[\w.-]+\())"
    r"|<\|python_tag\|>|</?tool_call>|<function="
    r'|\{[ \t\r\n]*"(?:name|parameters|arguments|function|type)"[ \t\r\n]*:'
)


@dataclass(frozen=True)
class Llama(ChatFormat):
    """The format of Llama's instruction-tuned models since 3.1."""

    def conversation(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Segment]:
        with_system = messages[0].role == "system"
        system, turns = messages[0].content.strip() if with_system else "", messages[with_system:]
        ipython = "Environment: ipython\n" if tools else ""
        out = [template("<|begin_of_text|>"), *_turn("system", template(ipython + _DATES), content(system))]
        if tools:
            asked = turns[0].content.strip() if turns and turns[0].role == "user" else None
            documents = [
                part for tool in tools for part in (content(to_json(tool_json(tool), indent=4)), template("\n\n"))
            ]
            out += _turn("user", template(_GUIDANCE), *documents, content(asked or ""))
            turns = turns if asked is None else turns[1:]
        for turn in turns:
            if turn.role == "tool":
                out += _turn("ipython", content(to_json(turn.content)))
            else:
                out += _turn(turn.role, *_calls_or_text(turn.calls, turn.content))
        return out

    def generation_prompt(self, thinking: bool) -> list[Segment]:
        return [_header("assistant")]

    def target_segments(self, target: Target) -> list[Segment]:
        return _calls_or_text(target.calls, target.text)

    def canonical(self, text: str) -> str:
        """Calls are JSON objects with exactly `name` and `parameters`, after an optional <|python_tag|>, with line
        breaks or semicolons between them and nothing else before, between or after."""
        if not _ATTEMPT.search(text):
            return text
        start = _START.match(text).end()  # type: ignore[union-attr]
        blocks: list[str] = []
        while True:
            found = read_call(text, start, "parameters")
            if isinstance(found, ParseFailure):
                return _rejected(blocks, text[start:])
            blocks.append("".join(segment.text for segment in call_block(found[0])))
            start = found[1]
            if not text[start:].strip(" \t\r\n"):
                return "\n".join(blocks)
            separator = _SEPARATOR.match(text, start)
            if separator is None:
                return _rejected(blocks, text[start:])
            start = separator.end()

    def before_calls(self, text: str) -> str:
        """What looks like a call anywhere makes the whole answer one, so nothing is certain before its end."""
        return ""


LLAMA31 = Llama(
    "llama3.1",
    ("llama",),
    control=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ends=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    pads=("<|finetune_right_pad_id|>", "<|end_of_text|>"),
)


def _header(role: str) -> Segment:
    return template(f"<|start_header_id|>{role}<|end_header_id|>\n\n")


def _turn(role: str, *body: Segment) -> list[Segment]:
    return [_header(role), *body, template("<|eot_id|>")]


def _calls_or_text(calls: Sequence[Call], text: str) -> list[Segment]:
    if not calls:
        return [content(text.strip())]
    out: list[Segment] = []
    for i, call in enumerate(calls):
        out += [
            template('\n{"name": ' if i else '{"name": '), content(to_json(call.name)),
            template(', "parameters": '), content(to_json(call.arguments)), template("}"),
        ]  # fmt: skip
    return out


def _rejected(blocks: Sequence[str], rest: str) -> str:
    """The calls read so far, then what could not be read as a block that the parser rejects. Where it would not (the
    model wrote canonical syntax), a closing tag in front makes it."""
    text = "\n".join([*blocks, f"{CALL_OPEN}\n{rest}\n{CALL_CLOSE}"])
    return text if isinstance(parse(text), ParseFailure) else f"{CALL_CLOSE}\n{text}"
