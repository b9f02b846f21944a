"""Calls and values written as Python or JSON source: `[find flights(to="Rome", days=3), ping()]`, `{'a': [1, None]}`.

Read by a scanner of this format's own, never evaluated. Tool names may hold spaces, dots and brackets, so the names of
the tools that are shown decide where a name ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from looptool_jax.data.files import MAX_DEPTH
from looptool_jax.toolcall.records import Call

_SPACE = " \t\r\n"
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(\n|.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "/": "/"}
_NAME = re.compile(r"[^()\[\]{}=\"',]+")
_CALL_LIST = re.compile(r"\[\s*[^()\[\]{}=\"',]+\(")


def looks_like_calls(text: str, names: Iterable[str]) -> bool:
    """Whether a text opens as a list of calls does, be it of these tools or of others."""
    text = text.lstrip()
    opening = text[1:].lstrip() if text.startswith("[") else ""
    return _CALL_LIST.match(text) is not None or opening.startswith(tuple(f"{name}(" for name in names))


def read_calls(text: str, names: Iterable[str]) -> tuple[Call, ...]:
    """The calls of a whole text. `names`: of the tools that are shown. Raises ValueError with the place."""
    known = sorted(names, key=len, reverse=True)
    position = _expect(text, _skip(text, 0), "[")
    calls: list[Call] = []
    while not text.startswith("]", position):
        call, position = _read_call(text, position, known)
        calls.append(call)
        position = _next_item(text, position, "]")
    if text[position + 1 :].strip():
        raise ValueError(f"text after the calls: {_excerpt(text, position + 1)}")
    return tuple(calls)


def read_literal(text: str, start: int = 0) -> tuple[Any, int]:
    """The Python or JSON value at `start` and the offset behind it; a tuple is a list. Raises ValueError."""
    return _read_value(text, _skip(text, start), 0)


def write_calls(calls: Sequence[Call]) -> str:
    """A list of calls as Python source."""
    return "[" + ", ".join(f"{call.name}({_write_arguments(call)})" for call in calls) + "]"


def _write_arguments(call: Call) -> str:
    return ", ".join(f"{key}={_write_literal(value)}" for key, value in call.arguments.items())


def _write_literal(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_write_literal, value)) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {_write_literal(v)}" for k, v in value.items()) + "}"
        )
    return str(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _read_call(text: str, start: int, known: list[str]) -> tuple[Call, int]:
    name = next((each for each in known if text.startswith(f"{each}(", start)), None)
    if name is None:
        found = _NAME.match(text, start)
        name = found[0] if found else ""
    if not name.strip():
        raise ValueError(f"expected a call, found {_excerpt(text, start)}")
    position = _expect(text, start + len(name), "(")
    arguments: dict[str, Any] = {}
    while not text.startswith(")", position):
        found = _NAME.match(text, position)
        if found is None or not text.startswith("=", found.end()):
            raise ValueError(f"expected parameter=value in a call of {name}, found {_excerpt(text, position)}")
        key = found[0].strip()
        if key in arguments:
            raise ValueError(f"the parameter {key} of {name} is given twice")
        arguments[key], position = _read_value(text, _skip(text, found.end() + 1), 0)
        position = _next_item(text, position, ")")
    return Call(name.strip(), arguments), position + 1


def _read_value(text: str, start: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    opening = text[start : start + 1]
    if opening in ("'", '"'):
        return _read_string(text, start)
    if opening and opening in "[(":
        return _read_list(text, start, "]" if opening == "[" else ")", depth)
    if opening == "{":
        return _read_dict(text, start, depth)
    if number := _NUMBER.match(text, start):
        return _number(number[0]), number.end()
    word = _WORD.match(text, start)
    if word is None or word[0] not in _WORDS:
        raise ValueError(f"expected a value, found {_excerpt(text, start)}")
    return _WORDS[word[0]], word.end()


def _read_list(text: str, start: int, close: str, depth: int) -> tuple[list[Any], int]:
    position = _skip(text, start + 1)
    values = []
    while not text.startswith(close, position):
        value, position = _read_value(text, position, depth + 1)
        values.append(value)
        position = _next_item(text, position, close)
    return values, position + 1


def _read_dict(text: str, start: int, depth: int) -> tuple[dict[str, Any], int]:
    position = _skip(text, start + 1)
    values: dict[str, Any] = {}
    while not text.startswith("}", position):
        if text[position : position + 1] not in ("'", '"'):
            raise ValueError(f"expected a key in quotes, found {_excerpt(text, position)}")
        key, position = _read_string(text, position)
        if key in values:
            raise ValueError(f"key {key!r} occurs twice in one object")
        position = _expect(text, _skip(text, position), ":")
        values[key], position = _read_value(text, position, depth + 1)
        position = _next_item(text, position, "}")
    return values, position + 1


def _read_string(text: str, start: int) -> tuple[str, int]:
    quote, end = text[start], start + 1
    while not text.startswith(quote, end):
        if end >= len(text):
            raise ValueError(f"a string never closes: {_excerpt(text, start)}")
        end += 2 if text[end] == "\\" else 1
    body = text[start + 1 : end]
    if "\\" in body:
        body = _ESCAPE.sub(_unescape, body)
        body = body.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # joins the halves of pairs
    return body, end + 1


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        if int(code, 16) > 0x10FFFF:
            raise ValueError(f"no character has the number {code}")
        return chr(int(code, 16))
    character = match[4]
    return _ESCAPED.get(character, character if character in "\\'\"" else match[0])


def _number(text: str) -> int | float:
    if re.fullmatch(r"[+-]?\d+", text):
        if len(text) > 4000:
            raise ValueError("an integer of more than 4000 digits")
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:20]} is too large")
    return value


def _next_item(text: str, position: int, close: str) -> int:
    """Behind the comma that follows an item, or at what closes the list."""
    position = _skip(text, position)
    if text.startswith(",", position):
        return _skip(text, position + 1)
    if not text.startswith(close, position):
        raise ValueError(f"expected , or {close}, found {_excerpt(text, position)}")
    return position


def _expect(text: str, position: int, mark: str) -> int:
    if not text.startswith(mark, position):
        raise ValueError(f"expected {mark}, found {_excerpt(text, position)}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _excerpt(text: str, start: int) -> str:
    return repr(text[start : start + 40]) if start < len(text) else "the end"
