"""Prompts of the judge, the generator and the verifier, and the readers of what they answer (paper, App. G). Those of
seed synthesis are in `synthesis.py`.

Judge and generator have two variants: `full`, for models that follow instructions, and `compact`, the short form the
embedded model was trained on. A prompt is a text file with a [system] and a [user] section; `{placeholders}` are
filled in one pass, so text that comes from data is never expanded again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Literal

from looptool_jax.inference.grammar import call_line
from looptool_jax.toolcall import Call, Message, ParseFailure, Sample, Target, Tool, differences, get_format, parse

Variant = Literal["full", "compact"]

SCENARIOS: dict[str, str] = {
    "complexity": "change the complexity. Ask for more or fewer things at once, or need other functions or more "
    "arguments than the original, with values of another size or kind.",
    "persona": "change who is asking. Another profession, age or mood speaks, in the words such a person would use, "
    "and the values fit that person's life.",
    "interaction": "change how the dialogue goes. Turn one turn into several or the reverse; let a value be given in "
    "an earlier turn, in a tool result, or corrected by the user.",
    "data": "change the data. Keep the kind of request and draw every value anew: unusual names, edge values, other "
    "dates, amounts and units.",
}


class VerdictKind(StrEnum):
    """Outcome of a comparative judgement; the member's value is the tag the judge writes."""

    RESPONSE1_INCORRECT = "[RESPONSE1_INCORRECT]"
    RESPONSE2_INCORRECT = "[RESPONSE2_INCORRECT]"
    BOTH_CORRECT = "[BOTH_CORRECT]"
    BOTH_INCORRECT = "[BOTH_INCORRECT]"


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict and the analysis written before it."""

    kind: VerdictKind
    analysis: str


@dataclass(frozen=True)
class Expansion:
    """A new sample as the generator wrote it.

    messages: the seed's system messages, then the new conversation. output_text: the answer in the form an
    assistant writes it, calls in <tool_call> blocks; it is neither parsed nor checked here.
    """

    messages: tuple[Message, ...]
    output_text: str


def judge_messages(variant: Variant, sample: Sample, response_1: str, response_2: str) -> list[Message]:
    """The comparison of two responses, each as an assistant writes it, in the order given (section 4.3).

    The compact prompt shows the first response and where the second differs from it.
    """
    places = differences(response_1, response_2, sample.tools)
    return _fill(
        "judge",
        variant,
        sample,
        response_1=response_text(response_1),
        response_2=response_text(response_2),
        differences="\n".join(f"{here.place}: {here.first} | {here.second}" for here in places) or "none",
    )


def verify_messages(sample: Sample) -> list[Message]:
    """The check of one sample's own target (second tier of the verification, section 3.2)."""
    return _fill("verify", "full", sample, response=response_text(sample.target))


def expand_messages(
    variant: Variant, sample: Sample, correct: str, wrong: str, analysis: str, scenario: str
) -> list[Message]:
    """The request for one new sample around an error seed (section 4.4). `scenario` is a key of SCENARIOS.

    Raises ValueError for an unknown scenario.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario: expected one of {', '.join(SCENARIOS)}, found {scenario!r}")
    return _fill(
        "expand",
        variant,
        sample,
        correct=response_text(correct),
        wrong=response_text(wrong),
        analysis=analysis.strip(),
        scenario=scenario if variant == "compact" else SCENARIOS[scenario],
    )


def parse_verdict(reply: str) -> Verdict | None:
    """Read a judge's reply: the last non-empty line is exactly one tag, or there is no verdict (None).

    Tags mentioned elsewhere in the reply mean nothing. A closed think block is dropped; an unclosed one is no reply.
    """
    split = _last_line(reply)
    if split is None or split[1] not in set(VerdictKind):
        return None
    return Verdict(VerdictKind(split[1]), split[0])


def parse_verification(reply: str) -> bool | None:
    """Read a verifier's reply: True for [CORRECT], False for [INCORRECT] alone on the last line, None otherwise."""
    split = _last_line(reply)
    return None if split is None else {"[CORRECT]": True, "[INCORRECT]": False}.get(split[1])


def parse_expansion(reply: str, seed: Sample) -> Expansion | str:
    """Read a generator's reply `INPUT: ... OUTPUT: ...`; a string says why it cannot be read.

    Turns start with USER:, ASSISTANT: or TOOL: at the beginning of a line and run, paragraphs included, to the next
    marker; without a marker the whole input is one user turn. System messages are the seed's.
    """
    text = without_thinking(reply)
    if text is None:
        return "the think block is not closed"
    parts = re.split(r"^(INPUT|OUTPUT):", text, flags=re.MULTILINE)
    if parts[1::2] != ["INPUT", "OUTPUT"] or parts[0].strip():
        return "expected one INPUT: and then one OUTPUT:, and nothing before them"
    turns = _turns(parts[2])
    if isinstance(turns, str):
        return turns
    if not parts[4].strip():
        return "OUTPUT: is empty"
    system = tuple(message for message in seed.messages if message.role == "system")
    return Expansion((*system, *turns), with_tags(parts[4].strip()))


def expansion_grammar(tools: Sequence[Tool]) -> str:
    """The replies that `parse_expansion` can take apart and whose OUTPUT is calls of these tools, one a line, that fit
    their schemas. The INPUT is any text without the markers of either part."""
    return f"""start: INPUT call ("\\n" call)*
INPUT: "INPUT:" TEXT "\\nOUTPUT:\\n"
TEXT: /\\n(?s:.)*[^\\s](?s:.)*/ & ~/(?s:.)*\\n(INPUT|OUTPUT):(?s:.)*/
{call_line(tools)}"""


def written(target: Target) -> str:
    """A target as an assistant writes it."""
    return get_format("qwen3").render_target(target)


def response_text(response: Target | str) -> str:
    """How a response is shown in a prompt: its text, then one JSON line per call.

    No <tool_call> tags: inside a message they would be tokenised as plain characters. A string that cannot be parsed
    is shown as it is.
    """
    if isinstance(response, Target):
        return _shown(response.text, response.calls)
    parsed = parse(response)
    if isinstance(parsed, ParseFailure):
        return response.strip() or "(empty)"
    return _shown(parsed.text, parsed.calls) or "(empty)"


def tools_text(tools: Sequence[Tool]) -> str:
    """One tool per line, in the wrapper and the JSON the chat template uses."""
    return "\n".join(json.dumps({"type": "function", "function": tool.to_json()}, ensure_ascii=False) for tool in tools)


def conversation_text(messages: Sequence[Message]) -> str:
    """The messages, each behind its role in capitals at the beginning of a line."""
    return "\n".join(f"{message.role.upper()}: {_shown(message.content, message.calls)}" for message in messages)


@cache
def _sections(name: str, variant: Variant) -> tuple[str, str]:
    """The [system] and [user] sections of a prompt file."""
    if variant not in ("full", "compact"):
        raise ValueError(f"prompts: expected full or compact, found {variant!r}")
    file = files(__name__) / (f"{name}.txt" if variant == "full" else f"{name}_compact.txt")
    _, system, user = re.split(r"^\[(?:system|user)\]\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return system.rstrip("\n"), user.rstrip("\n")


def fill(name: str, variant: Variant, **values: str) -> list[Message]:
    """The prompt of a file, its placeholders filled in one pass."""
    system, user = (
        re.sub(r"\{([a-z_0-9]+)\}", lambda found: values[found[1]], section) for section in _sections(name, variant)
    )
    return [Message("system", system), Message("user", user)]


def _fill(name: str, variant: Variant, sample: Sample, **values: str) -> list[Message]:
    tools, conversation = tools_text(sample.tools), conversation_text(sample.messages)
    return fill(name, variant, tools=tools, conversation=conversation, **values)


def _shown(text: str, calls: Sequence[Call]) -> str:
    return "\n".join(filter(None, [text.strip(), *(json.dumps(c.to_json(), ensure_ascii=False) for c in calls)]))


def without_thinking(reply: str) -> str | None:
    """The reply after its leading think block; None when the block never closes."""
    text = reply.strip()
    if not text.startswith("<think>"):
        return text
    _, closed, rest = text.partition("</think>")
    return rest.strip() if closed else None


def _last_line(reply: str) -> tuple[str, str] | None:
    """What stands before the last non-empty line, and that line."""
    text = without_thinking(reply)
    if not text:
        return None
    before, _, last = text.rpartition("\n")
    return before.strip(), last.strip()


def _turns(text: str) -> tuple[Message, ...] | str:
    """The conversation of an INPUT, or why it is none."""
    parts = re.split(r"^(USER|ASSISTANT|TOOL):", text, flags=re.MULTILINE)
    if len(parts) == 1:
        parts = ["", "USER", text]
    if parts[0].strip():
        return "INPUT: has text before its first role marker"
    messages: list[Message] = []
    waiting: list[str] = []  # names of calls whose results have not come yet
    for role, content in zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True):
        if not content:
            return f"INPUT: has an empty {role} turn"
        if (role == "TOOL") != bool(waiting):
            return f"INPUT: a {role} turn where {'a result' if waiting else 'no result'} is expected"
        if role == "TOOL":
            messages.append(Message("tool", content, name=waiting.pop(0)))
        elif role == "USER":
            messages.append(Message("user", content))
        else:
            parsed = parse(with_tags(content))
            if isinstance(parsed, ParseFailure):
                return f"INPUT: a call in the history cannot be read ({parsed.detail})"
            messages.append(Message("assistant", parsed.text, parsed.calls))
            waiting = [call.name for call in parsed.calls]
    if messages[0].role != "user" or messages[-1].role == "assistant" or waiting:
        return "INPUT: has to start with USER and end with USER or with the result of a call"
    return tuple(messages)


def with_tags(text: str) -> str:
    """The form an assistant writes: trailing lines that are JSON objects with a name become <tool_call> blocks."""
    lines = text.split("\n")
    start = len(lines)
    while start and (_is_call(lines[start - 1]) or not lines[start - 1].strip()):
        start -= 1
    calls = [f"<tool_call>\n{line.strip()}\n</tool_call>" for line in lines[start:] if line.strip()]
    return "\n".join(["\n".join(lines[:start]).strip(), *calls]).strip() if calls else text


def _is_call(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "name" in value and set(value) <= {"name", "arguments"}
