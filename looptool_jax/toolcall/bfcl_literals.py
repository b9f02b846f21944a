"""Java and JavaScript values as BFCL has them: source text in a string.

`official_value` reads a text as the released checker does (bfcl-eval 2026.3.23), which looks for openings and closings
and splits at every comma; `source_text` writes a JSON value. What the checker cannot read (a variable, a constructor's
call) stays the text it is. `source_literals` reads by the languages' grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

Language = Literal["python", "java", "javascript"]

_WHOLE = r"-?\d+"
_DECIMAL = r"-?\d+(?:\.\d+)?"
_SCIENTIFIC = rf"{_DECIMAL}(?:[eE][+-]?\d+)?"
_JAVA_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("byte", "short", "integer"), (_WHOLE, int)),
    "long": (rf"{_WHOLE}[lL]", lambda text: int(text[:-1])),
    "float": (rf"{_SCIENTIFIC}[fF]", lambda text: float(text[:-1])),
    "double": (_SCIENTIFIC, float),
}
_JS_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "integer": (_WHOLE, int),
    "float": (_DECIMAL, float),
    "Bigint": (rf"{_WHOLE}n", lambda text: int(text[:-1])),
}
_AS_LIST = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\(")
_ADDS = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*")
_NEW_LIST = re.compile(r"new\s+ArrayList<\w*>\(\)")
_NEW_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{")
_ADD = re.compile(r"add\(")
_NEW_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)")
_MAP_BODY = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?", re.DOTALL)
_PUT = re.compile(r'put\("([^\n]*?)",\s*([^\n]*?)\)')
_JS_ARRAY = re.compile(r"new\s+Array\(")
_SPACE = re.compile(r"\s*")


def official_value(text: str, type_name: str, item: str | None, language: Language) -> Any:
    """What the released checker takes the text for under the documented type; `item` is the type of a list's elements.

    Raises ValueError for a type that it cannot convert, and for a number too long for an int.
    """
    return _java(text, type_name, item) if language == "java" else _javascript(text, type_name, item)


def _java(text: str, type_name: str, item: str | None) -> Any:
    if type_name in _JAVA_SCALARS:
        return _scalar(text.removesuffix("\n"), text, *_JAVA_SCALARS[type_name])
    if type_name == "boolean":
        return text == "true" if text in ("true", "false") else text
    if type_name == "ArrayList":
        return _java_list(text, item)
    if type_name == "Array":
        inner = next(_between(text, _NEW_ARRAY, "}"), None)
        return text if inner is None else [_java_item(part, item) for part in _parts(inner) if part]
    if type_name == "HashMap":
        if (inner := next(_between(text, _MAP_BODY, "}", lines=True), None)) is not None:
            return {key: _untyped(value.strip(), "java") for key, value in _PUT.findall(inner)}
        return {} if _NEW_MAP.search(text) else text
    if type_name in ("String", "any", "char"):
        return text
    raise ValueError(f"no conversion for the Java type {type_name}")


def _java_list(text: str, item: str | None) -> Any:
    if (inner := next(_between(text, _AS_LIST, "))", least=1), None)) is not None:
        parts = _parts(inner)
    elif (inner := next(_between(text, _ADDS, "}}", least=1, lines=True), None)) is not None:
        parts = [part.strip() for part in _between(inner, _ADD, ")", least=1)]
    else:
        return [] if _NEW_LIST.search(text) else text
    return [part[1:-1] if item in ("char", "String") else _java_item(part, item) for part in parts]


def _java_item(part: str, item: str | None) -> Any:
    return _java(part, item, None) if item else _untyped(part, "java")


def _javascript(text: str, type_name: str, item: str | None) -> Any:
    if type_name == "String":
        return text[1:-1] if _quoted(text, "\"'") else text
    if type_name in _JS_SCALARS:
        whole = text if type_name == "Bigint" else text.removesuffix("\n")
        return _scalar(whole, text, *_JS_SCALARS[type_name])
    if type_name == "Boolean":
        return text == "true" if text in ("true", "false") else text
    if type_name == "array":
        return _js_array(text.strip(), item)
    if type_name == "dict":
        return _js_object(text.strip())
    if type_name == "any":
        return text
    raise ValueError(f"no conversion for the JavaScript type {type_name}")


def _js_array(code: str, item: str | None) -> Any:
    if rows := _js_rows(code):
        inner = list(_between(rows, re.compile(r"\["), "]"))
        inner[0] = inner[0].strip().removeprefix("[")
        return [[_untyped(part, "javascript") for part in _parts(row.strip())] for row in inner]
    opening = _JS_ARRAY.match(code)
    start, closer = (1, "]") if code.startswith("[") else (opening.end(), ")") if opening else (0, "")
    end = _close(code, start, closer) if closer else -1
    if end < 0:
        return code
    inside = code[start:end].strip()
    parts = _parts(inside) if inside else []
    try:
        return [_javascript(part, item, None) if item else _untyped(part, "javascript") for part in parts]
    except ValueError:
        return code


def _js_rows(code: str) -> str:
    """The text of an array of arrays at the start, "" if there is none: rows in brackets, commas between, closed.

    A row may hold further brackets where it must; for every place where a row can begin, from the last one on, the
    first closing is taken behind which the rest fits.
    """
    opening = _JS_ARRAY.match(code)
    start, closer = (opening.end(), ")") if opening else (1, "]")
    first = _skip(code, start)
    if not (opening or code.startswith("[")) or not code.startswith("[", first):
        return ""
    ends: dict[int, int] = {}
    for begin in (i for i in range(len(code) - 1, first - 1, -1) if code[i] == "["):
        line_end = code.find("\n", begin)
        close = code.find("]", begin)
        while close >= 0 and (line_end < 0 or close < line_end):
            after = _skip(code, close + 1)
            following = _skip(code, after + 1) if code.startswith(",", after) else -1
            if following in ends:
                ends[begin] = ends[following]
                break
            if code.startswith(closer, after):
                ends[begin] = after + 1
                break
            close = code.find("]", close + 1)
    return code[: ends[first]] if first in ends else ""


def _js_object(code: str) -> Any:
    if code == "{}":
        return {}
    end = _close(code, 1, "}") if code.startswith("{") else -1
    if end < 0:
        return code
    out: dict[str, Any] = {}
    content, position = code[1:end], 0
    while position < len(content):
        if content[position] == ":":
            position += 1
            continue
        colon = content.find(":", position)
        if colon < 0:
            break
        value, following = _pair_end(content, _skip(content, colon + 1))
        out[content[position:colon].strip().strip("'\"")] = _js_member(value.strip())
        position = following
    return out


def _pair_end(content: str, start: int) -> tuple[str, int]:
    """The value from `start` on, up to a comma with a colon between it and the next comma; and where to go on."""
    comma = content.find(",", start)
    while comma >= 0:
        segment = content[comma + 1 :].split(",", 1)[0]
        if (colon := segment.rfind(":")) >= 1:
            return content[start:comma], comma + 1 + min(_skip(segment, 0), colon - 1)
        comma = content.find(",", comma + 1)
    return content[start:], len(content)


def _js_member(value: str) -> Any:
    if value.startswith("[") and value.endswith("]"):
        return _js_array(value, None)
    if value.startswith("{") and value.endswith("}"):
        return _js_object(value)
    return _untyped(value.strip("'\""), "javascript")


def _untyped(part: str, language: Language) -> Any:
    """A value of which nothing is documented."""
    part = part.strip()
    if part in ("true", "false"):
        return part == "true"
    if _quoted(part, '"' if language == "java" else "\"'"):
        return part[1:-1]
    if language == "java":
        for name in ("long", "float"):
            if not isinstance(value := _scalar(part, part, *_JAVA_SCALARS[name]), str):
                return value
    for read in (int, float):
        try:
            return read(part)
        except ValueError:
            continue
    return part


def _scalar(whole: str, text: str, pattern: str, read: Callable[[str], Any]) -> Any:
    return read(whole) if re.fullmatch(pattern, whole) else text


def _quoted(text: str, quotes: str) -> bool:
    """By its first and its last character; a lone quote is both."""
    return any(text.startswith(quote) and text.endswith(quote) for quote in quotes)


def _parts(inner: str) -> list[str]:
    return [part.strip() for part in inner.split(",")]


def _between(
    text: str, opening: re.Pattern[str], closing: str, *, least: int = 0, lines: bool = False
) -> Iterator[str]:
    """The texts between an opening and the next closing at least `least` characters on, in one line unless `lines`."""
    position = 0
    while found := opening.search(text, position):
        end = text.find(closing, found.end() + least)
        if end < 0:
            return
        if lines or "\n" not in text[found.end() : end]:
            yield text[found.end() : end]
            position = end + len(closing)
        else:
            position = found.start() + 1


def _close(code: str, start: int, closing: str) -> int:
    """Where the bracket closes in the same line, or -1."""
    end = code.find(closing, start)
    return -1 if "\n" in code[start : max(end, start)] else end


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def source_text(value: Any, type_name: str, item: str | None, language: Language) -> str:
    """A JSON value as source text of the documented type; a string where another type is documented is a variable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        suffix = {"long": "L", "Bigint": "n"}.get(type_name, "f" if (language, type_name) == ("java", "float") else "")
        return json.dumps(value) + suffix
    if isinstance(value, list):
        plain = "" if item in (None, "any") else item
        parts = ", ".join(_part(part, item or "any", language) for part in value)
        if language == "javascript":
            return f"[{parts}]"
        if type_name == "ArrayList":
            return f"new ArrayList<{plain}>(Arrays.asList({parts}))" if value else f"new ArrayList<{plain}>()"
        return f"new {'int' if plain == 'integer' else plain or 'Object'}[]{{{parts}}}"
    if isinstance(value, dict):
        pairs = [(json.dumps(key), _part(part, "any", language)) for key, part in value.items()]
        if language == "javascript":
            return "{" + ", ".join(f"{key}: {part}" for key, part in pairs) + "}"
        puts = " ".join(f"put({key}, {part});" for key, part in pairs)
        return "new HashMap<String, Object>()" + (f" {{{{ {puts} }}}}" if pairs else "")
    return str(value)


def _part(value: Any, type_name: str, language: Language) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, dict)):
        kinds = ("Array", "HashMap") if language == "java" else ("array", "dict")
        type_name = kinds[isinstance(value, dict)]
    return source_text(value, type_name, None, language)
