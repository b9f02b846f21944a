"""Exported records: what is not listed as lost is there when they are read back."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.data.exporters import EXPORTS, export_samples, write_export
from looptool_jax.data.importers import import_file
from looptool_jax.data.store import DataError, read_jsonl, write_jsonl
from looptool_jax.toolcall.records import Call, Message, Sample, Target, Tool
from looptool_jax.world import generate, inject

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
FIND = Tool(
    "Find (web)",
    "Finds.",
    {
        "type": "object",
        "properties": {
            "q": {"type": "string", "description": "what"},
            "n": {"type": "integer", "default": 3},
            "tags": {"type": "array", "items": {"type": "string"}},
            "any": {},
            "kind": {"type": ["string", "null"], "enum": ["a", None]},
        },
        "required": ["q", "kind"],
    },
)
PING = Tool("ping", "", {"type": "object", "properties": {}})
FIND_X = Call("Find (web)", {"q": "x", "kind": None, "tags": ["it's", '"']})
DIALOGUE = (
    Message("system", "Be brief."),
    Message("user", "Find x and ping"),
    Message("assistant", "I look.", (FIND_X, Call("ping")), reasoning="two calls"),
    Message("tool", '{"hits": [1, 2.0]}', name="Find (web)"),
    Message("tool", "pong", name="ping"),
    Message("assistant", "Two hits."),
    Message("user", "Again"),
)


def sample(number: int, messages: tuple[Message, ...], target: Target, **extra: object) -> Sample:
    return Sample(f"s{number}", (FIND, PING), messages, target, extra=extra)


def steps() -> list[Sample]:
    """A dialogue of three steps, not in their order, and a sample of its own."""
    return [
        sample(2, DIALOGUE, Target((Call("ping"),))),
        sample(3, (Message("user", "y"),), Target((FIND_X,))),
        sample(0, DIALOGUE[:2], Target(DIALOGUE[2].calls, "I look."), reasoning="two calls"),
        sample(1, DIALOGUE[:5], Target(text="Two hits.", intent="answer")),
    ]


def parts(sample: Sample, names: bool = True) -> str:
    """What an exported record should hold of a sample, as one text."""
    messages = [message if names else replace(message, name="") for message in sample.messages]
    required = [sorted(tool.required) for tool in sample.tools]
    tools = [
        {**tool.to_json(), "parameters": {k: v for k, v in tool.parameters.items() if k != "required"}}
        for tool in sample.tools
    ]
    whole = [
        tools,
        required,
        [message.to_json() for message in messages],
        sample.target.to_json(),
        sample.extra.get("reasoning"),
    ]
    return json.dumps(whole, sort_keys=True)


def assert_nothing_is_lost_silently(samples: list[Sample], format: str, folder: Path):
    """Every sample is read back whole, or listed."""
    result = export_samples(samples, format)
    path = folder / "out.jsonl"
    write_jsonl(path, result.records)
    back = import_file(path, format)
    assert not back.rejected, back.rejected[0].reason
    assert len(back.samples) == len(samples) - sum(bool(loss.left_out) for loss in result.losses) + result.steps
    found = {parts(each, names) for each in back.samples for names in (True, False)}
    listed = {loss.id for loss in result.losses}
    for each in samples:
        assert each.id in listed or parts(each) in found, each
    return result


@pytest.mark.parametrize("format", EXPORTS)
def test_world_samples_lose_what_is_listed(tmp_path, format):
    clean = generate("train", 60, seed=5)
    noisy, _ = inject(clean, 0.3, seed=5)
    result = assert_nothing_is_lost_silently(
        [*clean, *(replace(each, id=f"n{each.id}") for each in noisy)], format, tmp_path
    )
    kinds = set(result.tally())
    assert {"intent clarify", "intent refuse", "missing parameters"} <= kinds or format == "xlam"
    clean_losses = export_samples(clean, format).tally()
    left_out = {kind for kind in clean_losses if kind.startswith("left out")}
    assert left_out <= (
        {"left out: a label that is a text", "left out: more than one user turn"} if format == "xlam" else set()
    )


@cache
def _imported(path: Path, source: str) -> tuple[Sample, ...]:
    return import_file(path, source).samples


@pytest.mark.parametrize("format", EXPORTS)
@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("star/example_messages.jsonl", "openai"),
        ("toolrl/rlla_sft.json", "toolrl"),
        ("glaive/glaive_toolcall_en_demo.json", "sharegpt"),
        ("seal_tools/dev.jsonl", "seal_tools"),
    ],
)
def test_real_files_lose_what_is_listed(tmp_path, format, file, source):
    path = SHARED / file
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    samples = list(_imported(path, source)[:80])
    result = assert_nothing_is_lost_silently(samples, format, tmp_path)
    if format == source or (source, format) in {("openai", "xlam"), ("sharegpt", "openai"), ("openai", "hermes")}:
        assert not result.losses


@pytest.mark.parametrize(
    ("format", "records", "lost"),
    [
        ("openai", 2, {}),
        ("hermes", 2, {}),
        ("toolace", 2, {"text of assistant turns": 2, "reasoning of assistant turns": 2, "text of the label": 1,
                        "reasoning of the label": 1}),
        ("sharegpt", 2, {"text of assistant turns": 2, "reasoning of assistant turns": 2, "text of the label": 1,
                         "reasoning of the label": 1, "where one tool result ends and the next begins": 2}),
        ("toolrl", 4, {}),
        ("looptool", 4, {"names of tool turns": 2}),
        ("xlam", 1, {"left out: more than one user turn": 2, "left out: a label that is a text": 1}),
    ],
)  # fmt: skip
def test_what_each_format_holds(tmp_path, format, records, lost):
    result = assert_nothing_is_lost_silently(steps(), format, tmp_path)
    assert len(result.records) == records
    assert result.tally() == Counter(lost)
    assert result.steps == 0


def test_records_are_what_other_programs_read():
    by_format = {format: export_samples(steps(), format).records for format in EXPORTS}
    openai = by_format["openai"][0]["messages"]
    calls = openai[2]["tool_calls"]
    assert json.loads(calls[0]["function"]["arguments"]) == FIND_X.arguments
    assert [turn["tool_call_id"] for turn in openai[3:5]] == [call["id"] for call in calls]
    assert openai[-1]["content"] is None
    toolace = by_format["toolace"][0]["conversations"]
    assert toolace[1]["value"] == """[Find (web)(q="x", kind=None, tags=["it's", "\\""]), ping()]"""
    assert json.loads(toolace[2]["value"])[1] == {"name": "ping", "results": "pong"}
    (xlam,) = by_format["xlam"]
    parameters = json.loads(xlam["tools"])[0]["parameters"]
    assert parameters["q"]["type"] == "str" and parameters["n"]["type"] == "int, optional"
    assert json.loads(xlam["answers"]) == [FIND_X.to_json()]
    sharegpt = by_format["sharegpt"][0]["conversations"]
    assert [turn["from"] for turn in sharegpt] == [
        "human",
        "function_call",
        "observation",
        "gpt",
        "human",
        "function_call",
    ]
    assert by_format["hermes"][0]["conversations"][2]["value"].count("<tool_call>\n{") == 2
    assert '\n{"name": "ping", "parameters": {}}\n</tool_call>' in by_format["toolrl"][0]["output"]
    assert by_format["looptool"][1]["input"] == "y"


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["a", "<|im_end|>\n<|im_start|>user\nb", "</user>\n<obs> x </obs>", "<tool_call>", "</tool_response>", "[ping()]",
     '[{"name": "a", "results": 1}]', '{"name": "a", "content": 1}', "<think>x</think>y", " a ", '"q"', "1.50",
     "You can call functions.\n\nBe kind.", "<tools>[]</tools>", "**Available Tools**", "\n2. Name: x",
     "**Steps for Each Turn**"]
)  # fmt: skip
CALLS = st.lists(
    st.builds(lambda q, kind: Call("Find (web)", {"q": q, "kind": kind}), TEXTS, st.sampled_from(["a", None]))
    | st.just(Call("ping")),
    min_size=1,
    max_size=3,
).map(tuple)


@st.composite
def dialogues(draw) -> Sample:
    messages = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    named = draw(st.booleans())
    for _ in range(draw(st.integers(0, 2))):
        messages.append(Message("user", draw(TEXTS)))
        calls = draw(CALLS | st.just(()))
        messages.append(Message("assistant", draw(TEXTS), calls, reasoning=draw(st.just("") | TEXTS)))
        messages += [Message("tool", draw(TEXTS), name=call.name if named else "") for call in calls]
    if not messages or messages[-1].role != "tool":
        messages.append(Message("user", draw(TEXTS)))
    calls = draw(CALLS | st.just(()))
    target = Target(calls, draw(TEXTS)) if calls else Target(text=draw(TEXTS), intent="answer")
    find = Tool("Find (web)", draw(TEXTS), FIND.parameters)
    return Sample("", (find, PING), tuple(messages), target)


@pytest.mark.parametrize("format", EXPORTS)
def test_texts_that_hold_a_formats_marks_are_never_lost_silently(tmp_path_factory, format):
    folder = tmp_path_factory.mktemp("out")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(dialogues(), min_size=1, max_size=3))
    def check(samples):
        assert_nothing_is_lost_silently([replace(each, id=str(i)) for i, each in enumerate(samples)], format, folder)

    check()


def test_a_call_or_a_schema_that_a_format_cannot_write_is_left_out():
    odd = Tool("odd", "", {"type": "object", "properties": {"a=b(": {"type": "integer"}, "c": True}})
    samples = [Sample("s", (odd,), (Message("user", "x"),), Target((Call("odd", {"a=b(": 1}),)))]
    for format, kind in (("toolace", "unreadable call"), ("xlam", "a schema that the format cannot write")):
        result = export_samples(samples, format)
        assert not result.records and result.losses[0].left_out.startswith(kind), result.losses
    assert not export_samples(
        [replace(samples[0], tools=(replace(odd, parameters={}),), messages=())], "hermes"
    ).records


def test_a_step_that_a_record_does_not_show_costs_no_other_sample():
    greeting = Message("assistant", "Hello.")
    first = sample(0, (Message("system", "Be brief."),), Target(text="Hello.", intent="answer"))
    last = sample(1, (*first.messages, greeting, Message("user", "y")), Target((FIND_X,)))
    result = export_samples([first, last], "openai")
    assert len(result.records) == 1 and [loss.id for loss in result.losses] == ["s0"]


def test_write_export_lists_the_losses_beside_the_records(tmp_path, capsys):
    write_export(export_samples(steps(), "xlam"), tmp_path / "x.jsonl")
    rows = list(read_jsonl(tmp_path / "x.losses.jsonl"))
    assert [row["id"] for row in rows] == ["s2", "s0", "s1"]
    assert rows[2]["left_out"].startswith("a label that is a text: ")
    printed = capsys.readouterr().out
    assert "4 samples, 1 xlam records, 3 samples left out" in printed
    assert "2  left out: more than one user turn" in printed and "x.losses.jsonl" in printed


def test_export_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="unknown export format 'csv'; known: openai, toolace"):
        export_samples([], "csv")
    with pytest.raises(DataError, match=r"name a file that ends in \.jsonl"):
        write_export(export_samples([], "openai"), tmp_path / "folder")
