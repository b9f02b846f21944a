"""Does an answer fulfil an ACEBench row? Mode "official" gives the verdict of commit 56dd66c, "fixed" a fair one.

A row (`AceTarget`) has the benchmark's own function documents. Normal rows want calls, given as one label or several
accepted ones {name: {parameter: value}}, names with `_1`, `_2` behind them where one function is called repeatedly.
Special rows want a text that says what is wrong with the request.

The released scorer reads the text `[Name(key='value'), ...]` as Python source. An answer with calls is written as that
text for it, and any other is held against it as it stands; nothing is evaluated. Shared by both modes: the number and
names of calls count, their order does not; an argument has to be documented and in the label; strings compare without
spaces, `,./-_*^`, letter case and kind of quotes.

What "official" does, and "fixed" mends:

- one answer's call serves for several labels of its name. Fixed: each call for one label.
- only required arguments have to be there. Fixed: those of the label, but for nulls and documented defaults.
- numbers and booleans are never compared, nor is a value whose label has another type than is documented. Fixed: they
  are; where label and document disagree on the type, a value of either type is right.
- a string only has to contain the label ("15" has "5"), and values in objects do so as Python writes them. Fixed: the
  label's words have to stand there in a row, and options of an enum are compared whole.
- strings in lists in objects compare exactly. Fixed: as everywhere.
- in dialogues all white space is removed first, so that "HTC Vive" in a list is never met. Fixed: it is not removed.
- a list without documented elements is one of objects. Fixed: its elements are compared as they are.
- an argument "true" in a string is the boolean, and never met where a string is documented. Fixed: a string.
- a tool whose name ends in `_2` cannot be called, and of tools whose names contain each other the first one's document
  counts. Fixed: names are whole.
- brackets inside strings end the reading; names that Python cannot read are lost. Fixed: calls are read from the
  model's own format (`parser.parse`).
- the text of a special row must hold a sentence of the benchmark, and may hold anything else. Fixed: in any words, but
  without a call; it names the missing parameters, or each wrong value or its parameter; of a refusal no more is known.

Where the released scorer crashes, mode "official" says no match. Source that it would evaluate (sums, products) is
unreadable here.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from looptool_jax.toolcall.bfcl_match import standard_string
from looptool_jax.toolcall.matcher import Match, names_parameter, pair_off
from looptool_jax.toolcall.parser import ParseFailure, parse
from looptool_jax.toolcall.records import Call

AceMode = Literal["official", "fixed"]
AceKind = Literal["calls", "incomplete", "error_param", "irrelevant"]

MISSING = "Missing necessary parameters"
INCORRECT = "There is incorrect value"
LIMITATIONS = "the limitations of the function"
_TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str, "list": list, "object": dict, "objectArray": list, "list(string)": list, "list(enum)": list,
    "int": int, "enum": enumerate, "number": int,
}  # fmt: skip
_WITH_ELEMENTS = ("array", "tuple", "list(string)", "list(enum)", "object", "objectArray")
_NUMBER_TYPES = ("integer", "int", "number", "float")
_REPEATED = re.compile(r"_\d+$")
_WORD = re.compile(r"[+-]?\d+(?:\.\d+)?|[^\W\d_]+")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_CRASHES = (AttributeError, KeyError, TypeError, IndexError)
_NO_DEFAULT = object()

Label = dict[str, Any]


@dataclass(frozen=True)
class AceTarget:
    """What a row wants. functions: the documents as they stand. labels: accepted answers {name: {parameter: value}}; of
    special rows one, {tool: [missing parameters]} or {parameter: [wrong values]}. dialogue: a step of a multi-turn
    category, whose white space the released scorer removes."""

    kind: AceKind
    functions: tuple[dict[str, Any], ...]
    labels: tuple[Label, ...]
    dialogue: bool = False


def match_acebench(response: str, target: AceTarget, mode: AceMode = "official") -> Match:
    """Compare an answer's text (end token removed, calls as `<tool_call>` blocks) with a row."""
    if mode == "official":
        return match_official_text(official_text(response), target)
    parsed = parse(response)
    if isinstance(parsed, ParseFailure):
        return Match(False, f"{parsed.kind}: {parsed.detail}")
    if target.kind == "calls":
        return _first_match(_fixed_calls_differ(parsed.calls, label, target) for label in target.labels)
    if parsed.calls:
        return Match(False, f"a call of {parsed.calls[0].name} where none was wanted")
    return _verdict(_fixed_text_differs(parsed.text, target))


def official_text(response: str) -> str:
    """An answer as the released scorer expects it: calls as Python source, a text (or what is unreadable) as it is."""
    parsed = parse(response)
    if isinstance(parsed, ParseFailure):
        return response
    return write_calls(parsed.calls) if parsed.calls else parsed.text


def write_calls(calls: Sequence[Call]) -> str:
    written = (
        f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls
    )
    return f"[{', '.join(written)}]"


def match_official_text(text: str, target: AceTarget) -> Match:
    """The released verdict on a text in the benchmark's own format."""
    try:
        if target.kind != "calls":
            return _verdict(_official_text_differs(text, target))
        calls = official_calls("".join(text.split()) if target.dialogue else _outermost_brackets(text))
        if calls is None:
            return Match(False, "unreadable calls")
        return _first_match(_official_calls_differ(calls, label, target.functions) for label in target.labels)
    except _CRASHES as error:
        return Match(False, f"the released scorer crashes ({type(error).__name__})")


def official_calls(text: str | None) -> list[Call] | None:
    """The calls that the released scorer reads; positional arguments are dropped. None where it reads none."""
    if text is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            elements = ast.parse(text, mode="eval").body.elts  # type: ignore[attr-defined]
        if not all(isinstance(element, ast.Call) for element in elements):
            return None
        return [Call(*_call_of(element)) for element in elements]
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return None


def tool_name(key: str, names: Sequence[str]) -> str:
    """The tool that a key of a label means."""
    return key if key in names else _REPEATED.sub("", key)


def properties_of(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters", function.get("arguments")) or {}
    return parameters.get("properties") or {}


def _verdict(reason: str) -> Match:
    return Match(not reason, reason)


def _first_match(reasons: Iterable[str]) -> Match:
    """Of several accepted answers one has to be met; none is looked at behind that."""
    first = ""
    for reason in reasons:
        if not reason:
            return Match(True, "")
        first = first or reason
    return Match(False, first)


def _outermost_brackets(text: str) -> str | None:
    """The first whole [...] of a text, brackets in strings counted like others."""
    start, depth = -1, 0
    for place, sign in enumerate(text):
        if sign == "[":
            start = place if depth == 0 else start
            depth += 1
        elif sign == "]":
            depth -= 1
            if depth == 0 and start >= 0:
                return text[start : place + 1]
    return None


def _call_of(node: ast.Call) -> tuple[str, dict[str, Any]]:
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    arguments = {keyword.arg: _value_of(keyword.value) for keyword in node.keywords}
    return ".".join(reversed(parts)), arguments  # type: ignore[return-value]


def _value_of(node: ast.expr | None) -> Any:
    """What a piece of source stands for; raises TypeError where the released scorer reads none."""
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(operand=operand):
            return -operand.value  # type: ignore[attr-defined]
        case ast.List(elts=parts):
            return [_value_of(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value_of(part) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return {_value_of(key): _value_of(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name):
            return name
        case ast.Call():
            name, arguments = _call_of(node)
            return {name: arguments}
        case ast.Subscript(value=value, slice=place):
            return f"{ast.unparse(value)}[{ast.unparse(place)}]"
    raise TypeError(f"no value: {type(node).__name__}")


def _official_text_differs(text: str, target: AceTarget) -> str:
    [label] = target.labels
    if target.kind == "irrelevant":
        return "" if LIMITATIONS in text else f"does not say {LIMITATIONS!r}"
    phrase = MISSING if target.kind == "incomplete" else INCORRECT
    for name, values in label.items():
        if phrase not in text:
            return f"does not say {phrase!r}"
        unnamed = [part for part in ([name] if target.kind == "incomplete" else []) + list(values) if part not in text]
        if unnamed:
            return f"does not name {', '.join(unnamed)}"
    return ""


def _official_calls_differ(calls: Sequence[Call], label: Label, functions: Sequence[dict[str, Any]]) -> str:
    if len(calls) != len(label):
        return f"{len(calls)} calls instead of {len(label)}"
    names = {key: _REPEATED.sub("", key) for key in label}
    if Counter(call.name for call in calls) != Counter(names.values()):
        return "other functions, or not each as often as wanted"
    for key, wanted in label.items():
        function = next((function for function in functions if function["name"] in key), None)
        match = _first_match(
            _official_call_differs(call, wanted, function) for call in calls if call.name == names[key]
        )
        if not match.ok:
            return match.reason
    return ""


def _official_call_differs(call: Call, wanted: Any, function: Any) -> str:
    parameters = function["parameters"]
    if not call.arguments or parameters == {}:
        return "" if not call.arguments and parameters == {} else f"{call.name}: no arguments"
    documented = parameters["properties"]
    if wanted == documented:
        return ""
    if wanted == {}:
        return f"{call.name}: no arguments are wanted"
    if call.name != function["name"]:
        return f"{call.name} instead of {function['name']}"
    for key in parameters["required"]:
        if key not in call.arguments:
            return f"{call.name}: required argument {key!r} is missing"
    for key, value in call.arguments.items():
        if key not in documented or key not in wanted:
            return f"{call.name}: argument {key!r} is not wanted"
        if reason := _official_value_differs(value, wanted[key], documented[key]):
            return f"{call.name}: argument {key!r} {reason}"
    return ""


def _official_value_differs(value: Any, label: Any, document: dict[str, Any]) -> str:
    kind, element = document["type"], None
    expected = _TYPES[kind]
    if kind in _WITH_ELEMENTS:
        try:
            name = document["items"]["type"]
        except (KeyError, TypeError):
            name = "string" if "string" in kind else "enum" if "enum" in kind else "dict"
        element = _TYPES[name]
    if kind == "tuple" and type(value) is tuple:
        value = list(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    fits, is_compared = _official_type(value, label, expected, element)
    if not fits:
        return f"must be {kind}"
    if not is_compared:
        return ""
    equal = True
    if expected is dict:
        equal = _official_object(value, label)
    elif expected is list and element is dict:
        if kind == "objectArray" and value and len(value) == len(label):
            raise TypeError("the released scorer calls a function with too few arguments")
        equal = len(value) == len(label) and all(map(_official_object, value, label))
    elif expected is str:
        equal = standard_string(label) in standard_string(value)
    elif expected is list:
        equal = [_standard(part) for part in value] == [_standard(label[place]) for place in range(len(label))]
    return "" if equal else "differs"


def _official_type(value: Any, label: Any, expected: type, element: type | None) -> tuple[bool, bool]:
    """Whether the type fits, and whether the value is then compared with the label."""
    labelled = type(label) if label != "" else None
    is_compared = labelled is None or labelled == expected
    value = _boolean(value)
    fits = True
    if type(value) is expected:
        if element is None:
            return True, is_compared
        for option in label:
            if type(option) is not list or all(_official_type(part, option, element, None)[0] for part in value):  # type: ignore[attr-defined]
                return True, is_compared
        fits = False
    return fits and labelled is not None and (type(value) is labelled or label == value), False


def _official_object(value: Any, label: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if len(value) != len(label.keys()):
        return False
    for key, part in value.items():
        if key not in label:
            return False
        part, wanted = _boolean(part), label[key]
        if isinstance(wanted, dict):
            if not _official_object(part, wanted):
                return False
        elif str(_standard(wanted)) not in str(_standard(part)):
            return False
    return True


def _boolean(value: Any) -> Any:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _standard(value: Any) -> Any:
    return standard_string(value) if type(value) is str else value


def _fixed_text_differs(text: str, target: AceTarget) -> str:
    if not re.search(r"\w", text):
        return "no text"
    [label] = target.labels
    if target.kind == "incomplete":
        unnamed = [part for parts in label.values() for part in parts if not names_parameter(text, part)]
        return f"does not ask for {', '.join(unnamed)}" if unnamed else ""
    if target.kind == "error_param":
        for name, values in label.items():
            if not names_parameter(text, name) and not all(value.casefold() in text.casefold() for value in values):
                return f"names neither {name} nor its value"
    return ""


def _fixed_calls_differ(calls: Sequence[Call], label: Label, target: AceTarget) -> str:
    """Why the calls are not those of a label, "" if they are."""
    if len(calls) != len(label):
        return f"{len(calls)} calls instead of {len(label)}"
    functions = {function["name"]: function for function in target.functions}
    reasons = [
        [_fixed_call_differs(call, tool_name(key, list(functions)), wanted, functions) for call in calls]
        for key, wanted in label.items()
    ]
    if pair_off([[not reason for reason in row] for row in reasons]):
        return ""
    closest = next((row for row in reasons if all(row)), None)
    return closest[0] if closest else "the right calls, but not each as often as wanted"


def _fixed_call_differs(call: Call, name: str, wanted: Any, functions: dict[str, dict[str, Any]]) -> str:
    if call.name != name:
        return f"{call.name} instead of {name}"
    parameters = functions[name].get("parameters", functions[name].get("arguments")) if name in functions else {}
    key = _fixed_object_differs(call.arguments, wanted, parameters or {})
    return f"{name}: argument {key!r} is missing, differs or is not wanted" if key else ""


def _fixed_object_differs(value: dict[str, Any], label: dict[str, Any], schema: dict[str, Any]) -> str:
    """The first key in which an object differs from its label, "" if there is none."""
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    for key in dict.fromkeys((*label, *value)):
        document = properties.get(key, {})
        document = document if isinstance(document, dict) else {}
        default = document.get("default", _NO_DEFAULT)
        wanted = label.get(key, default)
        if key in value:
            unlabelled = key not in label and key in required  # the label cannot say what is right
            if not unlabelled and (wanted is _NO_DEFAULT or not _fixed_equal(value[key], wanted, document)):
                return key
        elif wanted is not None and wanted != [] and (default is _NO_DEFAULT or wanted != default):
            return key
    return ""


def _fixed_equal(value: Any, label: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, dict) and isinstance(label, dict):
        return not _fixed_object_differs(value, label, schema)
    if isinstance(value, list):
        labels = label if isinstance(label, list) else [label]  # a single one where a list is documented
        items = schema.get("items")
        items = items if isinstance(items, dict) else {}
        return len(value) == len(labels) and all(
            _fixed_equal(part, other, items) for part, other in zip(value, labels, strict=True)
        )
    if isinstance(value, str) and isinstance(label, str):
        return _fixed_strings(value, label, whole="enum" in schema)
    if isinstance(value, bool) or isinstance(label, bool):
        return value is label or _written_alike(value, label, schema, ("boolean",))
    if isinstance(value, (int, float)) and isinstance(label, (int, float)):
        return value == label
    if isinstance(value, (dict, list)) or isinstance(label, (dict, list)):
        return False
    return value is label or _written_alike(value, label, schema, _NUMBER_TYPES)


def _written_alike(value: Any, label: Any, schema: dict[str, Any], kinds: Sequence[str]) -> bool:
    """Whether a value of the documented type is written as its label of another type is."""
    kind = schema.get("type")
    documented = kind == "string" if isinstance(value, str) else kind in kinds
    if value is None or label is None or not documented:
        return False
    written, wanted = str(value).strip().lower(), str(label).strip().lower()
    if _NUMBER.fullmatch(written) and _NUMBER.fullmatch(wanted):
        return float(written) == float(wanted)
    return written == wanted


def _fixed_strings(value: str, label: str, whole: bool) -> bool:
    numbers = [_NUMBER.fullmatch(text.strip()) for text in (value, label)]
    if all(numbers):
        return float(value) == float(label)
    if not any(numbers) and standard_string(value) == standard_string(label) and standard_string(label):
        return True
    wanted, found = _WORD.findall(label.casefold()), _WORD.findall(value.casefold())
    if whole or not wanted:
        return value.strip().casefold() == label.strip().casefold()
    return any(found[place : place + len(wanted)] == wanted for place in range(len(found) - len(wanted) + 1))
