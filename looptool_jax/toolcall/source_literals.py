"""Values written in Java or JavaScript, read by the languages' grammar with a scanner. Nothing is evaluated."""

from __future__ import annotations

import re
from typing import Any, Literal

_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_JS_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|`(?:[^`\\]|\\.)*`', re.DOTALL)
_CHAR = re.compile(r"'(?:[^'\\\n]|\\.)'")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?(?P<suffix>[lLfFdDn]?)(?![\w.])")
_WORD = re.compile(r"(true|false|null)(?!\w)")
_KEY = re.compile(r"[\w$]+")
_JS_ARRAY = re.compile(r"new\s+Array\(")
_OPEN = {bracket: re.compile(re.escape(bracket)) for bracket in "[{"}
_JAVA_LIST = re.compile(
    r"(?:new\s+ArrayList\s*<[^<>]*>\s*\(\s*)?(?:(?:java\.util\.)?Arrays\.asList|List\.of)\s*\("
    r"|new\s+[\w.]+\s*\[\s*\]\s*\{|\{"
)
_JAVA_FILLED = re.compile(r"new\s+(ArrayList|HashMap)\s*<[^()]*>\s*\(\s*\)\s*(\{\s*\{)?")
_JAVA_MAP = re.compile(r"Map\.of\s*\(")
_FILL = re.compile(r"\s*(add|put)\s*\(")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_CLOSERS = {"(": ")", "[": "]", "{": "}"}


class _NoLiteral(ValueError):
    """Ends the reading of a text that is no literal; never leaves this module."""


def literal(text: str, language: Literal["java", "javascript"]) -> Any:
    """The value of a text that is one literal of the language; any other text is returned as it is.

    Strings, numbers with their suffixes, booleans, and what makes lists and maps: Java's array, `Arrays.asList`,
    `List.of`, `ArrayList` and `HashMap` with initialisers, `Map.of`; JavaScript's array, `new Array` and object. An
    element that is no literal is its text.
    """
    scanner = _Scanner(text, language)
    try:
        value = scanner.value("")
    except (_NoLiteral, RecursionError):
        return text
    return value if scanner.at_end() else text


class _Scanner:
    """Reads a text from left to right."""

    def __init__(self, text: str, language: Literal["java", "javascript"]) -> None:
        self.text, self.java, self.position = text, language == "java", 0

    def value(self, closer: str) -> Any:
        """One value; inside a collection, which `closer` ends, what is no literal is taken as text."""
        start = self._past_space()
        try:
            found = self._literal()
            if not closer or self._at(",", closer):
                return found
        except _NoLiteral:
            if not closer:
                raise
        self.position = start
        return self._raw(closer)

    def _literal(self) -> Any:
        if found := self._take(_STRING if self.java else _JS_STRING) or (self._take(_CHAR) if self.java else None):
            return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), found[0][1:-1], flags=re.DOTALL)
        if found := self._take(_WORD):
            return {"true": True, "false": False, "null": None}[found[1]]
        if found := self._take(_NUMBER):
            if found["suffix"] in ("n" if self.java else "lLfFdD") and found["suffix"]:
                raise _NoLiteral
            return _number(found[0].removesuffix(found["suffix"]), found["suffix"])
        return self._java_collection() if self.java else self._js_collection()

    def _js_collection(self) -> Any:
        if self._take(_JS_ARRAY):
            return self._items(")")
        if self._take(_OPEN["["]):
            return self._items("]")
        if not self._take(_OPEN["{"]):
            raise _NoLiteral
        out: dict[str, Any] = {}
        while not self._at("}"):
            key = self._take(_JS_STRING) or self._take(_KEY)
            if key is None:
                raise _NoLiteral
            name = key[0][1:-1] if key[0][0] in "\"'`" else key[0]
            self._expect(":")
            out[name] = self.value("}")
            self._comma("}")
        self._expect("}")
        return out

    def _java_collection(self) -> Any:
        if found := self._take(_JAVA_FILLED):
            return self._filled(found[1] == "HashMap", braces=bool(found[2]))
        if found := self._take(_JAVA_LIST):
            closer = _CLOSERS[found[0][-1]]
            items = self._items(closer)
            if closer == ")" and found[0].startswith("new"):
                self._expect(")")
            return items
        if not self._take(_JAVA_MAP):
            raise _NoLiteral
        items = self._items(")")
        if len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise _NoLiteral
        return dict(zip(items[::2], items[1::2], strict=True))

    def _filled(self, is_map: bool, braces: bool) -> Any:
        """A list or a map that was made empty, and the initialiser behind it."""
        rows = []
        while braces and (found := self._take(_FILL)):
            row = self._items(")")
            if (found[1], len(row)) != (("put", 2) if is_map else ("add", 1)):
                raise _NoLiteral
            rows.append(row)
            self._expect(";")
        if braces:
            self._expect("}")
            self._expect("}")
        if is_map and not all(isinstance(key, str) for key, _ in rows):
            raise _NoLiteral
        return dict(rows) if is_map else [row[0] for row in rows]

    def _items(self, closer: str) -> list[Any]:
        items = []
        while not self._at(closer):
            items.append(self.value(closer))
            self._comma(closer)
        self._expect(closer)
        return items

    def _raw(self, closer: str) -> str:
        """The text up to the next comma or closer, brackets and strings inside it passed over."""
        start, open_ = self.position, ""
        while self.position < len(self.text):
            char = self.text[self.position]
            if char in "\"'`" and (found := _JS_STRING.match(self.text, self.position)):
                self.position = found.end()
                continue
            if not open_ and char in f",{closer}":
                break
            if char in _CLOSERS:
                open_ += _CLOSERS[char]
            elif char in ")]}":
                if not open_.endswith(char):
                    raise _NoLiteral
                open_ = open_[:-1]
            self.position += 1
        return self.text[start : self.position].strip()

    def _comma(self, closer: str) -> None:
        if not self._at(closer):
            self._expect(",")

    def _expect(self, token: str) -> None:
        if not self._at(token):
            raise _NoLiteral
        self.position += len(token)

    def _at(self, *tokens: str) -> bool:
        return self.text.startswith(tokens, self._past_space())

    def at_end(self) -> bool:
        return self._past_space() == len(self.text)

    def _past_space(self) -> int:
        while self.text[self.position : self.position + 1].isspace():
            self.position += 1
        return self.position

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self._past_space())
        if found:
            self.position = found.end()
        return found


def _number(digits: str, suffix: str) -> int | float:
    whole = re.fullmatch(r"[+-]?\d{1,40}", digits) and suffix not in ("f", "F", "d", "D")
    value = int(digits) if whole else float(digits)
    if abs(value) == float("inf"):
        raise _NoLiteral
    return value
