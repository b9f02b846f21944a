"""OpenAPI 3.x documents: every operation as a tool, its parameters and request body as the tool's parameters.

References are followed inside the document only; nothing is fetched. Where a schema holds itself, the inner occurrence
is of its bare type. Header parameters named Accept, Content-Type and Authorization, servers and security are not for a
model to fill in, and properties that are read-only are not sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from looptool_jax.data.files import DataError
from looptool_jax.toolcall.records import Tool
from looptool_jax.toolcall.schema import SchemaError, normalise_tool

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
MAX_NODES = 5000
"""Schema nodes of one operation; more is a document that unfolds without end."""
MAX_DEPTH = 40

_HEADERS = {"accept", "content-type", "authorization"}
_NOT_SCHEMA = {"xml", "externalDocs", "discriminator", "nullable", "readOnly", "writeOnly", "$defs", "definitions"}
_ONE = {
    "items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else", "unevaluatedItems",
    "unevaluatedProperties",
}  # fmt: skip
_SEVERAL = {"allOf", "anyOf", "oneOf", "prefixItems"}
_NAMED = {"patternProperties", "dependentSchemas"}


def operations(document: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, operation, path item) of every operation, in the document's order. Raises DataError: no OpenAPI 3."""
    version = document.get("openapi") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith("3."):
        found = f"swagger {document['swagger']}" if isinstance(document, dict) and "swagger" in document else "none"
        raise DataError(f"{path}: expected an OpenAPI document with openapi: 3.x, found {found}")
    paths = document.get("paths", {})
    if not isinstance(paths, dict):
        raise DataError(f"{path}: paths should be an object, found {type(paths).__name__}")
    for route, item in paths.items():
        try:
            item = _Reader(document).resolve(item, "the path")
        except SchemaError:
            item = None
        if not isinstance(item, dict):
            yield f"path {route}", item, None
            continue
        for method in METHODS:
            if method in item:
                yield f"{method.upper()} {route}", item[method], item


def operation_tool(document: Any, place: str, operation: Any, item: Any) -> Tool:
    """The tool of an operation. Raises SchemaError with what is wrong with it."""
    if item is None:
        raise SchemaError("a path should be an object, or a reference to one in this file")
    reader = _Reader(document)
    operation = reader.object(operation, "the operation")
    properties: dict[str, Any] = {}
    required: list[str] = []

    def add(name: str, where: str, schema: Any, wanted: bool) -> None:
        key = f"{where}_{name}" if name in properties else name
        if key in properties:
            raise SchemaError(f"two parameters would be called {key}")
        properties[key] = schema
        if wanted:
            required.append(key)

    for parameter in _parameters(reader, item, operation):
        name, where = parameter["name"], parameter["in"]
        if not (where == "header" and name.lower() in _HEADERS):
            add(name, where, _parameter_schema(reader, parameter), where == "path" or parameter.get("required") is True)
    body = reader.object(operation.get("requestBody", {}), "requestBody")
    for name, schema, wanted in _body(reader, body):
        add(name, "body", schema, wanted)
    described = [
        text for key in ("summary", "description") if isinstance(text := operation.get(key), str) and text.strip()
    ]
    parameters = {"type": "object", "properties": properties, "required": required}
    return normalise_tool(
        {
            "name": _name(operation.get("operationId"), place),
            "description": "\n".join(dict.fromkeys(described)) or place,
            "parameters": parameters,
        }
    )


def _name(operation_id: Any, place: str) -> str:
    """The operation's id, else its method and path; letters, digits, `_`, `-` and `.`"""
    method, _, route = place.partition(" ")
    text = operation_id if isinstance(operation_id, str) and operation_id.strip() else f"{method.lower()} {route}"
    name = re.sub(r"[^\w.-]+", "_", text).strip("_")
    if not name:
        raise SchemaError("the operation has neither an id nor a path that could name it")
    return name


def _parameters(reader: _Reader, item: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    """The path's parameters and the operation's own, which come in their place."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for owner in (item, operation):
        listed = owner.get("parameters", [])
        if not isinstance(listed, list):
            raise SchemaError(f"parameters should be a list, found {type(listed).__name__}")
        for raw in listed:
            parameter = reader.object(raw, "a parameter")
            name, where = parameter.get("name"), parameter.get("in")
            if not isinstance(name, str) or not name or where not in ("query", "path", "header", "cookie"):
                raise SchemaError("a parameter needs a name, and `in` as query, path, header or cookie")
            found[name, where] = parameter
    return list(found.values())


def _parameter_schema(reader: _Reader, parameter: dict[str, Any]) -> Any:
    schema = parameter.get("schema")
    if schema is None and isinstance(parameter.get("content"), dict):
        schema = next((kind.get("schema") for kind in parameter["content"].values() if isinstance(kind, dict)), None)
    read = reader.schema({} if schema is None else schema, parameter["name"])
    if isinstance(parameter.get("description"), str):
        read = {**read, "description": parameter["description"]}
    return read


def _body(reader: _Reader, body: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """(name, schema, required) of the members of the request body, or of the whole as `body` where it is no object."""
    content = body.get("content", {})
    if not isinstance(content, dict):
        raise SchemaError(f"the content of requestBody should be an object, found {type(content).__name__}")
    kinds = sorted(content, key=lambda kind: "json" not in kind)
    if not kinds:
        return
    media = reader.object(content[kinds[0]], kinds[0])
    schema = _merged(reader.schema(media.get("schema", {}), "body", request=True))
    properties, wanted = schema.get("properties"), body.get("required") is True
    if not isinstance(properties, dict) or not properties or {"anyOf", "oneOf", "additionalProperties"} & set(schema):
        described = {"description": body["description"]} if isinstance(body.get("description"), str) else {}
        yield "body", {**described, **schema}, wanted
        return
    named = schema.get("required", [])
    for name, member in properties.items():
        yield name, member, wanted and isinstance(named, list) and name in named


def _merged(schema: dict[str, Any]) -> dict[str, Any]:
    """An object that is described in parts (allOf) as one."""
    parts = schema.get("allOf")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return schema
    whole: dict[str, Any] = {"properties": {}, "required": []}
    for part in ({key: value for key, value in schema.items() if key != "allOf"}, *map(_merged, parts)):
        properties, required = part.get("properties"), part.get("required")
        whole["properties"] |= properties if isinstance(properties, dict) else {}
        whole["required"] += required if isinstance(required, list) else []
        whole = {**part, **whole}
    return whole


class _Reader:
    """Follows references in one document, and counts what it unfolds."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.nodes = 0

    def object(self, raw: Any, where: str) -> dict[str, Any]:
        """A value, or what it refers to, which must be an object. Raises SchemaError."""
        value = self.resolve(raw, where)
        if not isinstance(value, dict):
            raise SchemaError(f"{where} should be an object, found {type(value).__name__}")
        return value

    def resolve(self, raw: Any, where: str) -> Any:
        """What a value refers to, or the value. Raises SchemaError."""
        seen: set[str] = set()
        while isinstance(raw, dict) and isinstance(reference := raw.get("$ref"), str):
            if reference in seen:
                raise SchemaError(f"{where}: the reference {reference} leads back to itself")
            seen.add(reference)
            raw = self._target(reference, where)
        return raw

    def schema(self, raw: Any, where: str, *, request: bool = False, open_: tuple[str, ...] = ()) -> dict[str, Any]:
        """A schema without references. `open_`: the references that it stands in. Raises SchemaError."""
        self.nodes += 1
        if self.nodes > MAX_NODES or len(open_) > MAX_DEPTH or where.count(".") > MAX_DEPTH:
            raise SchemaError(f"{where}: the schemas unfold to more than {MAX_NODES} nodes or {MAX_DEPTH} levels")
        if raw is True:
            return {}
        if not isinstance(raw, dict):
            raise SchemaError(f"{where}: expected a schema, found {type(raw).__name__}")
        reference = raw.get("$ref")
        if isinstance(reference, str):
            beside = {key: value for key, value in raw.items() if key != "$ref"}
            target = self._target(reference, where)
            if reference in open_:
                kind = target.get("type") if isinstance(target, dict) else None
                return {"type": kind} if isinstance(kind, (str, list)) else {}
            inner = {**target, **beside} if isinstance(target, dict) else target
            return self.schema(inner, where, request=request, open_=(*open_, reference))
        out: dict[str, Any] = {}
        for key, value in raw.items():
            if key == "properties" and isinstance(value, dict):
                out[key] = {
                    name: self.schema(member, f"{where}.{name}", request=request, open_=open_)
                    for name, member in value.items()
                    if not (request and self._read_only(member, where))
                }
            elif key in _NAMED and isinstance(value, dict):
                out[key] = {
                    name: self.schema(member, f"{where}.{name}", request=request, open_=open_)
                    for name, member in value.items()
                }
            elif key in _ONE and isinstance(value, dict):
                out[key] = self.schema(value, f"{where}.{key}", request=request, open_=open_)
            elif key in _SEVERAL and isinstance(value, list):
                out[key] = [self.schema(part, f"{where}.{key}", request=request, open_=open_) for part in value]
            elif key not in _NOT_SCHEMA:
                out[key] = value
        if isinstance(out.get("required"), list) and isinstance(out.get("properties"), dict):
            dropped = [name for name in raw["properties"] if name not in out["properties"]]
            out["required"] = [name for name in out["required"] if name not in dropped]
        if raw.get("nullable") is True and isinstance(out.get("type"), str):
            out["type"] = [out["type"], "null"]
        return out

    def _read_only(self, member: Any, where: str) -> bool:
        target = self.resolve(member, where)
        return isinstance(target, dict) and target.get("readOnly") is True

    def _target(self, reference: str, where: str) -> Any:
        if not reference.startswith("#"):
            raise SchemaError(f"{where}: {reference} lies outside this file; put its definition into it")
        value = self.document
        for part in filter(None, reference[1:].split("/")):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                raise SchemaError(f"{where}: there is no {reference} in this file")
        return value
