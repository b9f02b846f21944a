"""The tables of an inspected sample set, and samples as a model reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from looptool_jax.data.inspect import Inspection
from looptool_jax.report.tables import Table
from looptool_jax.toolcall import ChatFormat, Sample

BARS = 40
BINS = 12
SHOWN_CHARACTERS = 3000


def inspection_tables(found: Inspection, model: str) -> list[Table]:
    """Everything that was counted. `model`: whose tokens are counted."""
    repeated = [
        ["tools, messages and label", str(found.exact)],
        ["messages and label, but for case, white space and the order of calls", str(found.alike)],
    ]
    origins = Counter({f"{kind}, round {number}": count for (kind, number), count in found.origins.items()})
    calls = Counter({_calls(number): count for number, count in sorted(found.calls.items())})
    tables = [
        _counts("Categories", found.categories),
        _counts("Origins", origins),
        _counts("Labels", calls),
        _counts("Intents of text labels", found.intents),
        _lengths(f"Prompt tokens ({model})", found.prompt_tokens),
        _lengths(f"Label tokens ({model})", found.label_tokens),
        Table("Samples that repeat an earlier one", ["equal in", "samples"], repeated),
        _faults(found),
    ]
    return [table for table in tables if table.rows]


def rendered(sample: Sample, format: ChatFormat) -> str:
    """A sample as the model reads it, and its label behind a line of its own; long ones are cut, and say so."""
    prompt = format.render(sample.messages, sample.tools, thinking=False)
    text = f"{prompt}\n──────── label ({sample.target.intent or 'calls'})\n{format.render_target(sample.target)}"
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n──────── {len(text) - 2 * half} characters are left out\n{text[-half:]}"


def _counts(title: str, counts: Counter[Any]) -> Table:
    total = max(1, sum(counts.values()))
    rows = [[str(name), str(count), f"{count / total:.1%}"] for name, count in counts.most_common()]
    return Table(title, ["", "samples", "share"], rows)


def _calls(number: int) -> str:
    return {0: "text", 1: "1 call"}.get(number, f"{number} calls")


def _lengths(title: str, lengths: Sequence[int]) -> Table:
    """A histogram, with the figures that a limit is chosen by below it."""
    ordered = sorted(lengths)
    if not ordered:
        return Table(title, [], [])
    low, high = ordered[0], ordered[-1]
    width = max(1, -(-(high - low + 1) // BINS))
    bins = Counter((length - low) // width for length in ordered)
    most = max(bins.values())
    rows = []
    for number in range(max(bins) + 1):
        first = low + number * width
        bar = "█" * round(BARS * bins[number] / most) or ("▏" if bins[number] else "")
        rows.append([f"{first:>6} to {min(high, first + width - 1):<6} {bar}", str(bins[number])])
    marks = {f"{share:.0%}": ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99)}
    quantiles = ", ".join(f"{share} up to {value}" for share, value in marks.items())
    return Table(
        title, ["tokens", "samples"], rows, f"{quantiles}; longest {high}, mean {sum(ordered) / len(ordered):.0f}"
    )


def _faults(found: Inspection) -> Table:
    kinds = Counter((fault.kind, fault.where) for fault in found.faults)
    examples = {(fault.kind, fault.where): fault for fault in reversed(found.faults)}
    rows = [
        [f"{kind} ({where})", str(count), f"{examples[kind, where].id}: {examples[kind, where].detail}"[:100]]
        for (kind, where), count in kinds.most_common()
    ]
    return Table("What the schemas do not allow", ["", "times", "first"], rows)
