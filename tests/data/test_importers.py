from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from looptool_jax.data import store
from looptool_jax.data.importers import import_file, write_import
from looptool_jax.data.store import DataError
from looptool_jax.toolcall.records import Call, Message

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "dict",
        "properties": {"city": {"type": "str"}, "days": {"type": "int, optional", "default": "1"}},
        "required": ["city"],
    },
}
SEARCH = {"name": "search", "description": "Find.", "parameters": {"query": {"type": "str", "description": "what"}}}
HOW_TO = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>."
)
INSTRUCTION = (
    "You compose calls.\n\nThe current time is 2024-05-01.\n# Tools\n\nYou are provided with function signatures "
    "within <tools></tools> XML tags:\n<tools>\n" + json.dumps(WEATHER) + "\n" + json.dumps(SEARCH) + HOW_TO
)


def call_text(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


HISTORY = (
    "Rome and Oslo?<|im_end|>\n<|im_start|>assistant\n"
    + call_text("get_weather", city="Rome")
    + "\n"
    + call_text("get_weather", city="Oslo")
    + '<|im_end|>\n<|im_start|>user\n<tool_response>\n{"t": 20}\n</tool_response>\n'
    "<tool_response>\ncold </tool_response> inside\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\nWarm and cold.<|im_end|>\n<|im_start|>user\nAnd Paris for 3 days?"
)


def looptool(**changes: object) -> dict:
    record = {
        "instruction": INSTRUCTION,
        "input": "Weather in Paris?",
        "output": call_text("get_weather", city="Paris"),
    }
    return {**record, **changes}


def run(tmp_path: Path, records: list, format: str, **options: object):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = import_file(path, format, **options)
    assert result.read == len(records) == result.kept + len(result.rejected)
    return result


def only(result):
    assert not result.rejected, result.rejected
    (sample,) = result.samples
    return sample


def test_looptool_single_step(tmp_path):
    sample = only(run(tmp_path, [looptool(source="x")], "looptool"))
    assert sample.id == "looptool-in-000001"
    assert sample.messages == (
        Message("system", "You compose calls.\n\nThe current time is 2024-05-01."),
        Message("user", "Weather in Paris?"),
    )
    assert [tool.name for tool in sample.tools] == ["get_weather", "search"]
    assert sample.tools[0].properties["days"] == {"type": "integer", "default": 1}
    assert sample.target.calls == (Call("get_weather", {"city": "Paris"}),)
    assert sample.category == "multiple"
    assert sample.extra == {"source": "looptool", "file": "in.jsonl", "line": 1, "fields": {"source": "x"}}


def test_looptool_history(tmp_path):
    output = "<think>\nthree\n</think>\n\n" + call_text("get_weather", city="Paris", days=3)
    sample = only(run(tmp_path, [looptool(input=HISTORY, output=output)], "looptool"))
    assert sample.messages[1:] == (
        Message("user", "Rome and Oslo?"),
        Message("assistant", "", (Call("get_weather", {"city": "Rome"}), Call("get_weather", {"city": "Oslo"}))),
        Message("tool", '{"t": 20}'),
        Message("tool", "cold </tool_response> inside"),
        Message("assistant", "Warm and cold."),
        Message("user", "And Paris for 3 days?"),
    )
    assert sample.extra["reasoning"] == "three"
    assert sample.category == "multi_turn"


def test_looptool_text_target(tmp_path):
    sample = only(run(tmp_path, [looptool(output="Which city?\n")], "looptool"))
    assert (sample.target.text, sample.target.intent, sample.category) == ("Which city?", "answer", "text")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction": "no tools"}, "no tool block"),
        (
            {"instruction": INSTRUCTION.replace('"get_weather"', "get_weather")},
            "unreadable tool: tool 1 in instruction",
        ),
        ({"instruction": INSTRUCTION.replace('"str"', '"NoSuchType"', 1)}, "unreadable tool: tool 1: get_weather.city"),
        ({"instruction": INSTRUCTION.replace('"search"', '"get_weather"')}, "two different tools have the same name"),
        ({"instruction": INSTRUCTION.split("\n</tools>")[0]}, "unreadable tool: tool 3 in instruction"),
        ({"input": 7}, "unexpected field: input should be a string, found int"),
        ({"input": " "}, "empty user turn: turn 1 of input"),
        ({"input": "a<|im_end|>\n<|im_start|>narrator\nb"}, "unknown role: turn 2 of input is by 'narrator'"),
        ({"input": "a<|im_start|>assistant\nb"}, "turns out of order: turn 1 of input holds a stray chat marker"),
        ({"input": HISTORY.rsplit("<|im_end|>", 1)[0]}, "turns out of order: input ends with an assistant turn"),
        ({"input": HISTORY.replace("</tool_call>", "", 1)}, "unreadable assistant turn: turn 2 of input"),
        ({"input": "<tool_response>\nx\n</tool_response> and more"}, "unreadable tool result: turn 1 of input"),
        ({"output": ""}, "empty assistant turn"),
        ({"output": "<think>never closed"}, "unreadable assistant turn: output"),
        ({"output": call_text("launch")}, "the label does not fit its tools: launch: unknown tool"),
        ({"output": call_text("get_weather")}, "missing required argument 'city'"),
        ({"output": call_text("get_weather", city="x", when=1)}, "undeclared argument 'when'"),
        ({"output": call_text("get_weather", city=3)}, "argument 'city' must be string, found 3"),
        ({"output": "x \ud800"}, "half a surrogate pair"),
    ],
)
def test_looptool_rejections_say_why(tmp_path, changes, reason):
    result = run(tmp_path, [looptool(), looptool(**changes)], "looptool")
    (rejection,) = result.rejected
    assert rejection.line == 2
    assert reason in rejection.reason
    assert json.loads(rejection.raw) == looptool(**changes)


def test_identical_duplicate_tools_are_one(tmp_path):
    twice = INSTRUCTION.replace("\n" + json.dumps(SEARCH), "\n" + json.dumps(WEATHER))
    assert len(only(run(tmp_path, [looptool(instruction=twice)], "looptool")).tools) == 1


def openai(**changes: object) -> dict:
    wrapped = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "text", "text": "Find "}, {"type": "text", "text": "x"}]},
        {"role": "assistant", "content": None, "tool_calls": [wrapped], "reasoning_content": "look"},
        {"role": "tool", "content": "found", "name": "search", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Here it is."},
    ]
    return {"id": "r", "messages": messages, "tools": [{"type": "function", "function": SEARCH}], **changes}


def test_openai_one_sample_per_assistant_step(tmp_path):
    result = run(tmp_path, [openai()], "openai")
    call, text = result.samples
    assert [call.id, text.id] == ["openai-in-000001-01", "openai-in-000001-02"]
    assert call.messages[-1] == Message("user", "Find x")
    assert call.target.calls == (Call("search", {"query": "x"}),)
    assert call.extra["reasoning"] == "look" and call.extra["fields"] == {"id": "r"}
    assert text.messages[-2:] == (
        Message("assistant", "", (Call("search", {"query": "x"}),), reasoning="look"),
        Message("tool", "found", name="search"),
    )
    assert (text.target.text, text.target.intent) == ("Here it is.", "answer")


def test_results_stand_in_the_order_of_their_calls(tmp_path):
    calls = [{"id": f"c{i}", "function": {"name": "search", "arguments": {"query": str(i)}}} for i in range(3)]
    results = [{"role": "tool", "content": f"r{i}", "tool_call_id": f"c{i}"} for i in (2, 0, 1)]
    turns = [
        {"role": "user", "content": "find"},
        {"role": "assistant", "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "done"},
    ]
    sample = run(tmp_path, [openai(messages=turns)], "openai").samples[-1]
    assert [(m.content, m.name) for m in sample.messages if m.role == "tool"] == [
        ("r0", "search"),
        ("r1", "search"),
        ("r2", "search"),
    ]
    for unknown in (None, "c9", ["c0"]):
        results[0]["tool_call_id"] = unknown
        sample = run(tmp_path, [openai(messages=turns)], "openai").samples[-1]
        assert [m.content for m in sample.messages if m.role == "tool"] == ["r2", "r0", "r1"]


def test_a_system_turn_between_request_and_answer_hides_no_step(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "system", "assistant")]
    sample = only(run(tmp_path, [openai(messages=turns)], "openai"))
    assert [message.role for message in sample.messages] == ["user", "system"]
    assert sample.target.text == "assistant"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "a"}], "no assistant step"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "empty assistant turn: turn 2"),
        ([{"role": "tool", "content": "a"}], "turns out of order: turn 1 is a tool result"),
        ([{"role": "critic", "content": "a"}], "unknown role: message 1 is by 'critic'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content of message 1 is more than text"),
        ([{"role": "user", "content": "a"}, *[{"role": "assistant", "content": "b"}] * 2], "second assistant turn"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<tool_call>"}],
            "holds call or think tags",
        ),
        ("[", "unreadable JSON inside the record: messages"),
    ],
)
def test_openai_rejections_say_why(tmp_path, messages, reason):
    (rejection,) = run(tmp_path, [openai(messages=messages)], "openai").rejected
    assert reason in rejection.reason


def sharegpt(**changes: object) -> dict:
    turns = [
        {"from": "human", "value": "Find x"},
        {"from": "function_call", "value": '[{"name": "search", "arguments": "{\\"query\\": \\"x\\"}"}]'},
        {"from": "observation", "value": '{"hit": 1}'},
        {"from": "gpt", "value": "One hit."},
        {"from": "human", "value": "Thanks"},
        {"from": "gpt", "value": "Welcome."},
    ]
    return {"conversations": turns, "tools": json.dumps([SEARCH]), **changes}


def test_sharegpt_call_and_text_steps(tmp_path):
    samples = run(tmp_path, [sharegpt(system="Be brief.")], "sharegpt").samples
    assert [sample.target.is_call for sample in samples] == [True, False, False]
    assert samples[0].messages == (Message("system", "Be brief."), Message("user", "Find x"))
    assert samples[0].target.calls == (Call("search", {"query": "x"}),)
    assert [sample.target.intent for sample in samples[1:]] == ["answer", "answer"]
    assert [sample.category for sample in samples] == ["single", "multi_turn", "multi_turn"]


def test_sharegpt_system(tmp_path):
    result = run(tmp_path, [sharegpt(system=""), sharegpt(system=["Be brief."])], "sharegpt")
    assert result.samples[0].messages == (Message("user", "Find x"),)
    assert [row.reason for row in result.rejected] == ["unexpected field: system should be a string, found list"]


def test_a_dialogue_with_one_bad_step_is_rejected_whole(tmp_path):
    turns = sharegpt()["conversations"]
    turns[1] = {"from": "function_call", "value": '{"name": "search", "arguments": {}}'}
    (rejection,) = run(tmp_path, [sharegpt(conversations=turns)], "sharegpt").rejected
    assert rejection.reason.endswith("search: missing required argument 'query' (step 1)")


def toolrl(**changes: object) -> dict:
    instruction = (
        "You help.\n\n**Available Tools**\nIn your response, you can use the following tools:\n"
        "1. Name: Get Weather\nDescription: Weather. Steps:\n1. Ask\n2. Wait\n"
        'Parameters: {"city": {"description": "c", "type": "string", "default": ""}}\n'
        "2. Name: search\nDescription: Find.\n"
        'Parameters: {"query": {"description": "q", "type": "str"}}\n\n'
        "**Steps for Each Turn**\n1. **Think:** ..."
    )
    history = (
        "**Dialogue Records History**\n<user> Find x </user>\n\n<think> I write <tool_call> now </think>\n"
        '<tool_call>\n{"name": "search", "parameters": {"query": "x"}}\n</tool_call>\n'
        '<obs> [{"name": "search", "results": {"hit": 1}}] </obs>\n\n'
        "<think> done </think>\n<response> One hit. </response>\n\n<user> Weather in Rome and find y? </user>"
    )
    output = (
        '<think> two calls </think>\n<tool_call>\n{"name": "Get Weather", "parameters": {"city": "Rome"}}\n'
        '{"name": "search", "parameters": {"query": "y"}}\n</tool_call>'
    )
    return {"instruction": instruction, "input": history, "output": output, **changes}


def test_toolrl_dialogue(tmp_path):
    sample = only(run(tmp_path, [toolrl()], "toolrl"))
    assert sample.messages == (
        Message("system", "You help."),
        Message("user", "Find x"),
        Message("assistant", "", (Call("search", {"query": "x"}),), reasoning="I write <tool_call> now"),
        Message("tool", '{"hit": 1}', name="search"),
        Message("assistant", "One hit.", reasoning="done"),
        Message("user", "Weather in Rome and find y?"),
    )
    assert [tool.description for tool in sample.tools] == ["Weather. Steps:\n1. Ask\n2. Wait", "Find."]
    assert sample.target.calls == (Call("Get Weather", {"city": "Rome"}), Call("search", {"query": "y"}))
    assert sample.extra["reasoning"] == "two calls"


def test_toolrl_text_and_rejections(tmp_path):
    records = [
        toolrl(output="<think> t </think>\n<response> Sure. </response>"),
        toolrl(output="no blocks"),
        toolrl(output="<user> me </user>"),
        toolrl(instruction="nothing"),
        toolrl(input="**Dialogue Records History**\n<response> a </response>"),
        toolrl(output="<tool_call>\n{broken\n</tool_call>"),
    ]
    result = run(tmp_path, records, "toolrl")
    assert [sample.target.text for sample in result.samples] == ["Sure."]
    assert [rejection.reason.split(":")[0] for rejection in result.rejected] == [
        "unreadable dialogue", "unreadable assistant turn", "no tool block", "turns out of order", "unreadable call",
    ]  # fmt: skip


def test_parquet_rows_are_read_like_the_json_records(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    record = toolrl()
    prompt = [{"role": "system", "content": record["instruction"]}, {"role": "user", "content": record["input"]}]
    rows = [{"prompt": prompt, "reward_model": {"ground_truth": record["output"], "style": "rule"}, "data_source": "x"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    sample = only(import_file(tmp_path / "in.parquet", "toolrl"))
    expected = only(run(tmp_path, [record], "toolrl"))
    assert (sample.tools, sample.messages, sample.target) == (expected.tools, expected.messages, expected.target)
    assert sample.extra["fields"] == {"data_source": "x"}
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet: no readable parquet file"):
        import_file(tmp_path / "broken.parquet", "toolrl")


def test_what_parquet_fills_with_nulls_does_not_reach_a_tool_or_a_call(tmp_path):
    """Arrow gives every struct of a column the fields of all of them, and text may lie there as bytes."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def row(tool: dict, **arguments: object) -> dict:
        calls = [{"name": tool["name"], "arguments": arguments}]
        turns = [{"role": "user", "content": b"Gr\xc3\xbc\xc3\x9fe"}, {"role": "assistant", "tool_calls": calls}]
        return {"messages": turns, "tools": [tool]}

    rows = [
        row(WEATHER, city="Rome"),
        row(SEARCH | {"parameters": {"properties": {"query": {"type": "str"}}}}, query="x"),
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    result = import_file(tmp_path / "in.parquet", "openai")
    expected = run(tmp_path, json.loads(json.dumps(rows, default=bytes.decode)), "openai")
    assert [(s.tools, s.messages, s.target) for s in result.samples] == [
        (s.tools, s.messages, s.target) for s in expected.samples
    ]
    assert result.samples[0].messages == (Message("user", "Grüße"),)
    assert result.samples[1].target.calls == (Call("search", {"query": "x"}),)


def seal_documents(tmp_path: Path, count: int = 20) -> Path:
    documents = [
        {
            "api_name": f"api{number}",
            "api_description": f"Does {number}.",
            "field": f"field{number % 4}",
            "parameters": {"x": {"type": "str", "description": "x"}, "y": {"type": "int", "description": "y"}},
            "required": ["x"],
            "responses": {},
        }
        for number in range(count)
    ]
    path = tmp_path / "tool.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def seal(number: int, *calls: tuple[str, dict]) -> dict:
    calling = [{"api": name, "parameters": parameters, "responses": []} for name, parameters in calls]
    return {"id": f"q-{number}", "query": "do it", "calling": calling}


def test_seal_tools_is_cut_to_the_first_step(tmp_path):
    seal_documents(tmp_path)
    calls = ("api1", {"x": "a"}), ("api2", {"x": "API_call_0"}), ("api3", {"x": "b", "y": 2})
    sample = only(run(tmp_path, [seal(0, *calls)], "seal_tools"))
    assert sample.target.calls == (Call("api1", {"x": "a"}), Call("api3", {"x": "b", "y": 2}))
    assert sample.extra["later_calls"] == [{"name": "api2", "arguments": {"x": "API_call_0"}}]
    assert {"api1", "api2", "api3"} <= {tool.name for tool in sample.tools}


def test_seal_tools_distractors_depend_on_the_record_alone(tmp_path):
    documents = seal_documents(tmp_path)
    records = [seal(number, ("api5", {"x": "a"})) for number in range(40)]
    forward = run(tmp_path, records, "seal_tools").samples
    (tmp_path / "other").mkdir()
    backward = run(tmp_path / "other", records[::-1], "seal_tools", tools=documents).samples
    assert [sample.tools for sample in forward] == [sample.tools for sample in backward[::-1]]
    assert {len(sample.tools) for sample in forward} == {3, 4, 5, 6, 7}
    for sample in forward:
        names = [tool.name for tool in sample.tools]
        assert "api5" in names and len(set(names)) == len(names)
        same_field = sum(int(name[3:]) % 4 == 1 for name in names) - 1
        assert same_field >= (len(names) - 1) // 2
    assert len({[tool.name for tool in sample.tools].index("api5") for sample in forward}) > 2


def test_seal_tools_rejections(tmp_path):
    seal_documents(tmp_path)
    records = [
        seal(0, ("api1", {"x": "API_call_0"})),
        seal(1),
        seal(2, ("nowhere", {"x": "a"})),
        seal(3, ("api1", {"x": "a", "y": "2"})),
    ]
    result = run(tmp_path, records, "seal_tools")
    assert [rejection.reason for rejection in result.rejected] == [
        "no first step: every call needs another call's output",
        "no first step: calling is empty",
        "the label does not fit its tools: no document for nowhere",
        "the label does not fit its tools: api1: argument 'y' must be integer, found \"2\"",
    ]


def test_seal_tools_without_readable_documents_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"tool\.jsonl: no such file"):
        run(tmp_path, [], "seal_tools")
    (tmp_path / "tool.jsonl").write_text('{"api_name": "a"}\n')
    with pytest.raises(DataError, match=r"tool\.jsonl:1: unexpected field: api_description"):
        run(tmp_path, [], "seal_tools")


def test_unknown_format_and_superfluous_tools(tmp_path):
    with pytest.raises(DataError, match=r"unknown import format 'alpaca'; known: looptool, openai"):
        run(tmp_path, [], "alpaca")
    with pytest.raises(DataError, match="carries its tools in the file"):
        run(tmp_path, [], "openai", tools="tool.jsonl")
    with pytest.raises(DataError, match="no such file"):
        import_file(tmp_path / "absent.json", "openai")


def test_json_list_and_json_lines_say_the_same(tmp_path):
    records = [looptool(), looptool(output=call_text("launch")), looptool(output="Which city?")]
    lines = run(tmp_path, records, "looptool")
    (tmp_path / "in.json").write_text("\ufeff" + json.dumps(records, indent=2))
    listed = import_file(tmp_path / "in.json", "looptool")
    assert [sample.target for sample in listed.samples] == [sample.target for sample in lines.samples]
    assert [sample.extra["line"] for sample in lines.samples] == [1, 3]
    assert [sample.extra["line"] for sample in listed.samples] == [2, 12]
    assert [rejection.line for rejection in listed.rejected] == [7]


def test_a_broken_list_loses_nothing(tmp_path):
    text = json.dumps([looptool(), looptool(), looptool()], indent=1)
    cut = text.rindex('"output"')
    (tmp_path / "in.json").write_text(text[:cut])
    result = import_file(tmp_path / "in.json", "looptool")
    assert (result.read, result.kept) == (3, 2)
    assert result.rejected[0].reason.startswith("unreadable record: not JSON: the list breaks here")
    assert text[:cut].endswith(result.rejected[0].raw)


def test_write_import_round_trip(tmp_path, capsys):
    result = run(tmp_path, [looptool(), looptool(output=""), "text", looptool(input=HISTORY)], "looptool")
    shards = write_import(result, tmp_path / "out", shard_size=1)
    assert [shard.rows for shard in shards] == [1, 1, 2]
    assert tuple(store.read_samples(tmp_path / "out")) == result.samples
    rejected = list(store.read_jsonl(tmp_path / "out" / "rejected.jsonl"))
    assert [row["line"] for row in rejected] == [2, 3]
    assert rejected[1] == {
        "line": 3,
        "reason": "unreadable record: expected an object, found str",
        "raw": '"text"',
    }
    printed = capsys.readouterr().out
    assert "4 records read, 2 kept (2 samples), 2 rejected" in printed
    assert "1  empty assistant turn" in printed
    assert printed.endswith(f"samples -> {tmp_path / 'out'}, reasons -> {tmp_path / 'out/rejected.jsonl'}\n")


SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
LABEL, NAMES = "the label does not fit its tools", "two different tools have the same name"


@pytest.mark.parametrize(
    ("file", "format", "read", "kept", "samples", "tally"),
    [
        ("star/example_messages.jsonl", "openai", 1024, 991, 991, {LABEL: 29, NAMES: 4}),
        ("toolrl/rlla_sft.json", "toolrl", 400, 333, 333, {LABEL: 66, NAMES: 1}),
        ("toolrl/rlla_test.parquet", "toolrl", 80, 62, 62, {LABEL: 18}),
        ("glaive/glaive_toolcall_en_demo.json", "sharegpt", 300, 299, 954, {LABEL: 1}),
        ("seal_tools/dev.jsonl", "seal_tools", 700, 650, 650, {LABEL: 50}),
        ("seal_tools/test_in_domain.jsonl", "seal_tools", 700, 643, 643, {LABEL: 57}),
    ],
)
def test_real_files(tmp_path, file, format, read, kept, samples, tally):
    path = SHARED / file
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    result = import_file(path, format)
    assert (result.read, result.kept, len(result.samples)) == (read, kept, samples)
    assert result.tally() == Counter(tally)
    assert len({sample.id for sample in result.samples}) == samples
    assert result.kept == len({sample.extra["line"] for sample in result.samples})
    write_import(result, tmp_path)
    assert tuple(store.read_samples(tmp_path)) == result.samples
