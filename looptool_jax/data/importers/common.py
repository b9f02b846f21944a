"""What all formats share: reading tools and calls, dialogues cut into steps, checked samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from looptool_jax.data.files import MAX_DEPTH, deeper_than, dump_json, parse_json
from looptool_jax.toolcall.parser import ParseFailure, parse
from looptool_jax.toolcall.records import Call, Message, Sample, Target, Tool
from looptool_jax.toolcall.schema import SchemaError, check_call, normalise_tool

_SENTENCE = re.compile(r"(?<=[.!?])(?=\s)|(?<=\n)")
_INSTRUCTION = re.compile(r"function|func\d|tool_call|</?tools>|available tools|params|other text", re.IGNORECASE)
_RESPONSE = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*(?=<tool_response>|\Z)", re.DOTALL)


class Reject(ValueError):
    """A record that cannot become samples. The text reads `kind: detail`; the kind is what tallies count."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)


@dataclass(frozen=True)
class Source:
    """Where a record stands: format, file name, first line (from 1), number in the file (from 1)."""

    format: str
    file: str
    line: int
    number: int

    @property
    def sample_id(self) -> str:
        stem = self.file.rsplit(".", 1)[0]
        return f"{self.format}-{stem}-{self.number:06d}"


@dataclass(frozen=True)
class Step:
    """One assistant step: the messages before it, what the record says it should be, and side information."""

    messages: tuple[Message, ...]
    target: Target
    extra: dict[str, Any] = field(default_factory=dict)


def build_samples(steps: Sequence[Step], tools: Iterable[Tool], source: Source, fields: dict[str, Any]) -> list[Sample]:
    """Samples of a record, one per step, each checked. `fields`: what the record holds besides. Raises Reject."""
    distinct = distinct_tools(tools)
    unread = {"fields": fields} if fields else {}
    samples = []
    for number, step in enumerate(steps, 1):
        _check_target(step.target, distinct, f" (step {number})" if len(steps) > 1 else "")
        sample = Sample(
            id=source.sample_id + (f"-{number:02d}" if len(steps) > 1 else ""),
            tools=distinct,
            messages=step.messages,
            target=step.target,
            category=_category(step, distinct),
            extra={"source": source.format, "file": source.file, "line": source.line, **unread, **step.extra},
        )
        check_storable(sample.to_json())
        samples.append(sample)
    return samples


def printable(text: str) -> str:
    """The text with half surrogate pairs written as escapes."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def distinct_tools(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    """The same document twice is one document; two documents of one name cannot be told apart by a call. Raises
    Reject."""
    by_name: dict[str, Tool] = {}
    for tool in tools:
        if by_name.setdefault(tool.name, tool) != tool:
            raise Reject("two different tools have the same name", tool.name)
    return tuple(by_name.values())


def _check_target(target: Target, tools: tuple[Tool, ...], where: str) -> None:
    problems = [f"{call.name}: {problem}" for call in target.calls for problem in check_call(call, tools)]
    if problems:
        raise Reject("the label does not fit its tools", "; ".join(problems) + where)
    if target.text or not target.calls:
        parsed = parse(target.text)
        if isinstance(parsed, ParseFailure) or parsed.calls or parsed.reasoning or not parsed.text:
            raise Reject("the label's text holds call or think tags, or nothing", target.text[:80] + where)


def check_storable(value: Any) -> None:
    """Half a surrogate pair is no character: no UTF-8 file and no tokenizer can hold it. Raises Reject."""
    if deeper_than(value):
        raise Reject("nested too deeply", f"more than {MAX_DEPTH} levels")
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end + 20]
        raise Reject("half a surrogate pair", f"in the text {printable(around)!r}") from None


def _category(step: Step, tools: tuple[Tool, ...]) -> str:
    if any(message.role == "assistant" for message in step.messages):
        return "multi_turn"
    calls = step.target.calls
    if not calls:
        return "text"
    if len(calls) == 1:
        return "single" if len(tools) == 1 else "multiple"
    return "parallel" if len({call.name for call in calls}) == 1 else "parallel_multiple"


def read_text(raw: dict[str, Any], key: str) -> str:
    """A field that must be a string. Raises Reject."""
    value = raw.get(key)
    if not isinstance(value, str):
        raise Reject("unexpected field", f"{key} should be a string, found {type(value).__name__}")
    return value


def read_list(raw: Any, what: str) -> list[Any]:
    """A value that must be a list, or a string that holds one as JSON; null and "" are an empty list. Raises Reject."""
    value = _from_string(raw, what) if isinstance(raw, str) else raw
    if value is None:
        return []
    if not isinstance(value, list):
        raise Reject("unexpected field", f"{what} should be a list, found {type(value).__name__}")
    return value


def read_object(raw: Any, what: str) -> dict[str, Any]:
    """A value that must be an object, or a string that holds one as JSON; null and "" are empty. Raises Reject."""
    value = _from_string(raw, what) if isinstance(raw, str) else raw
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Reject("unexpected field", f"{what} should be an object, found {type(value).__name__}")
    return value


def _from_string(text: str, what: str) -> Any:
    if not text.strip():
        return None
    try:
        return parse_json(text)
    except ValueError as error:
        raise Reject("unreadable JSON inside the record", f"{what}: {error}") from None


def read_tools(raw: Any) -> list[Tool]:
    """Tool documents in any of the shapes that `normalise_tool` knows, as a list or a JSON string. Raises Reject."""
    tools = []
    for number, document in enumerate(read_list(raw, "tools"), 1):
        if not isinstance(document, dict):
            raise Reject("unreadable tool", f"tool {number} should be an object, found {type(document).__name__}")
        try:
            tools.append(normalise_tool(document))
        except SchemaError as error:
            raise Reject("unreadable tool", f"tool {number}: {error}") from None
    return tools


def read_call(raw: Any) -> Call:
    """A call: `{name, arguments}` (or `parameters`), also in OpenAI's `function` wrapper. Raises Reject."""
    if not isinstance(raw, dict):
        raise Reject("unreadable call", f"expected an object, found {type(raw).__name__}")
    raw = raw["function"] if isinstance(raw.get("function"), dict) else raw
    name = raw.get("name")
    if not isinstance(name, str) or not name:
        raise Reject("unreadable call", "it has no name")
    arguments = raw["arguments"] if "arguments" in raw else raw.get("parameters")
    return Call(name, read_object(arguments, f"the arguments of {name}"))


def read_answer(text: str, where: str) -> tuple[tuple[Call, ...], str, str]:
    """Calls, text and reasoning of an assistant turn written with `<tool_call>` tags. Raises Reject."""
    parsed = parse(text)
    if isinstance(parsed, ParseFailure):
        raise Reject("unreadable assistant turn", f"{where}: {parsed.detail}")
    return parsed.calls, parsed.text, parsed.reasoning


def read_responses(text: str, where: str) -> list[str]:
    """The contents of `<tool_response>` blocks that follow one another. Raises Reject."""
    results, position = [], 0
    while position < len(text):
        match = _RESPONSE.match(text, position)
        if match is None:
            raise Reject("unreadable tool result", f"{where} holds more than <tool_response> blocks")
        results.append(match[1])
        position = match.end()
    return results


def read_results(text: str) -> list[Message]:
    """A list of `{name, results}` is one tool message each; anything else is one tool message as it stands."""
    try:
        values = parse_json(text)
    except ValueError:
        values = None
    if not isinstance(values, list) or not values or not all(_is_result(value) for value in values):
        return [Message("tool", text)]
    return [Message("tool", json_text(value["results"]), name=value["name"]) for value in values]


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"name", "results"} and isinstance(value["name"], str)


def json_text(value: Any) -> str:
    """What a tool returned, as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else dump_json(value).decode()


def without_instructions(text: str) -> tuple[str, str]:
    """A system prompt in two: what it says of its own, and its sentences on functions and how to call them."""
    own, instructions = "", ""
    for sentence in _SENTENCE.split(text):
        if _INSTRUCTION.search(sentence):
            instructions += sentence
        else:
            own += sentence
    return own.strip(), instructions.strip()


def answer_target(calls: tuple[Call, ...], text: str) -> Target:
    """The target of a step. No format here marks clarifying or refusing texts, so every text is an answer."""
    return Target(calls=calls, text=text.strip(), intent=None if calls else "answer")


def split_steps(messages: Sequence[Message]) -> list[Step]:
    """One step per assistant message of a dialogue. Raises Reject for an order of turns no dialogue has.

    An assistant message before anything was asked (a greeting) is context, not a step.
    """
    steps = []
    previous = ""
    for number, message in enumerate(messages, 1):
        if message.role == "tool" and previous not in ("call", "tool"):
            raise Reject("turns out of order", f"turn {number} is a tool result, but nothing was called before it")
        if message.role == "assistant":
            if previous in ("call", "assistant"):
                raise Reject("turns out of order", f"turn {number} is a second assistant turn in a row")
            if not message.calls and not message.content.strip():
                raise Reject("empty assistant turn", f"turn {number} has neither text nor calls")
            if previous in ("user", "tool"):
                extra = {"reasoning": message.reasoning} if message.reasoning else {}
                target = answer_target(message.calls, message.content)
                steps.append(Step(tuple(messages[: number - 1]), target, extra))
        if message.role != "system":
            previous = "call" if message.calls else message.role
    if not steps:
        raise Reject("no assistant step", "there is no assistant turn that follows a user turn")
    return steps
