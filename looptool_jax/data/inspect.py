"""What a sample set holds: counts, lengths, faults and repetitions."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from looptool_jax.data.files import DataError, dump_json
from looptool_jax.data.importers.common import printable
from looptool_jax.toolcall import ChatTokenizer, check_call
from looptool_jax.toolcall.chat import ChatError
from looptool_jax.toolcall.records import Call, Sample

_KINDS = (
    ("unknown tool", "unknown tool"),
    ("missing required", "missing required argument"),
    ("undeclared", "undeclared argument"),
    ("must be one of", "value outside its enum"),
    ("must be", "value of another type"),
    ("fits none", "value of another type"),
)


@dataclass(frozen=True)
class Fault:
    """A call, or a label, that its tools do not allow. where: "label" or "history"."""

    id: str
    kind: str
    where: str
    detail: str


@dataclass(frozen=True)
class Inspection:
    """Counts over a sample set.

    origins: by kind and round. calls: labels by their number of calls. intents: of text labels. tools: distinct
    documents. exact, alike: samples that repeat an earlier one's tools, messages and label; or its messages and label
    where case, white space, the order of parallel calls and the tools do not count. prompt_tokens, label_tokens: of
    every sample, the label with its end.
    """

    samples: int
    categories: Counter[str]
    origins: Counter[tuple[str, int]]
    calls: Counter[int]
    intents: Counter[str]
    shown: Counter[int]
    tools: int
    faults: tuple[Fault, ...]
    exact: int
    alike: int
    prompt_tokens: tuple[int, ...]
    label_tokens: tuple[int, ...]


def inspect_samples(samples: Sequence[Sample], tokenizer: ChatTokenizer) -> Inspection:
    """Count everything; lengths in tokens of this tokenizer's chat format, without thinking.

    Raises DataError for a sample that the chat format cannot write.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # the tokenizer computes outside of Python's lock
        lengths = list(threads.map(lambda sample: _lengths(sample, tokenizer), samples, chunksize=64))
    exact = Counter(_digest([raw["tools"], raw["messages"], raw["target"]]) for raw in map(Sample.to_json, samples))
    alike = Counter(_digest(_plain(sample)) for sample in samples)
    return Inspection(
        samples=len(samples),
        categories=Counter(sample.category or "(none)" for sample in samples),
        origins=Counter((sample.origin.kind, sample.origin.round) for sample in samples),
        calls=Counter(len(sample.target.calls) for sample in samples),
        intents=Counter(sample.target.intent for sample in samples if sample.target.intent),
        shown=Counter(len(sample.tools) for sample in samples),
        tools=len({_digest(tool.to_json()) for sample in samples for tool in sample.tools}),
        faults=tuple(fault for sample in samples for fault in _faults(sample)),
        exact=len(samples) - len(exact),
        alike=len(samples) - len(alike),
        prompt_tokens=tuple(prompt for prompt, _ in lengths),
        label_tokens=tuple(label for _, label in lengths),
    )


def _lengths(sample: Sample, tokenizer: ChatTokenizer) -> tuple[int, int]:
    try:
        prompt = tokenizer.encode_prompt(sample.messages, sample.tools, thinking=False)
        return len(prompt), len(tokenizer.encode_target(sample.target)) + 1
    except ChatError as error:
        raise DataError(f"sample {printable(sample.id)}: {error}") from None


def _faults(sample: Sample) -> list[Fault]:
    names = Counter(tool.name for tool in sample.tools)
    faults = [Fault(sample.id, "two tools of one name", "tools", name) for name, count in names.items() if count > 1]
    faults += [
        Fault(sample.id, "required, but not declared", "tools", f"{tool.name}: {name}")
        for tool in sample.tools
        for name in tool.required
        if name not in tool.properties
    ]
    history = [("history", call) for message in sample.messages for call in message.calls]
    for where, call in [*(("label", call) for call in sample.target.calls), *history]:
        for problem in check_call(call, sample.tools):
            kind = next((name for words, name in _KINDS if words in problem), "other")
            faults.append(Fault(sample.id, kind, where, f"{call.name}: {problem}"))
    if not sample.target.calls and not sample.target.text.strip() and sample.target.intent == "answer":
        faults.append(Fault(sample.id, "an answer without text", "label", ""))
    return faults


def _plain(sample: Sample) -> list[object]:
    """Messages and label where case, white space and the order of calls do not count."""
    turns = [[message.role, _folded(message.content), _calls(message.calls)] for message in sample.messages]
    return [turns, _folded(sample.target.text), _calls(sample.target.calls)]


def _calls(calls: Sequence[Call]) -> list[str]:
    return sorted(
        f"{call.name} {dump_json(dict(sorted(call.arguments.items()))).decode().casefold()}" for call in calls
    )


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


def _digest(value: object) -> bytes:
    return hashlib.sha256(dump_json(value)).digest()
