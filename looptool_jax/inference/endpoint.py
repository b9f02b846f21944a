"""Judge and generator behind a server: batches of requests, what is kept of the replies, and the budget.

A reply is kept in a file of its own before anything is done with it, under the SHA-256 of its request (model, messages,
sampling, seed). So a run that is killed, resumed or repeated pays for nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax

from looptool_jax.data.files import read_many, read_present
from looptool_jax.data.store import DataError, dump_json, join, list_names, parse_json, write_bytes
from looptool_jax.inference.answers import Answer, AnswerConfig, ChatRequest, OnTokens, ignore
from looptool_jax.inference.lm import EndpointConfig
from looptool_jax.inference.openai_api import ChatApi, EndpointError, Reply, request_body
from looptool_jax.parallel.processes import Preempted, by_first, is_first, preempted

LINE_SECONDS = 30.0  # between two lines about attempts that failed
LOOK_SECONDS = 1.0  # between two looks for what ends a batch
GRACE_SECONDS = 10.0  # after a notice of preemption, for replies that are on their way
AT_ONCE = 1000  # kept replies in memory while they are counted

_log = logging.getLogger(__name__)


class EndpointChatModel:
    """A model behind a server as the stages see it (a `ChatModel`). Of several processes the first one asks."""

    def __init__(self, cfg: EndpointConfig, folder: str, on_prompts: OnTokens = ignore) -> None:
        """folder: where replies are kept, local or in an object store, shared by all processes. on_prompts: told of how
        many tokens the prompts are, as the server counts them."""
        self.cfg, self.folder, self.on_prompts = cfg, folder, on_prompts
        self._budget: _Budget | None = None

    def check(self) -> None:
        """Raises EndpointError where there is no key, or the server cannot be reached or does not accept it."""

        async def ask() -> None:
            async with ChatApi(self.cfg) as api:
                await api.check(_Batch(self.cfg, _Budget(self.cfg)))

        asyncio.run(ask())

    def chat(
        self,
        requests: Sequence[ChatRequest],
        cfg: AnswerConfig,
        on_tokens: OnTokens,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[Answer]:
        """One reply for each request, in their order; equal requests get one reply. A prompt is too long where the
        server says so; `cfg` gives the longest answer. on_tokens: not told of replies that were kept before.

        Raises EndpointError where the server gives no replies, or the budget is used up; all that came are kept.
        """
        bodies = [
            request_body(
                self.cfg.model, request.messages, temperature=temperature, top_p=top_p, top_k=top_k,
                seed=request.key[0] >> 1, max_tokens=cfg.answer_tokens,
            )
            for request in requests
        ]  # fmt: skip
        files = [join(self.folder, f"{_digest(body)}.json") for body in bodies]
        wanted = dict(zip(files, bodies, strict=True))
        # The other processes do not look before the first has asked: a network file system remembers what was absent.
        kept = _read(read_present(list(wanted))) if is_first() else {}
        replies = {file: reply for file, reply in kept.items() if reply.finish != "prompt_too_long"}
        missing = {file: body for file, body in wanted.items() if file not in replies}

        def ask() -> None:
            if missing:
                asyncio.run(self._ask(missing, on_tokens))

        by_first(ask)
        replies |= _read(dict(zip(missing, read_many(list(missing)), strict=True)))
        too_long = sum(replies[file].finish == "prompt_too_long" for file in files)
        if too_long and is_first():
            _log.warning("%s: %d of %d prompts are longer than the server takes", self.cfg.name, too_long, len(files))
        return [Answer(replies[file].text, [], [], replies[file].finish) for file in files]

    async def _ask(self, bodies: Mapping[str, dict[str, Any]], on_tokens: OnTokens) -> None:
        """Have every reply written into its file. What is on its way when one fails still comes in."""
        if self._budget is None:
            self._budget = _Budget(self.cfg)
            self._budget.add(self._kept_before())
        budget, waiting, batch = self._budget, iter(bodies.items()), _Batch(self.cfg, self._budget)

        async def work(api: ChatApi) -> None:
            for file, body in waiting:
                reply = await api.reply(body, batch)
                row = {"model": self.cfg.model, **asdict(reply)}
                await asyncio.to_thread(write_bytes, file, dump_json(row) + b"\n")
                on_tokens(reply.reply_tokens or 0)
                self.on_prompts(reply.prompt_tokens or 0)
                budget.reply(reply)

        async with ChatApi(self.cfg) as api:
            workers = min(self.cfg.concurrency, len(bodies))
            await batch.run([work(api) for _ in range(workers)])
        batch.raise_problem()

    def _kept_before(self) -> Iterator[Reply]:
        """The replies of this model that earlier processes of the run were given; none where nothing limits them."""
        if self.cfg.max_requests is None and self.cfg.max_tokens is None:
            return
        files = [join(self.folder, name) for name in list_names(self.folder) if name.endswith(".json")]
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            yield from _read(dict(zip(some, read_many(some), strict=True)), self.cfg.model).values()


class _Budget:
    """What a run has asked of a server, against the most that it may."""

    def __init__(self, cfg: EndpointConfig) -> None:
        self.cfg, self.requests, self.tokens = cfg, 0, 0

    def add(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            self.requests += reply.requests
            self.tokens += (reply.prompt_tokens or 0) + (reply.reply_tokens or 0)

    def request(self) -> None:
        """One more request. Raises EndpointError where there may be no more."""
        for key, spent, most in (
            ("max_requests", self.requests, self.cfg.max_requests),
            ("max_tokens", self.tokens, self.cfg.max_tokens),
        ):
            if most is not None and spent >= most:
                raise EndpointError(
                    f"{self.cfg.name}: endpoint.{key}={most} is used up ({self.requests} requests, {self.tokens} "
                    "tokens); raise it and give the same command again: all replies so far are kept"
                )
        self.requests += 1

    def reply(self, reply: Reply) -> None:
        """A reply to requests that were counted. Raises EndpointError where its tokens cannot be."""
        if reply.finish == "prompt_too_long":
            return
        if self.cfg.max_tokens is not None and None in (reply.prompt_tokens, reply.reply_tokens):
            raise EndpointError(
                f"{self.cfg.name}: its replies count no tokens (usage), so endpoint.max_tokens cannot be kept to; "
                "set it to null"
            )
        self.tokens += (reply.prompt_tokens or 0) + (reply.reply_tokens or 0)


class _Batch:
    """Requests that are made at the same time (a `Pacing`). The first problem ends all that would still begin."""

    def __init__(self, cfg: EndpointConfig, budget: _Budget) -> None:
        self.cfg, self.budget = cfg, budget
        self._problem: Exception | None = None
        self._told = -LINE_SECONDS

    async def run(self, works: Iterable[Awaitable[None]]) -> None:
        """Until all have ended. On a notice of preemption what is on its way has some seconds to come in; of several
        processes none stops before the end of the chunk, so that all stop together."""
        running = {asyncio.create_task(self._guard(work)) for work in works}
        last = math.inf
        try:
            while running and time.monotonic() < last:
                _, running = await asyncio.wait(running, timeout=LOOK_SECONDS)
                if last == math.inf and jax.process_count() == 1 and preempted():
                    self._problem = self._problem or Preempted()
                    last = time.monotonic() + GRACE_SECONDS
        finally:
            for task in running:
                task.cancel()

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            self._problem = self._problem or error

    def raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def begin(self) -> None:
        self.raise_problem()
        self.budget.request()

    async def pause(self, seconds: float, reason: str) -> None:
        if time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            _log.warning("%s: %s; trying again in %.0f s", self.cfg.name, reason, seconds)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.raise_problem()
            await asyncio.sleep(min(left, LOOK_SECONDS))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(files: Mapping[str, bytes], model: str | None = None) -> dict[str, Reply]:
    """The replies in files, or those of one model. Raises DataError for a file that holds none."""
    replies = {}
    for file, data in files.items():
        try:
            row = parse_json(data)
            of = row.pop("model")
            reply = Reply(**row)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{file}: no reply of a server; remove the file, and it is asked for again") from None
        if model in (None, of):
            replies[file] = reply
    return replies
