"""OpenAI's API over HTTP: /v1/models, /v1/completions, /v1/chat/completions, /health.

The event loop only moves bytes: requests are read and tokenised in a pool of threads, the worker's thread decodes. A
handler whose client hangs up is cancelled, and its slot is free at the next device sync. On the first SIGTERM or SIGINT
requests that are here end and new ones get 503; on the second all is left as it is.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from looptool_jax.data.files import dump_json, parse_json
from looptool_jax.inference.grammar import GrammarError
from looptool_jax.inference.serving.replies import Choice, Said, Streamed, chat_logprobs, text_logprobs, usage
from looptool_jax.inference.serving.requests import ApiError, Asked, Served, read_chat, read_completion
from looptool_jax.inference.serving.worker import Job, Worker

BODY_SECONDS = 30.0  # within which the body of a request is here
SEND_SECONDS = 30.0  # within which a client takes in a piece of its stream
RETRY_SECONDS = 1  # what a client is asked to wait when there are too many requests

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_log = logging.getLogger(__name__)


class ServeError(ValueError):
    """A server that cannot start, or that its engine has left."""


@dataclass(frozen=True)
class ServeConfig:
    """Where and for whom to serve. port: 0 takes a free one. api_key_env: the environment variable that holds the key;
    None: whoever reaches the port is served. waiting: most requests beside those in slots. body_bytes: most of one."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    waiting: int = 256
    body_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if self.waiting < 0:
            raise ServeError(f"--waiting: at least 0, found {self.waiting}")
        if not 0 <= self.port < 65536:
            raise ServeError(f"--port: from 0 to 65535, found {self.port}")

    def key(self) -> str:
        """Raises ServeError where the variable that should hold the key does not."""
        if self.api_key_env is None:
            return ""
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ServeError("--api-key-env: expected the name of an environment variable in capitals, never the key")
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            raise ServeError(f"--api-key-env: the variable {self.api_key_env} holds no key; set it")
        return key


def serve(served: Served, params: Any, cfg: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it. Raises ServeError, OSError."""
    asyncio.run(_Server(served, cfg, cfg.key()).run(params, say))


class _Server:
    def __init__(self, served: Served, cfg: ServeConfig, key: str) -> None:
        self.served, self.cfg = served, cfg
        self._key = key.encode()
        self._open = 0
        self._draining = False
        self._ended = asyncio.Event()
        self._worker: Worker
        self._app = web.Application(client_max_size=cfg.body_bytes, middlewares=[self._with_errors])
        self._app.router.add_get("/health", self._health)
        self._app.router.add_get("/v1/models", self._models)
        self._app.router.add_get("/v1/models/{name:.+}", self._models)
        self._app.router.add_post("/v1/completions", self._completions)
        self._app.router.add_post("/v1/chat/completions", self._chat)

    async def run(self, params: Any, say: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._worker = Worker(
            self.served.engine,
            params,
            self.served.grammars is not None,
            lambda: loop.call_soon_threadsafe(self._ended.set),
        )
        runner = web.AppRunner(self._app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        try:
            await asyncio.to_thread(self._worker.ready.wait)
            await runner.setup()
            if not self._ended.is_set():
                await self._listen(runner)
                host, port = runner.addresses[0][:2]
                shown = f"[{host}]" if ":" in host else host
                say(f"{self.served.name} at http://{shown}:{port}/v1")
                await self._ended.wait()
        finally:
            await runner.cleanup()
            await asyncio.to_thread(self._worker.stop)
        if self._worker.problem is not None:
            raise self._worker.problem

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, self.cfg.host, self.cfg.port).start()
        except OSError as error:
            place = f"--host {self.cfg.host} --port {self.cfg.port}"
            raise ServeError(f"{place}: {os.strerror(error.errno or 0).lower()}; choose another") from None

    def _stop(self) -> None:
        if self._draining or not self._open:
            self._ended.set()
            self._worker.end()
        self._draining = True

    # --- what every request goes through ----------------------------------------------------------------------------

    @web.middleware
    async def _with_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            if request.path != "/health":
                self._check_key(request)
            return await handler(request)
        except ApiError as error:
            return _error(error)
        except web.HTTPRequestEntityTooLarge:
            return _error(ApiError(413, f"the body is larger than {self.cfg.body_bytes} bytes"))
        except web.HTTPException as error:
            return _error(ApiError(error.status, f"{request.method} on this path: {error.reason}"), error.headers)
        except Exception:
            _log.exception("a request failed")
            return _error(ApiError(500, "the server failed on this request; its log says why"))

    def _check_key(self, request: web.Request) -> None:
        if not self._key and self.cfg.host in LOOPBACK and request.url.host not in LOOPBACK:
            # A page of another site can have its name resolved to this machine.
            raise ApiError(403, f"this server is {self.cfg.host}, not {request.url.host}")
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        if self._key and not hmac.compare_digest(given, self._key):
            raise ApiError(401, "no right API key: send Authorization: Bearer KEY", code="invalid_api_key")

    async def _health(self, _: web.Request) -> web.Response:
        state = {
            "status": "stopping" if self._draining else "ok", "slots": self.served.engine.slots,
            "slots_in_use": self._worker.slots_in_use, "requests": self._open,
        }  # fmt: skip
        return _json(state, 503 if self._draining else 200)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self.served.name, "object": "model", "created": 0, "owned_by": "looptool"}
        name = request.match_info.get("name")
        if name is None:
            return _json({"object": "list", "data": [model]})
        if name != self.served.name:
            raise ApiError(404, f"this server has {self.served.name} only", "model", "model_not_found")
        return _json(model)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, read_chat)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, read_completion)

    async def _serve(self, request: web.Request, read: Callable[[Any, Served], Asked]) -> web.StreamResponse:
        if self._draining:
            raise ApiError(503, "the server is stopping")
        if self._open >= self.served.engine.slots + self.cfg.waiting:
            raise ApiError(429, "too many requests wait here; try again later")
        self._open += 1
        try:
            data = await self._body(request)
            asked = await asyncio.to_thread(_read, data, read, self.served)
            job = Job(asked.request, asked.n, asked.constraint)
            self._worker.submit(job)
            try:
                answer = _stream if asked.stream else _whole
                return await answer(request, asked, self.served, job)
            finally:
                self._worker.cancel(job)
        finally:
            self._open -= 1
            if self._draining and not self._open:
                self._ended.set()

    async def _body(self, request: web.Request) -> bytes:
        if request.content_type != "application/json":  # which a page of another site cannot send unasked
            raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await request.read()
        except TimeoutError:
            raise ApiError(408, f"the body was not here within {BODY_SECONDS:g} s") from None
        except web.RequestPayloadError:
            raise ApiError(400, "the body cannot be read: it is not encoded as its headers say") from None


def _read(data: bytes, read: Callable[[Any, Served], Asked], served: Served) -> Asked:
    try:
        body = parse_json(data)
    except ValueError as error:
        raise ApiError(400, f"the body is {error}") from None
    return read(body, served)


# --- replies --------------------------------------------------------------------------------------------------------


async def _grown(job: Job, choices: list[Choice]) -> AsyncIterator[list[Choice]]:
    """The choices that have changed, after every device sync, until all have ended."""
    while not all(choice.finish for choice in choices):
        pieces = await job.pieces.get()
        if pieces is None:
            raise ApiError(503, "the server has stopped before the answer's end")
        if isinstance(pieces, GrammarError):
            raise ApiError(400, str(pieces))
        changed = [choices[piece.index] for piece in pieces if choices[piece.index].finish is None]
        for piece in pieces:
            choices[piece.index].add(piece)
        yield changed


async def _whole(_: web.Request, asked: Asked, served: Served, job: Job) -> web.Response:
    choices = [Choice(served.tokenizer, asked.stop) for _ in range(asked.n)]
    async for _changed in _grown(job, choices):
        pass
    out = []
    for index, choice in enumerate(choices):
        assert choice.finish is not None
        logprobs = _logprobs(asked, choice, slice(0, choice.shown))
        if asked.reader is None:
            shown: dict[str, Any] = {"text": choice.text, "finish_reason": choice.finish}
        else:
            said = asked.reader.read(choice.text)
            shown = {"message": said.message, "finish_reason": said.finish(choice.finish)}
        out.append({"index": index, **shown, "logprobs": logprobs})
    head = _head(asked, served, "chat.completion" if asked.reader else "text_completion")
    return _json({**head, "choices": out, "usage": usage(asked.request.tokens, choices)})


async def _stream(request: web.Request, asked: Asked, served: Served, job: Job) -> web.StreamResponse:
    """Server-sent events: a chunk where a choice has more text, its calls whole at its end."""
    head = _head(asked, served, "chat.completion.chunk" if asked.reader else "text_completion")
    choices = [Choice(served.tokenizer, asked.stop) for _ in range(asked.n)]
    streamed = [Streamed() for _ in choices]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)

    async def send(event: dict[str, Any] | str) -> None:
        data = event if isinstance(event, str) else dump_json(event).decode()
        async with asyncio.timeout(SEND_SECONDS):
            await response.write(f"data: {data}\n\n".encode())

    async def send_all() -> None:
        if asked.reader is not None:
            for index in range(asked.n):
                first = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                await send({**head, "choices": [first]})
        async for changed in _grown(job, choices):
            for choice in changed:
                index = choices.index(choice)
                if (chunk := _chunk(asked, choice, streamed[index])) is not None:
                    await send({**head, "choices": [{"index": index, **chunk}]})
        if asked.usage_too:
            await send({**head, "choices": [], "usage": usage(asked.request.tokens, choices)})
        await send("[DONE]")

    try:
        try:
            await send_all()
        except ApiError as error:
            await send(error.body())
    except (ConnectionError, TimeoutError):  # the client is gone, or as good as
        if request.transport is not None:
            request.transport.abort()
    return response


def _chunk(asked: Asked, choice: Choice, sent: Streamed) -> dict[str, Any] | None:
    """What is to be sent of a choice that has grown; None: nothing yet."""
    if asked.reader is None:
        said = Said(choice.settled)
    else:
        said = asked.reader.begun(choice.settled) if choice.finish is None else asked.reader.read(choice.text)
    delta = sent.delta(said)
    if not delta and choice.finish is None:
        return None
    shown = {"delta": delta} if asked.reader else {"text": delta.get("content", "")}
    finish = None if choice.finish is None else said.finish(choice.finish)
    return {**shown, "logprobs": _logprobs(asked, choice, sent.fresh_tokens(choice)), "finish_reason": finish}


def _logprobs(asked: Asked, choice: Choice, which: slice) -> dict[str, Any] | None:
    if not asked.logprobs:
        return None
    return chat_logprobs(choice, which) if asked.reader else text_logprobs(choice, which)


def _head(asked: Asked, served: Served, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if asked.reader else "cmpl"
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": served.name
    }  # fmt: skip


def _json(value: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=dump_json(value), status=status, content_type="application/json")


def _error(error: ApiError, headers: Any = None) -> web.Response:
    response = _json(error.body(), error.status)
    if error.status == 429:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    if headers is not None and "Allow" in headers:
        response.headers["Allow"] = headers["Allow"]
    return response
