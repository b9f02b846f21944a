"""Tool documents: from the many shapes found in the wild to one JSON Schema, and calls checked against it.

`normalise_tool` reads OpenAI, BFCL, xLAM, Seal-Tools, ACEBench and MCP documents. What it cannot read it refuses
with one line that names the tool and the place. `check_call` is the rule tier of the verification (paper, 3.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from looptool_jax.toolcall.records import Call, Tool

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
_FIRST_KEYS = {
    "name": ("name", "api_name"),
    "description": ("description", "api_description"),
    "parameters": ("parameters", "arguments", "input_schema", "inputSchema"),
}


class SchemaError(ValueError):
    """A tool document that cannot be read; the message names the tool, the place and what is wrong."""


def normalise_tool(raw: Any) -> Tool:
    """Read one tool document into a Tool whose parameters are JSON Schema of type object.

    Accepts the OpenAI wrapper, bare documents, flat xLAM and Seal-Tools parameters; Python and Java type names
    ("dict", "float", "List[int]", "str, optional"); defaults and enums stored as strings; `required` as null, or
    as true inside a property. A default that cannot be converted to the declared type is kept as it is, an empty
    string where the type is no string means that there is none. Everything else a property says is kept.

    Raises SchemaError on a document of another shape, an unknown type name or parts that contradict each other.
    """
    if not isinstance(raw, dict):
        raise SchemaError(f"a tool must be an object, found {type(raw).__name__}")
    if isinstance(raw.get("function"), dict):
        raw = raw["function"]
    name = _one_of(raw, "name", "tool")
    if not isinstance(name, str) or not name.strip():
        raise SchemaError(f"a tool needs a name, found {name!r}")
    description = _one_of(raw, "description", name)
    if description is not None and not isinstance(description, str):
        raise SchemaError(f"{name}: the description must be a string, found {type(description).__name__}")
    try:
        parameters = _parameters(_one_of(raw, "parameters", name), raw.get("required"), name)
    except RecursionError:
        raise SchemaError(f"{name}: the parameters are nested too deeply") from None
    return Tool(name, description or "", parameters)


def normalise_tools(raws: Iterable[Any]) -> tuple[Tool, ...]:
    """Read a tool list: identical duplicates collapse, two different tools of one name raise SchemaError."""
    tools: dict[str, Tool] = {}
    for raw in raws:
        tool = normalise_tool(raw)
        if tools.setdefault(tool.name, tool) != tool:
            raise SchemaError(f"{tool.name}: two different tools have this name")
    return tuple(tools.values())


def find_tool(name: str, tools: Sequence[Tool]) -> Tool | None:
    """The first tool of that name."""
    return next((tool for tool in tools if tool.name == name), None)


def check_call(call: Call, tools: Sequence[Tool]) -> list[str]:
    """Everything wrong with a call by the rules, one line each; an empty list is a valid call.

    Unknown tool, missing required argument, undeclared argument, JSON type mismatch (bool is no integer, 1.0 is no
    integer, 1 is a number), value outside its enum; nested values too.
    """
    tool = find_tool(call.name, tools)
    if tool is None:
        return [f"unknown tool {call.name!r}"]
    return _check_object(call.arguments, tool.parameters, "")


def _check_object(value: dict[str, Any], schema: dict[str, Any], path: str) -> list[str]:
    """A call's arguments are closed unless the schema opens them; a nested object is open unless it is closed."""
    more_allowed = schema.get("additionalProperties", bool(path)) is not False
    required = schema.get("required", ())
    declared = {*schema.get("properties", {}), *required}
    problems = [f"missing required argument {_join(path, key)!r}" for key in required if key not in value]
    for key, item in value.items():
        if key not in declared and not more_allowed:
            problems.append(f"undeclared argument {_join(path, key)!r}")
        else:
            problems += check_value(item, property_schema(schema, key), _join(path, key))
    return problems


def check_value(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Everything wrong with one value; `path` is how messages call it."""
    branches = [branch for key in ("anyOf", "oneOf") for branch in schema.get(key, ())]
    if branches and not any(not check_value(value, branch, path) for branch in branches):
        return [f"argument {path!r} fits none of its alternatives: {_shown(value)}"]
    declared = declared_types(schema)
    if declared and not any(_has_type(value, name) for name in declared):
        return [f"argument {path!r} must be {' or '.join(declared)}, found {_shown(value)}"]
    problems = []
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        options = ", ".join(_shown(option) for option in schema["enum"][:8])
        problems.append(f"argument {path!r} must be one of {options}, found {_shown(value)}")
    for branch in schema.get("allOf", ()):
        problems += check_value(value, branch, path)
    if isinstance(value, dict):
        problems += _check_object(value, schema, path)
    if isinstance(value, list):
        for i, item in enumerate(value):
            problems += check_value(item, item_schema(schema, i), f"{path}[{i}]")
    return problems


def declared_types(schema: dict[str, Any]) -> list[str]:
    """The JSON types a normalised schema names; empty where it names none."""
    return _as_list(schema.get("type"))


def property_schema(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """The schema of an object's property: its own, else that of additional properties."""
    found = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return found if isinstance(found, dict) else {}


def item_schema(schema: dict[str, Any], index: int) -> dict[str, Any]:
    """The schema of a list's element: its place in a tuple, else the common one."""
    places = schema.get("prefixItems", [])
    found = places[index] if index < len(places) else schema.get("items", {})
    return found if isinstance(found, dict) else {}


def _has_type(value: Any, name: str) -> bool:
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


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


# --- reading documents -------------------------------------------------------------------------------------------


def _one_of(raw: dict[str, Any], key: str, where: str) -> Any:
    found = [alias for alias in _FIRST_KEYS[key] if alias in raw]
    if len(found) > 1:
        raise SchemaError(f"{where}: both {found[0]!r} and {found[1]!r} are given; keep one")
    return raw[found[0]] if found else None


def _parameters(raw: Any, outer_required: Any, tool: str) -> dict[str, Any]:
    """The parameters as an object schema, from a schema or from a flat {name: property}."""
    if raw is None or raw == [] or raw == {}:
        raw = {"type": "object", "properties": {}}
    if not isinstance(raw, dict):
        raise SchemaError(f"{tool}: parameters must be an object, found {type(raw).__name__}")
    if _is_schema(raw):
        schema = {**raw, "type": raw.get("type") or "object"}
        if outer_required is not None and schema.get("required") is None:
            schema["required"] = outer_required
        flat = False
    else:
        required = raw.get("required") if not isinstance(raw.get("required"), dict) else None
        properties = {key: value for key, value in raw.items() if key != "required" or isinstance(value, dict)}
        schema = {"type": "object", "properties": properties}
        if outer_required is not None or required is not None:
            schema["required"] = outer_required if required is None else required
        flat = "required" not in schema
    found = {"type": "object", "properties": {}} | _schema(schema, tool, flat=flat)
    if found["type"] != "object":
        raise SchemaError(f"{tool}: parameters must be of type object, found {found['type']}")
    return found


def _is_schema(raw: dict[str, Any]) -> bool:
    if isinstance(raw.get("type"), (str, list)):
        return True
    properties = raw.get("properties")
    return isinstance(properties, dict) and all(isinstance(value, dict) for value in properties.values())


def _schema(raw: Any, where: str, *, flat: bool = False) -> dict[str, Any]:
    """One schema node, normalised. `flat`: parameters without any `required` list, where a parameter is required
    unless its type says optional or it has a default."""
    if isinstance(raw, str):
        raw = {"type": raw}
    if raw is True or raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SchemaError(f"{where}: expected a schema, found {raw!r}")
    if "$ref" in raw:
        raise SchemaError(f"{where}: $ref is not supported; write the definition in its place")
    out = {key: value for key, value in raw.items() if key not in ("type", "required", "optional")}
    typed, _ = _read_type(raw.get("type"), where)
    for key, value in typed.items():
        out.setdefault(key, value) if key != "type" else out.__setitem__("type", value)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in out:
            out[key] = [_schema(branch, f"{where}.{key}") for branch in _list_of(out[key], f"{where}.{key}")]
    if isinstance(out.get("items"), list):
        out["prefixItems"] = [_schema(item, f"{where}.items") for item in out.pop("items")]
    elif "items" in out:
        out["items"] = _schema(out["items"], f"{where}.items")
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = _schema(out["additionalProperties"], f"{where}.additionalProperties")
    _read_properties(raw, out, where, flat)
    _convert_values(out, where)
    return {"type": out.pop("type"), **out} if "type" in out else out


def _read_properties(raw: dict[str, Any], out: dict[str, Any], where: str, flat: bool) -> None:
    properties = out.get("properties")
    if properties is None:
        out.pop("properties", None)
        properties = {}
    if not isinstance(properties, dict):
        raise SchemaError(f"{where}: properties must be an object, found {type(properties).__name__}")
    required = _required_names(raw.get("required"), f"{where}.required")
    for key, prop in properties.items():
        says = _says_required(prop, f"{where}.{key}")
        if says is False and key in required:
            raise SchemaError(f"{where}.{key}: listed as required, but the property itself says it is optional")
        if key not in required and (says or (flat and says is None and not _has_default(prop))):
            required.append(key)
    if properties or "properties" in out:
        out["properties"] = {key: _schema(prop, f"{where}.{key}") for key, prop in properties.items()}
    if required:
        out["required"] = required


def _required_names(raw: Any, where: str) -> list[str]:
    """The `required` list; null and a property's own true or false (read by its parent) name nothing."""
    if raw is None or _as_flag(raw) is not None:
        return []
    names = _list_of(raw, where)
    if not all(isinstance(name, str) for name in names):
        raise SchemaError(f"{where}: expected a list of names, found {names!r}")
    return list(dict.fromkeys(names))


def _as_flag(value: Any) -> bool | None:
    words = {"true": True, "yes": True, "false": False, "no": False}
    return words.get(value.strip().lower()) if isinstance(value, str) else value if isinstance(value, bool) else None


def _says_required(prop: Any, where: str) -> bool | None:
    """What a property says about itself: `required: true`, `optional: true`, or "optional" in its type."""
    if not isinstance(prop, dict):
        return None
    said = []
    for key, meaning in (("required", True), ("optional", False)):
        flag = _as_flag(prop.get(key))
        if flag is not None:
            said.append(flag is meaning)
    if _read_type(prop.get("type"), where)[1]:
        said.append(False)
    if len(set(said)) > 1:
        raise SchemaError(f"{where}: says both required and optional")
    return said[0] if said else None


def _has_default(prop: Any) -> bool:
    return isinstance(prop, dict) and "default" in prop


def _list_of(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError(f"{where}: expected a list, found {type(value).__name__}")
    return value


# --- type names --------------------------------------------------------------------------------------------------


def _read_type(raw: Any, where: str) -> tuple[dict[str, Any], bool]:
    """A `type` entry as a schema fragment, and whether it says optional.

    Besides the expression of the type it may hold what follows a comma: optional, required, default=value.
    """
    if raw is None:
        return {}, False
    if isinstance(raw, list):
        return _union([_read_type(entry, where)[0] for entry in raw]) if raw else {}, False
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


# --- defaults and enums stored as text ---------------------------------------------------------------------------


def _convert_values(out: dict[str, Any], where: str) -> None:
    """Convert `default` and `enum` to the declared type where they are stored as another."""
    declared = declared_types(out)
    if "enum" in out:
        options = out["enum"]
        if options is None or options == []:
            del out["enum"]
        else:
            out["enum"] = [_convert(option, declared) for option in _list_of(options, f"{where}.enum")]
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
    if not declared or any(_has_type(value, name) for name in declared):
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
        value = float(folded)
        return int(folded) if re.fullmatch(r"[+-]?\d{1,15}", folded) else value if value < float("inf") else text
    if {"array", "object"} & set(declared) and folded[:1] in ("[", "{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return value if any(_has_type(value, name) for name in declared) else text
    return text
