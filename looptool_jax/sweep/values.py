"""The values of a swept setting: read from the command line or a YAML file, and never evaluated.

    1e-4,3e-4               choices
    range(3), range(1,9,2)  whole numbers, as Python's
    zip(8,16)               choices that move together with those of every other zip
    uniform(0.5,1)          searched: real, real on a log scale, whole, or one of some
    loguniform(1e-6,1e-4)
    int(2,16)
    choice(top,random)

Anything else is one value. A value is text as behind the `=` of an override.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.store import dump_json

MOST_VALUES = 10_000
_FUNCTION = re.compile(r"([A-Za-z_]\w*)\s*\((.*)\)", re.DOTALL)
_INTEGER, _FLOAT = re.compile(r"[-+]?\d{1,18}"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")
_PAIRS = {")": "(", "]": "[", "}": "{"}


class SweepError(ValueError):
    """A sweep that cannot be run; the message names the setting or file and the remedy."""


@dataclass(frozen=True)
class Choices:
    """Values of a grid; `zipped` ones move together."""

    values: tuple[str, ...]
    zipped: bool = False


@dataclass(frozen=True)
class Distribution:
    """Where a search draws from: kind (uniform, loguniform, int, choice) and its bounds or choices."""

    kind: str
    arguments: tuple[str, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = (float(argument) for argument in self.arguments)
        return low, high

    def __str__(self) -> str:
        return f"{self.kind}({','.join(self.arguments)})"


def read_values(key: str, value: Any) -> Choices | Distribution:
    """What a setting is swept over: from text, or from YAML, where a list holds choices. Raises SweepError."""
    if isinstance(value, list):
        if not value:
            raise SweepError(f"{key}: an empty list; give at least one value")
        return _choices(key, [as_text(key, item) for item in value])
    if not isinstance(value, str):
        return Choices((as_text(key, value),))
    pieces = _split(key, value)
    function = _FUNCTION.fullmatch(pieces[0]) if len(pieces) == 1 else None
    if function is None:
        return _choices(key, pieces)
    name, arguments = function[1], _split(key, function[2])
    if name == "range":
        return Choices(_range(key, value, arguments))
    if name == "zip":
        return Choices(_choices(key, arguments).values, zipped=True)
    if name == "choice":
        return Distribution(name, _choices(key, arguments).values)
    if name in ("uniform", "loguniform", "int"):
        return _bounds(key, value, name, arguments)
    raise SweepError(
        f"{key}: {_short(value)}: no such function; there are range, zip, choice, uniform, loguniform and int "
        f"(put quotes around a text that only looks like one)"
    )


def as_text(key: str, value: Any) -> str:
    """A YAML value as an override has it behind its `=`; texts are taken as they are. Raises SweepError."""
    try:
        return canonical(value if isinstance(value, str) else dump_json(value).decode())
    except ValueError as error:
        raise SweepError(f"{key}: {error}") from None


def canonical(text: str) -> str:
    """Numbers in one spelling, so that a trial keeps its name when they are spelled otherwise: 1e-4 is 0.0001."""
    if _INTEGER.fullmatch(text):
        return str(int(text))
    if not _FLOAT.fullmatch(text):
        return text
    number = float(text)
    return f"{number:g}" if float(f"{number:g}") == number and not f"{number:g}".lstrip("-").isdigit() else repr(number)


def _choices(key: str, values: Sequence[str]) -> Choices:
    found = [canonical(value) for value in values]
    if "" in found:
        raise SweepError(f"{key}: an empty value between commas; write null, or '' in quotes, or take it out")
    for index, value in enumerate(found):
        if value in found[:index]:
            raise SweepError(f"{key}: the value {_short(value)} is given twice")
    return Choices(tuple(found))


def _range(key: str, text: str, arguments: Sequence[str]) -> tuple[str, ...]:
    if not 1 <= len(arguments) <= 3 or not all(_INTEGER.fullmatch(argument) for argument in arguments):
        raise SweepError(f"{key}: {_short(text)}: expected one to three whole numbers, as in range(3) or range(1,9,2)")
    numbers = [int(argument) for argument in arguments]
    if numbers[2:] == [0]:
        raise SweepError(f"{key}: {_short(text)}: the step is 0")
    found = range(*numbers)
    if not 1 <= len(found) <= MOST_VALUES:
        raise SweepError(f"{key}: {_short(text)}: holds {len(found)} numbers; from 1 to {MOST_VALUES} are taken")
    return tuple(str(number) for number in found)


def _bounds(key: str, text: str, kind: str, arguments: Sequence[str]) -> Distribution:
    form = _INTEGER if kind == "int" else _FLOAT
    if len(arguments) != 2 or not all(form.fullmatch(argument) for argument in arguments):
        raise SweepError(f"{key}: {_short(text)}: expected {kind}(low,high) with two numbers")
    low, high = (float(argument) for argument in arguments)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SweepError(f"{key}: {_short(text)}: low must be below high")
    if kind == "loguniform" and low <= 0:
        raise SweepError(f"{key}: {_short(text)}: a log scale needs numbers above 0")
    return Distribution(kind, tuple(canonical(argument) for argument in arguments))


def _split(key: str, text: str) -> list[str]:
    """The parts between the commas that stand in no bracket and no quotes."""
    parts, start, open_, quote = [], 0, [], ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            open_.append(character)
        elif character in ")]}":
            if not open_ or open_.pop() != _PAIRS[character]:
                raise SweepError(f"{key}: {_short(text)}: {character!r} closes nothing")
        elif character == "," and not open_:
            parts.append(text[start:index].strip())
            start = index + 1
    if open_ or quote:
        raise SweepError(f"{key}: {_short(text)}: {open_[-1] if open_ else quote!r} is not closed")
    return [*parts, text[start:].strip()]


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
