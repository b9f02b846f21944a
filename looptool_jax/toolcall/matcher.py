"""The one matcher: does an answer fulfil its target? Reward, probing, verification and scoring all ask here.

Mode "strict" compares by the tools' schemas; mode "paper" is the released reward, in `paper_reward`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from looptool_jax.toolcall.chat import get_format
from looptool_jax.toolcall.paper_reward import released_reward
from looptool_jax.toolcall.parser import Parsed, ParseFailure, parse
from looptool_jax.toolcall.records import Call, Target, Tool
from looptool_jax.toolcall.schema import find_tool, item_schema, property_schema
from looptool_jax.toolcall.type_names import declared_types

MatchMode = Literal["strict", "paper"]


@dataclass(frozen=True)
class Match:
    """The verdict, and one line that says why it is no match ("" if it is one)."""

    ok: bool
    reason: str


def match(
    response: str | Parsed | ParseFailure, target: Target, tools: Sequence[Tool], mode: MatchMode = "strict"
) -> Match:
    """Compare an answer with its target.

    strict: the answer must be readable (parser.parse). A target with calls wants the same calls in any order, or
    those of one of its alternatives: equal names, equal arguments (`equal_arguments`). A text target wants text
    (at least a letter or digit) without calls; a clarifying one must name every missing parameter.
    paper: the released reward with all its holes, on the raw text; tools, alternatives and intent play no part.

    Raises ValueError for an unknown mode, or for a parsed answer in mode "paper".
    """
    if mode == "paper":
        if not isinstance(response, str):
            raise ValueError("mode 'paper' reads the raw text of an answer, not a parsed one")
        ok = released_reward(response, get_format("qwen3").render_target(target)) > 0
        return Match(ok, "" if ok else "the released reward is 0")
    if mode != "strict":
        raise ValueError(f"unknown match mode {mode!r}; known: strict, paper")
    parsed = parse(response) if isinstance(response, str) else response
    if isinstance(parsed, ParseFailure):
        return Match(False, f"{parsed.kind}: {parsed.detail}")
    reason = _calls_differ(parsed, target, tools) if target.is_call else _text_differs(parsed, target)
    return Match(not reason, reason)


def _text_differs(parsed: Parsed, target: Target) -> str:
    if parsed.calls:
        return f"a call of {parsed.calls[0].name} where text was wanted"
    if not re.search(r"\w", parsed.text):
        return "no text"
    if target.intent == "clarify":
        unnamed = [name for name in target.missing if not names_parameter(parsed.text, name)]
        if unnamed:
            return f"does not ask for {', '.join(unnamed)}"
    return ""


def names_parameter(text: str, name: str) -> bool:
    """Whether the text names the parameter: literally, or as the words it is made of, in either letter case.

    `check_in_date`, `checkInDate` and `check-in-date` are named by "check in date" and "Check-in date".
    """
    if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
        return True
    spaced = re.sub(r"(?<=[^\W_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\dA-Z_])", " ", name)
    wanted, found = _words(spaced), _words(text)
    width = len(wanted)
    return width > 0 and any(found[i : i + width] == wanted for i in range(len(found) - width + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _calls_differ(parsed: Parsed, target: Target, tools: Sequence[Tool]) -> str:
    """Why the calls are not those of the target, nor of any alternative ("" if they are)."""
    if not parsed.calls:
        return "no call"
    accepted = [calls for calls in (target.calls, *target.alternatives) if calls]
    if any(_same_multiset(parsed.calls, calls, tools) for calls in accepted):
        return ""
    if all(len(calls) != len(parsed.calls) for calls in accepted):
        return f"{len(parsed.calls)} calls instead of {len(target.calls)}"
    closest = min(accepted, key=lambda calls: abs(len(calls) - len(parsed.calls)))
    odd = next((c for c in parsed.calls if not any(equal_calls(c, want, tools) for want in closest)), None)
    if odd is None:
        return "the right calls, but not each as often as wanted"
    wanted = next((want for want in closest if want.name == odd.name), None)
    if wanted is None:
        return f"{odd.name} is not wanted"
    return f"{odd.name}: {_difference(odd, wanted, tools)}"


def _difference(call: Call, wanted: Call, tools: Sequence[Tool]) -> str:
    tool = find_tool(call.name, tools)
    schema = tool.parameters if tool else {}
    for key in dict.fromkeys((*wanted.arguments, *call.arguments)):
        one = {k: v for k, v in call.arguments.items() if k == key}
        other = {k: v for k, v in wanted.arguments.items() if k == key}
        if not _equal_objects(one, other, schema):
            state = "is missing" if not one else "is not wanted" if not other else "differs"
            return f"argument {key!r} {state}"
    return "differs"


def _same_multiset(calls: Sequence[Call], wanted: Sequence[Call], tools: Sequence[Tool]) -> bool:
    """Whether the calls pair off with the wanted ones."""
    return len(calls) == len(wanted) and pair_off(
        [[equal_calls(call, want, tools) for want in wanted] for call in calls]
    )


def pair_off(fits: Sequence[Sequence[bool]]) -> bool:
    """Whether every row can have a column of its own that fits it: maximum bipartite matching by augmenting paths."""
    partner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in seen:
                seen.add(column)
                if column not in partner or place(partner[column], seen):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


def equal_calls(a: Call, b: Call, tools: Sequence[Tool]) -> bool:
    """Whether two calls are the same call under the tools' schemas; symmetric."""
    tool = find_tool(a.name, tools)
    return a.name == b.name and _equal_objects(a.arguments, b.arguments, tool.parameters if tool else {})


def equal_values(a: Any, b: Any, schema: dict[str, Any]) -> bool:
    """Typed equality of two JSON values: true is not 1; 1 is 1.0 only where the schema says number; list order
    counts; an optional property equal to its declared default may be left out of either side."""
    branches = [branch for key in ("anyOf", "oneOf", "allOf") for branch in schema.get(key, ())]
    if branches and any(equal_values(a, b, branch) for branch in branches):
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return _equal_objects(a, b, schema)
    if isinstance(a, list) and isinstance(b, list):
        pairs = enumerate(zip(a, b, strict=False))
        return len(a) == len(b) and all(equal_values(x, y, item_schema(schema, i)) for i, (x, y) in pairs)
    if type(a) is type(b):
        return a == b
    if {type(a), type(b)} == {int, float}:
        return a == b and "number" in declared_types(schema)
    return False


def _equal_objects(a: dict[str, Any], b: dict[str, Any], schema: dict[str, Any]) -> bool:
    required = schema.get("required", ())
    for key in a.keys() | b.keys():
        prop = property_schema(schema, key)
        if key in a and key in b:
            if not equal_values(a[key], b[key], prop):
                return False
            continue
        if key in required or key not in schema.get("properties", {}) or "default" not in prop:
            return False
        if not equal_values(a.get(key, prop["default"]), b.get(key, prop["default"]), prop):
            return False
    return True
