"""The wording, read backwards: which tools a text asks for and which values it states for a parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from looptool_jax.toolcall.records import Message
from looptool_jax.world.tools import WorldTool
from looptool_jax.world.trees import Leaf, Parameter, pools
from looptool_jax.world.values import KINDS
from looptool_jax.world.wording import shared_patterns

_COINED = r"[A-Z][a-z]+"
_WORDS = rf"{_COINED}(?: {_COINED})+"
_CODE = r"[A-Z0-9][A-Z0-9-]*\d[A-Z0-9]*"
_SHAPES = {
    "person": _WORDS, "company": _WORDS, "team": _WORDS, "venue": _WORDS, "street": _WORDS, "title": rf'"?({_WORDS})"?',
    "work": rf'"?({_WORDS})"?', "date": r"\d{4}-\d{2}-\d{2}", "time": r"\d{2}:\d{2}", "email": r"\S+@[\w.]*\w",
    "phone": r"\+\d+-\d+-\d+", "address": rf"\d+ {_WORDS}", "code": _CODE, "tracking": _CODE, "plate": _CODE,
    "flight": _CODE, "account": _CODE, "pin": r"\d{4}", "ticker": r"[A-Z]{3,4}", "folder": r"[a-z]+\d+",
    "file": r"\w+\.\w+", "text": r'"([^"]+)"', "problem": r'"([^"]+)"', "car": rf"{_COINED} [A-Z]\d",
    "product": r"[a-z]+ [a-z]+",
}  # fmt: skip
_NUMBERS = {"integer": r"\d+", "number": r"\d+(?:\.\d+)?"}


def user_text(messages: Sequence[Message]) -> str:
    """Everything that users say, one turn a line."""
    return "\n".join(message.content for message in messages if message.role == "user")


def asks_for(tool: WorldTool, text: str) -> bool:
    """Whether the text asks for what the tool does: in one of the world's phrases, or with a verb and a noun of it."""
    lowered = text.lower()
    if any(pattern.search(lowered) for pattern in _ask_patterns(tool.leaf)):
        return True
    words = set(re.findall(r"[a-z]+", lowered))
    return any(
        set(verb.split()) <= words and set(noun.split()) <= words for verb in tool.leaf.verbs for noun in tool.leaf.nouns
    )


@cache
def _ask_patterns(leaf: Leaf) -> tuple[re.Pattern[str], ...]:
    """Ask phrases and questions; the object may be referred to ("that", "the second")."""
    patterns = []
    for phrase in (*leaf.ask, *leaf.questions):
        head, the, noun = phrase.lower().rpartition(" the ")
        text = rf"{re.escape(head)} (?:the|that|the \w+) {re.escape(noun)}" if the else re.escape(phrase.lower())
        patterns.append(re.compile(rf"(?<!\w){text}(?!\w)"))
    return tuple(patterns)


def stated(tool: WorldTool, name: str, text: str) -> list[Any]:
    """The values that the text states for a property, in order; lists and objects are not read (always empty).

    Natural mentions can belong to another tool of the request that has a parameter mentioned in the same way.
    """
    parameter = tool.parameters[name]
    if parameter.shape == "boolean":
        return _stated_boolean(parameter, text)
    if parameter.shape in ("list", "object"):
        return []
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
    said = [(True, phrase) for phrase in on if _has(phrase, text)] + [(False, phrase) for phrase in off if _has(phrase, text)]
    longest = {value: max((len(phrase) for v, phrase in said if v is value), default=0) for value in (True, False)}
    return [value for value in (True, False) if longest[value]]


def _has(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


@cache
def _stated_patterns(leaf: Leaf, parameter: Parameter) -> tuple[re.Pattern[str], ...]:
    value, name = f"({_value_pattern(parameter)})", re.escape(parameter.words)
    named = [rf"{value} as the {name}(?!\w)", rf"(?<!\w){_any_case(name)}(?: is| should be| set to|:)? {value}"]
    natural = [
        r"(?<!\w)" + re.escape(pattern).replace(re.escape("{}"), value)
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
    kind = parameter.kind
    if kind in _SHAPES:
        return _SHAPES[kind]
    if kind in pools():
        options = sorted(pools()[kind], key=len, reverse=True)
        coined = [_COINED] if kind in ("city", "medicine", "river") else []
        return "|".join([*map(re.escape, options), *coined])
    return _NUMBERS[KINDS[kind].type]


def _typed(parameter: Parameter, text: str) -> Any:
    if parameter.shape == "kind" and KINDS[parameter.kind].type in _NUMBERS:
        return json.loads(text.lstrip("0") or "0") if "." not in text else float(text)
    return text


def occurs(value: Any, text: str) -> bool:
    """Whether a scalar is written in the text, as a whole word."""
    return re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w|\.\d)", text) is not None
