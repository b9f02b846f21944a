"""What `looptool data inspect` counts, against counts made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import looptool_jax
from looptool_jax.data.files import DataError
from looptool_jax.data.inspect import inspect_samples
from looptool_jax.loop.console import Console
from looptool_jax.report.samples import SHOWN_CHARACTERS, inspection_tables, rendered
from looptool_jax.report.tables import Table
from looptool_jax.toolcall import ChatTokenizer
from looptool_jax.toolcall.records import Call, Message, Origin, Sample, Target, Tool
from looptool_jax.world import generate

FIND = Tool("find", "Finds.", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]})


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer.from_pretrained(Path(looptool_jax.__file__).parent / "nano/policy", "qwen3")


def sample(id_: str, text: str, *calls: Call, tool: Tool = FIND) -> Sample:
    return Sample(id_, (tool,), (Message("user", text),), Target(calls), Origin("error", 2), "single")


def test_faults_and_repetitions(tokenizer):
    good = Call("find", {"q": "a"})
    samples = [
        sample("a", "Find a", good, Call("find", {"q": "b"})),
        replace(sample("b", "Find a", good, Call("find", {"q": "b"})), category="other"),  # exactly a
        sample("c", " find\n A ", Call("find", {"q": "B"}), good, tool=replace(FIND, description="x")),  # alike
        sample("d", "Find", Call("find", {})),
        sample("e", "Find", Call("find", {"q": 3}), Call("gone")),
        sample("f", "Find", Call("find", {"q": "a", "x": 1})),
        Sample("g", (FIND, FIND), (Message("user", "hi"),), Target(text=" ", intent="answer")),
        sample("h", "hi", good, tool=replace(FIND, parameters={**FIND.parameters, "required": ["q", "r"]})),
    ]
    found = inspect_samples(samples, tokenizer)
    assert (found.exact, found.alike) == (1, 2)
    assert found.calls == {0: 1, 1: 3, 2: 4} and found.intents == {"answer": 1}
    assert found.origins == {("error", 2): 7, ("seed", 1): 1}
    assert found.categories == {"single": 6, "other": 1, "(none)": 1}
    assert found.tools == 3
    assert {(fault.id, fault.kind, fault.where) for fault in found.faults} == {
        ("d", "missing required argument", "label"),
        ("e", "value of another type", "label"),
        ("e", "unknown tool", "label"),
        ("f", "undeclared argument", "label"),
        ("g", "two tools of one name", "tools"),
        ("g", "an answer without text", "label"),
        ("h", "missing required argument", "label"),
        ("h", "required, but not declared", "tools"),
    }
    (faults,) = [table for table in inspection_tables(found, "nano") if table.title.startswith("What the schemas")]
    assert ["missing required argument (label)", "2", "d: find: missing required argument 'q'"] in list(faults.rows)


def test_lengths_are_the_tokens_of_prompt_and_label(tokenizer):
    samples = generate("train", 100, seed=4)
    found = inspect_samples(samples, tokenizer)
    assert found.faults == ()
    for sample, prompt, label in zip(samples, found.prompt_tokens, found.label_tokens, strict=True):
        text = tokenizer.format.render(sample.messages, sample.tools, thinking=False)
        assert prompt == len(tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)
        target = tokenizer.format.render_target(sample.target)
        assert label == len(tokenizer.tokenizer.encode(target, add_special_tokens=False).ids) + 1
    histogram = next(table for table in inspection_tables(found, "nano") if table.title.startswith("Prompt tokens"))
    assert sum(int(row[1]) for row in histogram.rows) == 100
    assert f"longest {max(found.prompt_tokens)}" in histogram.note


def test_a_sample_that_cannot_be_written_is_named(tokenizer):
    good = generate("train", 1, seed=0)
    with pytest.raises(DataError, match=r"^sample x\\ud800: text with half a surrogate pair"):
        inspect_samples([*good, sample("x\ud800", "\ud800", Call("find", {"q": "a"}))], tokenizer)


def test_what_data_says_does_not_steer_the_terminal(capsys):
    console = Console()
    console.say("a\x1b]0;b\x07\n\tc \ud800 größe [/bold]")
    console.table(Table("t", [""], [["\x1b[2J\x9b [/red]"]]).rich())
    printed = capsys.readouterr().out
    assert "a\\x1b]0;b\\x07\n" in printed and "c \\ud800 größe [/bold]" in printed
    assert "\\x1b[2J\\x9b [/red]" in printed and "\x1b" not in printed


def test_rendered_samples_show_the_label_and_are_cut_where_long(tokenizer):
    (sample,) = generate("train", 1, seed=0)
    shown = rendered(sample, tokenizer.format)
    assert sample.messages[-1].content in shown and shown.endswith(tokenizer.format.render_target(sample.target))
    long = replace(sample, messages=(Message("user", "x" * 20000),))
    assert len(rendered(long, tokenizer.format)) < SHOWN_CHARACTERS + 100
    assert "characters are left out" in rendered(long, tokenizer.format)
