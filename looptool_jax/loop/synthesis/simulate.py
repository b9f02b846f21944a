"""Many dialogues at a time, both tiers of the verification, and the samples that come of them (paper, section 3.2)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from looptool_jax.data.store import dump_json, join, write_bytes, write_jsonl, write_samples
from looptool_jax.inference.answers import ChatModel, ChatRequest
from looptool_jax.loop.console import Console
from looptool_jax.loop.prompts import parse_verification, verify_messages
from looptool_jax.loop.prompts.synthesis import KINDS
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.loop.synthesis.dialogue import TIERS, Dialogue
from looptool_jax.loop.synthesis.tools import ToolEntry
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.toolcall import Message, Origin, Sample, Target, Tool

CATEGORIES = (*KINDS, "summary")
SAMPLE_TIERS = ("refused", "judge", "context", "duplicate")
"""What rejects a step of a dialogue: a tool did not accept its calls, the judge finds it wrong, an earlier step that
the judge finds wrong is part of its context, another sample has the same context and label."""


def synthesize_dialogues(
    generator: ChatModel,
    judge: ChatModel | None,
    tools: Sequence[ToolEntry],
    seed: int,
    cfg: SynthesisConfig,
    out: str,
    console: Console,
) -> dict[str, Any]:
    """Simulate `cfg.count` dialogues and return the metrics; `judge` may be None where `cfg.verify` is "rules".

    Writes a sample set into `out` (one sample per assistant step that passed both tiers; `data.source` of a run can be
    this folder), `out/dialogues.jsonl` (all that was said, and what became of every step), `out/rejected.jsonl`
    (dialogues that ended early and steps that are no samples, with tier, reason and reply) and `out/metrics.json`.
    """

    def work(numbers: Sequence[int]) -> list[dict[str, Any]]:
        dialogues = [Dialogue(number, tools, seed, cfg) for number in numbers]
        _advance(generator, dialogues, cfg, console)
        rows = [dialogue.to_json() for dialogue in dialogues]
        if cfg.verify != "rules":
            assert judge is not None
            _verify(judge, rows, cfg, console)
        return rows

    rows = process_in_chunks(range(cfg.count), cfg.chunk, join(out, "progress.jsonl"), work, console)
    _reject_duplicates(rows)
    accepted = [sample for row in rows for step, sample in _samples(row) if not step["tier"]]
    write_samples(out, accepted)
    write_jsonl(join(out, "dialogues.jsonl"), rows)
    dropped = [each for row in rows for each in (row, *row["steps"]) if each["tier"]]
    write_jsonl(join(out, "rejected.jsonl"), [_rejection(each) for each in dropped])
    metrics = _metrics(rows, accepted)
    write_bytes(join(out, "metrics.json"), dump_json(metrics) + b"\n")
    return metrics


def _advance(generator: ChatModel, dialogues: Sequence[Dialogue], cfg: SynthesisConfig, console: Console) -> None:
    """Bring all dialogues to their ends; what all of them need next is one batch."""
    going = list(dialogues)
    while going:
        asked = [dialogue.requests() for dialogue in going]
        replies = iter(
            generator.chat(
                [request for requests in asked for request in requests], cfg.answers, console.tokens,
                temperature=cfg.temperature, top_p=cfg.top_p, top_k=cfg.top_k,
            )
        )  # fmt: skip
        for dialogue, requests in zip(going, asked, strict=True):
            dialogue.receive([next(replies) for _ in requests])
        before, going = len(going), [dialogue for dialogue in going if dialogue.stage != "over"]
        console.advance(before - len(going))


def _samples(row: dict[str, Any]) -> list[tuple[dict[str, Any], Sample]]:
    """Every step of a dialogue, and what it is as a sample."""
    tools = tuple(map(Tool.from_json, row["tools"]))
    messages = tuple(map(Message.from_json, row["messages"]))
    return [
        (
            step,
            Sample(
                step["id"], tools, messages[: step["place"]], Target.from_json(step["target"]),
                Origin("seed", 1, scenario=row["plan"][step["turn"] - 1]["kind"]), step["category"],
                extra={"source": "synthesized", "dialogue": row["id"], "turn": step["turn"]},
            ),
        )
        for step in row["steps"]
    ]  # fmt: skip


def _rejection(row: dict[str, Any]) -> dict[str, Any]:
    """What is told of a dialogue that ended early, or of a step that is no sample."""
    return {key: row[key] for key in ("id", "tier", "reason", "target", "reply") if key in row}


def _verify(judge: ChatModel, rows: list[dict[str, Any]], cfg: SynthesisConfig, console: Console) -> None:
    """Tier 2: the judge finds every step right. Behind one that it does not, the rest of the dialogue goes too."""
    asked = [(step, sample) for row in rows for step, sample in _samples(row) if not step["tier"]]
    requests = [ChatRequest(sample.id, verify_messages(sample)) for _, sample in asked]
    for (step, _), reply in zip(asked, judge.chat(requests, cfg.verify_answers, console.tokens), strict=True):
        if (verdict := parse_verification(reply.text)) is not True:
            reason = "no verdict on the last line" if verdict is None else "the judge finds it incorrect"
            step.update(tier="judge", reason=reason, reply=reply.text)
    for row in rows:
        wrong = ""
        for step in row["steps"]:
            if wrong and not step["tier"]:
                step.update(tier="context", reason=f"{wrong} is part of its context", reply="")
            wrong = wrong or (step["id"] if step["tier"] == "judge" else "")


def _reject_duplicates(rows: Sequence[dict[str, Any]]) -> None:
    """A sample must differ from every earlier one in its tools, its context or its label."""
    seen: dict[bytes, str] = {}
    for row in rows:
        for step in row["steps"]:
            if step["tier"]:
                continue
            content = dump_json([row["tools"], row["messages"][: step["place"]], step["target"]])
            first = seen.setdefault(hashlib.sha256(content).digest(), step["id"])
            if first != step["id"]:
                step.update(tier="duplicate", reason=f"equal to {first}", reply="")


def _metrics(rows: Sequence[dict[str, Any]], accepted: Sequence[Sample]) -> dict[str, Any]:
    ended = Counter(row["tier"] for row in rows)
    rejected = Counter(step["tier"] for row in rows for step in row["steps"])
    categories = Counter(sample.category for sample in accepted)
    return {
        "dialogues": len(rows),
        "finished": ended[""],
        **{f"ended_{tier}": ended[tier] for tier in TIERS},
        "steps": rejected.total(),
        "accepted": len(accepted),
        **{f"rejected_{tier}": rejected[tier] for tier in SAMPLE_TIERS},
        **{name: sum(row[name] for row in rows) for name in ("votes", "executed", "simulated")},
        **{category: categories[category] for category in CATEGORIES},
    }
