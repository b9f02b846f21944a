"""The wording, read backwards: which tools a text asks for and which values it states for a parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from looptool_jax.toolcall.records import Message
from looptool_jax.world.tools import WorldTool
from looptool_jax.world.trees import Leaf, Parameter, pools
from looptool_jax.world.values import KINDS
from looptool_jax.world.wording import shared_patterns

_COINED = r"(?!(?:Use|Try|Please|Make)\b)[A-Z][a-z]+"
_WORDS = rf"{_COINED}(?: {_COINED})+"
_CODE = r"[A-Z0-9][A-Z0-9-]*\d[A-Z0-9]*"
_SHAPES = {
    "person": _WORDS, "company": _WORDS, "team": _WORDS, "venue": _WORDS, "street": _WORDS, "title": rf'"?({_WORDS})"?',
    "work": rf'"?({_WORDS})"?', "date": r"\d{4}-\d{2}-\d{2}", "time": r"\d{2}:\d{2}", "email": r"\S+@[\w.]*\w",
    "phone": r"\+\d+-\d+-\d+", "address": rf"\d+ {_WORDS}", "code": _CODE, "tracking": _CODE, "plate": _CODE,
    "flight": _CODE, "account": _CODE, "pin": r"\d{4}", "ticker": r"[A-Z]{3,4}", "folder": r"[a-z]+\d+",
    "file": r"\w+\.\w+", "text": r'"([^"]+)"', "problem": r'"([^"]+)"',
    "remark": r'"([^"]+)"', "car": rf"{_COINED} [A-Z]\d",
}  # fmt: skip
_NUMBERS = {"integer": r"\d+", "number": r"\d+(?:\.\d+)?"}


def user_text(messages: Sequence[Message]) -> str:
    """Everything that users say, one turn a line."""
    return "\n".join(message.content for message in messages if message.role == "user")


def asks_for(tool: WorldTool, text: str) -> bool:
    """Whether the text asks for what the tool does: in one of the world's phrases, or with a verb and a noun of it."""
    lowered = text.lower()
    return any(pattern.search(lowered) for pattern in _ask_patterns(tool.leaf))


@cache
def _ask_patterns(leaf: Leaf) -> tuple[re.Pattern[str], ...]:
    """Ask phrases and questions; the object may be referred to ("that", "the second")."""
    patterns = []
    for phrase in (*leaf.ask, *leaf.questions):
        head, the, noun = phrase.lower().rpartition(" the ")
        text = rf"{re.escape(head)} (?:the|that|the \w+) {re.escape(noun)}" if the else re.escape(phrase.lower())
        patterns.append(text)
    verbs, nouns = ("|".join(map(re.escape, words)) for words in (leaf.verbs, leaf.nouns))
    patterns.append(rf"(?:{verbs}) (?:(?:a|an|the|that|my|some) )?(?:{nouns})")
    return tuple(re.compile(rf"(?<!\w){text}(?!\w)") for text in patterns)


def stated(tool: WorldTool, name: str, text: str) -> list[Any]:
    """The values that the text states for a property, in order.

    Natural mentions can belong to another tool of the request that has a parameter mentioned in the same way.
    Objects are not read (always empty).
    """
    parameter = tool.parameters[name]
    if parameter.shape == "boolean":
        return _stated_boolean(parameter, text)
    if parameter.shape == "object":
        return []
    enumerated = re.search(rf"each {parameter.words}: (.+?)(?:\.\s|\.?$)", text, re.MULTILINE)
    if enumerated:
        return [_typed(parameter, item.strip('"')) for item in re.split(r", | and ", enumerated.group(1))]
    found: dict[int, Any] = {}
    for pattern in _stated_patterns(tool.leaf, parameter):
        for hit in pattern.finditer(text):
            group = next(i for i, value in enumerate(hit.groups(), 1) if value is not None)
            inner = next((v for v in hit.groups()[group:] if v is not None), hit.group(group))
            found.setdefault(hit.start(group), _typed(parameter, inner))
    return [found[position] for position in sorted(found)]


def _stated_boolean(parameter: Parameter, text: str) -> list[bool]:
    on = [*parameter.on, f"with {parameter.words} on", f"{parameter.words} set to true"]
    off = [*parameter.off, f"with {parameter.words} off", f"{parameter.words} set to false"]
    return [value for value, phrases in ((True, on), (False, off)) if any(occurs(phrase, text) for phrase in phrases)]


@cache
def _stated_patterns(leaf: Leaf, parameter: Parameter) -> tuple[re.Pattern[str], ...]:
    value, name = f"({_value_pattern(parameter)})", re.escape(parameter.words)
    named = [rf"{value} as the {name}(?!\w)", rf"(?<!\w){_any_case(name)}(?: is| should be| set to|:)? {value}"]
    natural = [
        (r"(?<!\w)(?<!\bset )" if pattern[0].isalpha() else "") + re.escape(pattern).replace(re.escape("{}"), value)
        for pattern in parameter.say if pattern not in shared_patterns(leaf)
    ]  # fmt: skip
    if parameter.shape == "id":
        natural = [rf"(?<![\w-]){value}"]
    return tuple(re.compile(rf"{text}(?![\w-]|\.\d)") for text in (*named, *natural))


def _any_case(name: str) -> str:
    return rf"(?:{name}|{name[0].upper()}{name[1:]})"


def _value_pattern(parameter: Parameter) -> str:
    if parameter.shape == "enum":
        return "|".join(map(re.escape, parameter.values))
    if parameter.shape == "id":
        return rf"{parameter.prefix}-\d+"
    if parameter.shape == "list":
        item = _kind_pattern(parameter.kind)
        return rf"(?:{item})(?:, (?:{item}))* and (?:{item})"
    return _kind_pattern(parameter.kind)


def _kind_pattern(kind: str) -> str:
    if kind in _SHAPES:
        return _SHAPES[kind]
    if kind == "product":
        return rf"(?:{'|'.join(pools()['product_adjective'])}) (?:{'|'.join(pools()['product_noun'])})"
    if kind in pools():
        options = sorted(pools()[kind], key=len, reverse=True)
        coined = [_COINED] if kind in ("city", "medicine", "river") else []
        return "|".join([*map(re.escape, options), *coined])
    return _NUMBERS[KINDS[kind].type]


def _typed(parameter: Parameter, text: str) -> Any:
    if parameter.shape == "list":
        return [_scalar(parameter.kind, item) for item in re.split(r", | and ", text)]
    return _scalar(parameter.kind, text) if parameter.shape == "kind" else text


def _scalar(kind: str, text: str) -> Any:
    """The value a text stands for; the text itself where a number is due and it is none."""
    if KINDS[kind].type not in _NUMBERS:
        return text
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def occurs(value: Any, text: str) -> bool:
    """Whether a scalar is written in the text, as a whole word or number."""
    return next(_places(str(value), text), None) is not None


def strike(value: Any, text: str) -> str:
    """The text without a scalar, and without the quotes around it."""
    kept, end = [], 0
    for start in _places(str(value), text):
        stop = start + len(str(value))
        if start > 0 and text[start - 1] == '"' == text[stop : stop + 1]:
            start, stop = start - 1, stop + 1
        if start >= end:
            kept.append(text[end:start])
            end = stop
    return "".join([*kept, text[end:]])


def _places(value: str, text: str) -> Iterator[int]:
    joints = "_:-" if value.isdigit() else "_"  # 50 does not stand in 12:50
    start = text.find(value)
    while value and start >= 0:
        before, after = text[max(start - 1, 0) : start], text[start + len(value) : start + len(value) + 2]
        inside = any(char.isalnum() or char in joints for char in (before, after[:1]) if char)
        if not inside and before != "." and not (after[:1] == "." and after[1:].isdigit()):
            yield start
        start = text.find(value, start + 1)
