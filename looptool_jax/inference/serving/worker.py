"""The one thread that works with the engine: jobs enter and leave its slots while others are decoded.

It drives `batch.Decoding`, so a request gets what the stages of the loop would get. JetStream's Driver is no help here:
its requests have no temperature, key or log-probs, it hands out one token a sync, decodes for clients that are gone to
their last token, and a thread of it that fails kills the process. Its own clients are served by `grpc_server.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

from looptool_jax.inference.batch import Decoding, Request
from looptool_jax.inference.grammar import Constraint, GrammarError

if TYPE_CHECKING:
    from looptool_jax.inference.engine import DecoderEngine
    from looptool_jax.models.decoder import Params

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What has come to answer `index` of a job. finish: None while more will come."""

    index: int
    tokens: list[int]
    logprobs: list[float]
    finish: Finish | None


class Job:
    """A request on its way; made in the event loop that waits for it.

    wanted: its answers that somebody waits for, the first of the engine's group. constraint: the grammar that they fit.
    pieces: what has come, one list a device sync; or why nothing more will come: the grammar's reason, or None when the
    worker has ended before the answers have.
    """

    def __init__(self, request: Request, wanted: int, constraint: Constraint | None = None) -> None:
        self.request, self.wanted, self.constraint = request, wanted, constraint
        self.pieces: asyncio.Queue[list[Piece] | GrammarError | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._sent, self._ended = [0] * wanted, [False] * wanted

    def tell(self, pieces: list[Piece] | GrammarError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, pieces)

    def grow(self, answers: list[tuple[list[int], list[float]]], eos_ids: tuple[int, ...]) -> bool:
        """Tell what is new in the answers so far; whether all that are wanted have ended."""
        pieces = []
        for index, (tokens, logprobs) in enumerate(answers[: self.wanted]):
            if self._ended[index]:
                continue
            start, finish = self._sent[index], _finish(tokens, self.request.max_new, eos_ids)
            pieces.append(Piece(index, tokens[start:], logprobs[start:], finish))
            self._sent[index], self._ended[index] = len(tokens), finish is not None
        self.tell(pieces)
        return all(self._ended)


class Worker:
    """The thread. It serves jobs in the order in which they were submitted."""

    def __init__(self, engine: DecoderEngine, params: Params, grammars: bool, on_end: Callable[[], object]) -> None:
        """grammars: whether jobs may have one. on_end: called in the thread when it ends; `problem` is then what ended
        it, if something did."""
        self.engine, self.params, self.grammars = engine, params, grammars
        self.problem: BaseException | None = None
        self.ready = threading.Event()
        self.slots_in_use = 0
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[tuple[bool, Job] | None] = queue.SimpleQueue()
        self._waiting: dict[Job, int] = {}
        self._working: dict[Job, int] = {}
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._inbox.put((True, job))

    def cancel(self, job: Job) -> None:
        """Nobody waits for the job any longer, if it is not done."""
        self._inbox.put((False, job))

    def end(self) -> None:
        """Have the thread end behind its present device sync."""
        self._inbox.put(None)

    def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        self._thread.join()

    def _run(self) -> None:
        try:
            decoding = Decoding(self.engine, self.params)
            self._compile(decoding)
            self.ready.set()
            while self._receive(decoding):
                self._enter(decoding)
                if allowed := self._allowed(decoding):
                    decoding.step(allowed=allowed)
                elif self._working:
                    decoding.step()
                self._deliver(decoding)
        except BaseException as problem:  # shown by whoever started the thread
            self.problem = problem
        finally:
            for job in (*self._waiting, *self._working):
                job.tell(None)
            self.ready.set()
            self._on_end()

    def _compile(self, decoding: Decoding) -> None:
        """Compute one prompt of every bucket, so that no client waits for compilation; where there may be grammars, the
        step among allowed tokens too."""
        for length in sorted({self.engine.bucket(length) for length in range(1, self.engine.prompt_len + 1)}):
            request = Request("warm-up", [self.engine.pad_id] * length, (0, 0), 0.0, 1)
            decoding.prefill([(next(self._numbers), request)])
            while decoding.busy:
                decoding.step()
            if not self._inbox.empty():
                return  # told to end
        if self.grammars:
            shape = (self.engine.slots, self.engine.group, self.engine.words)
            decoding.state, _ = self.engine.generate_among(
                decoding.params, decoding.state, np.full(shape, -1, np.int32)
            )
        decoding.finished.clear()

    def _receive(self, decoding: Decoding) -> bool:
        """Take in what has been submitted and cancelled, waiting for it where there is nothing to do; False: stop."""
        while True:
            idle = not self._waiting and not self._working
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if message is None:
                return False
            submitted, job = message
            if submitted:
                self._waiting[job] = next(self._numbers)
            elif job in self._working:
                decoding.drop(self._working.pop(job))
                self.slots_in_use = len(self._working)
            else:
                self._waiting.pop(job, None)

    def _enter(self, decoding: Decoding) -> None:
        arrivals = list(itertools.islice(self._waiting.items(), len(decoding.free)))
        for job, number in arrivals:
            del self._waiting[job]
            self._working[job] = number
        begin = {number: job.constraint.first for job, number in arrivals if job.constraint}
        decoding.prefill([(number, job.request) for job, number in arrivals], allowed=begin)
        self.slots_in_use = len(self._working)

    def _allowed(self, decoding: Decoding) -> dict[int, Int[np.ndarray, "G words"]]:
        """What the answers that have a grammar may go on with."""
        constrained = [(job, number) for job, number in self._working.items() if job.constraint]
        pending = decoding.pending() if constrained else {}
        allowed = {}
        for job, number in constrained:
            assert job.constraint is not None
            try:
                allowed[number] = job.constraint.next(pending[number])
            except GrammarError as error:
                job.tell(error)
                decoding.drop(self._working.pop(job))
        return allowed

    def _deliver(self, decoding: Decoding) -> None:
        for job, number in list(self._working.items()):
            if number in decoding.finished:
                done = decoding.finished.pop(number)
                job.grow([(each.tokens, each.logprobs) for each in done], self.engine.eos_ids)
                del self._working[job]
            elif job.grow(decoding.answers(number), self.engine.eos_ids):
                decoding.drop(number)
                del self._working[job]
        self.slots_in_use = len(self._working)


def _finish(tokens: list[int], max_new: int, eos_ids: tuple[int, ...]) -> Finish | None:
    if tokens and tokens[-1] in eos_ids:
        return "stop"
    return "length" if len(tokens) == max_new else None
