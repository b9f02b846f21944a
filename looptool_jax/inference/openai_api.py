"""One request to a server that speaks OpenAI's chat API: what counts as a reply, what is tried again, what ends a run.

Busy servers (429, 5xx), silence, connections that break and replies that are none are tried again after a growing
pause; other refusals are not. What a server sends is data: it is read as JSON, and shown on one line at most. The key
goes into one header; where a server sends it back, it is blotted out before anything else is done.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp

from looptool_jax.data.files import parse_json
from looptool_jax.inference.lm import EndpointConfig
from looptool_jax.toolcall import Message

FIRST_PAUSE = 1.0  # seconds, doubled from try to try
LONGEST_PAUSE = 60.0
LONGEST_WAIT = 600.0  # a server that asks for a longer pause ends the run
CHECK_SECONDS, CHECK_TRIES = 30.0, 3  # most for the question whether a server is there
SHOWN = 200  # characters of what a server says

_TOO_LONG = re.compile(r"context[ _](length|size|window)|too many tokens|prompt is too long", re.IGNORECASE)
_CONTROL = re.compile(
    r"<(?=[|｜][^<>\s]{1,60}[|｜]>|/?s>|(?:start|end)_of_turn>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\])"
)


Result = TypeVar("Result")


class EndpointError(ValueError):
    """A server that does not answer as it should, or a budget that is used up; the message says what to do."""


class _TryAgain(Exception):
    """An attempt that failed and may not fail again. wait: seconds for which the server asks."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Reply:
    """What a server replied. finish: as in `Answer`. tokens of prompt and reply: None where the server counts none.
    requests: how many it took."""

    text: str
    finish: str
    prompt_tokens: int | None
    reply_tokens: int | None
    requests: int


class Pacing(Protocol):
    """What happens around attempts."""

    def begin(self) -> None:
        """Before each request for a reply; may raise what ends the run."""

    async def pause(self, seconds: float, reason: str) -> None:
        """After an attempt that failed, and before the next."""


class ChatApi:
    """A connection to the server, open inside an `async with` block."""

    def __init__(self, cfg: EndpointConfig) -> None:
        """Raises EndpointError where the variable that should hold the key does not."""
        self.cfg = cfg
        self._key = ""
        if cfg.api_key_env is not None:
            self._key = os.environ.get(cfg.api_key_env, "").strip()
            if not self._key:
                raise EndpointError(
                    f"{cfg.name}: the variable {cfg.api_key_env} (endpoint.api_key_env) holds no key; set it"
                )
            if not re.fullmatch(r"[!-~]+", self._key):
                raise EndpointError(f"{cfg.name}: what {cfg.api_key_env} holds is no key: it has spaces or signs in it")

    async def __aenter__(self) -> ChatApi:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def check(self, pacing: Pacing) -> None:
        """Raises EndpointError where nothing answers at the address, or the key is not accepted. Costs no tokens."""

        async def ask() -> None:
            status, raw, _ = await self._exchange("GET", "models", timeout_s=min(CHECK_SECONDS, self.cfg.timeout_s))
            if status in (401, 403):
                raise self._refused(status, raw)

        await self._persist(ask, pacing, min(CHECK_TRIES, self.cfg.tries))

    async def reply(self, body: Mapping[str, Any], pacing: Pacing) -> Reply:
        """The reply to a request body. Raises EndpointError, and what `pacing.begin` raises."""
        requests = 0

        async def ask() -> Reply:
            nonlocal requests
            pacing.begin()
            requests += 1
            status, raw, headers = await self._exchange("POST", "chat/completions", body)
            if status == 429 or status >= 500:
                raise _TryAgain(f"status {status}{_said(raw)}", _retry_after(headers))
            if status in (400, 413, 422) and _TOO_LONG.search(_text(raw)):
                return Reply("", "prompt_too_long", None, None, requests)
            if status != 200:
                raise self._refused(status, raw)
            return _read(raw, requests)

        return await self._persist(ask, pacing, self.cfg.tries)

    async def _persist(self, ask: Callable[[], Awaitable[Result]], pacing: Pacing, tries: int) -> Result:
        for attempt in range(1, tries + 1):
            try:
                return await ask()
            except _TryAgain as problem:
                reason, wait = str(problem), problem.wait
            if wait > LONGEST_WAIT:
                raise EndpointError(
                    f"{self.cfg.name}: {reason}; it asks for a pause of {wait:,.0f} s; give the same command again then"
                )
            if attempt < tries:
                longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
                await pacing.pause(max(wait, random.uniform(longest / 2, longest)), reason)
        raise EndpointError(
            f"{self.cfg.name}: no reply in {tries} tries, the last time: {reason}; see to the server (or "
            "raise endpoint.tries or endpoint.timeout_s) and give the same command again: all replies so far are kept"
        )

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of the answer. Raises _TryAgain where none comes, or only a part of one."""
        url, seconds = f"{self.cfg.url.rstrip('/')}/{path}", timeout_s or self.cfg.timeout_s
        how: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(total=seconds), "allow_redirects": False}
        try:
            async with self._session.request(method, url, json=body, **how) as response:
                raw = await response.read()
        except TimeoutError:
            raise _TryAgain(f"no whole answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _TryAgain(_line(str(error)) or type(error).__name__) from None
        for form in {self._key, self._key.replace("/", "\\/")} - {""}:
            raw = raw.replace(form.encode(), b"***")
        return response.status, raw, response.headers

    def _refused(self, status: int, raw: bytes) -> EndpointError:
        said = _said(raw)
        advice = "it does not take this request"
        if status in (401, 403):
            named = self.cfg.api_key_env
            advice = f"it does not accept the key in {named}" if named else "name a key by endpoint.api_key_env"
        elif status == 404 or 300 <= status < 400:
            advice = "is endpoint.url the base of the API (mostly it ends in /v1), and endpoint.model a model there?"
        elif "top_k" in said:
            advice = "it does not know top_k: set expand.top_k=0"
        return EndpointError(f"{self.cfg.name}: refused with status {status}{said}; {advice}")


def request_body(
    model: str, messages: Sequence[Message], *, temperature: float, top_p: float, top_k: int, seed: int, max_tokens: int
) -> dict[str, Any]:
    """The body of a request. `top_k`, which OpenAI's own API lacks, is in it where it is not 0."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": spelled_out(message.content)} for message in messages],
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    return body | ({"top_k": top_k} if top_k else {})


def spelled_out(text: str) -> str:
    """Text in which control tokens of chat templates are text: behind their first sign stands a space. A server
    tokenises content and template alike, so `<|im_end|>` in a sample or an earlier reply would close the turn there."""
    return _CONTROL.sub(r"\g<0> ", text)


def _read(raw: bytes, requests: int) -> Reply:
    try:
        answer = parse_json(raw)
    except ValueError as error:
        raise _TryAgain(f"a reply that is {error}{_said(raw)}") from None
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise _TryAgain(f"a reply without choices[0].message.content and finish_reason{_said(raw)}") from None
    if not isinstance(text, str | None) or not isinstance(finish, str) or finish in ("abort", "error"):
        raise _TryAgain(f"a reply that was broken off (finish_reason {_line(repr(finish))}){_said(raw)}")
    usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
    tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    return Reply(text or "", "length" if finish == "length" else "stop", tokens[0], tokens[1], requests)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds for which the server asks, given as such or as a date; 0 where it does not."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _said(raw: bytes) -> str:
    """What the server says, for an error message: that of its own error where it is one, else how its reply begins."""
    text = _text(raw)
    try:
        error = parse_json(raw)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        pass
    shown = _line(str(text))
    return f" ({shown})" if shown else ""


def _text(raw: bytes) -> str:
    return raw[:4096].decode("utf-8", "replace")


def _line(text: str) -> str:
    """One short line of printable characters."""
    return "".join(sign for sign in " ".join(text.split()) if sign.isprintable())[:SHOWN]
