"""The rows of a GRPO update: prompts, each with all of its answers behind it.

A prompt is computed once for its whole group. Packed rows hold several groups without gaps, up to a budget of tokens,
so that little is computed for padding; splash attention (TPU) needs prompt and answers at fixed places, a group a row.
Both are the same arrays: which token sees which is said by `ends` (`models.tree_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from looptool_jax.models.decoder import GroupLayout
from looptool_jax.parallel.compilation import bucket

SMALLEST_BUCKET = 32
PIECES = 8  # the place for answer tokens grows by such a part of a row, so that few shapes are compiled

AnyArray = Any  # a jax.Array or a NumPy array


class Group(NamedTuple):
    """A prompt, the answers that were sampled for it (end tokens included), and their advantages."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    advantages: Sequence[float]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "tokens", "positions", "ends", "sources", "targets", "answers", "advantages", "token_shares", "answer_shares",
        "old_logprobs",
    ),
    meta_fields=("layout",),
)  # fmt: skip
@dataclass(frozen=True)
class MicroBatch:
    """Rows of T tokens, and for each row the A answer tokens that are learnt from.

    The shares are 0 where there is no token. They are parts of a whole update, so the losses of its micro-batches add
    up to the loss of the update.
    """

    tokens: Int[AnyArray, "rows T"]
    positions: Int[AnyArray, "rows T"]
    ends: Int[AnyArray, "rows T"]
    sources: Int[AnyArray, "rows A"]  # the place whose hidden state predicts the token
    targets: Int[AnyArray, "rows A"]
    answers: Int[AnyArray, "rows A"]  # which answer of its row the token belongs to
    advantages: Float[AnyArray, "rows A"]
    token_shares: Float[AnyArray, "rows A"]  # 1 / answer tokens of the update
    answer_shares: Float[AnyArray, "rows A"]  # 1 / (tokens of this answer x answers of the update)
    old_logprobs: Float[AnyArray, "rows A"] | None = None  # None: the policy that is being updated (ratio 1)
    layout: GroupLayout | None = None  # fixed places; None: packed


class Update(NamedTuple):
    """What one optimiser step learns from."""

    micro_batches: list[MicroBatch]
    answer_tokens: int
    prompt_tokens: int  # of each group once


def packed_rows(groups: Sequence[Group], micro_tokens: int, shards: int) -> Update:
    """Groups in rows of `micro_tokens` places, the longest first, each in the first row that has room for it.

    A group that is longer than a row is cut between its answers, and each part has the prompt. One micro-batch is
    `shards` rows, one for each shard of the batch axes; the last are filled up by empty ones.

    Raises ValueError where a prompt with one answer is longer than a row.
    """
    rows: list[list[Group]] = []
    free: list[int] = []
    for part in sorted((p for group in groups for p in _parts(group, micro_tokens)), key=_length, reverse=True):
        row = next((i for i, room in enumerate(free) if room >= _length(part)), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(micro_tokens)
        rows[row].append(part)
        free[row] -= _length(part)
    rows += [[]] * (-len(rows) % shards)
    most = max(sum(len(answer) for part in row for answer in part.answers) for row in rows)
    piece = -(-micro_tokens // PIECES)
    room = max(1, -(-most // piece)) * piece
    totals = _Totals.of(groups)
    made = [_row(row, micro_tokens, room, None) for row in rows]
    return Update(_micro_batches(made, shards, None, totals), totals.tokens, totals.prompt_tokens)


def fixed_rows(groups: Sequence[Group], longest: GroupLayout, micro_tokens: int, shards: int) -> Update:
    """One group a row, at fixed places: prompt and answers are padded to powers of two, or to what is `longest`.

    Groups of one layout come together. A micro-batch has, for each shard, the rows that `micro_tokens` hold, or one.

    Raises ValueError where a prompt or an answer is longer than the longest. All groups have equally many answers.
    """
    totals, micro_batches = _Totals.of(groups), []
    by_layout: dict[GroupLayout, list[Group]] = {}
    for group in groups:
        sizes = GroupLayout(len(group.prompt), max(map(len, group.answers)))
        if sizes.prompt > longest.prompt or sizes.answer > longest.answer:
            raise ValueError(f"a prompt or an answer is longer than the longest: {sizes}, {longest}")
        layout = GroupLayout(*(bucket(size, SMALLEST_BUCKET, most) for size, most in zip(sizes, longest, strict=True)))
        by_layout.setdefault(layout, []).append(group)
    for layout, members in sorted(by_layout.items()):
        answers = len(members[0].answers) * layout.answer
        time = layout.prompt + answers
        needed = -(-len(members) // shards)
        each = shards * min(max(1, micro_tokens // time), 1 << (needed - 1).bit_length())
        rows = [[group] for group in members]
        rows += [[]] * (-len(rows) % each)
        micro_batches += _micro_batches([_row(row, time, answers, layout) for row in rows], each, layout, totals)
    return Update(micro_batches, totals.tokens, totals.prompt_tokens)


def abstract_rows(rows: int, time: int, answer_tokens: int, layout: GroupLayout | None, old: bool) -> MicroBatch:
    """The shapes of a micro-batch. old: with old log-probs."""
    ids, learnt = (jax.ShapeDtypeStruct((rows, size), jnp.int32) for size in (time, answer_tokens))
    numbers = jax.ShapeDtypeStruct((rows, answer_tokens), jnp.float32)
    return MicroBatch(
        ids, ids, ids, learnt, learnt, learnt, numbers, numbers, numbers, numbers if old else None, layout
    )


def _length(part: Group) -> int:
    return len(part.prompt) + sum(map(len, part.answers))


def _parts(group: Group, most: int) -> list[Group]:
    """The group, or where it is too long, the prompt with some of the answers at a time."""
    parts: list[list[int]] = []
    room = 0
    for number, answer in enumerate(group.answers):
        if len(group.prompt) + len(answer) > most:
            raise ValueError(
                f"a prompt of {len(group.prompt)} tokens with an answer of {len(answer)} is longer than a row of {most}"
            )
        if not parts or len(answer) > room:
            parts.append([])
            room = most - len(group.prompt)
        parts[-1].append(number)
        room -= len(answer)
    return [
        Group(group.prompt, [group.answers[i] for i in part], [group.advantages[i] for i in part]) for part in parts
    ]


class _Row:
    """One row of a micro-batch; `lengths` is that of the answer which each answer token belongs to (0: no token)."""

    def __init__(self, time: int, answer_tokens: int) -> None:
        self.tokens, self.positions, self.ends = (np.zeros(time, np.int32) for _ in range(3))
        self.sources, self.targets, self.answers, self.lengths = (np.zeros(answer_tokens, np.int32) for _ in range(4))
        self.advantages = np.zeros(answer_tokens, np.float32)


def _row(groups: Sequence[Group], time: int, answer_tokens: int, layout: GroupLayout | None) -> _Row:
    row = _Row(time, answer_tokens)
    start = count = filled = 0
    for group in groups:
        prompt = len(group.prompt)
        end = time if layout else start + _length(group)
        _write(row, start, group.prompt, 0, end)
        last, start = start + prompt - 1, start + (layout.prompt if layout else prompt)
        for answer, advantage in zip(group.answers, group.advantages, strict=True):
            size = len(answer)
            _write(row, start, answer, prompt, start + size)
            learnt = slice(filled, filled + size)
            row.sources[learnt] = [last, *range(start, start + size - 1)][:size]
            row.targets[learnt], row.answers[learnt] = answer, count
            row.advantages[learnt], row.lengths[learnt] = advantage, size
            filled, count = filled + size, count + 1
            start += layout.answer if layout else size
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


def _micro_batches(rows: list[_Row], each: int, layout: GroupLayout | None, totals: _Totals) -> list[MicroBatch]:
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
        micro_batches.append(MicroBatch(**columns, layout=layout))
    return micro_batches
