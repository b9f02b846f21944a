from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.toolcall import Call, SchemaError, Tool, check_call, normalise_tool

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def parameters(raw: object) -> dict:
    return normalise_tool({"name": "f", "parameters": raw}).parameters


def prop(raw: object) -> dict:
    return parameters({"type": "object", "properties": {"x": raw}})["properties"]["x"]


OBJECT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": OBJECT}},
        {"type": "function", "name": "f", "description": "d", "parameters": OBJECT, "strict": True},
        {"name": "f", "description": "d", "parameters": OBJECT},
        {"name": "f", "description": "d", "parameters": {**OBJECT, "type": "dict"}, "required": None},
        {"name": "f", "description": "d", "parameters": {"properties": OBJECT["properties"], "required": ["city"]}},
        {
            "name": "f",
            "description": "d",
            "parameters": {"type": "dict", "properties": {"city": {"type": "str", "required": True}}},
        },
        {"name": "f", "description": "d", "inputSchema": OBJECT},
        {"name": "f", "description": "d", "arguments": OBJECT, "results": {"type": "object"}},
        {
            "api_name": "f",
            "api_description": "d",
            "parameters": {"city": {"type": "str"}},
            "required": ["city"],
            "responses": {},
        },
        {"name": "f", "description": "d", "parameters": {"city": {"type": "str"}}},
        {"name": "f", "description": "d", "parameters": {"city": "string"}},
    ],
)
def test_every_shape_becomes_the_same_tool(raw):
    before = json.dumps(raw)
    assert normalise_tool(raw) == Tool("f", "d", OBJECT)
    assert json.dumps(raw) == before, "the document itself must not change"


@pytest.mark.parametrize(
    "nothing",
    [None, {}, [], {"type": "object"}, {"type": "dict", "properties": {}}, {"properties": None, "type": "object"}],
)
def test_a_tool_without_parameters(nothing):
    assert parameters(nothing) == {"type": "object", "properties": {}}
    assert normalise_tool({"name": "f"}).parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("str", {"type": "string"}),
        ("dict", {"type": "object"}),
        ("float", {"type": "number"}),
        ("Double", {"type": "number"}),
        ("int", {"type": "integer"}),
        ("long", {"type": "integer"}),
        ("bool", {"type": "boolean"}),
        ("tuple", {"type": "array"}),
        ("set", {"type": "array"}),
        ("HashMap", {"type": "object"}),
        ("any", {}),
        ("Callable[[float], float]", {}),
        ("str, optional", {"type": "string"}),
        ("str (optional)", {"type": "string"}),
        ("str, default='elon, musk'", {"type": "string", "default": "elon, musk"}),
        ("int, default=3", {"type": "integer", "default": 3}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[List[str]]", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        ("List[Union[int, float]]", {"type": "array", "items": {"type": ["integer", "number"]}}),
        (
            "Dict[str, List[int]]",
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}},
        ),
        ("ArrayList<String>", {"type": "array", "items": {"type": "string"}}),
        ("string[]", {"type": "array", "items": {"type": "string"}}),
        ("array of integers", {"type": "array", "items": {"type": "integer"}}),
        ("Tuple[float, str]", {"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}]}),
        ("Tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        ("Optional[int]", {"type": ["integer", "null"]}),
        ("int | None", {"type": ["integer", "null"]}),
        ("string or number", {"type": ["string", "number"]}),
        ("Union[str, List[str]]", {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        ("Literal['a', 'b']", {"enum": ["a", "b"]}),
        ("date", {"type": "string", "format": "date"}),
        (["string", "null"], {"type": ["string", "null"]}),
        (["str"], {"type": "string"}),
        (["str", "any"], {}),
    ],
)
def test_type_names(raw, expected):
    assert prop({"type": raw}) == expected
    assert prop({"type": "array", "items": {"type": raw}}) == {"type": "array", "items": expected}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"type": "int", "default": "30"}, 30),
        ({"type": "int", "default": "30.0"}, 30),
        ({"type": "int", "default": 30.0}, 30),
        ({"type": "float", "default": "1.5"}, 1.5),
        ({"type": "float", "default": "2"}, 2),
        ({"type": "float", "default": "-1e3"}, -1000.0),
        ({"type": "bool", "default": "False"}, False),
        ({"type": "bool", "default": "true"}, True),
        ({"type": "List[int]", "default": "[1, 2]"}, [1, 2]),
        ({"type": "dict", "default": '{"a": 1}'}, {"a": 1}),
        ({"type": ["integer", "null"], "default": "null"}, None),
        ({"type": "str", "default": "30"}, "30"),
        ({"type": "str", "default": ""}, ""),
        ({"type": "str", "default": "None"}, "None"),
        ({"type": "int", "default": "Darwin"}, "Darwin"),
        ({"type": "int", "default": "11.846"}, "11.846"),
        ({"type": "float", "default": "nan"}, "nan"),
        ({"type": "float", "default": "1e999"}, "1e999"),
        ({"type": "float", "default": "-1e999"}, "-1e999"),
        ({"type": "list", "default": "[NaN]"}, "[NaN]"),
        ({"type": "bool", "default": 1}, 1),
        ({"default": "x"}, "x"),
    ],
)
def test_defaults_become_values_of_the_declared_type(raw, expected):
    found = prop(raw)["default"]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "int", "default": ""},
        {"type": "int", "default": None},
        {"type": "int", "default": "None"},
        {"type": "str", "default": None},
    ],
)
def test_an_empty_default_is_none_at_all(raw):
    assert "default" not in prop(raw)


def test_enums_become_values_of_the_declared_type():
    assert prop({"type": "int", "enum": ["1", "2"]})["enum"] == [1, 2]
    assert prop({"type": "str", "enum": ["1", "2"]})["enum"] == ["1", "2"]
    assert "enum" not in prop({"type": "str", "enum": []})


def test_what_a_property_says_besides_is_kept():
    raw = {"type": "str", "description": "d", "minLength": 2, "format": "date", "example": ["x"]}
    assert prop(raw) == {**raw, "type": "string"}


def test_a_document_that_is_json_schema_already_stays_as_it_is_byte_for_byte():
    raw = {
        "required": ["b", "a"],
        "properties": {
            "b": {"description": "d", "default": 1, "type": "integer", "minimum": 0},
            "a": {"items": {"enum": ["x", "y"], "type": "string"}, "description": "é", "type": "array"},
            "c": {"required": [], "properties": {}, "additionalProperties": False, "type": "object"},
            "d": {"anyOf": [{"type": "null"}, {"type": ["string", "number"]}], "title": "D"},
        },
        "type": "object",
        "additionalProperties": False,
    }
    assert json.dumps(parameters(raw)) == json.dumps(raw)


def test_properties_named_like_keywords():
    flat = {
        "type": {"type": "str"},
        "properties": {"type": "str"},
        "required": {"type": "bool"},
        "name": {"type": "str"},
    }
    found = parameters(flat)
    assert [*found["properties"]] == ["type", "properties", "required", "name"]
    assert found["required"] == ["type", "properties", "required", "name"]
    inner = parameters({"type": "object", "properties": {"type": {"type": "str"}, "enum": {"type": "str"}}})
    assert inner["properties"] == {"type": {"type": "string"}, "enum": {"type": "string"}}


def test_who_is_required():
    flat = {"a": {"type": "str"}, "b": {"type": "str, optional"}, "c": {"type": "int", "default": "3"}}
    assert parameters(flat)["required"] == ["a"]
    assert "required" not in parameters({"type": "dict", "properties": flat})
    assert parameters({**flat, "required": []})["required"] == []
    assert parameters({**flat, "required": ["c", "a", "c"]})["required"] == ["c", "a"]
    said = {"a": {"type": "str", "required": True}, "b": {"type": "str", "required": "false"}, "c": {"optional": False}}
    assert parameters({"type": "object", "properties": said})["required"] == ["a", "c"]
    nested = prop({"type": "dict", "required": None, "properties": {"y": {"type": "str", "required": "True"}}})
    assert nested == {"type": "object", "properties": {"y": {"type": "string"}}, "required": ["y"]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("f", "a tool must be an object, found str"),
        ({}, "a tool needs a name, found None"),
        ({"name": " "}, "a tool needs a name"),
        ({"name": "f", "api_name": "f"}, "tool: both 'name' and 'api_name' are given; keep one"),
        ({"name": "f", "parameters": {}, "arguments": {}}, "f: both 'parameters' and 'arguments' are given"),
        ({"name": "f", "description": 3}, "f: the description must be a string, found int"),
        ({"name": "f", "parameters": "none"}, "f: parameters must be an object, found str"),
        ({"name": "f", "parameters": {"type": "str"}}, "f: parameters must be of type object, found string"),
        ({"name": "f", "parameters": {"x": {"type": "strng"}}}, "f.x: unknown type 'strng'"),
        ({"name": "f", "parameters": {"x": {"type": "str, maybe"}}}, "f.x: cannot read the type 'str, maybe'"),
        ({"name": "f", "parameters": {"x": {"type": 3}}}, "f.x: a type must be a name, found 3"),
        ({"name": "f", "parameters": {"x": 3}}, "f.x: expected a schema, found 3"),
        ({"name": "f", "parameters": {"x": {"$ref": "#/y"}}}, "f.x: $ref is not supported"),
        ({"name": "f", "parameters": {"type": "object", "properties": []}}, "f: properties must be an object"),
        ({"name": "f", "parameters": {**OBJECT, "required": "city"}}, "f.required: expected a list, found str"),
        ({"name": "f", "parameters": {**OBJECT, "required": [["city"]]}}, "f.required: expected a list of names"),
        ({"name": "f", "parameters": {"x": {"type": "str", "enum": "a"}}}, "f.x.enum: expected a list, found str"),
        (
            {"name": "f", "parameters": {"x": {"type": "str, optional"}, "required": ["x"]}},
            "f.x: listed as required, but the property itself says it is optional",
        ),
        (
            {"name": "f", "parameters": {"x": {"type": "str, optional", "required": True}}},
            "f.x: says both required and optional",
        ),
    ],
)
def test_a_document_that_contradicts_itself_or_cannot_be_read_is_refused_in_one_line(raw, message):
    with pytest.raises(SchemaError) as caught:
        normalise_tool(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


KEYWORDS = ["type", "properties", "required", "items", "enum", "default", "anyOf", "optional", "$ref", "prefixItems"]
WORDS = st.sampled_from([*KEYWORDS, "additionalProperties", "x", "name"])
ODD_TEXTS = [
    "",
    "str",
    "int",
    "List[int]",
    "object",
    "dict",
    "true",
    "str, optional",
    "Optional[",
    "a|",
    "1",
    "[",
    "nan",
]
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from([*ODD_TEXTS, ",", "or", "x"])
JSON = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(WORDS, v, max_size=4), max_leaves=12)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_no_document_raises_anything_but_a_schema_error_and_normal_ones_stay_as_they_are(raw):
    try:
        tool = normalise_tool({"name": "f", "parameters": raw})
    except SchemaError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert tool.parameters["type"] == "object"
    assert normalise_tool(tool.to_json()) == tool or "nan" in repr(tool)
    assert isinstance(check_call(Call("f", {"x": 1, "name": []}), [tool]), list)


def test_very_deep_documents_are_refused():
    raw: dict = {"type": "string"}
    for _ in range(5000):
        raw = {"type": "array", "items": raw}
    with pytest.raises(SchemaError, match="nested too deeply"):
        normalise_tool({"name": "f", "parameters": {"x": raw}})


TOOL = normalise_tool(
    {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "s": {"type": "string", "enum": ["a", "b"]},
                "n": {"type": "number"},
                "i": {"type": "integer"},
                "b": {"type": "boolean"},
                "l": {"type": "array", "items": {"type": "integer"}},
                "p": {"type": "Tuple[int, str]"},
                "o": {"type": "object", "properties": {"q": {"type": "integer"}}, "required": ["q"]},
                "m": {"type": "Dict[str, int]"},
                "e": {"type": "Union[str, List[int]]"},
                "z": {"type": ["integer", "null"]},
                "k": {"type": "integer", "enum": [1, 2]},
                "any": {},
            },
            "required": ["s"],
        },
    }
)


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"s": "a"}, []),
        (
            {
                "s": "a",
                "n": 1,
                "i": 1,
                "b": True,
                "l": [],
                "o": {"q": 1, "more": 2},
                "m": {"x": 1},
                "z": None,
                "any": [None],
            },
            [],
        ),
        ({"s": "a", "n": 1.0, "l": [1, 2], "p": [1, "x"], "e": [1], "z": 3}, []),
        ({}, ["missing required argument 's'"]),
        ({"s": "c"}, ['argument \'s\' must be one of "a", "b", found "c"']),
        ({"s": "a", "y": 1}, ["undeclared argument 'y'"]),
        ({"s": 1}, ["argument 's' must be string, found 1"]),
        ({"s": None}, ["argument 's' must be string, found null"]),
        ({"s": "a", "i": 1.0}, ["argument 'i' must be integer, found 1.0"]),
        ({"s": "a", "i": True}, ["argument 'i' must be integer, found true"]),
        ({"s": "a", "n": True}, ["argument 'n' must be number, found true"]),
        ({"s": "a", "n": "1"}, ["argument 'n' must be number, found \"1\""]),
        ({"s": "a", "b": 1}, ["argument 'b' must be boolean, found 1"]),
        (
            {"s": "a", "l": [1, 2.0, "x"]},
            ["argument 'l[1]' must be integer, found 2.0", "argument 'l[2]' must be integer, found \"x\""],
        ),
        (
            {"s": "a", "p": ["x", 1]},
            ["argument 'p[0]' must be integer, found \"x\"", "argument 'p[1]' must be string, found 1"],
        ),
        ({"s": "a", "o": {}}, ["missing required argument 'o.q'"]),
        ({"s": "a", "o": {"q": "x"}}, ["argument 'o.q' must be integer, found \"x\""]),
        ({"s": "a", "m": {"x": "y"}}, ["argument 'm.x' must be integer, found \"y\""]),
        ({"s": "a", "e": 1}, ["argument 'e' fits none of its alternatives: 1"]),
        ({"s": "a", "z": "x"}, ["argument 'z' must be integer or null, found \"x\""]),
        ({"s": "a", "k": 3}, ["argument 'k' must be one of 1, 2, found 3"]),
        ({"s": "a", "l": "x" * 100}, ["argument 'l' must be array, found \"" + "x" * 56 + "..."]),
    ],
)
def test_the_rule_tier_reports_everything_wrong_with_a_call(arguments, problems):
    assert check_call(Call("f", arguments), [TOOL]) == problems


def test_the_rule_tier_knows_the_tools():
    assert check_call(Call("h", {}), [TOOL]) == ["unknown tool 'h'"]
    opened = normalise_tool({"name": "g", "parameters": {"type": "object", "additionalProperties": {"type": "int"}}})
    assert check_call(Call("g", {"x": 1}), [opened]) == []
    assert check_call(Call("g", {"x": "y"}), [opened]) == ["argument 'x' must be integer, found \"y\""]
    listed = normalise_tool({"name": "g", "parameters": {"type": "object", "required": ["x"]}})
    assert check_call(Call("g", {"x": 1}), [listed]) == []
    assert check_call(Call("g", {}), [listed]) == ["missing required argument 'x'"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not beside this checkout (../shared/data)")
def test_real_documents_are_all_read_and_most_real_calls_pass():
    seal = [json.loads(line) for line in (DATA / "seal_tools/tool.jsonl").open()]
    tools = {tool.name: tool for tool in map(normalise_tool, seal)}
    calls = [call for line in (DATA / "seal_tools/dev.jsonl").open() for call in json.loads(line)["calling"]]
    clean = [not check_call(Call(call["api"], call["parameters"]), [tools[call["api"]]]) for call in calls]
    assert len(tools) > 4000 and sum(clean) / len(clean) > 0.9

    clean = []
    for line in (DATA / "star/example_messages.jsonl").open():
        row = json.loads(line)
        documents = [normalise_tool(tool) for tool in row["tools"]]
        calls = row["messages"][-1].get("tool_calls", [])
        clean += [not check_call(Call(call["name"], call["arguments"]), documents) for call in calls]
    assert len(clean) > 1500 and sum(clean) / len(clean) > 0.95
