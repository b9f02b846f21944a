"""Lists of tools: what a document says reaches the tool, and what cannot be read is named with its place."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest

from looptool_jax.data.store import DataError, dump_json, read_jsonl
from looptool_jax.data.tool_documents import TOOL_FORMATS, read_tools, write_tools
from looptool_jax.data.yaml_text import dump_yaml, parse_yaml
from looptool_jax.toolcall import Call, Tool, check_call

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"

A_PET = {"$ref": "#/components/schemas/Pet"}
OWNER = {"$ref": "#/components/schemas/Owner"}
PET = {
    "type": "object",
    "required": ["id", "name"],
    "properties": {
        "id": {"type": "integer", "readOnly": True},
        "name": {"type": "string", "nullable": True, "xml": {"attribute": True}},
        "owner": OWNER,
    },
}
OPENAPI = {
    "openapi": "3.1.0",
    "servers": [{"url": "https://example.com"}],
    "paths": {
        "/pets/{petId}": {
            "parameters": [
                {"$ref": "#/components/parameters/PetId"},
                {"name": "v", "in": "query", "schema": {"type": "string"}},
            ],
            "get": {
                "operationId": "get pet!",
                "summary": "One pet.",
                "description": "With its owner.",
                "parameters": [
                    {"name": "v", "in": "query", "required": True, "description": "which",
                     "schema": {"type": "integer"}},
                    {"name": "Authorization", "in": "header", "schema": {"type": "string"}},
                    {"name": "filter", "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}},
                    {"name": "petId", "in": "cookie", "schema": {"enum": ["a", "b"]}},
                ],
            },
            "put": {
                "requestBody": {
                    "required": True,
                    "content": {"text/csv": {}, "application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                }
            },
            "patch": {
                "operationId": "tag",
                "requestBody": {"content": {"application/json": {"schema": {"allOf": [
                    {"$ref": "#/components/schemas/Pet"},
                    {"type": "object", "required": ["v"], "properties": {"v": {"type": "boolean"}}},
                ]}}}},
            },
            "post": {
                "operationId": "upload",
                "requestBody": {
                    "required": True,
                    "description": "many",
                    "content": {"application/json": {"schema": {"type": "array", "items": A_PET}}},
                },
            },
        },
    },
    "components": {
        "parameters": {"PetId": {"name": "petId", "in": "path", "required": True, "schema": {"type": "integer"}}},
        "schemas": {
            "Pet": PET,
            "Owner": {"type": "object", "properties": {"pets": {"type": "array", "items": A_PET}, "boss": OWNER}},
        },
    },
}  # fmt: skip
MCP = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {
        "tools": [
            {
                "name": "search",
                "title": "Search",
                "description": "Finds.",
                "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
                "outputSchema": {"type": "object"},
                "annotations": {"readOnlyHint": True},
            },
            {"name": "ping", "inputSchema": {"type": "object"}},
        ],
        "nextCursor": "2",
    },
}


def read(tmp_path: Path, document: object, format: str, name: str = "in.json"):
    path = tmp_path / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    found = read_tools(path, format)
    assert found.read == len(found.tools) + len(found.rejected)
    return found


def test_operations_become_tools(tmp_path):
    found = read(tmp_path, OPENAPI, "openapi")
    assert not found.rejected
    get, put, upload, tag = found.tools
    assert (get.name, get.description) == ("get_pet", "One pet.\nWith its owner.")
    assert list(get.properties) == ["petId", "v", "filter", "cookie_petId"]
    assert get.properties["v"] == {"type": "integer", "description": "which"}
    assert get.required == ("petId", "v")
    assert (put.name, put.description) == ("put_pets_petId", "PUT /pets/{petId}")
    assert put.required == ("petId", "name")
    assert put.properties["name"] == {"type": ["string", "null"]}
    owner = put.properties["owner"]["properties"]
    assert owner["boss"] == {"type": "object"}
    assert owner["pets"]["items"] == {"type": "object"}  # the pet that it stands in
    assert upload.required == ("petId", "body") and upload.properties["body"]["description"] == "many"
    assert set(upload.properties["body"]["items"]["properties"]) == {"name", "owner"}
    assert list(tag.properties) == ["petId", "v", "name", "owner", "body_v"] and tag.required == ("petId",)
    assert check_call(Call("put_pets_petId", {"petId": 3, "v": "x", "name": None}), found.tools) == []
    assert check_call(Call("put_pets_petId", {"petId": "3"}), found.tools)


def test_yaml_says_the_same(tmp_path):
    yaml = pytest.importorskip("yaml")
    plain = read(tmp_path, OPENAPI, "openapi").tools
    assert read(tmp_path, yaml.safe_dump(json.loads(json.dumps(OPENAPI))), "openapi", "in.yaml").tools == tuple(
        sorted(plain, key=lambda tool: [each.name for each in plain].index(tool.name))
    )
    text = """
openapi: 3.0.0
paths:
  /on: {get: {operationId: on, responses: {200: {}}, parameters: [{name: day, in: query,
    schema: {type: string, default: 2020-01-01, enum: [2020-01-01, on, no]}}]}}
"""
    (tool,) = read(tmp_path, text, "openapi", "in.yml").tools
    assert tool.properties["day"] == {"type": "string", "default": "2020-01-01", "enum": ["2020-01-01", "on", "no"]}


def test_yaml_scalars_are_those_of_the_core_schema(tmp_path):
    text = """
openapi: 3.0.0
paths:
  /a: {get: {operationId: a, parameters: [{name: at, in: query, schema: {enum: [08:00, 12:30, 1_000, =, no, "1"]}},
    {name: n, in: query, schema: {enum: [010, 0x1F, 0o17, -1, 1e3, .5, true, ~]}}]}}
"""
    (tool,) = read(tmp_path, text, "openapi", "in.yaml").tools
    assert tool.properties["at"]["enum"] == ["08:00", "12:30", "1_000", "=", "no", "1"]
    assert tool.properties["n"]["enum"] == [10, 31, 15, -1, 1000.0, 0.5, True, None]


def test_written_yaml_is_read_back_under_both_versions():
    yaml = pytest.importorskip("yaml")
    value = {
        text: [text] for text in ("08", "010", "1e5", "0o7", "12:30", "no", "~", "2020-01-01", "=", "a: b", "größe")
    }
    value["numbers"] = [8, -1, 1.5, True, None]
    assert parse_yaml(dump_yaml(value)) == yaml.safe_load(dump_yaml(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("openapi: 3.0.0\npaths:\n  /a: {get: {}}\n  /a: {put: {}}", r"key '/a' occurs twice in one mapping"),
        ("openapi: 3.0.0\npaths: {/a: {get: {}, get: {}}}", r"key 'get' occurs twice"),
        ("a: .inf", r"in\.yaml: "),
        ("a: " + "1" * 5000, "more than 4000 digits"),
        ("a: &x [1]\nb: *x", r"in\.yaml: YAML with aliases"),
        ("a: [1", r"in\.yaml: not YAML: "),
        ("[" * 4000, r"in\.yaml: "),
        ("openapi: 2.0", "expected an OpenAPI document with openapi: 3.x, found none"),
        ("swagger: '2.0'", r"found swagger 2\.0"),
        ("openapi: 3.0.1\npaths: [1]", "paths should be an object, found list"),
        ("a: !!python/object:os.system x", r"in\.yaml: not YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_openapi_document_is_one_error(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        read(tmp_path, text, "openapi", "in.yaml")


def operation(**changes: object) -> dict:
    return {"openapi": "3.0.0", "paths": {"/a": {"get": {"operationId": "a", **changes}, "put": {"operationId": "b"}}}}


def body(schema: object) -> dict:
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parameters": {}}, "parameters should be a list, found dict"),
        ({"parameters": [{"name": "x"}]}, "a parameter needs a name, and `in` as query, path, header or cookie"),
        ({"parameters": [{"name": "x", "in": "query", "schema": 3}]}, "x: expected a schema, found int"),
        ({"parameters": [{"$ref": "#/nowhere/x"}]}, "a parameter: there is no #/nowhere/x in this file"),
        (body({"$ref": "https://example.com/a.json"}), "https://example.com/a.json lies outside this file"),
        (body({"type": "gibberish"}), "unknown type 'gibberish'"),
        ({"requestBody": {"content": []}}, "the content of requestBody should be an object"),
        ({"operationId": "b"}, "the name is taken: b is at GET /a already"),
        ({"requestBody": {"$ref": "#/paths/~1a/get/requestBody"}}, "leads back to itself"),
    ],
)
def test_a_faulty_operation_is_rejected_alone(tmp_path, changes, reason):
    found = read(tmp_path, operation(**changes), "openapi")
    assert len(found.tools) == 1
    (rejected,) = found.rejected
    assert rejected.place in ("GET /a", "PUT /a") and reason in rejected.reason, rejected.reason
    assert rejected.raw == json.loads(json.dumps(operation(**changes)))["paths"]["/a"][rejected.place[:3].lower()]


def test_no_reference_is_left_in_a_tool(tmp_path):
    tag = {"$ref": "#/components/schemas/Tag"}
    schema = {
        "type": "object",
        "patternProperties": {"^x": tag},
        "propertyNames": tag,
        "additionalProperties": {"type": "array", "contains": tag},
        "if": {"dependentSchemas": {"a": tag}},
    }
    body = {"content": {"application/json": {"schema": {"type": "object", "properties": {"m": schema}}}}}
    document = {
        "openapi": "3.1.0",
        "components": {"schemas": {"Tag": {"type": "string", "$defs": {"Unused": tag}}}},
        "paths": {"/a": {"post": {"operationId": "a", "requestBody": body}}},
    }
    (tool,) = read(tmp_path, document, "openapi").tools
    assert "$" not in json.dumps(tool.to_json()) and tool.properties["m"]["propertyNames"] == {"type": "string"}
    schema["propertyNames"] = {"$ref": "http://127.0.0.1/x"}
    (rejected,) = read(tmp_path, document, "openapi").rejected
    assert "lies outside this file" in rejected.reason


def test_a_document_that_unfolds_without_end_is_rejected(tmp_path):
    schemas = {
        f"S{i}": {"type": "object", "properties": {k: {"$ref": f"#/components/schemas/S{i + 1}"} for k in "abcdefgh"}}
        for i in range(20)
    }
    schemas["S20"] = {"type": "string"}
    document = operation(**body({"$ref": "#/components/schemas/S0"})) | {"components": {"schemas": schemas}}
    (rejected,) = read(tmp_path, document, "openapi").rejected
    assert "unfold to more than" in rejected.reason


def test_mcp_lists_and_pages(tmp_path):
    page = {"tools": [{"name": "third", "description": "3", "inputSchema": {"type": "object"}}, {"name": "ping"}, 7]}
    whole = read(tmp_path, MCP, "mcp")
    assert [tool.name for tool in whole.tools] == ["search", "ping"]
    assert whole.tools[0] == Tool(
        "search", "Finds.", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    )
    for text in (json.dumps([MCP, page], indent=1), f"{json.dumps(MCP)}\n{json.dumps(page)}\n"):
        found = read(tmp_path, text, "mcp")
        assert [tool.name for tool in found.tools] == ["search", "ping", "third"]
        assert [rejected.reason.split(":")[0] for rejected in found.rejected] == [
            "the name is taken",
            "unreadable tool document",
        ]
    assert found.rejected[1].place == "line 2, tool 3"


def test_openai_lists(tmp_path):
    tools = [
        {"type": "function", "function": {"name": "a", "parameters": {"x": {"type": "str, optional"}}}},
        {"name": "b"},
    ]
    for text in (json.dumps(tools), json.dumps({"tools": tools}), "\n".join(map(json.dumps, tools))):
        found = read(tmp_path, text, "openai")
        assert [tool.name for tool in found.tools] == ["a", "b"] and not found.rejected
    found = read(tmp_path, f"{json.dumps(tools[0])}\n{{torn\n", "openai")
    assert [each.place for each in found.rejected] == ["line 2, tool 1"] and found.rejected[0].raw == "{torn"


def test_seal_tools_documents(tmp_path):
    path = SHARED / "seal_tools/tool.jsonl"
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    found = read_tools(path, "seal_tools")
    assert (found.read, len(found.tools), found.rejected) == (4076, 4076, ())


def test_errors_and_files(tmp_path, capsys):
    with pytest.raises(DataError, match="unknown format of tool documents 'raml'; known: openapi, mcp"):
        read(tmp_path, [], "raml")
    with pytest.raises(DataError, match=r"in\.json: not JSON"):
        read(tmp_path, "{broken", "mcp")
    with pytest.raises(DataError, match="no such file"):
        read_tools(tmp_path / "absent", "openai")
    found = read(tmp_path, {"tools": [*MCP["result"]["tools"], "x"]}, "mcp")
    write_tools(found, tmp_path / "tools.jsonl")
    assert [Tool.from_json(row) for row in read_jsonl(tmp_path / "tools.jsonl")] == list(found.tools)
    assert list(read_jsonl(tmp_path / "tools.rejected.jsonl")) == [found.rejected[0].to_json()]
    assert "3 tool documents read, 2 tools, 1 rejected" in capsys.readouterr().out
    assert read_tools(tmp_path / "tools.jsonl", "openai").tools == found.tools
    with pytest.raises(DataError, match=r"name a file that ends in \.jsonl"):
        write_tools(found, tmp_path / "tools")


WEIRD = [None, True, 0, -1, 1e300, "", "x", "\ud800", [], {}, [None], {"": ""}, {"$ref": "#"}, {"$ref": "#/paths"},
         {"$ref": 3}, {"type": "object"}, [[[[]]]], {"allOf": [{}]}, {"properties": {"a": 1}}, "object",
         ["string", "x"]]  # fmt: skip


@pytest.mark.parametrize("format", ["openapi", "mcp"])
def test_every_damaged_document_is_one_error_or_is_accounted_for(tmp_path, format):
    rng = random.Random(f"documents {format}")
    errors = partly = 0
    for _ in range(800):
        document = copy.deepcopy(OPENAPI if format == "openapi" else MCP)
        for _ in range(rng.choice([1, 1, 2, 4])):
            spoil(document, rng)
        text = json.dumps(document)
        if rng.random() < 0.1:
            text = text[: rng.randrange(1, len(text))]
        try:
            found = read(tmp_path, text, format)
        except DataError as error:
            errors += 1
            assert "\n" not in str(error) and "in.json" in str(error)
            continue
        assert all(each.place and each.reason and "\n" not in each.reason for each in found.rejected)
        for row in (*found.tools, *found.rejected):
            dump_json(row.to_json())
        partly += bool(found.tools and found.rejected)
    assert errors > 20 and partly > 80


def spoil(document: object, rng: random.Random) -> None:
    places = []

    def walk(value: object) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(document)
    if not places:
        return
    parent, key = rng.choice(places)
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = copy.deepcopy(rng.choice(WEIRD))


def test_formats_are_all_read():
    assert TOOL_FORMATS == ("openapi", "mcp", "seal_tools", "openai")
