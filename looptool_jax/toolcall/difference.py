"""Where two responses differ, place by place: what a judge of few parameters can decide and a reader wants to see."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from looptool_jax.toolcall.matcher import equal_calls
from looptool_jax.toolcall.parser import Parsed, ParseFailure, parse
from looptool_jax.toolcall.records import Call, Tool


@dataclass(frozen=True)
class Difference:
    """One place at which two responses differ.

    place: the argument's name (behind the call's number where there are several calls), `function`, `call` (one that
    only one response has), or `response` where one of them has no calls. first, second: what the responses have
    there, values as JSON; "none" where there is nothing. Names that hold anything but letters, digits, `_`, `.` and
    `-` stand as JSON strings, so that no name reads as another place or line.
    """

    place: str
    first: str
    second: str


def differences(first: str, second: str, tools: Sequence[Tool]) -> list[Difference]:
    """The differences between two responses as an assistant writes them; empty where they are the same.

    Calls are paired off by name, the most similar first; calls without a partner of their name pair off in their
    order, as another function. Numbers of calls are those of the first response.
    """
    one, two = parse(first), parse(second)
    if not _has_calls(one) or not _has_calls(two):
        shown = (_one_line(one, first), _one_line(two, second))
        return [Difference("response", *shown)] if shown[0] != shown[1] else []
    assert isinstance(one, Parsed) and isinstance(two, Parsed)
    several = max(len(one.calls), len(two.calls)) > 1
    found = []
    for number, (a, b) in enumerate(_pairs(one.calls, two.calls, tools), 1):
        prefix = f"{number}." if several else ""
        if a is None or b is None:
            found.append(Difference("call", _json(a), _json(b)))
            continue
        if a.name != b.name:
            found.append(Difference(f"{prefix}function", _name(a.name), _name(b.name)))
        for key in dict.fromkeys((*a.arguments, *b.arguments)):
            if not _same_argument(a, b, key, tools):
                found.append(Difference(prefix + _name(key), _value(a, key), _value(b, key)))
    return found


def _pairs(
    first: Sequence[Call], second: Sequence[Call], tools: Sequence[Tool]
) -> list[tuple[Call | None, Call | None]]:
    """Every call of the first with its partner in the second, then the second's calls that are left."""
    ranked = sorted(
        ((i, j) for i, a in enumerate(first) for j, b in enumerate(second) if a.name == b.name),
        key=lambda pair: sum(
            not _same_argument(first[pair[0]], second[pair[1]], key, tools)
            for key in {*first[pair[0]].arguments, *second[pair[1]].arguments}
        ),
    )
    partner: dict[int, int] = {}
    for i, j in ranked:
        if i not in partner and j not in partner.values():
            partner[i] = j
    left = [j for j in range(len(second)) if j not in partner.values()]
    for i in range(len(first)):
        if i not in partner and left:
            partner[i] = left.pop(0)
    pairs: list[tuple[Call | None, Call | None]] = [
        (call, second[partner[i]] if i in partner else None) for i, call in enumerate(first)
    ]
    return [*pairs, *((None, second[j]) for j in left)]


def _same_argument(a: Call, b: Call, key: str, tools: Sequence[Tool]) -> bool:
    one, two = ({key: call.arguments[key]} if key in call.arguments else {} for call in (a, b))
    if a.name != b.name:
        return one == two
    return equal_calls(Call(a.name, one), Call(a.name, two), tools)


def _name(text: str) -> str:
    return text if re.fullmatch(r"[\w.-]+", text) else json.dumps(text, ensure_ascii=False)


def _has_calls(response: Parsed | ParseFailure) -> bool:
    return isinstance(response, Parsed) and bool(response.calls)


def _one_line(response: Parsed | ParseFailure, text: str) -> str:
    if isinstance(response, ParseFailure):
        return " ".join(text.split()) or "none"
    return " ".join([*response.text.split(), *map(_json, response.calls)]) or "none"


def _json(call: Call | None) -> str:
    return json.dumps(call.to_json(), ensure_ascii=False) if call else "none"


def _value(call: Call, key: str) -> str:
    return json.dumps(call.arguments[key], ensure_ascii=False) if key in call.arguments else "none"
