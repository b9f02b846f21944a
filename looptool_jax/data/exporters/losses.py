"""What a record does not hold of a sample, seen by comparing the sample with what is read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from looptool_jax.data.importers.common import Reject
from looptool_jax.toolcall.records import Message, Sample, Tool


def conversation(sample: Sample) -> tuple[Message, ...]:
    """The messages, and the label as the assistant's turn."""
    reasoning = sample.extra.get("reasoning")
    target = sample.target
    label = Message("assistant", target.text, target.calls, reasoning=reasoning if isinstance(reasoning, str) else "")
    return (*sample.messages, label)


def lost_parts(sample: Sample, back: Sample | None) -> list[str]:
    """The parts that differ; what a record adds, such as names of results, is no loss.

    Raises Reject where a record says something else than the sample: it has other turns or calls, or no such step.
    """
    if back is None:
        raise Reject("no step of its own", "the label follows neither a user turn nor a tool result")
    messages = sample.messages
    lost = [] if _documents(sample.tools) == _documents(back.tools) else ["tool documents"]
    if _opens_with_system(messages) and not _opens_with_system(back.messages):
        lost.append("text of system turns")
        messages = messages[1:]
    if _speakers(messages) != _speakers(back.messages):
        raise Reject("a text that reads as turns", "it holds what the format writes between turns")
    kept = back.messages
    if len(messages) != len(kept):
        lost.append("where one tool result ends and the next begins")
        messages, kept = (tuple(m for m in turns if m.role != "tool") for turns in (messages, kept))
    lost += _lost_in_turns(messages, kept)
    lost += _lost_in_turns(conversation(sample)[-1:], conversation(back)[-1:], "the label")
    target = sample.target
    lost += [f"intent {target.intent}"] if target.intent not in (None, back.target.intent) else []
    lost += ["missing parameters"] if target.missing else []
    return lost + (["alternatives"] if target.alternatives else [])


def _opens_with_system(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0].role == "system"


def _speakers(messages: Sequence[Message]) -> list[str]:
    """Who speaks after whom; results that follow one another are one turn in some formats."""
    return [
        role
        for role, turns in groupby(messages, lambda message: message.role)
        for _ in (["tool"] if role == "tool" else turns)
    ]


def _lost_in_turns(before: Sequence[Message], after: Sequence[Message], where: str = "") -> list[str]:
    lost = []
    for old, new in zip(before, after, strict=True):
        if repr(old.calls) != repr(new.calls):  # unlike ==, True is not 1, nor 1 1.0
            raise Reject("a call that the format cannot write", ", ".join(call.name for call in old.calls))
        for part, what in (("content", "text"), ("name", "names"), ("reasoning", "reasoning")):
            if getattr(old, part) not in ("", getattr(new, part)):
                lost.append(f"{what} of {where or f'{old.role} turns'}")
    return list(dict.fromkeys(lost))


def _documents(tools: Sequence[Tool]) -> list[str]:
    """Tool documents as texts; the order of keys and of what is required says nothing."""

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(item, name) for name, item in value.items() if (name, item) != ("required", [])}
        if isinstance(value, list):
            return sorted(value, key=str) if key == "required" else [plain(item) for item in value]
        return value

    return [json.dumps([tool.name, tool.description, plain(tool.parameters)], sort_keys=True) for tool in tools]
