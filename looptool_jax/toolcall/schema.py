"""Tool documents: from the many shapes found in the wild to one JSON Schema, and calls checked against it.

`normalise_tool` reads OpenAI, BFCL, xLAM, Seal-Tools, ACEBench and MCP documents. What it cannot read it refuses
with one line that names the tool and the place. `check_call` is the rule tier of the verification (paper, 3.2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from looptool_jax.toolcall.records import Call, Tool
from looptool_jax.toolcall.type_names import SchemaError, convert_values, declared_types, has_type, list_of, read_type

_KEYS = {
    "name": ("name", "api_name"),
    "description": ("description", "api_description"),
    "parameters": ("parameters", "arguments", "input_schema", "inputSchema"),
}


def normalise_tool(raw: Any) -> Tool:
    """Read one tool document into a Tool whose parameters are JSON Schema of type object.

    Accepts the OpenAI wrapper, bare documents, flat xLAM and Seal-Tools parameters; Python and Java type names
    ("dict", "float", "List[int]", "str, optional"); defaults and enums stored as strings; `required` as null, or
    as true inside a property. A default that cannot be converted to the declared type is kept as it is; null, or an
    empty string where the type is no string, means that there is none. Everything else a property says is kept, in its
    order: apart from such defaults, a document that is JSON Schema already stays as it is.

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


def _one_of(raw: dict[str, Any], key: str, where: str) -> Any:
    found = [alias for alias in _KEYS[key] if alias in raw]
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
        schema = {**raw}
        if not schema.get("type"):
            schema["type"] = "object"
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
    found = _schema(schema, tool, flat=flat)
    found.setdefault("type", "object")
    found.setdefault("properties", {})
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
    out: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "type":
            fragment, _ = read_type(value, where)
            out |= {part: found for part, found in fragment.items() if part == "type" or part not in raw}
        elif key == "required":
            out["required"] = []
        elif key != "optional":
            out[key] = value
    _read_properties(raw, out, where, flat)
    _read_parts(out, where)
    convert_values(out, where)
    return out


def _read_parts(out: dict[str, Any], where: str) -> None:
    """Normalise the schemas inside a schema."""
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in out:
            out[key] = [_schema(branch, f"{where}.{key}") for branch in list_of(out[key], f"{where}.{key}")]
    if isinstance(out.get("items"), list):
        out["prefixItems"] = [_schema(item, f"{where}.items") for item in out.pop("items")]
    elif "items" in out:
        out["items"] = _schema(out["items"], f"{where}.items")
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = _schema(out["additionalProperties"], f"{where}.additionalProperties")


def _read_properties(raw: dict[str, Any], out: dict[str, Any], where: str, flat: bool) -> None:
    """Normalise `properties` and settle `required`; both keep their place in the document."""
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
    if "properties" in out:
        out["properties"] = {key: _schema(prop, f"{where}.{key}") for key, prop in properties.items()}
    if required or raw.get("required") == []:
        out["required"] = required
    else:
        out.pop("required", None)


def _required_names(raw: Any, where: str) -> list[str]:
    """The `required` list; null and a property's own true or false (read by its parent) name nothing."""
    if raw is None or _as_flag(raw) is not None:
        return []
    names = list_of(raw, where)
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
    if read_type(prop.get("type"), where)[1]:
        said.append(False)
    if len(set(said)) > 1:
        raise SchemaError(f"{where}: says both required and optional")
    return said[0] if said else None


def _has_default(prop: Any) -> bool:
    return isinstance(prop, dict) and "default" in prop


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
    if declared and not any(has_type(value, name) for name in declared):
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


def property_schema(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """The schema of an object's property: its own, else that of additional properties."""
    found = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return found if isinstance(found, dict) else {}


def item_schema(schema: dict[str, Any], index: int) -> dict[str, Any]:
    """The schema of a list's element: its place in a tuple, else the common one."""
    places = schema.get("prefixItems", [])
    found = places[index] if index < len(places) else schema.get("items", {})
    return found if isinstance(found, dict) else {}


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
