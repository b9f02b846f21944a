"""Deterministic continuous batching: one loop that every host of a pod runs identically.

Requests enter free slots, and a slot is free again when all answers of its group have ended. What a request gets does
not depend on the others: a prompt is computed in a batch of fixed size at the bucket of its own length, decoding always
runs over all slots, and random keys belong to requests. Where prompts share their beginnings (`scorer`), the last bits
depend on what is computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from looptool_jax.inference.grammar import Constraint, GrammarError
from looptool_jax.parallel.processes import stop_if_preempted

if TYPE_CHECKING:
    from looptool_jax.inference.decode_state import Prefix
    from looptool_jax.inference.engine import DecoderEngine
    from looptool_jax.inference.scoring import Scorer
    from looptool_jax.models.decoder import Params

NO_LIMITS: Mapping[int, Any] = MappingProxyType({})


class RequestError(ValueError):
    """A request that the engine cannot serve; the message names its id and the numbers."""


class PromptTooLong(RequestError):
    """The prompt has more tokens than the engine's `prompt_len`."""


@dataclass(frozen=True)
class Request:
    """One prompt; the engine answers it `group` times.

    key: two uint32 words; answers with temperature > 0 depend on it and on nothing else that is random.
    temperature: 0 is greedy. max_new: most tokens of an answer, its end token included.
    """

    id: str
    tokens: Sequence[int]
    key: tuple[int, int]
    temperature: float
    max_new: int


@dataclass(frozen=True)
class Completion:
    """Answer number `index` of a request.

    tokens: what was generated, the end token included when `finish` is "stop".
    logprobs: of these tokens under the raw model (temperature 1), natural logarithm.
    leads: by how much the largest logit was above the next where each token was chosen.
    drafted: how many of the tokens were a draft's. near_tie: decided step by step although there was a draft.
    """

    request_id: str
    index: int
    tokens: list[int]
    logprobs: list[float]
    leads: list[float]
    finish: Literal["stop", "length"]
    drafted: int = 0
    near_tie: bool = False


def generate(
    engine: DecoderEngine,
    params: Params,
    requests: Sequence[Request],
    on_progress: Callable[[int, int], None] | None = None,
    scorer: Scorer | None = None,
    constrain: Callable[[int], Constraint | None] | None = None,
) -> list[list[Completion]]:
    """All answers of all requests, in the order of the requests. The engine is empty before and after.

    scorer: computes the prompts, what several begin with once; None: the engine does, one by one, the longest first.
    constrain: asked for the grammar of a request, by its number, when it enters a slot. An answer for which its grammar
    does not go on ends there. While there is a grammar, decoding syncs at every step.
    on_progress(finished requests, generated tokens) is called after every device sync.

    Raises:
        PromptTooLong, RequestError: before anything runs.
        Preempted: between two device syncs, in all processes between the same two; what was generated is gone.
    """
    for request in requests:
        check(engine, request)
    if not requests:
        return []
    decoding, constraints = Decoding(engine, params), _Constraints(constrain)
    # A decode step reads every prompt as far as the longest in a slot goes: those of one length go together.
    waiting = iter(sorted(enumerate(requests), key=lambda each: -len(each[1].tokens)))
    prompts = None if scorer is None else scorer.prompts(decoding.params, [request.tokens for request in requests])
    while len(decoding.finished) < len(requests):
        stop_if_preempted()
        if prompts is None:
            arrivals = list(islice(waiting, len(decoding.free)))
            decoding.prefill(arrivals, allowed=constraints.begin(number for number, _ in arrivals))
        else:
            _enter(decoding, requests, prompts, constraints)
        decoding.step(allowed=constraints.next(decoding))
        if on_progress is not None:
            on_progress(len(decoding.finished), decoding.generated)
    return [decoding.finished[number] for number in range(len(requests))]


def _enter(
    decoding: Decoding, requests: Sequence[Request], prompts: Iterator[tuple[int, Prefix]], constraints: _Constraints
) -> None:
    """Fill the free slots. A function, so that no name keeps the last prompt's keys and values beside its slot."""
    for number, prompt in islice(prompts, len(decoding.free)):
        decoding.insert(number, requests[number], prompt, constraints.begin([number]).get(number))


class _Constraints:
    """The grammars of the requests that are in slots."""

    def __init__(self, constrain: Callable[[int], Constraint | None] | None) -> None:
        self._constrain = constrain
        self._at_work: dict[int, Constraint] = {}

    def begin(self, numbers: Iterable[int]) -> Mapping[int, Int[np.ndarray, " words"]]:
        """What the answers of requests that enter may begin with, of those that have a grammar."""
        if self._constrain is None:
            return NO_LIMITS
        made = {number: constraint for number in numbers if (constraint := self._constrain(number)) is not None}
        self._at_work |= made
        return {number: constraint.first for number, constraint in made.items()}

    def next(self, decoding: Decoding) -> Mapping[int, Int[np.ndarray, "G words"]]:
        """What the answers that have a grammar may go on with."""
        self._at_work = {number: each for number, each in self._at_work.items() if number not in decoding.finished}
        if not self._at_work:
            return NO_LIMITS
        pending, allowed = decoding.pending(), {}
        for number, constraint in self._at_work.items():
            try:
                allowed[number] = constraint.next(pending[number])
            except GrammarError:
                decoding.end(number)
        return allowed


class Decoding:
    """The slots of an engine while requests, which the caller numbers, enter, are answered and leave.

    free: slots that are empty, in order. finished: the completions of the requests that have left, by number.
    generated: tokens so far.
    """

    def __init__(self, engine: DecoderEngine, params: Params) -> None:
        self.engine, self.params = engine, engine.load_params(params)
        engine.compile_ahead(self.params)
        self.state = engine.init_decode_state()
        self.free = list(range(engine.slots))
        self.finished: dict[int, list[Completion]] = {}
        self.generated = 0
        self._at_work: dict[int, _Group] = {}

    @property
    def busy(self) -> bool:
        return bool(self._at_work)

    def prefill(
        self,
        arrivals: Sequence[tuple[int, Request]],
        until: Mapping[int, Sequence[int]] = NO_LIMITS,
        allowed: Mapping[int, Int[np.ndarray, " words"]] = NO_LIMITS,
    ) -> None:
        """Compute the prompts of the arrivals and put them into free slots: by bucket, in batches of a fixed size.

        until: answers, by number, after whose tokens a request leaves before its end if it begins with them.
        allowed: which tokens the answers of a request may begin with (bits, as in `DecoderEngine.generate_among`).
        """
        by_bucket: dict[int, list[tuple[int, Request]]] = {}
        for number, request in arrivals:
            slot = self._take(number, request, until.get(number))
            by_bucket.setdefault(self.engine.bucket(len(request.tokens)), []).append((slot, request))
        size = self.engine.prefill_batch
        for bucket, members in sorted(by_bucket.items()):
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                batch += [batch[-1]] * (size - len(batch))
                tokens = np.full((size, bucket), self.engine.pad_id, np.int32)
                for row, (_, request) in zip(tokens, batch, strict=True):
                    row[: len(request.tokens)] = request.tokens
                lengths = np.array([len(request.tokens) for _, request in batch])
                prefix = self.engine.prefill_many(self.params, tokens, lengths)
                if limited := [i for i, (slot, _) in enumerate(batch) if self._at_work[slot].number in allowed]:
                    rows = np.full((size, self.engine.words), -1, np.int32)
                    rows[limited] = [allowed[self._at_work[batch[i][0]].number] for i in limited]
                    prefix = self.engine.begin_among(prefix, rows)
                self._insert(prefix, batch)

    def insert(
        self, number: int, request: Request, prefix: Prefix, allowed: Int[np.ndarray, " words"] | None = None
    ) -> None:
        """Put a request whose prompt is computed already into a free slot. allowed: as in `prefill`."""
        if allowed is not None:
            prefix = self.engine.begin_among(prefix, allowed[None])
        self._insert(prefix, [(self._take(number, request), request)])

    @property
    def at_work(self) -> dict[int, list[int]]:
        """The first answer so far of every request in a slot."""
        return {group.number: group.answers[0].tokens for group in self._at_work.values()}

    def answers(self, number: int) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probs so far of all answers of a request in a slot."""
        group = self._at_work[self._slot(number)]
        return [(answer.tokens, answer.logprobs) for answer in group.answers]

    def drop(self, number: int) -> None:
        """Free the slot of a request whose answers nobody waits for any longer."""
        self._leave(self._slot(number))

    def end(self, number: int) -> None:
        """Have a request leave with its answers as they are."""
        slot = self._slot(number)
        self._finish(slot, self._at_work[slot])

    def pending(self) -> dict[int, list[int]]:
        """The token of every answer of every request in a slot that the next step hands out."""
        tokens = self.engine.pending(self.state)
        return {group.number: tokens[slot].tolist() for slot, group in self._at_work.items()}

    def step(
        self,
        guesses: Mapping[int, Sequence[int]] | None = None,
        allowed: Mapping[int, Int[np.ndarray, "G words"]] = NO_LIMITS,
    ) -> None:
        """`steps_per_sync` tokens for every answer; requests whose answers have all ended leave.

        guesses: of tokens behind the next one, by request; with any, one step checks them (`DecoderEngine.follow`).
        allowed: what may follow the pending token, by request; with any, it is one step.
        """
        if allowed:
            rows = np.full((self.engine.slots, self.engine.group, self.engine.words), -1, np.int32)
            for number, bits in allowed.items():
                rows[self._slot(number)] = bits
            self.state, result = self.engine.generate_among(self.params, self.state, rows)
        elif guesses:
            of_slot = {slot: guesses[group.number] for slot, group in self._at_work.items() if group.number in guesses}
            self.state, result = self.engine.follow(self.params, self.state, of_slot)
        else:
            self.state, result = self.engine.generate(self.params, self.state)
        result = result.convert_to_numpy()
        logprobs, leads = self.engine.log_probs(result), self.engine.leads(result)
        for slot, group in list(self._at_work.items()):
            rows, first = result.get_result_at_slot(slot), slot * self.engine.group
            for g, answer in enumerate(group.answers):
                count = int(rows.valid[g].sum())
                self.generated += count
                answer.tokens.extend(rows.tokens[g, :count].tolist())
                answer.logprobs.extend(logprobs[first + g, :count].tolist())
                answer.leads.extend(leads[first + g, :count].tolist())
            if all(answer.ended(group.request, self.engine.eos_ids, group.until) for answer in group.answers):
                self._finish(slot, group)

    def _slot(self, number: int) -> int:
        return next(slot for slot, group in self._at_work.items() if group.number == number)

    def _take(self, number: int, request: Request, until: Sequence[int] | None = None) -> int:
        slot = self.free.pop(0)
        self._at_work[slot] = _Group(number, request, [_Answer() for _ in range(self.engine.group)], until)
        return slot

    def _finish(self, slot: int, group: _Group) -> None:
        self._leave(slot)
        self.finished[group.number] = [
            answer.completion(group.request, g, self.engine.eos_ids) for g, answer in enumerate(group.answers)
        ]

    def _leave(self, slot: int) -> None:
        del self._at_work[slot]
        self.free = sorted([*self.free, slot])

    def _insert(self, prefix: Prefix, batch: Sequence[tuple[int, Request]]) -> None:
        self.state = self.engine.insert_many(
            prefix,
            self.state,
            slots=np.array([slot for slot, _ in batch]),
            keys=np.array([request.key for _, request in batch], np.uint32),
            temperature=np.array([request.temperature for _, request in batch]),
            max_new=np.array([request.max_new for _, request in batch]),
        )


def check(engine: DecoderEngine, request: Request) -> None:
    """Raises PromptTooLong or RequestError when the engine cannot serve the request."""
    length = len(request.tokens)
    if length > engine.prompt_len:
        raise PromptTooLong(
            f"request {request.id}: the prompt has {length} tokens, the engine takes {engine.prompt_len}"
        )
    if not length:
        raise RequestError(f"request {request.id}: the prompt has 0 tokens; it needs at least 1")
    if not 1 <= request.max_new <= engine.answer_len:
        raise RequestError(
            f"request {request.id}: max_new is {request.max_new}, the engine takes 1 to {engine.answer_len}"
        )
    if min(request.tokens) < 0 or max(request.tokens) >= engine.cfg.vocab_size:
        alien = next(token for token in request.tokens if not 0 <= token < engine.cfg.vocab_size)
        raise RequestError(f"request {request.id}: token {alien} is none of the model's {engine.cfg.vocab_size}")
    if not request.temperature >= 0:
        raise RequestError(f"request {request.id}: temperature is {request.temperature}; it must be 0 (greedy) or more")


class _Group(NamedTuple):
    """What is in a slot."""

    number: int
    request: Request
    answers: list[_Answer]
    until: Sequence[int] | None


class _Answer:
    """An answer while it grows."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.leads: list[float] = []

    def stopped(self, eos_ids: Sequence[int]) -> bool:
        return bool(self.tokens) and self.tokens[-1] in eos_ids

    def ended(self, request: Request, eos_ids: Sequence[int], until: Sequence[int] | None) -> bool:
        there = until is not None and self.tokens[: len(until)] == [*until]
        return there or self.stopped(eos_ids) or len(self.tokens) == request.max_new

    def completion(self, request: Request, index: int, eos_ids: Sequence[int]) -> Completion:
        finish: Literal["stop", "length"] = "stop" if self.stopped(eos_ids) else "length"
        return Completion(request.id, index, self.tokens, self.logprobs, self.leads, finish)
