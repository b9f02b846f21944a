"""Does an answer fulfil a BFCL row? Mode "bfcl" gives the released verdict (bfcl-eval 2026.3.23), "fixed" a fair one.

A row (`BfclTarget`) has the benchmark's own function documents and, for every wanted call, a list of accepted values
for each parameter, where "" says that it may be left out. What both modes share: the number of calls counts, their
order does not; names are exact, dots included (the released checker turns dots into underscores only for models whose
servers forbid them); a parameter has to be in the document and in the label, a required one has to be given; the type
must be the documented one (a whole number is a float where a float is documented, never the reverse, and true is no
number) or that of the label, which may hold a variable's name; strings compare without spaces, `,./-_*^`, letter case
and kind of quotes; Java and JavaScript values are source text in strings.

What "bfcl" does, and "fixed" mends:

- calls find their labels greedily: of f(a), f(b) against {a or b}, {a} the first takes a's place. Fixed: any pairing.
- strings lose sign and point: "-5" is "5", "1.5" is "15". Fixed: a string that is a number keeps them.
- a string of dropped characters only (" ", "-") and an empty list equal the mark "". Fixed: they do not; "" does.
- true equals 1 inside lists and objects, and strings deeper than one level compare exactly. Fixed: true is no number,
  strings compare alike at all depths, objects in objects too.
- whole numbers in a list of floats fail unless the label is written so. Fixed: they are floats.
- only the first accepted value's type may differ from the documented one. Fixed: any.
- a parameter that equals its documented default fails where the label lacks it. Fixed: it is as good as left out.
- labels with a parameter that is not documented can never be met. Fixed: that parameter is not wanted.
- a parameter without any accepted value can never be met. Fixed: an empty list is meant.
- a value of an object that the label gives without a list is read letter by letter. Fixed: it is the one accepted.
- Java and JavaScript collections are split at every comma; strings in a Java array, or in an ArrayList of any, keep
  their quotes and so never match; a long without L and a double with a suffix fail. Fixed: the languages' grammar
  (`source_literals`), and a string may be written with or without quotes.
- an answer is read with a regex that drops broken calls, so that a broken call is a refusal where no call is wanted
  (irrelevance) and may stand beside a right one. Fixed: an unreadable answer (`parser.parse`) is wrong everywhere.
- where some call is wanted (relevance), any name will do. Fixed: it must be a tool that is there.

Where the released checker crashes (a type it does not know, a label of another shape), mode "bfcl" says no match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from looptool_jax.toolcall.bfcl_literals import Language, official_value
from looptool_jax.toolcall.matcher import Match, pair_off
from looptool_jax.toolcall.parser import ParseFailure, parse
from looptool_jax.toolcall.records import Call
from looptool_jax.toolcall.source_literals import literal

BfclMode = Literal["bfcl", "fixed"]
BfclKind = Literal["single", "multiple", "parallel", "irrelevance", "relevance"]

_PYTHON = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
           "any": str}  # fmt: skip
_JAVA = {"byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool,
         "char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "HashMap": dict}  # fmt: skip
_JAVASCRIPT = {"String": str, "integer": int, "float": float, "Bigint": int, "Boolean": bool, "dict": dict,
               "array": list, "any": str}  # fmt: skip
_TYPES: dict[str, dict[str, type]] = {"python": _PYTHON, "java": _JAVA, "javascript": _JAVASCRIPT}
_WITH_ITEMS = ("array", "tuple", "Array", "ArrayList")
_DROPPED = str.maketrans("", "", " ,./-_*^")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_NO_DEFAULT = object()
_BLOCK = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class BfclCall:
    """One wanted call: each parameter's accepted values, "" among them where it may be left out."""

    name: str
    accepted: dict[str, list[Any]]


@dataclass(frozen=True)
class BfclTarget:
    """What a row wants. functions: the benchmark's documents as they stand (types such as dict, float, HashMap)."""

    kind: BfclKind
    language: Language
    functions: tuple[dict[str, Any], ...]
    calls: tuple[BfclCall, ...] = ()


def match_bfcl(response: str, target: BfclTarget, mode: BfclMode = "bfcl") -> Match:
    """Compare an answer's text (end token removed, calls as `<tool_call>` blocks) with a row.

    bfcl: as the released evaluation reads and checks the answers of a Qwen function-calling model. fixed: see above.
    """
    if mode == "fixed":
        parsed = parse(response)
        if isinstance(parsed, ParseFailure):
            return Match(False, f"{parsed.kind}: {parsed.detail}")
        calls: Sequence[Call] | None = parsed.calls
    else:
        calls = released_calls(response)
    if target.kind == "irrelevance":
        return Match(not calls, f"a call of {calls[0].name} where none was wanted" if calls else "")
    if target.kind == "relevance":
        names = {function["name"] for function in target.functions}
        ok = bool(calls) and (mode == "bfcl" or all(call.name in names for call in calls or ()))
        return Match(ok, "" if ok else "no call of a tool that is there" if calls else "no call")
    return Match(False, "unreadable calls") if calls is None else match_bfcl_calls(calls, target, mode)


def match_bfcl_calls(calls: Sequence[Call], target: BfclTarget, mode: BfclMode = "bfcl") -> Match:
    """Compare calls with a row that wants calls."""
    wanted = target.calls if target.kind == "parallel" else target.calls[:1]
    if len(calls) != len(wanted):
        return Match(False, f"{len(calls)} calls instead of {len(wanted)}")
    reasons = [[_call_differs(call, want, target, mode) for call in calls] for want in wanted]
    if mode == "fixed":
        paired = pair_off([[not reason for reason in row] for row in reasons])
    else:
        paired = _pair_off_greedily(reasons)
    if paired:
        return Match(True, "")
    closest = next((row for row in reasons if all(row)), None)
    return Match(False, closest[0] if closest else "the right calls, but not each as often as wanted")


def released_calls(response: str) -> list[Call] | None:
    """The calls that the released evaluation sees: in blocks behind the last think block, broken JSON left out.

    None where a block's JSON is no call, which ends the reading.
    """
    calls = []
    for raw in released_blocks(response):
        name = raw.get("name") if isinstance(raw, dict) else None
        if not isinstance(name, str) or not isinstance(raw.get("arguments"), dict):
            return None
        calls.append(Call(name, raw["arguments"]))
    return calls


def released_blocks(response: str) -> list[Any]:
    """The JSON values of an answer's blocks as the released evaluation finds them, those of broken JSON left out."""
    values = []
    for block in _BLOCK.findall(response.split("</think>")[-1]):
        try:
            values.append(json.loads(block))
        except (ValueError, RecursionError):
            continue
    return values


def _pair_off_greedily(reasons: list[list[str]]) -> bool:
    free = list(range(len(reasons)))
    for row in reasons:
        taken = next((i for i in free if not row[i]), None)
        if taken is None:
            return False
        free.remove(taken)
    return True


def _call_differs(call: Call, want: BfclCall, target: BfclTarget, mode: BfclMode) -> str:
    """Why the call is not the wanted one, "" if it is."""
    functions = target.functions
    if target.kind != "single":
        functions = tuple(function for function in functions if function["name"] == want.name)
    if not functions:
        return f"{want.name} is not documented"
    name, parameters = functions[0]["name"], functions[0]["parameters"]
    if call.name != name:
        return f"{call.name} instead of {name}"
    documented = parameters.get("properties", {})
    for key in parameters.get("required", ()):
        if key not in call.arguments:
            return f"{name}: required argument {key!r} is missing"
    value_differs = _fixed_value_differs if mode == "fixed" else _released_value_differs
    for key, value in call.arguments.items():
        accepted = want.accepted.get(key)
        if (
            mode == "fixed"
            and (accepted is None or "" in accepted)
            and _is_default(value, documented.get(key), target.language)
        ):
            continue
        if accepted is None or key not in documented:
            return f"{name}: argument {key!r} is not wanted"
        if reason := value_differs(value, accepted, documented[key], target.language):
            return f"{name}: argument {key!r} {reason}"
    for key, accepted in want.accepted.items():
        if key not in call.arguments and "" not in accepted and (mode == "bfcl" or key in documented):
            return f"{name}: argument {key!r} is missing"
    return ""


def item_type_name(document: dict[str, Any]) -> str | None:
    """The documented type of a list's elements."""
    items = document.get("items")
    return str(items["type"]) if isinstance(items, dict) and "type" in items else None


def _is_default(value: Any, document: dict[str, Any] | None, language: Language) -> bool:
    default = (document or {}).get("default", _NO_DEFAULT)
    return any(_same(reading, default) for reading in _readings(value, language))


def _released_value_differs(value: Any, accepted: list[Any], document: dict[str, Any], language: Language) -> str:
    """The released rules for one argument, in their order."""
    type_name, item = str(document.get("type")), item_type_name(document)
    expected = _TYPES[language].get(type_name)
    item = item if type_name in _WITH_ITEMS else None
    item_type = _TYPES[language].get(item) if item else None
    if expected is None or (type_name in _WITH_ITEMS and item_type is None):
        return f"has the unknown type {type_name!r} in the document"
    try:
        if language != "python":
            if not isinstance(value, str):
                return "must be source text in a string"
            value = official_value(value, type_name, item, language)
        elif type_name == "float" and type(value) is int:
            value = float(value)
    except (ValueError, OverflowError):
        return "cannot be converted"
    labelled = next((type(option) for option in accepted if option != ""), None)
    is_variable = labelled is not None and labelled is not expected
    if type(value) is expected and item_type is not None:
        if not any(_items_have_type(value, option, item_type) for option in accepted):  # type: ignore[arg-type]
            return "has elements of another type"
    elif type(value) is not expected:
        if labelled is None or type(value) is not labelled:
            return f"must be {type_name}"
        is_variable = True
    kind = "" if is_variable else expected.__name__
    try:
        return "" if _released_equal(value, accepted, kind, item_type) else "differs"
    except (TypeError, AttributeError, KeyError):  # a label of another shape
        return "differs"


def _items_have_type(value: list[Any], option: Any, item_type: type) -> bool:
    if not isinstance(option, list):
        return True
    labelled = next((type(part) for part in option if part != ""), None)
    return all(type(part) is item_type or (labelled is not None and type(part) is labelled) for part in value)


def _released_equal(value: Any, accepted: list[Any], kind: str, item_type: type | None) -> bool:
    """kind: the name of the documented Python type, "" for a variable, which compares as it stands."""
    match kind:
        case "dict":
            return any(_released_object(value, option) for option in accepted if option != "")
        case "list" if item_type is dict:
            return any(_released_objects(value, option) for option in accepted)
        case "list":
            return _standard_parts(value) in [_standard_parts(option) for option in accepted]
        case "str":
            return standard_string(value) in [standard_string(option) for option in accepted if type(option) is str]
    return value in accepted


def _released_objects(value: list[Any], option: Any) -> bool:
    return len(value) == len(option) and all(
        _released_object(part, label) for part, label in zip(value, option, strict=True)
    )


def _released_object(value: dict[str, Any], label: Any) -> bool:
    if not isinstance(label, dict):
        raise TypeError(f"a label of the type {type(label).__name__}")
    for key, part in value.items():
        if key not in label or _standard(part) not in _standard_parts(label[key]):
            return False
    return all(key in value or "" in options for key, options in label.items())


def _standard_parts(values: Any) -> list[Any]:
    """Of a list, or of a string, whose parts are its letters; anything else has no places (TypeError, KeyError)."""
    return [_standard(values[place]) for place in range(len(values))]


def _standard(value: Any) -> Any:
    return standard_string(value) if type(value) is str else value


def standard_string(text: str) -> str:
    """A string as the benchmark compares it."""
    return text.translate(_DROPPED).lower().replace("'", '"')


def _fixed_value_differs(value: Any, accepted: list[Any], document: dict[str, Any], language: Language) -> str:
    """The fair rules for one argument."""
    type_name, item = str(document.get("type")), item_type_name(document)
    if language != "python" and not isinstance(value, str):
        return "must be source text in a string"
    expected, types = _TYPES[language].get(type_name), {type(option) for option in accepted if option != ""}
    fits = [
        reading
        for reading in _readings(value, language)
        if type(reading) is expected or type(reading) in types or (expected is float and type(reading) is int)
    ]
    if not fits:
        return f"must be {type_name}"
    for reading in fits:
        if _TYPES[language].get(item or "") is int and isinstance(reading, list) and _has_float(reading, accepted):
            continue
        if any(_fixed_equal(reading, option) for option in accepted or [[]]):
            return ""
    return "differs"


def _readings(value: Any, language: Language) -> list[Any]:
    """What a value may stand for: itself, and where it is source text, the value of that."""
    return [value] if language == "python" or not isinstance(value, str) else [value, literal(value, language)]


def _has_float(value: list[Any], accepted: list[Any]) -> bool:
    """Whether a list of whole numbers holds a float that no label has there."""
    return any(type(part) is float for part in value) and not any(
        type(part) is float for option in accepted if isinstance(option, list) for part in option
    )


def _fixed_equal(value: Any, option: Any) -> bool:
    """Equality with one accepted value; the members of its objects are lists of accepted values."""
    if option == "":
        return value == ""
    if isinstance(value, dict) and isinstance(option, dict):
        label = {key: _options(accepted) for key, accepted in option.items()}
        return all(
            key in label and any(_fixed_equal(part, accepted) for accepted in label[key]) for key, part in value.items()
        ) and all(key in value or "" in accepted for key, accepted in label.items())
    if isinstance(value, list) and isinstance(option, list):
        return _all_equal(value, option, _fixed_equal)
    return _same(value, option)


def _options(accepted: Any) -> list[Any]:
    return accepted if isinstance(accepted, list) else [accepted]


def _same(value: Any, other: Any) -> bool:
    """Typed equality of two JSON values; strings by their standard form."""
    if isinstance(value, str) and isinstance(other, str):
        return _fixed_string(value) == _fixed_string(other)
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return _all_equal(value, other, _same)
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(part, other[key]) for key, part in value.items())
    return value == other


def _all_equal(values: list[Any], others: list[Any], equal: Callable[[Any, Any], bool]) -> bool:
    return len(values) == len(others) and all(equal(a, b) for a, b in zip(values, others, strict=True))


def _fixed_string(text: str) -> str:
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped):
        return stripped.replace(",", "").removeprefix("+")
    return standard_string(text) or stripped
