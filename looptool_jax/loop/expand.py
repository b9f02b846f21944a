"""EDDE: error-driven data expansion (paper, section 4.4).

A generator writes k new samples around each error seed, one for each scenario variation in turn. Each passes two
tiers: rules (it parses, fits its tools' schemas, repeats neither an error seed nor another new one) and the judge (the
call is right for the request).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from looptool_jax.data.store import dump_json, join, write_jsonl, write_samples
from looptool_jax.inference.answers import AnswerConfig, Answerer, ChatModel, ChatRequest
from looptool_jax.inference.grammar import check_installed, problem
from looptool_jax.limits import above, at_least
from looptool_jax.loop.console import Console
from looptool_jax.loop.judge import ErrorSeed, own_answers_differ
from looptool_jax.loop.keys import key_for
from looptool_jax.loop.prompts import (
    SCENARIOS,
    Variant,
    expand_messages,
    expansion_grammar,
    parse_expansion,
    parse_verification,
    response_text,
    verify_messages,
)
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.toolcall import Origin, Parsed, Sample, Target, check_call, parse


@dataclass
class ExpandConfig:
    """Expansion.

    enabled: false removes EDDE. per_error: k new samples for each error seed. verify: the second tier. "verdict": the
        judge is asked whether the label is right; "answer": the judge answers the request itself, without seeing the
        label, and must arrive at the same (for models too small to check a label); "rules": nothing further.
    grammar: whether the generator can only write calls that fit their tools' schemas (the extra `grammar`; a generator
        on the mesh); decoding then syncs at every step.
    prompt: "full" for language models, "compact" for nano. chunk: error seeds committed at once.
    temperature, top_p, top_k: of the generator, as in the released code.
    """

    enabled: bool = True
    per_error: int = 4
    verify: str = "verdict"
    grammar: bool = False
    prompt: Variant = "full"
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 20
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    verify_answers: AnswerConfig = field(default_factory=AnswerConfig)
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.verify not in ("verdict", "answer", "rules"):
            raise ValueError(f"expand.verify: expected verdict, answer or rules, found {self.verify!r}")
        at_least("expand.per_error", self.per_error, 1)
        at_least("expand.chunk", self.chunk, 1)
        above("expand.temperature", self.temperature, 0)
        at_least("expand.top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"expand.top_p: more than 0 and at most 1, found {self.top_p}")


def expand(
    generator: ChatModel | None,
    judge: ChatModel | None,
    seeds: Sequence[ErrorSeed],
    prompt_limit: tuple[Answerer, int] | None,
    seed: int,
    round_: int,
    cfg: ExpandConfig,
    out: str,
    console: Console,
) -> dict[str, Any]:
    """Expand the error seeds and return the metrics; the models may be None where the expansion is disabled.

    Writes `out/expanded.jsonl` (accepted samples) and `out/rejected.jsonl` (the others with tier and reason).
    Only seeds whose label is a call are expanded, as in the paper's code. prompt_limit: the policy and its
    longest prompt in tokens; a new sample that is longer is rejected. Raises GrammarError where `grammar` is asked for
    and llguidance is not installed.
    """
    seeds = [item for item in seeds if item.sample.target.is_call] if cfg.enabled else []
    grammars = _grammars(seeds, console) if cfg.grammar and cfg.enabled else {}

    def work(chunk: Sequence[ErrorSeed]) -> list[dict[str, Any]]:
        assert generator is not None
        rows = _generate(generator, chunk, grammars, seed, round_, cfg, console)
        _apply_rules(rows, prompt_limit)
        if cfg.verify != "rules":
            assert judge is not None
            _verify(judge, rows, cfg, console)
        console.advance(len(chunk))
        return [row.to_json() for row in rows]

    rows = process_in_chunks(seeds, cfg.chunk, join(out, "progress.jsonl"), work, console)
    _reject_duplicates(rows, seeds)
    accepted = [row for row in rows if row["tier"] == ""]
    write_samples(join(out, "expanded.jsonl"), [Sample.from_json(row["sample"]) for row in accepted])
    write_jsonl(join(out, "rejected.jsonl"), [row for row in rows if row["tier"]])
    tiers = ("parse", "rules", "judge", "duplicate")
    return {
        "seeds": len(seeds),
        "generated": len(rows),
        "accepted": len(accepted),
        "acceptance": round(len(accepted) / max(1, len(rows)), 6),
        **{f"rejected_{tier}": sum(row["tier"] == tier for row in rows) for tier in tiers},
        **({"seeds_without_grammar": len(seeds) - len(grammars)} if cfg.grammar else {}),
    }


@dataclass
class _Row:
    """A generated sample on its way through the tiers; `tier` names the one that rejected it."""

    id: str
    parent: str
    scenario: str
    reply: str
    sample: Sample | None = None
    tier: str = ""
    reason: str = ""

    def reject(self, tier: str, reason: str) -> None:
        self.tier, self.reason = tier, reason

    def to_json(self) -> dict[str, Any]:
        row = {"id": self.id, "parent": self.parent, "scenario": self.scenario, "tier": self.tier}
        if self.sample is not None:
            row["sample"] = self.sample.to_json()  # type: ignore[assignment]
        return row | ({"reason": self.reason, "reply": self.reply} if self.tier else {})


def _grammars(seeds: Sequence[ErrorSeed], console: Console) -> dict[str, str]:
    """The grammar of new samples around each seed, by its id; a line says where its tools give none."""
    check_installed("expand.grammar=true")
    made = {item.sample.id: expansion_grammar(item.sample.tools) for item in seeds}
    problems = {id_: reason for id_, grammar in made.items() if (reason := problem(grammar))}
    if problems:
        id_, reason = next(iter(problems.items()))
        console.say(
            f"expand.grammar: none can be made of the tools of {len(problems)} of {len(made)} error seeds ({id_}: "
            f"{reason}); what is written about these is free"
        )
    return {id_: grammar for id_, grammar in made.items() if id_ not in problems}


def _generate(
    generator: ChatModel, chunk: Sequence[ErrorSeed], grammars: Mapping[str, str], seed: int, round_: int,
    cfg: ExpandConfig, console: Console,
) -> list[_Row]:  # fmt: skip
    scenarios = list(SCENARIOS)
    requests, rows = [], []
    for item in chunk:
        correct = response_text(item.sample.target)
        for i in range(cfg.per_error):
            scenario = scenarios[i % len(scenarios)]
            id_ = f"{item.sample.id}.r{round_}e{i}"
            messages = expand_messages(cfg.prompt, item.sample, correct, item.wrong, item.analysis, scenario)
            key, grammar = key_for(seed, round_, "expand", item.sample.id, i), grammars.get(item.sample.id, "")
            requests.append(ChatRequest(id_, messages, key, grammar))
            rows.append((item, id_, scenario))
    replies = generator.chat(
        requests, cfg.answers, console.tokens, temperature=cfg.temperature, top_p=cfg.top_p, top_k=cfg.top_k
    )
    return [
        _read(item, id_, scenario, reply.text, round_)
        for (item, id_, scenario), reply in zip(rows, replies, strict=True)
    ]


def _read(item: ErrorSeed, id_: str, scenario: str, reply: str, round_: int) -> _Row:
    """Tier 0: the reply holds an INPUT and an OUTPUT with calls."""
    row = _Row(id_, item.sample.id, scenario, reply)
    expansion = parse_expansion(reply, item.sample)
    if isinstance(expansion, str):
        row.reject("parse", expansion)
        return row
    parsed = parse(expansion.output_text)
    if not isinstance(parsed, Parsed):
        row.reject("parse", f"output: {parsed.kind}: {parsed.detail}")
    elif not parsed.calls:
        row.reject("parse", "output: no tool call")
    else:
        row.sample = Sample(
            id=id_,
            tools=item.sample.tools,
            messages=tuple(expansion.messages),
            target=Target(calls=parsed.calls),
            origin=Origin("expanded", round_ + 1, parent=item.sample.id, scenario=scenario),
            category=item.sample.category,
            lineage=(*item.sample.lineage, item.sample.origin),
        )
    return row


def _apply_rules(rows: list[_Row], prompt_limit: tuple[Answerer, int] | None) -> None:
    """Tier 1: the calls fit their tools' schemas and the prompt fits the policy."""
    for row in rows:
        if row.sample is None:
            continue
        problems = [problem for call in row.sample.target.calls for problem in check_call(call, row.sample.tools)]
        if problems:
            row.reject("rules", "; ".join(problems))
        elif prompt_limit is not None and (length := prompt_limit[0].prompt_length(row.sample)) > prompt_limit[1]:
            row.reject("rules", f"the prompt has {length} tokens, over the limit of {prompt_limit[1]}")


def _verify(judge: ChatModel, rows: list[_Row], cfg: ExpandConfig, console: Console) -> None:
    """Tier 2: the judge finds the label right for the request."""
    open_rows = [(row, row.sample) for row in rows if not row.tier and row.sample is not None]
    if cfg.verify == "answer":
        pairs = [(sample, sample.target) for _, sample in open_rows]
        reasons = own_answers_differ(cast(Answerer, judge), pairs, cfg.verify_answers, console.tokens)
    else:
        reasons = _verdicts(judge, [sample for _, sample in open_rows], cfg.verify_answers, console)
    for (row, _), reason in zip(open_rows, reasons, strict=True):
        if reason:
            row.reject("judge", reason)


def _verdicts(judge: ChatModel, samples: Sequence[Sample], answers: AnswerConfig, console: Console) -> list[str]:
    """Why the judge rejects each sample, asked for a verdict on it ("": it does not)."""
    requests = [ChatRequest(sample.id, verify_messages(sample)) for sample in samples]
    texts = {True: "", False: "the judge finds it incorrect", None: "no verdict on the last line"}
    return [texts[parse_verification(reply.text)] for reply in judge.chat(requests, answers, console.tokens)]


def _reject_duplicates(rows: list[dict[str, Any]], seeds: Sequence[ErrorSeed]) -> None:
    """A new sample must differ from the error seeds and every earlier new one in its dialogue or its calls."""
    seen = {_content(item.sample.to_json()): "an error seed" for item in seeds}
    for row in rows:
        if row["tier"]:
            continue
        content = _content(row["sample"])
        if content in seen:
            row.update(tier="duplicate", reason=f"equal to {seen[content]}")
        seen.setdefault(content, "an earlier sample of this round")


def _content(sample: dict[str, Any]) -> bytes:
    return dump_json({"messages": sample["messages"], "calls": sample["target"]["calls"]})
