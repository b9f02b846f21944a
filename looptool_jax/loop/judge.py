"""JGLV: judgement-guided label verification (paper, section 4.3).

An open judge compares label and answer of every mismatch. It never writes a label: the answer it prefers
replaces the label, or the label stays, or the sample goes. An answer that cannot be read, or does not fit its tools'
schemas, never becomes a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from looptool_jax.data.store import DataError, join, write_jsonl
from looptool_jax.inference.answers import AnswerConfig, Answerer, ChatModel, ChatRequest, OnTokens
from looptool_jax.limits import above, at_least
from looptool_jax.loop.console import Console
from looptool_jax.loop.keys import key_for
from looptool_jax.loop.probe import Probe
from looptool_jax.loop.prompts import Variant, VerdictKind, judge_messages, parse_verdict, response_text, written
from looptool_jax.loop.prompts import Verdict as JudgeVerdict
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.toolcall import Origin, Parsed, Sample, Target, check_call, match, parse

Verdict = Literal["prediction_wrong", "label_wrong", "both_correct", "both_wrong", "undecided"]

# What a reply means where the label was shown as response 1, and where it was shown as response 2.
_LABEL_FIRST: dict[VerdictKind, Verdict] = {
    VerdictKind.RESPONSE2_INCORRECT: "prediction_wrong",
    VerdictKind.RESPONSE1_INCORRECT: "label_wrong",
    VerdictKind.BOTH_CORRECT: "both_correct",
    VerdictKind.BOTH_INCORRECT: "both_wrong",
}
_LABEL_SECOND: dict[VerdictKind, Verdict] = _LABEL_FIRST | {
    VerdictKind.RESPONSE1_INCORRECT: "prediction_wrong",
    VerdictKind.RESPONSE2_INCORRECT: "label_wrong",
}


@dataclass
class JudgeConfig:
    """Label verification.

    enabled: false is the paper's ablation "w/o JGLV": every mismatch is a model error.
    order_swap: judge each pair in both orders and trust only agreeing verdicts; false is the paper's fixed order
        (label first).
    rules_first: an answer that does not parse or does not fit its tool's schema is wrong without asking the judge.
        It saves judging, but such a sample keeps a wrong label that the judge might have found. The paper judges all.
    confirm: replace a label only by the answer that the judge gives itself, asked without seeing either (for weak
        judges); any other LABEL_WRONG is undecided. The paper does not.
    votes: replies for each order. One is greedy; of several, sampled at `temperature`, more than half have to agree.
    temperature: of several votes.
    verdicts: "written" takes the verdict at the end of the judge's reply; "scored" the most probable of the four tags
        as a reply (one pass, nothing is generated), and has an analysis written for error seeds only.
    prompt: "full" for language models, "compact" for nano. chunk: pairs committed at once.
    """

    enabled: bool = True
    order_swap: bool = True
    rules_first: bool = False
    confirm: bool = False
    votes: int = 1
    temperature: float = 0.7
    verdicts: Literal["written", "scored"] = "written"
    prompt: Variant = "full"
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    chunk: int = 256

    def __post_init__(self) -> None:
        at_least("judge.chunk", self.chunk, 1)
        if self.verdicts not in ("written", "scored"):
            raise ValueError(f"judge.verdicts: expected written or scored, found {self.verdicts!r}")
        at_least("judge.votes", self.votes, 1)
        above("judge.temperature", self.temperature, 0)
        if self.votes > 1 and self.verdicts == "scored":
            raise ValueError("judge.votes: scored verdicts do not vary; set it to 1, or judge.verdicts to written")


@dataclass(frozen=True)
class Judgement:
    """What became of a mismatch. decided_by: judge, rules or disabled. votes: the verdict of each order (None: the
    reply had no valid last line, or too few agree). analysis: the judge's words on the wrong response, for the
    expansion."""

    id: str
    verdict: Verdict
    decided_by: str
    votes: list[Verdict | None]
    answer: str
    analysis: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_json(row: dict[str, Any]) -> Judgement:
        return Judgement(**row)


@dataclass(frozen=True)
class ErrorSeed:
    """A member of D_j^ES: the sample with its (possibly repaired) label, and the wrong response beside it."""

    sample: Sample
    wrong: str
    analysis: str

    def to_json(self) -> dict[str, Any]:
        return {"sample": self.sample.to_json(), "wrong": self.wrong, "analysis": self.analysis}

    @staticmethod
    def from_json(row: dict[str, Any]) -> ErrorSeed:
        return ErrorSeed(Sample.from_json(row["sample"]), row["wrong"], row["analysis"])


def judge(
    model: ChatModel | None,
    samples: Sequence[Sample],
    probes: Sequence[Probe],
    seed: int,
    round_: int,
    cfg: JudgeConfig,
    out: str,
    console: Console,
) -> dict[str, Any]:
    """Judge every mismatch of the probed samples and return the metrics.

    Writes `out/judgements.jsonl` (one row a mismatch), `out/errors.jsonl` (the error seeds, labels repaired) and
    `out/set_aside.jsonl` (pairs without a trusted verdict). `model` may be None where the judge is disabled.
    Raises DataError for probes of other samples.
    """
    by_id = {sample.id: sample for sample in samples}
    if strangers := [row.id for row in probes if row.id not in by_id]:
        raise DataError(f"judge: the probes are of other samples ({strangers[0]} is not among the given ones)")
    mismatches = [(by_id[row.id], row) for row in probes if not row.correct]

    def work(chunk: Sequence[tuple[Sample, Probe]]) -> list[dict[str, Any]]:
        rows = _judge_chunk(model, chunk, (seed, round_), cfg, console)
        console.advance(len(chunk))
        return [row.to_json() for row in rows]

    rows = process_in_chunks(mismatches, cfg.chunk, join(out, "progress.jsonl"), work, console)
    judgements = [Judgement.from_json(row) for row in rows]
    write_jsonl(join(out, "judgements.jsonl"), rows)
    write_jsonl(join(out, "set_aside.jsonl"), [row.to_json() for row in judgements if row.verdict == "undecided"])
    errors = [error for row in judgements if (error := error_seed(by_id[row.id], row, round_)) is not None]
    write_jsonl(join(out, "errors.jsonl"), [error.to_json() for error in errors])
    counts = {verdict: sum(row.verdict == verdict for row in judgements) for verdict in Verdict.__args__}  # type: ignore[attr-defined]
    judged = [row for row in judgements if row.decided_by == "judge"]
    agreed = sum(row.verdict != "undecided" for row in judged)
    return {
        "mismatches": len(judgements),
        **counts,
        "judged": len(judged),
        "agreement": round(agreed / max(1, len(judged)), 6),
        "unparsed_replies": sum(vote is None for row in judged for vote in row.votes),
        "error_seeds": len(errors),
    }


def error_seed(sample: Sample, judgement: Judgement, round_: int) -> ErrorSeed | None:
    """The error seed of a judged mismatch (D^PW keeps the label, D^LR takes the answer), or None for no error."""
    if judgement.verdict not in ("prediction_wrong", "label_wrong"):
        return None
    origin = Origin("error", round_ + 1, verdict=judgement.verdict)
    moved = sample.moved(origin)
    if judgement.verdict == "prediction_wrong":
        return ErrorSeed(moved, response_text(judgement.answer), judgement.analysis)
    return ErrorSeed(replace(moved, target=_new_label(judgement)), response_text(sample.target), judgement.analysis)


def target_of(answer: str) -> Target | None:
    """The answer as a label, or None where it cannot be one. A text that asks clarifies, any other answers."""
    parsed = parse(answer)
    if not isinstance(parsed, Parsed):
        return None
    if parsed.calls:
        return Target(calls=parsed.calls)
    if not parsed.text.strip():
        return None
    return Target(text=parsed.text.strip(), intent="clarify" if "?" in parsed.text else "answer")


def _new_label(judgement: Judgement) -> Target:
    """The label that LABEL_WRONG puts in the old one's place."""
    target = target_of(judgement.answer)
    assert target is not None, "a label is only replaced by an answer that parses"
    return target


def _judge_chunk(
    model: ChatModel | None,
    chunk: Sequence[tuple[Sample, Probe]],
    run: tuple[int, int],
    cfg: JudgeConfig,
    console: Console,
) -> list[Judgement]:
    if not cfg.enabled:
        return [Judgement(sample.id, "prediction_wrong", "disabled", [], row.answer, "") for sample, row in chunk]
    assert model is not None
    requests: list[ChatRequest] = []
    problems = [_broken(sample, row) for sample, row in chunk]
    asked = [not (cfg.rules_first and problem) for problem in problems]
    tables = (_LABEL_FIRST, _LABEL_SECOND) if cfg.order_swap else (_LABEL_FIRST,)
    for (sample, row), ask in zip(chunk, asked, strict=True):
        for order in range(len(tables)) if ask else ():
            comparison = _comparison(sample, row, cfg, swapped=order == 1)
            if cfg.votes == 1:
                requests.append(comparison)
                continue
            keys = [key_for(*run, "judge", comparison.id, vote) for vote in range(cfg.votes)]
            requests += [replace(comparison, key=key) for key in keys]
    replies = _verdicts(model, requests, cfg, console)
    verdicts = iter([_majority(replies[i : i + cfg.votes]) for i in range(0, len(replies), cfg.votes)])
    out = []
    for (sample, row), ask, problem in zip(chunk, asked, problems, strict=True):
        if not ask:
            out.append(Judgement(sample.id, "prediction_wrong", "rules", [], row.answer, problem))
            continue
        votes: list[Verdict | None] = []
        analysis = ""
        for table in tables:
            verdict = next(verdicts)
            votes.append(table[verdict.kind] if verdict else None)
            analysis = analysis or (verdict.analysis if verdict else "")
        agreed = combined(votes, replaceable=not problem and target_of(row.answer) is not None)
        out.append(Judgement(sample.id, agreed, "judge", votes, row.answer, analysis))
    if cfg.confirm:
        out = _confirmed(cast(Answerer, model), chunk, out, cfg, console)
    return _analysed(model, chunk, out, cfg, console) if cfg.verdicts == "scored" else out


def _comparison(sample: Sample, row: Probe, cfg: JudgeConfig, swapped: bool = False) -> ChatRequest:
    """Label and answer side by side, the label first unless they are swapped."""
    pair = (written(sample.target), row.answer)
    messages = judge_messages(cfg.prompt, sample, *(pair[::-1] if swapped else pair))
    return ChatRequest(f"{sample.id}/{2 if swapped else 1}", messages)


def _verdicts(
    model: ChatModel, requests: Sequence[ChatRequest], cfg: JudgeConfig, console: Console
) -> list[JudgeVerdict | None]:
    if cfg.verdicts == "written":
        temperature = cfg.temperature if cfg.votes > 1 else 0.0
        replies = model.chat(requests, cfg.answers, console.tokens, temperature=temperature)
        return [parse_verdict(reply.text) for reply in replies]
    kinds = list(VerdictKind)
    chosen = cast(Answerer, model).choose(requests, [str(kind) for kind in kinds], cfg.answers, console.tokens)
    return [None if number is None else JudgeVerdict(kinds[number], "") for number in chosen]


def _majority(verdicts: Sequence[JudgeVerdict | None]) -> JudgeVerdict | None:
    """The first of those that more than half of the replies agree on."""
    counts = Counter(verdict.kind for verdict in verdicts if verdict)
    most = [kind for kind, count in counts.items() if 2 * count > len(verdicts)]
    return next((verdict for verdict in verdicts if verdict and verdict.kind in most), None)


def _analysed(
    model: ChatModel,
    chunk: Sequence[tuple[Sample, Probe]],
    judgements: list[Judgement],
    cfg: JudgeConfig,
    console: Console,
) -> list[Judgement]:
    """The judgements, with the judge's words on the wrong response of every error seed that it decided. There are none
    where it comes to another verdict when it writes: they would be about the other response."""
    errors = [
        i for i, row in enumerate(judgements)
        if row.decided_by == "judge" and row.verdict in ("prediction_wrong", "label_wrong")
    ]  # fmt: skip
    replies = model.chat([_comparison(*chunk[i], cfg) for i in errors], cfg.answers, console.tokens)
    for i, reply in zip(errors, replies, strict=True):
        verdict = parse_verdict(reply.text)
        if verdict and _LABEL_FIRST[verdict.kind] == judgements[i].verdict:
            judgements[i] = replace(judgements[i], analysis=verdict.analysis)
    return judgements


def _confirmed(
    model: Answerer,
    chunk: Sequence[tuple[Sample, Probe]],
    judgements: list[Judgement],
    cfg: JudgeConfig,
    console: Console,
) -> list[Judgement]:
    """The judgements, every LABEL_WRONG whose answer is not the judge's own turned into undecided."""
    replacing = [i for i, row in enumerate(judgements) if row.verdict == "label_wrong"]
    pairs = [(chunk[i][0], _new_label(judgements[i])) for i in replacing]
    objections = dict(zip(replacing, own_answers_differ(model, pairs, cfg.answers, console.tokens), strict=True))
    return [replace(row, verdict="undecided") if objections.get(i) else row for i, row in enumerate(judgements)]


def own_answers_differ(
    model: Answerer, pairs: Sequence[tuple[Sample, Target]], answers: AnswerConfig, on_tokens: OnTokens
) -> list[str]:
    """Why the judge's own greedy answer to each sample does not confirm the target beside it ("": it does)."""
    lengths = [model.prompt_length(sample) for sample, _ in pairs]
    limit = answers.prompt_tokens
    runnable = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= limit]
    drafts = [[model.draft(target)] for _, target in runnable]
    replies = iter(model.greedy([sample for sample, _ in runnable], answers, on_tokens, drafts))
    reasons = []
    for (sample, target), length in zip(pairs, lengths, strict=True):
        if length > limit:
            reasons.append(f"the prompt has {length} tokens, over the judge's limit (prompt_tokens) of {limit}")
        else:
            result = match(next(replies).text, target, sample.tools)
            reasons.append("" if result.ok else f"the judge answers otherwise: {result.reason}")
    return reasons


def combined(votes: Sequence[Verdict | None], replaceable: bool) -> Verdict:
    """What all orders agree on. None of them may be without a verdict, and a label that the answer cannot replace
    (`replaceable` false) is not given up for it."""
    first = votes[0]
    if first is None or len(set(votes)) > 1 or (first == "label_wrong" and not replaceable):
        return "undecided"
    return first


def _broken(sample: Sample, row: Probe) -> str:
    """Why the answer cannot be right whatever the label says; empty where it could."""
    if row.finish == "length":
        return "truncated at the token limit"
    parsed = parse(row.answer)
    if not isinstance(parsed, Parsed):
        return f"{parsed.kind}: {parsed.detail}"
    return "; ".join(problem for call in parsed.calls for problem in check_call(call, sample.tools))
