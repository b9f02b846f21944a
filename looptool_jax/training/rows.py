"""The rows of a GRPO update: prompts, each with all of its answers behind it.

A prompt is computed once for its whole group. Rows hold several groups, up to a budget of tokens, so that little is
computed for padding; which token sees which is said by `ends` (`models.tree_attention`). There are no gaps, but where
splash attention (TPU) asks for an alignment of prompts and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from looptool_jax.models import decoder, splash
from looptool_jax.models.config import ModelError
from looptool_jax.models.splash import Alignment

NO_GAPS = Alignment()
REMEDY = "change it, or set policy.attention=xla"

AnyArray = Any  # a jax.Array or a NumPy array


class Group(NamedTuple):
    """A prompt, the answers that were sampled for it (end tokens included), and their advantages. logprobs: of the
    answers' tokens, as the engine that sampled them says."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    advantages: Sequence[float]
    logprobs: Sequence[Sequence[float]] | None = None

    def part(self, start: int, stop: int) -> Group:
        """The prompt with some of the answers."""
        logprobs = self.logprobs and self.logprobs[start:stop]
        return Group(self.prompt, self.answers[start:stop], self.advantages[start:stop], logprobs)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "tokens", "positions", "ends", "sources", "targets", "answers", "advantages", "token_shares", "answer_shares",
        "old_logprobs", "rollout_logprobs",
    ),
    meta_fields=(),
)  # fmt: skip
@dataclass(frozen=True)
class MicroBatch:
    """Rows of T tokens, and for each row the answer tokens that are learnt from, one behind the other.

    The shares are 0 where there is no token. They are parts of a whole update, so the losses of its micro-batches add
    up to the loss of the update.
    """

    tokens: Int[AnyArray, "rows T"]
    positions: Int[AnyArray, "rows T"]
    ends: Int[AnyArray, "rows T"]
    sources: Int[AnyArray, "rows T"]  # the place whose hidden state predicts the token
    targets: Int[AnyArray, "rows T"]
    answers: Int[AnyArray, "rows T"]  # which answer of its row the token belongs to
    advantages: Float[AnyArray, "rows T"]
    token_shares: Float[AnyArray, "rows T"]  # 1 / answer tokens of the update
    answer_shares: Float[AnyArray, "rows T"]  # 1 / (tokens of this answer x answers of the update)
    old_logprobs: Float[AnyArray, "rows T"] | None = None  # None: the policy that is being updated (ratio 1)
    rollout_logprobs: Float[AnyArray, "rows T"] | None = None  # what the engine said; None: not to be compared


class Update(NamedTuple):
    """What one optimiser step learns from."""

    micro_batches: list[MicroBatch]
    answer_tokens: int
    prompt_tokens: int  # of each group once


def alignment(attention: decoder.Attention, micro_tokens: int, prompt: int, answer: int) -> Alignment:
    """How prompts and answers of up to so many tokens stand in rows of `micro_tokens`.

    Raises ModelError, naming the setting, where the attention cannot compute such rows.
    """
    if attention == "xla":
        return NO_GAPS
    for name, size, most in (
        ("train.grpo.micro_tokens", micro_tokens, splash.LONGEST_ROW),
        ("train.answers.answer_tokens", answer, splash.LONGEST_BRANCH),
    ):
        if size > most:
            raise ModelError(f"{name}: splash attention takes up to {most} tokens, not {size}; {REMEDY}")
    align = splash.alignment(micro_tokens)
    needed = prompt + -prompt % align.trunk + answer
    if needed > micro_tokens:
        raise ModelError(
            f"train.grpo.micro_tokens: splash attention needs {needed} places for the longest prompt with an answer "
            f"(train.answers), not {micro_tokens}; {REMEDY}"
        )
    return align


def packed_rows(groups: Sequence[Group], micro_tokens: int, shards: int, align: Alignment = NO_GAPS) -> Update:
    """Groups in rows of `micro_tokens` places, the longest first, each in the first row that has room for it.

    A group that is longer than a row is cut between its answers, and each part has the prompt. One micro-batch is
    `shards` rows, one for each shard of the batch axes; the last are filled up by empty ones.

    Raises ValueError where a prompt with one answer is longer than a row.
    """
    rows: list[list[Group]] = []
    filled: list[int] = []
    for part in sorted((p for group in groups for p in _parts(group, micro_tokens, align)), key=_length, reverse=True):
        ends = ((i, _span(part, start, align).stop) for i, start in enumerate(filled))
        row, end = next(((i, end) for i, end in ends if end <= micro_tokens), (len(rows), 0))
        if row == len(rows):
            rows.append([])
            filled.append(0)
            end = _span(part, 0, align).stop
        rows[row].append(part)
        filled[row] = end
    rows += [[]] * (-len(rows) % shards)
    totals = _Totals.of(groups)
    made = [_row(row, micro_tokens, align) for row in rows]
    micro_batches = _micro_batches(made, shards, totals)
    if any(group.logprobs is None for group in groups):
        micro_batches = [replace(micro, rollout_logprobs=None) for micro in micro_batches]
    return Update(micro_batches, totals.tokens, totals.prompt_tokens)


def abstract_rows(rows: int, micro_tokens: int, old: bool, rollout: bool) -> MicroBatch:
    """The shapes of a micro-batch. old, rollout: with the log-probs of these names."""
    ids, numbers = (jax.ShapeDtypeStruct((rows, micro_tokens), dtype) for dtype in (jnp.int32, jnp.float32))
    logprobs = (numbers if there else None for there in (old, rollout))
    return MicroBatch(ids, ids, ids, ids, ids, ids, numbers, numbers, numbers, *logprobs)


def _length(part: Group) -> int:
    return len(part.prompt) + sum(map(len, part.answers))


def _span(part: Group, free: int, align: Alignment) -> slice:
    """The places of a part in a row that is free from a place on."""
    start = free + -(free + len(part.prompt)) % align.trunk
    answers = sum(len(answer) + -len(answer) % align.branch for answer in part.answers[:-1])
    return slice(start, start + len(part.prompt) + answers + len(part.answers[-1]))


def _parts(group: Group, most: int, align: Alignment) -> list[Group]:
    """The group, or where it is too long, the prompt with some of the answers at a time."""
    parts: list[Group] = []
    start = 0
    for i, answer in enumerate(group.answers):
        if parts:
            longer = group.part(start, i + 1)
            if _span(longer, 0, align).stop <= most:
                parts[-1] = longer
                continue
        start = i
        parts.append(group.part(i, i + 1))
        if _span(parts[-1], 0, align).stop > most:
            raise ValueError(
                f"a prompt of {len(group.prompt)} tokens with an answer of {len(answer)} is longer than a row of {most}"
            )
    return parts


class _Row:
    """One row of a micro-batch; `lengths` is that of the answer which each answer token belongs to (0: no token)."""

    def __init__(self, time: int) -> None:
        self.tokens, self.positions, self.ends = (np.zeros(time, np.int32) for _ in range(3))
        self.sources, self.targets, self.answers, self.lengths = (np.zeros(time, np.int32) for _ in range(4))
        self.advantages, self.rollout_logprobs = np.zeros(time, np.float32), np.zeros(time, np.float32)


def _row(groups: Sequence[Group], time: int, align: Alignment) -> _Row:
    row = _Row(time)
    free = count = filled = 0
    for group in groups:
        span, prompt = _span(group, free, align), len(group.prompt)
        _write(row, span.start, group.prompt, 0, span.stop)
        start = span.start + prompt
        last = start - 1
        unknown: Sequence[Any] = [0.0] * len(group.answers)
        for answer, advantage, logprobs in zip(group.answers, group.advantages, group.logprobs or unknown, strict=True):
            size = len(answer)
            _write(row, start, answer, prompt, start + size)
            learnt = slice(filled, filled + size)
            row.sources[learnt] = [last, *range(start, start + size - 1)][:size]
            row.targets[learnt], row.answers[learnt] = answer, count
            row.advantages[learnt], row.lengths[learnt] = advantage, size
            row.rollout_logprobs[learnt] = logprobs
            filled, count = filled + size, count + 1
            start += size + -size % align.branch
        free = span.stop
    return row


def _write(row: _Row, start: int, tokens: Sequence[int], position: int, end: int) -> None:
    span = slice(start, start + len(tokens))
    row.tokens[span], row.ends[span] = tokens, end
    row.positions[span] = position + np.arange(len(tokens))


class _Totals(NamedTuple):
    """Counts of a whole update: answer tokens, answers that are not empty, prompt tokens."""

    tokens: int
    answers: int
    prompt_tokens: int

    @staticmethod
    def of(groups: Sequence[Group]) -> _Totals:
        lengths = [len(answer) for group in groups for answer in group.answers]
        return _Totals(sum(lengths), sum(map(bool, lengths)), sum(len(group.prompt) for group in groups))


def _micro_batches(rows: list[_Row], each: int, totals: _Totals) -> list[MicroBatch]:
    micro_batches = []
    for start in range(0, len(rows), each):
        part = rows[start : start + each]
        columns: dict[str, Any] = {name: np.stack([getattr(row, name) for row in part]) for name in vars(part[0])}
        sizes = columns.pop("lengths")
        there = (sizes > 0).astype(np.float32)
        shares = {
            "token_shares": there / max(1, totals.tokens),
            "answer_shares": there / (np.maximum(sizes, 1) * max(1, totals.answers)),
        }
        columns |= {name: share.astype(np.float32) for name, share in shares.items()}
        micro_batches.append(MicroBatch(**columns))
    return micro_batches
