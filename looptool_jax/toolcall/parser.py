"""The parser: what did the assistant call? Total (never raises on a string) and strict.

Grammar of an answer, in words: an optional think block at the very start, then free text, then call blocks with
nothing but white space between and after them. A call block is `<tool_call>`, one JSON object with exactly the keys
`name` (non-empty string) and `arguments` (object), `</tool_call>`. Tags are only tags where the grammar looks for
them: inside the think block and inside JSON strings they are plain characters.

`parse` is what everything scores with. `parse_lenient` forgives all it can and says what it forgave: for
diagnostics only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from looptool_jax.toolcall.records import Call

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"

MAX_DEPTH = 64
"""Objects and arrays a call may nest, the call's own object included."""

_SPACE = " \t\r\n"
_TAG = re.compile("|".join(re.escape(tag) for tag in (THINK_OPEN, THINK_CLOSE, CALL_OPEN, CALL_CLOSE)))


class FailureKind(StrEnum):
    """Why an answer cannot be read."""

    UNCLOSED_THINK = "unclosed_think"
    STRAY_THINK = "stray_think"
    UNCLOSED_CALL = "unclosed_call"
    STRAY_CLOSE = "stray_close"
    BAD_JSON = "bad_json"
    DUPLICATE_KEY = "duplicate_key"
    NON_FINITE = "non_finite"
    TOO_DEEP = "too_deep"
    NOT_A_CALL = "not_a_call"
    JUNK_IN_CALL = "junk_in_call"
    TEXT_AFTER_CALL = "text_after_call"


@dataclass(frozen=True)
class Parsed:
    """A readable answer: its calls in order, the text before them, the content of its think block."""

    calls: tuple[Call, ...]
    text: str
    reasoning: str


@dataclass(frozen=True)
class ParseFailure:
    """An unreadable answer: the kind, one line for people, and the character offset where reading stopped."""

    kind: FailureKind
    detail: str
    offset: int


@dataclass(frozen=True)
class Lenient:
    """What a forgiving reader finds: calls anywhere in the answer, and everything that was wrong with them."""

    calls: tuple[Call, ...]
    problems: tuple[str, ...]


class _Broken(ValueError):
    """Carries a failure out of the scanner; never leaves this module."""

    def __init__(self, kind: FailureKind, detail: str, offset: int = 0) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.offset = kind, detail, offset


def parse(text: str) -> Parsed | ParseFailure:
    """Read an assistant's answer (end-of-turn token already removed). Never raises on a string."""
    try:
        reasoning, start = _read_think(text)
        opening = _first_tag(text, start)
        if opening < 0:
            return Parsed((), text[start:].strip(), reasoning)
        return Parsed(_read_calls(text, opening), text[start:opening].strip(), reasoning)
    except _Broken as broken:
        return ParseFailure(broken.kind, broken.detail, broken.offset)


def before_marks(text: str, marks: Sequence[str]) -> str:
    """The beginning of an unfinished text that is before all marks, whatever follows: up to where the first one stands,
    or may begin."""
    starts = [start for mark in marks if (start := text.find(mark)) >= 0]
    if starts:
        return text[: min(starts)]
    held = (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n]))
    return text[: len(text) - max(held, default=0)]


def read_call(text: str, start: int, arguments: str) -> tuple[Call, int] | ParseFailure:
    """The call that the JSON object at `start` is, and the offset behind it, for formats that have no tags around their
    calls: exactly the keys `name` and `arguments` (the format's word for them), and as strict as `parse`."""
    try:
        value, end = _read_json(text, start)
        return _as_call(value, start, arguments), end
    except _Broken as broken:
        return ParseFailure(broken.kind, broken.detail, broken.offset)


def _read_think(text: str) -> tuple[str, int]:
    """The content of a think block at the start of the text, and the offset behind it."""
    start = _skip_space(text, 0)
    if not text.startswith(THINK_OPEN, start):
        return "", 0
    close = text.find(THINK_CLOSE, start)
    if close < 0:
        raise _Broken(FailureKind.UNCLOSED_THINK, "the think block never closes", start)
    return text[start + len(THINK_OPEN) : close].strip(), close + len(THINK_CLOSE)


def _first_tag(text: str, start: int) -> int:
    """Offset of the first <tool_call>, or -1. Any other tag before it is out of place."""
    found = _TAG.search(text, start)
    if found is None:
        return -1
    if found.group() == CALL_OPEN:
        return found.start()
    if found.group() == CALL_CLOSE:
        raise _Broken(FailureKind.STRAY_CLOSE, f"{CALL_CLOSE} closes nothing", found.start())
    raise _Broken(FailureKind.STRAY_THINK, f"{found.group()} outside a think block at the start", found.start())


def _read_calls(text: str, start: int) -> tuple[Call, ...]:
    calls = []
    while start < len(text):
        if not text.startswith(CALL_OPEN, start):
            raise _Broken(FailureKind.TEXT_AFTER_CALL, f"text after a call: {_excerpt(text, start)}", start)
        call, end = _read_block(text, start)
        calls.append(call)
        start = _skip_space(text, end)
    return tuple(calls)


def _read_block(text: str, start: int) -> tuple[Call, int]:
    """One block from its opening tag on: the call and the offset behind the closing tag."""
    body = _skip_space(text, start + len(CALL_OPEN))
    if text.find(CALL_CLOSE, body) < 0:
        raise _Broken(FailureKind.UNCLOSED_CALL, f"{CALL_CLOSE} is missing", start)
    value, end = _read_json(text, body)
    call = _as_call(value, body, "arguments")
    close = _skip_space(text, end)
    if close == len(text):
        raise _Broken(FailureKind.UNCLOSED_CALL, f"{CALL_CLOSE} is missing", start)
    if not text.startswith(CALL_CLOSE, close):
        raise _Broken(FailureKind.JUNK_IN_CALL, f"expected {CALL_CLOSE}, found {_excerpt(text, close)}", close)
    return call, close + len(CALL_CLOSE)


def _as_call(value: Any, offset: int, arguments: str) -> Call:
    if not isinstance(value, dict):
        raise _Broken(FailureKind.NOT_A_CALL, f"expected an object, found {_json_type(value)}", offset)
    if set(value) != {"name", arguments}:
        keys = ", ".join(repr(key[:40]) for key in list(value)[:8]) or "none"
        raise _Broken(FailureKind.NOT_A_CALL, f"expected the keys 'name' and {arguments!r}, found {keys}", offset)
    if not isinstance(value["name"], str) or not value["name"]:
        raise _Broken(FailureKind.NOT_A_CALL, "'name' must be a non-empty string", offset)
    if not isinstance(value[arguments], dict):
        found = _json_type(value[arguments])
        raise _Broken(FailureKind.NOT_A_CALL, f"{arguments!r} must be an object, found {found}", offset)
    return Call(value["name"], value[arguments])


def _read_json(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start` and the offset behind it; strict where Python's reader is not."""
    try:
        value, end = _STRICT.raw_decode(text, start)
    except _Broken as broken:
        raise _Broken(broken.kind, broken.detail, start) from None
    except json.JSONDecodeError as error:
        raise _Broken(FailureKind.BAD_JSON, f"{error.msg} at character {error.pos}", error.pos) from None
    except RecursionError:
        raise _Broken(FailureKind.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels", start) from None
    except ValueError:  # an integer longer than Python is willing to read
        raise _Broken(FailureKind.BAD_JSON, "a number with too many digits", start) from None
    _check_value(value, start)
    return value, end


def _check_value(value: Any, offset: int) -> None:
    """Depth, and strings that no UTF-8 file can hold. Iterative: the depth is what is being checked."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_string(item, offset)
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
        depth += any(isinstance(item, (list, dict)) for item in level)
        if depth > MAX_DEPTH:
            raise _Broken(FailureKind.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels", offset)
        level = below


def _check_string(value: str, offset: int) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Broken(FailureKind.BAD_JSON, "a string holds half a surrogate pair", offset) from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _Broken(FailureKind.DUPLICATE_KEY, f"the key {key[:40]!r} occurs twice in one object")
        out[key] = value
    return out


def _no_constant(name: str) -> Any:
    raise _Broken(FailureKind.NON_FINITE, f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Broken(FailureKind.NON_FINITE, f"{digits[:40]} is too large a number")
    return value


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique_pairs, parse_constant=_no_constant, parse_float=_finite_float, strict=True
)
_FORGIVING = json.JSONDecoder(strict=False)


def parse_lenient(text: str) -> Lenient:
    """Find calls wherever they are and whatever shape they have. Diagnostics only: nothing is scored with it."""
    strict = parse(text)
    problems = [f"{strict.kind}: {strict.detail}"] if isinstance(strict, ParseFailure) else []
    calls: list[Call] = []
    position = text.find(CALL_OPEN)
    if position < 0 and text.strip()[:1] in ("{", "["):
        problems.append("JSON without call tags")
        found, _ = _objects_from(text, _skip_space(text, 0), problems)
        calls += [call for value in found for call in _lenient_calls(value, problems)]
    while position >= 0:
        found, end = _objects_from(text, position + len(CALL_OPEN), problems)
        calls += [call for value in found for call in _lenient_calls(value, problems)]
        position = text.find(CALL_OPEN, end)
    return Lenient(tuple(calls), tuple(dict.fromkeys(problems)))


def _objects_from(text: str, start: int, problems: list[str]) -> tuple[list[Any], int]:
    """All JSON values that follow one another from `start` on, code fences and commas between them skipped."""
    values: list[Any] = []
    position = start
    while True:
        fence = re.compile(r"[\s,]*(?:```(?:json)?)?[\s,]*").match(text, position)
        position = fence.end() if fence else position
        if text[position : position + 1] not in ("{", "["):
            return values, max(position, start)
        try:
            value, position = _FORGIVING.raw_decode(text, position)
        except (ValueError, RecursionError):
            problems.append("unreadable JSON in a block")
            return values, position + 1
        if values:
            problems.append("several objects in one block")
        values.append(value)


def _lenient_calls(value: Any, problems: list[str]) -> list[Call]:
    if isinstance(value, list):
        problems.append("calls in a list")
        return [call for item in value if isinstance(item, dict) for call in _lenient_calls(item, problems)]
    if isinstance(value.get("function"), dict):
        problems.append("a call wrapped in 'function'")
        value = value["function"]
    arguments = value.get("arguments", value.get("parameters", {}))
    if "arguments" not in value:
        problems.append("arguments under the key 'parameters'" if "parameters" in value else "no 'arguments'")
    if isinstance(arguments, str):
        problems.append("arguments given as a string")
        try:
            arguments = _FORGIVING.decode(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    if arguments is None:
        problems.append("null arguments")
        arguments = {}
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
        problems.append("an object that is no call")
        return []
    return [Call(value["name"], arguments)]


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in _SPACE:
        start += 1
    return start


def _excerpt(text: str, start: int) -> str:
    return repr(text[start : start + 40])


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]
