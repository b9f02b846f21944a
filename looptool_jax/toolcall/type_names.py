"""Type names as tool documents write them, and values stored as text under such a type.

JSON Schema, Python, Java and prose: `dict`, `List[Union[int, float]]`, `HashMap<String, Integer>`, `str, optional`,
`array of strings`. Everything ends as a JSON Schema fragment.
"""

from __future__ import annotations

import json
import re
from typing import Any

_TYPE_NAMES = {
    "string": ("string", "str", "text", "char", "character"),
    "integer": ("integer", "int", "int32", "int64", "long", "short", "byte", "bigint", "biginteger"),
    "number": ("number", "float", "double", "decimal", "numeric", "float32", "float64"),
    "boolean": ("boolean", "bool"),
    "array": ("array", "list", "tuple", "set", "sequence", "iterable", "arraylist", "frozenset"),
    "object": ("object", "dict", "dictionary", "map", "mapping", "hashmap"),
    "null": ("null", "none", "nonetype", "void"),
}
_TYPES = {alias: name for name, aliases in _TYPE_NAMES.items() for alias in aliases}
_ANYTHING = ("any", "callable", "function", "")
_TEXT_FORMATS = {"date": "date", "datetime": "date-time", "date-time": "date-time", "time": "time", "uuid": "uuid",
                 "email": "email", "url": "uri", "uri": "uri", "path": "path", "enum": None}  # fmt: skip


class SchemaError(ValueError):
    """A tool document that cannot be read; the message names the tool, the place and what is wrong."""


def read_type(raw: Any, where: str) -> tuple[dict[str, Any], bool]:
    """A `type` entry as a schema fragment, and whether it says optional.

    Besides the expression of the type it may hold what follows a comma: optional, required, default=value.
    """
    if raw is None:
        return {}, False
    if isinstance(raw, list):
        return _union([read_type(entry, where)[0] for entry in raw]) if raw else {}, False
    if not isinstance(raw, str):
        raise SchemaError(f"{where}: a type must be a name, found {raw!r}")
    head, *qualifiers = _split(re.sub(r"\s*\(\s*optional\s*\)\s*$", ", optional", raw, flags=re.IGNORECASE), ",")
    fragment, optional = _type_schema(head, where), head.lower().startswith("optional[")
    for qualifier in qualifiers:
        key, _, value = (part.strip() for part in qualifier.partition("="))
        if key.lower() == "default" and value:
            fragment = {**fragment, "default": _literal(value)}
        elif key.lower() not in ("optional", "required", "default"):
            raise SchemaError(f"{where}: cannot read the type {raw!r}")
        optional = optional or key.lower() != "required"
    return fragment, optional


def _type_schema(name: str, where: str) -> dict[str, Any]:
    """A type expression such as `List[Union[int, float]]` as a schema fragment."""
    parts = _split(name, "|")
    if len(parts) == 1:
        parts = re.split(r"\s+or\s+", name) if "[" not in name else parts
    if len(parts) > 1:
        return _union([_type_schema(part, where) for part in parts])
    if name.endswith("[]"):
        return {"type": "array", "items": _type_schema(name[:-2], where)}
    if found := re.fullmatch(r"(?:array|list) of (\w+?)s?", name, re.IGNORECASE):
        return {"type": "array", "items": _type_schema(found[1], where)}
    head, inner = _brackets(name)
    lowered = head.lower().removeprefix("typing.")
    arguments = _split(inner, ",") if inner else []
    if lowered == "optional":
        return _union([*(_type_schema(part, where) for part in arguments), {"type": "null"}])
    if lowered == "union":
        return _union([_type_schema(part, where) for part in arguments])
    if lowered == "literal":
        return {"enum": [_literal(part) for part in arguments]}
    if lowered in _ANYTHING:
        return {}
    if lowered in _TEXT_FORMATS:
        return {"type": "string"} | ({"format": _TEXT_FORMATS[lowered]} if _TEXT_FORMATS[lowered] else {})
    if lowered not in _TYPES:
        raise SchemaError(f"{where}: unknown type {name!r}")
    fragment: dict[str, Any] = {"type": _TYPES[lowered]}
    if fragment["type"] == "object" and len(arguments) == 2:
        fragment["additionalProperties"] = _type_schema(arguments[1], where)
    elif lowered == "tuple" and arguments and arguments[-1] != "...":
        fragment["prefixItems"] = [_type_schema(part, where) for part in arguments]
    elif fragment["type"] == "array" and arguments:
        fragment["items"] = _type_schema(arguments[0], where)
    return fragment


def _union(branches: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain types join into one `type` list, anything else into anyOf."""
    if {} in branches:
        return {}
    if all(set(branch) == {"type"} and isinstance(branch["type"], str) for branch in branches):
        names = list(dict.fromkeys(branch["type"] for branch in branches))
        return {"type": names[0] if len(names) == 1 else names}
    return {"anyOf": branches}


def _brackets(name: str) -> tuple[str, str]:
    """`List[int]`, `list<int>`, `list(int)` -> ("List", "int")."""
    found = re.fullmatch(r"([\w.]*)\s*[\[<(](.*)[\]>)]", name)
    return (found[1], found[2]) if found else (name, "")


def _split(text: str, separator: str) -> list[str]:
    """Split outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[<(":
            depth += 1
        elif char in "]>)":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]


def _literal(text: str) -> Any:
    if text[:1] in "'\"" and text[-1:] == text[:1]:
        return text[1:-1]
    return _from_text(text, ["integer", "number", "boolean", "null"])


def declared_types(schema: dict[str, Any]) -> list[str]:
    """The JSON types a normalised schema names; empty where it names none."""
    return _as_list(schema.get("type"))


def has_type(value: Any, name: str) -> bool:
    """Whether a JSON value is of a JSON Schema type: true is no integer, 1.0 is no integer, 1 is a number."""
    match name:
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return value is None


def convert_values(out: dict[str, Any], where: str) -> None:
    """Convert, in place, a node's `default` and `enum` to its declared type where they are stored as another."""
    declared = declared_types(out)
    if "enum" in out:
        options = out["enum"]
        if options is None or options == []:
            del out["enum"]
        else:
            out["enum"] = [_convert(option, declared) for option in list_of(options, f"{where}.enum")]
    if "default" in out and declared:
        if _is_no_default(out["default"], declared):
            del out["default"]
        else:
            out["default"] = _convert(out["default"], declared)


def _is_no_default(value: Any, declared: list[str]) -> bool:
    """How documents write "none": null, or where no string is wanted "", "None" and "null"."""
    if value is None:
        return "null" not in declared
    return value in ("", "None", "null") and not {"string", "null"} & set(declared)


def _convert(value: Any, declared: list[str]) -> Any:
    if not declared or any(has_type(value, name) for name in declared):
        return value
    if isinstance(value, float) and "integer" in declared and value.is_integer():
        return int(value)
    return _from_text(value, declared) if isinstance(value, str) else value


def _from_text(text: str, declared: list[str]) -> Any:
    """The value a text stands for under the declared types, or the text itself."""
    folded = text.strip().lower()
    if "boolean" in declared and folded in ("true", "false"):
        return folded == "true"
    if "null" in declared and folded in ("null", "none"):
        return None
    if "integer" in declared and re.fullmatch(r"[+-]?\d{1,40}(\.0+)?", folded):
        return int(folded.split(".")[0])
    if "number" in declared and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", folded):
        value = int(folded) if re.fullmatch(r"[+-]?\d{1,15}", folded) else float(folded)
        return value if abs(value) < float("inf") else text
    if {"array", "object"} & set(declared) and folded[:1] in ("[", "{"):
        try:
            value = json.loads(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            return text
        return value if any(has_type(value, name) for name in declared) else text
    return text


def list_of(value: Any, where: str) -> list[Any]:
    """The value, which must be a list; else SchemaError naming the place."""
    if not isinstance(value, list):
        raise SchemaError(f"{where}: expected a list, found {type(value).__name__}")
    return value


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
