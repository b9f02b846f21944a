"""ToolACE, xLAM, Hermes, rows in BFCL's manner and MCP logs; and calls written as source text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.data.importers import import_file
from looptool_jax.data.importers.call_syntax import read_calls, read_literal, write_calls
from looptool_jax.data.store import DataError
from looptool_jax.toolcall import match
from looptool_jax.toolcall.parser import Parsed
from looptool_jax.toolcall.records import Call, Message

SEARCH = {
    "name": "Search (web) API",
    "description": "Finds [things].",
    "parameters": {
        "type": "dict",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "int"},
            "filters": {"type": "dict", "properties": {"site": {"type": "string"}, "safe": {"type": "bool"}}},
        },
        "required": ["query"],
    },
    "required": None,
}
PING = {"name": "ping", "description": "Pings.", "parameters": {"type": "dict", "properties": {}}}
TOOLACE_SYSTEM = (
    "You are an expert in composing functions. Be polite. The current time is 2024-05-01 10:00:00.\n"
    f"Here is a list of functions in JSON format that you can invoke:\n{json.dumps([SEARCH, PING])}. \n"
    "Should you decide to return the function call(s), \nput it in the format of [func1(params_name=params_value)]\n\n"
    "NO other text MUST be included. \n"
)


def toolace(**changes: object) -> dict:
    turns = [
        {"from": "user", "value": "Find [jazz], please"},
        {"from": "assistant", "value": '[Search (web) API(query="it\'s [jazz], (live)", limit=3), ping()]'},
        {
            "from": "tool",
            "value": '[{"name": "Search (web) API", "results": {"hits": 2}}, {"name": "ping", "results": "pong"}]',
        },
        {"from": "assistant", "value": "Two hits."},
        {"from": "user", "value": "Only safe ones"},
        {"from": "assistant", "value": "[Search (web) API(query='jazz', filters={'site': \"a.b\", 'safe': true})]"},
    ]
    return {"system": TOOLACE_SYSTEM, "conversations": turns, **changes}


def xlam(**changes: object) -> dict:
    tools = [
        {
            "name": "get_weather",
            "description": "Weather.",
            "parameters": {
                "city": {"type": "str", "description": "City", "default": "Rome"},
                "days": {"type": "int, optional", "description": "Days", "default": "1"},
            },
        },
        {"name": "ping", "description": "Pings.", "parameters": {}},
    ]
    answers = [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}, {"name": "ping", "arguments": {}}]
    return {"id": 7, "query": "Weather?", "tools": json.dumps(tools), "answers": json.dumps(answers), **changes}


def hermes(**changes: object) -> dict:
    tools = [{"type": "function", "function": SEARCH}, {"type": "function", "function": PING}]
    system = (
        "You are a function calling AI model. Function signatures are within <tools></tools> XML tags. "
        f"You live in Rome.\n<tools>\n{tools!r}\n</tools>\nFor each function call return a json object with function "
        "name and arguments within <tool_call> </tool_call> tags with the following schema:\n<tool_call>\n"
        "{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>\n"
    )
    turns = [
        {"from": "system", "value": system},
        {"from": "human", "value": "Find jazz"},
        {
            "from": "gpt",
            "value": "<think>\nI write <tool_call> now\n</think>\n\nSure.\n<tool_call>\n"
            "{'arguments': {'query': \"it's\", 'limit': 3}, "
            "'name': 'Search (web) API'}\n</tool_call>\n"
            '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>',
        },
        {
            "from": "tool",
            "value": '<tool_response>\n{"name": "ping", "content": {\'ok\': True}}\n</tool_response>\n'
            "<tool_response>\nplain\n</tool_response>",
        },
        {"from": "gpt", "value": "Done."},
    ]
    return {"id": "h1", "conversations": turns, "category": "web", **changes}


def bfcl_style(**changes: object) -> dict:
    truth = [
        {
            "Search (web) API": {
                "query": ["jazz", "Jazz"],
                "limit": [3, ""],
                "filters": ["", {"site": ["a", "b"], "safe": [True, ""]}],
            }
        },
        {"ping": {}},
    ]
    question = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Find jazz"}]]
    return {"id": "mine-1", "question": question, "function": [SEARCH, PING], "ground_truth": truth, **changes}


def rpc(id_: object, **rest: object) -> dict:
    return {"jsonrpc": "2.0", "id": id_, **rest}


def called(id_: object, name: str, **arguments: object) -> dict:
    return rpc(id_, method="tools/call", params={"name": name, "arguments": arguments})


def mcp(**changes: object) -> dict:
    document = {
        "name": "search",
        "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    }
    log = [
        rpc(0, method="initialize", params={}),
        rpc(0, result={"protocolVersion": "2025-06-18"}),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"direction": "out", "at": 3.5, "message": rpc(1, method="tools/list")},
        {"direction": "in", "at": 3.6, "message": rpc(1, result={"tools": [document], "nextCursor": "2"})},
        rpc("p", method="tools/list", params={"cursor": "2"}),
        rpc("p", result={"tools": [{"name": "ping", "description": "Pings.", "inputSchema": {"type": "object"}}]}),
        {"role": "user", "content": "Find a and b"},
        {"role": "assistant", "content": "I look."},
        called(2, "search", q="a"),
        called(3, "search", q="b"),
        rpc(3, result={"content": [{"type": "text", "text": "B"}, {"type": "image", "data": ""}]}),
        rpc(2, error={"code": -1, "message": "no"}),
        called(4, "ping"),
        rpc(4, result={"content": [], "structuredContent": {"ok": True}}),
        {"role": "assistant", "content": "Found b."},
        {"role": "user", "content": "And c?"},
        called(5, "search", q="c"),
    ]
    return {"server": "demo", "log": log, **changes}


MAKERS = {"toolace": toolace, "xlam": xlam, "hermes": hermes, "bfcl_style": bfcl_style, "mcp": mcp}


def run(tmp_path: Path, records: list, format: str):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = import_file(path, format)
    assert result.read == len(records) == result.kept + len(result.rejected)
    return result


def samples_of(tmp_path: Path, record: dict, format: str):
    result = run(tmp_path, [record], format)
    assert not result.rejected, result.rejected
    return result.samples


def test_toolace_dialogue(tmp_path):
    first, text, last = samples_of(tmp_path, toolace(), "toolace")
    assert first.messages == (
        Message("system", "Be polite. The current time is 2024-05-01 10:00:00."),
        Message("user", "Find [jazz], please"),
    )
    assert first.target.calls == (Call("Search (web) API", {"query": "it's [jazz], (live)", "limit": 3}), Call("ping"))
    assert text.messages[-2:] == (
        Message("tool", '{"hits": 2}', name="Search (web) API"),
        Message("tool", "pong", name="ping"),
    )
    assert (text.target.text, text.target.intent) == ("Two hits.", "answer")
    assert last.target.calls == (Call("Search (web) API", {"query": "jazz", "filters": {"site": "a.b", "safe": True}}),)
    assert (
        "NO other text" in last.extra["fields"]["instructions"] and "Rome" not in last.extra["fields"]["instructions"]
    )


def test_a_toolace_name_with_an_apostrophe_is_no_text(tmp_path):
    tool = {
        "name": "Bob's, API",
        "description": "",
        "parameters": {"type": "dict", "properties": {"x": {"type": "int"}}},
    }
    record = toolace(system=f"Functions: {json.dumps([tool])}", **said("[ Bob's, API(x=1)]"))
    (sample,) = samples_of(tmp_path, record, "toolace")
    assert sample.target.calls == (Call("Bob's, API", {"x": 1}),)


def test_xlam_record(tmp_path):
    (sample,) = samples_of(tmp_path, xlam(), "xlam")
    assert sample.messages == (Message("user", "Weather?"),)
    assert sample.target.calls == (Call("get_weather", {"city": "Oslo", "days": 2}), Call("ping"))
    assert sample.tools[0].properties["days"] == {"type": "integer", "description": "Days", "default": 1}
    assert sample.extra["fields"] == {"id": 7}


def test_hermes_dialogue(tmp_path):
    call, text = samples_of(tmp_path, hermes(), "hermes")
    assert call.messages == (Message("system", "You live in Rome."), Message("user", "Find jazz"))
    assert call.target.calls == (Call("Search (web) API", {"query": "it's", "limit": 3}), Call("ping"))
    assert (call.target.text, call.extra["reasoning"]) == ("Sure.", "I write <tool_call> now")
    assert text.messages[-2:] == (Message("tool", '{"ok": true}', name="ping"), Message("tool", "plain"))
    listed = hermes(
        tools=json.dumps([{"type": "function", "function": SEARCH}, {"type": "function", "function": PING}])
    )
    listed["conversations"][0] = {"from": "system", "value": "You live in Rome."}
    assert [s.tools for s in samples_of(tmp_path, listed, "hermes")] == [call.tools, call.tools]


def test_accepted_values_are_alternatives(tmp_path):
    (sample,) = samples_of(tmp_path, bfcl_style(), "bfcl_style")
    assert sample.messages == (Message("system", "Be brief."), Message("user", "Find jazz"))
    ping = Call("ping")
    assert sample.target.calls == (
        Call("Search (web) API", {"query": "jazz", "limit": 3, "filters": {"site": "a", "safe": True}}),
        ping,
    )
    accepted = {json.dumps(calls[0].arguments) for calls in (sample.target.calls, *sample.target.alternatives)}
    filters = [{"site": site, **safe} for site in "ab" for safe in ({"safe": True}, {})]
    assert accepted == {
        json.dumps({"query": query, **limit, **({"filters": chosen} if chosen else {})})
        for query in ("jazz", "Jazz")
        for limit in ({"limit": 3}, {})
        for chosen in (*filters, None)
    }
    said = Parsed((ping, Call("Search (web) API", {"query": "Jazz"})), "", "")
    assert match(said, sample.target, sample.tools).ok
    assert not match(
        Parsed((ping, Call("Search (web) API", {"query": "rock"})), "", ""), sample.target, sample.tools
    ).ok
    assert sample.extra["fields"]["ground_truth"] == bfcl_style()["ground_truth"]


def test_ground_truth_as_text_and_a_question_as_text(tmp_path):
    record = bfcl_style(question="Find", function=SEARCH, ground_truth=["Search (web) API(query='x', limit=2)"])
    (sample,) = samples_of(tmp_path, record, "bfcl_style")
    assert sample.messages == (Message("user", "Find"),)
    assert sample.target.calls == (Call("Search (web) API", {"query": "x", "limit": 2}),)


def test_accepted_values_that_the_tools_refuse_are_no_alternatives(tmp_path):
    record = bfcl_style(ground_truth=[{"Search (web) API": {"query": [1, "x"], "limit": ["3", 3]}}])
    (sample,) = samples_of(tmp_path, record, "bfcl_style")
    assert sample.target.calls == (Call("Search (web) API", {"query": "x", "limit": 3}),)
    assert sample.target.alternatives == ()


def test_many_accepted_values_stay_bounded(tmp_path):
    many = {
        "query": [str(i) for i in range(300)],
        "limit": list(range(300)),
        "filters": [{"site": [str(i) for i in range(300)]}],
    }
    (sample,) = samples_of(tmp_path, bfcl_style(ground_truth=[{"Search (web) API": many}] * 6), "bfcl_style")
    assert len(sample.target.alternatives) == 63


@pytest.mark.parametrize("name", ["BFCL_v3_simple.json", "BFCL_v4_live_multiple.json", "x/bfcl_V4_parallel.jsonl"])
@pytest.mark.parametrize("format", ["bfcl_style", "openai"])
def test_the_benchmark_itself_is_refused(tmp_path, name, format):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(bfcl_style()) + "\n")
    with pytest.raises(DataError, match=r"this is the BFCL benchmark, which is for evaluation only"):
        import_file(path, format)


def test_mcp_session(tmp_path):
    first, second, text, last = samples_of(tmp_path, mcp(), "mcp")
    assert [tool.name for tool in first.tools] == ["search", "ping"]
    assert first.messages == (Message("user", "Find a and b"),)
    assert first.target.calls == (Call("search", {"q": "a"}), Call("search", {"q": "b"}))
    assert first.target.text == "I look."
    assert second.messages[-2:] == (
        Message("tool", '{"error": {"code": -1, "message": "no"}}', name="search"),
        Message("tool", 'B\n{"type": "image", "data": ""}', name="search"),
    )
    assert second.target.calls == (Call("ping"),)
    assert text.messages[-1] == Message("tool", '{"ok": true}', name="ping")
    assert (text.target.text, last.target.calls) == ("Found b.", (Call("search", {"q": "c"}),))
    assert first.extra["fields"] == {"server": "demo"}


def test_a_tool_that_reports_an_error(tmp_path):
    tool = {"name": "search", "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}}}
    log = [
        rpc(1, method="tools/list"),
        rpc(1, result={"tools": [tool]}),
        {"role": "user", "content": "Find a"},
        called(2, "search", q="a"),
        rpc(2, result={"content": [{"type": "text", "text": "no index"}], "isError": True}),
        {"role": "assistant", "content": "It is not there."},
    ]
    *_, last = samples_of(tmp_path, {"log": log}, "mcp")
    assert last.messages[-1] == Message("tool", '{"error": "no index"}', name="search")


def test_a_server_numbers_its_own_requests(tmp_path):
    tool = {"name": "search", "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}}}
    log = [
        rpc(1, method="tools/list"),
        rpc(1, method="ping"),
        rpc(1, result={}),
        rpc(1, result={"tools": [tool]}),
        {"role": "user", "content": "Find a"},
        called(2, "search", q="a"),
        rpc(2, method="roots/list"),
        rpc(2, result={"roots": []}),
        called(3, "search", q="b"),
        rpc(2, result={"content": [{"type": "text", "text": "A"}]}),
        rpc(3, result={"content": [{"type": "text", "text": "B"}]}),
        {"role": "assistant", "content": "Found."},
    ]
    first, last = samples_of(tmp_path, {"log": log}, "mcp")
    assert first.target.calls == (Call("search", {"q": "a"}), Call("search", {"q": "b"}))
    assert last.messages[-2:] == (Message("tool", "A", name="search"), Message("tool", "B", name="search"))


TURNS = toolace()["conversations"]
HERMES_TURNS = hermes()["conversations"]


def said(text: str) -> dict:
    """A ToolACE dialogue whose assistant says the text."""
    return {"conversations": [TURNS[0], {"from": "assistant", "value": text}]}


def turns(count: int, author: str, text: str) -> dict:
    """The first turns of the Hermes dialogue, and one more."""
    return {"conversations": [*HERMES_TURNS[:count], {"from": author, "value": text}]}


@pytest.mark.parametrize(
    ("format", "changes", "reason"),
    [
        ("toolace", {"system": "no list"}, "no tool block"),
        ("toolace", {"system": TOOLACE_SYSTEM.replace('"dict"', "dict", 1)}, "unreadable tool: the list of tools"),
        ("toolace", {"conversations": [{"from": "critic", "value": "x"}]}, "unknown role: turn 1 is by 'critic'"),
        ("toolace", said("[ping(x=)]"), "unreadable call: turn 2"),
        ("toolace", said("[API(x=1)]"), "API: unknown tool"),
        ("toolace", said("[ping()] and"), "text after the calls"),
        ("toolace", said("[ping(a=1, a=2)]"), "a of ping is given twice"),
        ("xlam", {"answers": "[]"}, "no label: answers is empty"),
        ("xlam", {"query": " "}, "empty user turn"),
        ("xlam", {"tools": "[{'name': 1}]"}, "unreadable JSON inside the record: tools"),
        ("xlam", {"answers": '[{"name": "get_weather", "arguments": {"town": "x"}}]'}, "undeclared argument 'town'"),
        ("hermes", {"conversations": HERMES_TURNS[1:2]}, "no tool block"),
        ("hermes", turns(2, "gpt", "<tool_call>{'name'}"), "unreadable call: turn 3"),
        ("hermes", turns(3, "tool", "bare"), "unreadable tool result: turn 4"),
        ("bfcl_style", {"ground_truth": []}, "no label"),
        ("bfcl_style", {"ground_truth": [["a()"], ["b()"]]}, "several turns: ground_truth"),
        ("bfcl_style", {"question": [[{"role": "user", "content": "a"}]] * 2}, "several turns: question"),
        ("bfcl_style", {"ground_truth": [{"ping": {"x": 1}}]}, "list of accepted values for each parameter"),
        ("bfcl_style", {"ground_truth": [{"ping": {"x": []}}]}, "empty list of accepted values"),
        ("bfcl_style", {"ground_truth": ["ping(1)"]}, "unreadable call: 'ping(1)'"),
        ("bfcl_style", {"question": [[{"role": "tool", "content": "a"}]]}, "no role of a chat"),
        ("mcp", {"log": [7]}, "unreadable entry: entry 1 should be an object"),
        ("mcp", {"log": [{"id": 1, "method": "tools/list"}]}, "entry 1: neither a JSON-RPC 2.0 message"),
        ("mcp", {"log": [{"jsonrpc": "2.0", "method": "tools/call"}]}, "a tools/call request needs an id"),
        ("mcp", {"log": [called(1, "a"), called(1, "b")]}, "entry 2: two open requests have the id 1"),
        ("mcp", {"log": [called(1, "a"), rpc(1, result={}), rpc(1, result={})]}, "the request 1 is answered twice"),
        ("mcp", {"log": [called(1, "a"), called(2, "b"), rpc(2, result={}), called(3, "c")]}, "a result: entry 4: a"),
        ("mcp", {"log": [{"role": "user", "content": "x"}]}, "no assistant step"),
    ],
)  # fmt: skip
def test_rejections_say_why(tmp_path, format, changes, reason):
    result = run(tmp_path, [MAKERS[format](), MAKERS[format](**changes)], format)
    (rejection,) = result.rejected
    assert rejection.line == 2
    assert reason in rejection.reason


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_a_literal_in_python_and_in_json_is_the_same_value(value):
    for text in (repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False)):
        found, end = read_literal(text)
        assert (repr(found), end) == (repr(value), len(text))


@given(st.lists(st.dictionaries(st.from_regex(r"[a-z_]\w{0,5}", fullmatch=True), VALUES, max_size=3), max_size=3))
def test_written_calls_are_read_back(arguments):
    names = ["Search (web) API", "a.b-c", "ping"]
    calls = tuple(Call(name, given) for name, given in zip(names, arguments, strict=False))
    assert repr(read_calls(write_calls(calls), names)) == repr(calls)


@pytest.mark.parametrize(
    "text",
    ["", "[", "'", "{'a'}", "{1: 2}", "[1 2]", "1e999", "9" * 5000, "nan", "print()", "{'a': 1, 'a': 2}", "[" * 500,
     "'\\U99999999'", "f'x'", "1_0"],
)  # fmt: skip
def test_what_is_no_literal_is_refused(text):
    with pytest.raises(ValueError):
        _, end = read_literal(text)
        if end < len(text):
            raise ValueError("more than a literal")
