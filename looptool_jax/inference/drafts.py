"""Greedy decoding with drafts: guesses of answers are checked in one pass, and decoding starts at the first mismatch.

A greedy answer that equals its draft needs no decoding at all: where the arg-max after every token is the draft's next
token, the draft is what greedy decoding would have written. The pass also yields the log-probs, and prompts that begin
alike are computed once. Behind a mismatch the rest of the draft is still a guess, which decoding checks several tokens
at a time.

The pass and step-by-step decoding add up the same numbers in another order, so their logits differ in the last bits.
Where two logits come closer than `NEAR_TIE`, step-by-step decoding decides: the request is decoded from its prompt on,
by the same programs, up to the last such place, and behind it if it comes out otherwise. So the tokens are those of
step-by-step decoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from looptool_jax.inference.batch import Completion, Decoding, Request, check
from looptool_jax.parallel.processes import stop_if_preempted

if TYPE_CHECKING:
    from looptool_jax.inference.engine import DecoderEngine
    from looptool_jax.inference.scoring import Computed, Scorer, Scores
    from looptool_jax.models.decoder import Params

# Far above what the two ways were seen to differ by (docs/RESULTS.md).
NEAR_TIE = {"float32": 5e-4, "bfloat16": 0.5}
FEWEST_GUESSED = 2  # tokens an answer; a step that checks guesses takes up to twice the time of one that does not


def near_tie(dtype: str, platform: str) -> float:
    """The bound for a model's dtype. Accelerators may multiply float32 in fewer bits, so only a CPU gets float32's."""
    return NEAR_TIE["float32" if dtype == "float32" and platform == "cpu" else "bfloat16"]


class _Checked(NamedTuple):
    """A draft up to its first mismatch, which is the greedy answer so far. complete: it is the whole answer."""

    member: int
    tokens: list[int]
    logprobs: list[float]
    leads: list[float]
    complete: bool


def greedy(
    engine: DecoderEngine,
    scorer: Scorer,
    params: Params,
    requests: Sequence[Request],
    drafts: Sequence[Sequence[Sequence[int]]],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """The greedy answer of each request, in their order; `drafts` has up to as many guesses for each as the scorer has
    members, their end tokens included. The engine has one answer a slot and room for drafts.

    on_progress(finished requests, tokens drafted and decoded) is called when something has moved.

    Raises:
        PromptTooLong, RequestError: before anything runs. Preempted: between two device syncs.
    """
    for request in requests:
        check(engine, request)
    families = [
        [[*request.tokens, *_cut(draft, request.max_new, engine.eos_ids)] for draft in guesses or [[]]]
        for request, guesses in zip(requests, drafts, strict=True)
    ]
    starts = [len(request.tokens) for request in requests]
    params = engine.load_params(params)
    decoding = Decoding(engine, params)
    near = near_tie(engine.dtype.name, engine.mesh.devices.flat[0].platform)
    done: dict[int, Completion] = {}
    begun: dict[int, _Checked] = {}  # what goes on by decoding
    unsure: dict[int, Completion] = {}  # whole answers with near ties
    again: deque[int] = deque()  # those of them that wait to be decoded
    drafted = 0
    batches = deque(scorer.rows_of(families))
    pending: deque[tuple[int, Request, int, np.ndarray]] = deque()  # with row and path in what was computed last
    computed: Computed | None = None

    def progress() -> None:
        if on_progress is not None:
            on_progress(len(done), drafted + decoding.generated)

    def answered(number: int, completion: Completion) -> None:
        if min(completion.leads) < near:
            unsure[number] = completion
            again.append(number)
        else:
            done[number] = completion

    while batches or pending or again or decoding.busy:
        stop_if_preempted()
        if decoding.free and pending:
            assert computed is not None
            number, rest, row, path = pending.popleft()
            decoding.insert(number, rest, scorer.branch(params, computed, row, path))
            continue
        if decoding.free and batches:
            computed = None  # its memory is for what comes
            rows = batches.popleft()
            scores, computed = scorer(params, rows, families, starts)
            for row, number in sorted({(i, family) for i, each in enumerate(rows) for family, _ in each.paths}):
                request = requests[number]
                known = [
                    _check(member, tokens[starts[number] :], scores[number, member], request.max_new, engine.eos_ids)
                    for member, tokens in enumerate(families[number])
                ]
                best = max(known, key=lambda checked: len(checked.tokens))
                drafted += len(best.tokens)
                if best.complete:
                    answered(number, _completion(request, best, engine.eos_ids))
                    continue
                begun[number] = best
                path = rows[row].paths[number, best.member][: starts[number] + len(best.tokens)]
                rest = replace(request, max_new=request.max_new - len(best.tokens))
                pending.append((number, rest, row, path))
            progress()
            continue
        if not pending:
            computed = None
        if not batches and not pending and len(decoding.free) >= min(len(again), engine.prefill_batch, engine.slots):
            # Last, as the programs that check guesses are not for these.
            again = deque(sorted(again, key=lambda number: len(requests[number].tokens)))
            arrivals = [again.popleft() for _ in range(min(len(again), len(decoding.free)))]
            decoding.prefill(
                [(number, requests[number]) for number in arrivals],
                until={number: _unsure_part(unsure[number], near) for number in arrivals},
            )
        decoding.step(_guesses(decoding.at_work, begun, families, starts, engine.steps_per_sync - 1))
        for number in list(decoding.finished):
            [end] = decoding.finished.pop(number)
            if number in begun:
                answered(number, _completion(requests[number], begun.pop(number), engine.eos_ids, end))
                continue
            guessed = unsure.pop(number)
            part = _unsure_part(guessed, near)
            done[number] = replace(guessed if end.tokens[: len(part)] == part else end, near_tie=True)
        progress()
    return [done[number] for number in range(len(requests))]


def _unsure_part(completion: Completion, near: float) -> list[int]:
    """The answer up to its last near tie."""
    last = max(i for i, lead in enumerate(completion.leads) if lead < near)
    return completion.tokens[: last + 1]


def _guesses(
    at_work: Mapping[int, Sequence[int]],
    begun: Mapping[int, _Checked],
    families: Sequence[Sequence[Sequence[int]]],
    starts: Sequence[int],
    most: int,
) -> dict[int, list[int]] | None:
    """What may follow the next token of the answers at work, which all went on from a draft, up to `most` tokens each;
    None where one did not, or where too little is known to pay for a step that checks it."""
    if not begun.keys() >= at_work.keys():
        return None
    guesses: dict[int, list[int]] = {}
    for number, decoded in at_work.items():
        checked = begun[number]
        draft = families[number][checked.member][starts[number] :]
        guesses[number] = list(_rest(draft, [*checked.tokens, *decoded], mismatch=len(checked.tokens))[1 : most + 1])
    enough = sum(map(len, guesses.values())) >= FEWEST_GUESSED * len(at_work)
    return guesses if enough else None


def _rest(draft: Sequence[int], answer: Sequence[int], mismatch: int) -> Sequence[int]:
    """What a draft that was right up to place `mismatch` says of the tokens behind an answer: what follows the answer's
    last two tokens where it has them, nearest to their place; at the mismatch itself, as if one token were wrong."""
    if len(answer) == mismatch:
        return draft[mismatch:]
    places = [i + 2 for i in range(mismatch, len(draft) - 1) if [*draft[i : i + 2]] == [*answer[-2:]]]
    return draft[min(places, key=lambda place: abs(place - len(answer))) :] if places else ()


def _cut(draft: Sequence[int], max_new: int, eos_ids: Sequence[int]) -> list[int]:
    """The draft up to its first end token, or the limit."""
    end = next((i + 1 for i, token in enumerate(draft) if token in eos_ids), len(draft))
    return list(draft[: min(end, max_new)])


def _check(member: int, draft: Sequence[int], scores: Scores, max_new: int, eos_ids: Sequence[int]) -> _Checked:
    size = next((i for i, token in enumerate(draft) if token != scores.best[i]), len(draft))
    tokens = list(draft[:size])
    complete = size == len(draft) > 0 and (size == max_new or draft[-1] in eos_ids)
    return _Checked(member, tokens, scores.logprobs[:size].tolist(), scores.lead[:size].tolist(), complete)


def _completion(request: Request, start: _Checked, eos_ids: Sequence[int], end: Completion | None = None) -> Completion:
    """A draft that is the whole answer, or its right beginning with what was decoded behind it."""
    tokens, logprobs, leads = start.tokens, start.logprobs, start.leads
    if end is not None:
        tokens, logprobs, leads = [*tokens, *end.tokens], [*logprobs, *end.logprobs], [*leads, *end.leads]
    finish: Literal["stop", "length"] = "stop" if tokens[-1] in eos_ids else "length"
    return Completion(request.id, 0, tokens, logprobs, leads, finish, drafted=len(start.tokens))
