"""The samples of a report as the page carries them: an index to filter by, and parts with everything else, each of
which is unpacked when somebody looks.

A part is JSON, compressed (gzip), in base64: its letters cannot end the script element that holds it. report.js reads
it.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from looptool_jax.report.page import visible
from looptool_jax.report.stories import Answer, Judged, Stories, Story
from looptool_jax.report.word_diff import laid_out, word_diff
from looptool_jax.toolcall import Message, Target

PART = 128  # samples, or tools, of a part
LONGEST = 20_000  # characters of a text; the rest is in the run's files


def samples_markup(stories: Stories, trained: Sequence[int]) -> str:
    """Script elements with the index (`data-part="index"`), the samples and their tools. trained: the rounds whose
    training is done."""
    told = list(stories.told.values())
    tools: dict[str, int] = {}
    details = [_detail(story, stories, tools) for story in told]
    index = {
        "part": PART,
        "total": stories.total,
        "trained": list(trained),
        "rows": [_row(story) for story in told],
        "samples": -(-len(details) // PART),
    }
    parts = {"index": index} | _parts("samples", details) | _parts("tools", list(tools))
    return "\n".join(
        f'<script type="text/plain" data-part="{name}">{packed(part)}</script>' for name, part in parts.items()
    )


def packed(value: Any) -> str:
    """A JSON value, compressed and in letters that mean nothing to HTML; the same for the same value."""
    content = json.dumps(value, separators=(",", ":")).encode("ascii")
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _parts(name: str, items: Sequence[Any]) -> dict[str, Any]:
    return {f"{name}-{number}": items[start : start + PART] for number, start in enumerate(range(0, len(items), PART))}


def _row(story: Story) -> list[Any]:
    """What is filtered by: id, first words, category, kind, [round, kind] in data, [round, right], [round, verdict]."""
    return [
        visible(story.id),
        visible(story.title),
        visible(story.category),
        story.kind,
        [[entry.round, entry.kind] for entry in story.entries],
        [[answer.round, int(answer.right)] for answer in story.answers],
        [[judged.round, judged.verdict] for judged in story.judged],
    ]


def _detail(story: Story, stories: Stories, tools: dict[str, int]) -> dict[str, Any]:
    """Everything about a sample that the index does not say; what is empty is left out."""
    parent = stories.told.get(story.parent or "")
    detail = {
        "messages": [_message(message) for message in story.messages],
        "tools": [tools.setdefault(cut(tool), len(tools)) for tool in story.tools],
        "labels": _labels(story),
        "answers": [_answer(answer) for answer in story.answers],
        "judged": [_judged(judged) for judged in story.judged],
        "parent": visible(parent.id) if parent else "",
        "scenario": visible(story.scenario),
        "children": [visible(child) for child in story.children],
        "truth": cut(laid_out(story.truth)) if story.truth else "",
        "valid": story.valid,
        "tier": story.tier,
        "reason": cut(story.reason),
        "reply": cut(story.reply),
    }
    return {key: value for key, value in detail.items() if value not in ("", [], None)}


def _labels(story: Story) -> list[list[Any]]:
    """[round, label] where the sample first has it; round 0 for a sample that is in no data set."""
    found: list[list[Any]] = []
    entered = [(entry.round, entry.label) for entry in story.entries]
    for round_, label in entered or ([(0, story.label)] if story.label else []):
        words = cut(laid_out(label))
        if not found or found[-1][1] != words:
            found.append([round_, words])
    return found


def _message(message: Message) -> dict[str, str]:
    parts = [message.content, *(laid_out(Target(calls=(call,))) for call in message.calls)]
    row = {"role": message.role, "text": cut("\n".join(filter(None, parts)))}
    return row | ({"name": visible(message.name)} if message.name else {})


def _answer(answer: Answer) -> dict[str, Any]:
    """A right answer as it is; a wrong one with its label, word by word ("diff": the two sides)."""
    row: dict[str, Any] = {"round": answer.round, "right": answer.right}
    if answer.perplexity is not None:
        row["perplexity"] = answer.perplexity
    if answer.right:
        return row | {"text": cut(laid_out(answer.text))}
    return row | {
        "reason": cut(answer.reason),
        "diff": word_diff(cut(laid_out(answer.label)), cut(laid_out(answer.text))),
    }


def _judged(judged: Judged) -> dict[str, Any]:
    row = {**vars(judged), "analysis": cut(judged.analysis)}
    return {key: value for key, value in row.items() if value is not None}


def cut(words: str) -> str:
    """A text that a page can hold, and what it leaves out."""
    if len(words) <= LONGEST:
        return visible(words)
    return f"{visible(words[:LONGEST])}\n… {len(words) - LONGEST:,} more characters in the files of the run"
