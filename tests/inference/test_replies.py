"""Replies from tokens that arrive: what is streamed, joined, is what is said at once; stop strings; calls."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.inference.serving.replies import ChatReader, Choice, Streamed, chat_logprobs, text_logprobs
from looptool_jax.inference.serving.worker import Piece
from looptool_jax.loop.pool import locate
from looptool_jax.toolcall import Call, ChatTokenizer, Target, get_format
from looptool_jax.toolcall.parser import before_marks

TOKENIZER = ChatTokenizer.from_pretrained(locate("nano/policy"), "qwen3")
CALL = TOKENIZER.format.render_target(Target(calls=(Call("find", {"city": "Zürich"}), Call("pay", {"sum": 1.5}))))
ANSWERS = (
    "", " Hello. ", "Grüße 🌍 an alle!", CALL, f"I look it up.\n{CALL}", f"<think>\nHm.\n</think>\n\n{CALL}",
    "<think>\nHm.\n</think>\n\nNo tool fits.", "<think>never closed", "a < b and <tool", f"{CALL}\nand text behind",
    '<tool_call>\n{"name": "find", broken\n</tool_call>', "<think>x</think> before <tool_call>", "</think> stray",
    "1 <",
)  # fmt: skip


def pieces(text: str, rng: Random, finish: str = "stop") -> list[Piece]:
    """The tokens of an answer in pieces of 0 to 5, its end token in the last."""
    ids = TOKENIZER._encode_run(text) + ([TOKENIZER.eos_ids[0]] if finish == "stop" else [])
    out, start = [], 0
    while start < len(ids) or not out:
        count = rng.randint(0, 5)
        part = ids[start : start + count]
        start += count
        out.append(Piece(0, part, [-0.5] * len(part), finish if start >= len(ids) else None))
    return out


def streamed(text: str, reader: ChatReader, rng: Random, stop=()):
    """The reply as it is read at the end, and its deltas joined."""
    choice, sent, joined, calls, reasoning = Choice(reader.tokenizer, stop), Streamed(), "", [], ""
    for piece in pieces(text, rng):
        choice.add(piece)
        said = reader.begun(choice.settled) if choice.finish is None else reader.read(choice.text)
        delta = sent.delta(said)
        joined += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        calls += delta.get("tool_calls", [])
    return reader.read(choice.text), joined, reasoning, calls


@pytest.mark.parametrize("text", ANSWERS)
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("thinking", [False, True])
def test_a_stream_says_what_the_whole_says(text, tools, thinking):
    for seed in range(5):
        said, *joined = streamed(text, ChatReader(TOKENIZER, tools, thinking), Random(seed))
        names = [call.name for call in said.calls]
        assert joined[:2] == [said.content, said.reasoning]
        assert [call["function"]["name"] for call in joined[2]] == names
        assert not names or tools


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<think>", "</think>", "<", " ", "\n", "ab", "é🌍"])),
       st.integers(0, 99), st.booleans(), st.booleans())  # fmt: skip
def test_whatever_is_written_a_stream_says_what_the_whole_says(parts, seed, tools, thinking):
    said, joined, reasoning, calls = streamed("".join(parts), ChatReader(TOKENIZER, tools, thinking), Random(seed))
    assert (joined, reasoning, calls) == (said.content, said.reasoning, [])


def test_calls_are_read_by_the_strict_parser():
    reader = ChatReader(TOKENIZER, True, False)
    said = reader.read(f"I look it up.\n{CALL}")
    message = said.message
    assert message["content"] == "I look it up." and said.finish("stop") == "tool_calls"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Zürich"}
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert reader.read(CALL).message["content"] is None
    for broken in (f"{CALL} more", CALL.replace("</tool_call>", "", 1), CALL.replace('"sum"', '"sum": 1, "sum"')):
        assert reader.read(broken).calls == () and reader.read(broken).content == broken
    assert ChatReader(TOKENIZER, False, False).read(CALL).content == CALL


def test_nothing_of_a_llama_answer_is_certain_before_its_end():
    llama = get_format("llama3.1")
    assert llama.before_calls("It is ") == ""
    assert TOKENIZER.format.before_calls("It is <tool") == "It is "


@given(st.text("ab<", max_size=8), st.lists(st.text("ab<", min_size=1, max_size=3), max_size=3), st.text("ab<"))
def test_what_is_before_marks_stays_so(text, marks, more):
    before = before_marks(text, marks)
    whole = text + more
    places = [place for mark in marks if (place := whole.find(mark)) >= 0]
    assert whole[: min(places, default=len(whole))].startswith(before)
    assert all(mark not in text for mark in marks) or before == text[: min(text.find(m) for m in marks if m in text)]


@given(st.integers(0, 999), st.sampled_from(["end", "🌍", "e 🌍", "\n\n", "no such"]))
def test_an_answer_ends_before_the_first_stop_string(seed, stop):
    text = "Grüße 🌍 an alle!\n\nThe end 🌍 end"
    choice, sent, joined = Choice(TOKENIZER, (stop, "never")), Streamed(), ""
    reader = ChatReader(TOKENIZER, False, False)
    for piece in pieces(text, Random(seed), "length"):
        choice.add(piece)
        said = reader.begun(choice.settled) if choice.finish is None else reader.read(choice.text)
        joined += sent.delta(said).get("content", "")
    assert choice.text == joined == text.partition(stop)[0]
    assert choice.finish == ("stop" if stop in text else "length")
    assert len(choice.tokens) == len(choice.logprobs) >= choice.shown
    assert TOKENIZER.decode(choice.tokens[: choice.shown]).startswith(choice.text)
    assert stop not in TOKENIZER.decode(choice.tokens[:-1])


def test_logprobs_name_the_tokens_of_the_text():
    choice = Choice(TOKENIZER, ())
    for piece in pieces("Grüße 🌍", Random(0)):
        choice.add(piece)
    content = chat_logprobs(choice, slice(0, choice.shown))["content"]
    assert len(content) == len(choice.tokens) - 1 and {each["logprob"] for each in content} == {-0.5}
    assert all(each["bytes"] is None or bytes(each["bytes"]).decode() == each["token"] for each in content)
    assert any(each["bytes"] is None for each in content), "an emoji is several tokens here"
    plain = Choice(TOKENIZER, ())
    for piece in pieces("of the city", Random(0)):
        plain.add(piece)
    told = text_logprobs(plain, slice(1, plain.shown))
    assert "of the city"[told["text_offset"][0] :] == "".join(told["tokens"])
