"""Exporters: samples out, as the records that other programs train on, with everything accounted for.

A record is written, read back by the importer of its format, and compared with its samples. What differs is a loss,
and a sample whose record cannot be read back is left out: both are counted, and listed beside the exported file. A
format of dialogues has one record for all steps of a dialogue, the other formats have one for each sample.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.exporters.json_records import openai_record, sharegpt_record, xlam_record
from looptool_jax.data.exporters.losses import conversation, lost_parts
from looptool_jax.data.exporters.text_records import hermes_record, looptool_record, toolace_record, toolrl_record
from looptool_jax.data.files import DataError, PathLike, dump_json, parse_json
from looptool_jax.data.importers import hermes, looptool, openai, sharegpt, toolace, toolrl, xlam
from looptool_jax.data.importers.common import Reject, Source, printable
from looptool_jax.data.store import write_jsonl
from looptool_jax.toolcall.chat import ChatError
from looptool_jax.toolcall.records import Message, Sample, Tool

Record = dict[str, Any]
_Writer = Callable[[Sample], Record]
_Reader = Callable[[Record, Source], list[Sample]]

EXPORTS: dict[str, tuple[_Writer, _Reader, bool]] = {
    "openai": (openai_record, openai.convert, True),
    "toolace": (toolace_record, toolace.convert, True),
    "xlam": (xlam_record, xlam.convert, False),
    "hermes": (hermes_record, hermes.convert, True),
    "sharegpt": (sharegpt_record, sharegpt.convert, True),
    "toolrl": (toolrl_record, toolrl.convert, False),
    "looptool": (looptool_record, looptool.convert, False),
}
"""By format: how a record is written, how it is read, and whether it holds a whole dialogue."""


@dataclass(frozen=True)
class Loss:
    """What became of a sample: the parts its record does not hold, or why there is no record (`kind: detail`)."""

    id: str
    lost: tuple[str, ...] = ()
    left_out: str = ""

    def to_json(self) -> Record:
        return {"id": self.id, **({"left_out": self.left_out} if self.left_out else {"lost": list(self.lost)})}


@dataclass(frozen=True)
class ExportResult:
    """records: in the order of the samples. steps: assistant turns of the records' context that were no samples
    themselves, but are when the records are read back. losses: of every sample that lost something or was left out."""

    format: str
    samples: int
    records: tuple[Record, ...]
    steps: int
    losses: tuple[Loss, ...]

    def tally(self) -> Counter[str]:
        """How many samples lost each part, or were left out for each kind of reason."""
        kinds = Counter(part for loss in self.losses for part in loss.lost)
        kinds.update(f"left out: {loss.left_out.split(':')[0]}" for loss in self.losses if loss.left_out)
        return kinds

    def summary(self) -> str:
        """The counts in words, a line for each kind of loss."""
        left_out = sum(bool(loss.left_out) for loss in self.losses)
        lines = [f"{self.samples} samples, {len(self.records)} {self.format} records, {left_out} samples left out"]
        lines += [f"  {count:6d}  {kind}" for kind, count in self.tally().most_common()]
        if self.steps:
            lines.append(f"  {self.steps:6d}  steps of their context become samples too when the records are read back")
        return "\n".join(lines)


def export_samples(samples: Sequence[Sample], format: str) -> ExportResult:
    """The samples as records of a format. Raises DataError for an unknown format."""
    if format not in EXPORTS:
        raise DataError(f"unknown export format {format!r}; known: {', '.join(EXPORTS)}")
    write, read, holds_dialogues = EXPORTS[format]
    waiting = deque(_dialogues(samples) if holds_dialogues else ([sample] for sample in samples))
    records: list[Record] = []
    losses: list[Loss] = []
    steps = 0
    while waiting:
        *earlier, last = waiting.popleft()
        try:
            record = write(last)
            back = {_turn(each): each for each in read(parse_json(dump_json(record)), Source(format, "", 0, 0))}
            held = [sample for sample in (*earlier, last) if sample is last or _turn(sample) in back]
            found = [(sample, lost_parts(sample, back.pop(_turn(sample), None))) for sample in held]
        except (Reject, ChatError, ValueError) as error:
            losses.append(Loss(last.id, left_out=printable(" ".join(str(error).split()))))
            if earlier:
                waiting.appendleft(earlier)
            continue
        waiting.extendleft([sample] for sample in earlier if sample not in held)
        records.append(record)
        steps += len(back)
        losses += [Loss(sample.id, tuple(lost)) for sample, lost in found if lost]
    return ExportResult(format, len(samples), tuple(records), steps, tuple(losses))


def write_export(result: ExportResult, out: PathLike) -> None:
    """Write the records as JSON lines and the losses beside them, print the counts. Raises DataError."""
    if not str(out).endswith(".jsonl"):
        raise DataError(f"{out}: records are written as JSON lines; name a file that ends in .jsonl")
    write_jsonl(out, result.records)
    losses = f"{str(out).removesuffix('.jsonl')}.losses.jsonl"
    write_jsonl(losses, (loss.to_json() for loss in result.losses))
    print(f"{result.summary()}\nNo format holds origin, lineage, category and extra; all other losses are in {losses}")


def _dialogues(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples that are steps of one dialogue together, the longest last; in the order of their last steps."""
    whole = [conversation(sample) for sample in samples]
    prefixes = [list(_prefixes(sample.tools, messages)) for sample, messages in zip(samples, whole, strict=True)]
    by_key: dict[bytes, list[int]] = {}
    for index, keys in enumerate(prefixes):
        by_key.setdefault(keys[-1], []).append(index)
    taken: set[int] = set()
    groups: dict[int, list[Sample]] = {}
    for index in sorted(range(len(samples)), key=lambda index: (-len(whole[index]), index)):
        if index not in taken:
            free = [[other for other in by_key.get(key, ()) if other not in taken] for key in prefixes[index][:-1]]
            group = [*(others[0] for others in free if others), index]
            taken.update(group)
            groups[index] = [samples[member] for member in group]
    return (groups[index] for index in sorted(groups))


def _prefixes(tools: Sequence[Tool], messages: Sequence[Message]) -> Iterator[bytes]:
    """A key of the dialogue up to and with each assistant turn."""
    key = dump_json([tool.to_json() for tool in tools])
    for message in messages:
        key = hashlib.sha256(key + dump_json(message.to_json())).digest()
        if message.role == "assistant":
            yield key


def _turn(sample: Sample) -> int:
    """Which assistant turn of its dialogue a sample is."""
    return sum(message.role == "assistant" for message in sample.messages)
