"""Tokens that arrive become replies in OpenAI's words: text up to a stop string, calls, log-probs, streamed pieces."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from looptool_jax.inference.serving.worker import Finish, Piece
from looptool_jax.toolcall import Call, ChatTokenizer, ParseFailure, parse
from looptool_jax.toolcall.formats.base import to_json
from looptool_jax.toolcall.parser import THINK_CLOSE, THINK_OPEN, before_marks


class Choice:
    """One answer while it grows. text: without what its end tokens, or a stop string and all behind it, would add."""

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finish: Finish | None = None
        self._stopped: tuple[str, int] | None = None

    def add(self, piece: Piece) -> None:
        if self.finish is not None:
            return
        before = len(self.tokens)
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.finish = piece.finish
        if self.stop:
            self._look_for_stop(before)

    def _look_for_stop(self, before: int) -> None:
        whole = self.text
        if not any(mark in whole for mark in self.stop):
            return
        for count in range(before + 1, len(self.tokens) + 1):
            text = self.tokenizer.decode(self.tokens[:count])
            places = [place for mark in self.stop if (place := text.find(mark)) >= 0]
            if places:
                kept = text[: min(places)]
                parts = (self.tokenizer.decode(self.tokens[:n]) for n in range(count + 1))
                self._stopped = (kept, next(n for n, part in enumerate(parts) if part.startswith(kept)))
                del self.tokens[count:], self.logprobs[count:]
                self.finish = "stop"
                return

    @property
    def text(self) -> str:
        return self.tokenizer.decode(self.tokens) if self._stopped is None else self._stopped[0]

    @property
    def settled(self) -> str:
        """The beginning of the text that what is still to come cannot change."""
        if self.finish is not None:
            return self.text
        return before_marks(self.text.rstrip("\ufffd"), self.stop)

    @property
    def shown(self) -> int:
        """How many of the tokens stand for text of the reply."""
        if self._stopped is not None:
            return self._stopped[1]
        return len(self.tokens) - (bool(self.tokens) and self.tokens[-1] in self.tokenizer.eos_ids)


@dataclass(frozen=True)
class Said:
    """A chat reply: text, the content of a think block, and calls."""

    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.calls:
            out["tool_calls"] = [_tool_call(call) for call in self.calls]
        return out

    def finish(self, finish: Finish) -> str:
        return "tool_calls" if self.calls and finish == "stop" else finish


@dataclass(frozen=True)
class ChatReader:
    """How the answers of one request are read. tools: whether they may hold calls. thinking: whether they begin with a
    think block."""

    tokenizer: ChatTokenizer
    tools: bool
    thinking: bool

    def read(self, text: str) -> Said:
        """Calls by the strict parser; what it refuses, an attempt at a call too, is text."""
        reasoning, content = _split(text) if self.tools or self.thinking else ("", text)
        if not self.tools:
            return Said(content, reasoning)
        parsed = parse(self.tokenizer.format.canonical(text))
        if isinstance(parsed, ParseFailure) or not parsed.calls:
            return Said(content.strip(), reasoning)
        return Said(parsed.text, parsed.reasoning, parsed.calls)

    def begun(self, text: str) -> Said:
        """What `read` will say at least when the text goes on."""
        reasoning, content = "", text
        if self.tools or self.thinking:
            start = text.lstrip()
            if THINK_OPEN.startswith(start) or (start.startswith(THINK_OPEN) and THINK_CLOSE not in start):
                return Said("")
            reasoning, content = _split(text)
        if self.tools:
            content = self.tokenizer.format.before_calls(content).strip()
        return Said(content, reasoning)


class Streamed:
    """What of one choice has been sent, and what is to be sent next."""

    def __init__(self) -> None:
        self.content = self.reasoning = 0
        self.tokens = 0
        self._calls = False

    def delta(self, said: Said) -> dict[str, Any]:
        """What `said` says beyond all that was sent before; calls come whole."""
        out: dict[str, Any] = {}
        if len(said.reasoning) > self.reasoning:
            out["reasoning_content"] = said.reasoning[self.reasoning :]
        if len(said.content) > self.content:
            out["content"] = said.content[self.content :]
        if said.calls and not self._calls:
            out["tool_calls"] = [{"index": i, **_tool_call(call)} for i, call in enumerate(said.calls)]
            self._calls = True
        self.content, self.reasoning = len(said.content), len(said.reasoning)
        return out

    def fresh_tokens(self, choice: Choice) -> slice:
        """The tokens of the text that were not told of before."""
        start, self.tokens = self.tokens, max(self.tokens, choice.shown)
        return slice(start, self.tokens)


def chat_logprobs(choice: Choice, which: slice) -> dict[str, Any]:
    """Log-probs as chat replies give them. A token that is a part of a character has no bytes of its own."""
    content = []
    for token, logprob in zip(choice.tokens[which], choice.logprobs[which], strict=True):
        text = choice.tokenizer.tokenizer.decode([token], skip_special_tokens=False)
        whole = "\ufffd" not in text
        content.append(
            {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None, "top_logprobs": []}
        )
    return {"content": content, "refusal": None}


def text_logprobs(choice: Choice, which: slice) -> dict[str, Any]:
    """Log-probs as completions give them."""
    texts = [choice.tokenizer.tokenizer.decode([i], skip_special_tokens=False) for i in choice.tokens[which]]
    start = len(choice.tokenizer.decode(choice.tokens[: which.start or 0]))
    offsets = [start + sum(map(len, texts[:i])) for i in range(len(texts))]
    return {"tokens": texts, "token_logprobs": choice.logprobs[which], "top_logprobs": None, "text_offset": offsets}


def usage(prompt: Sequence[int], choices: Sequence[Choice]) -> dict[str, int]:
    generated = sum(len(choice.tokens) for choice in choices)
    return {
        "prompt_tokens": len(prompt), "completion_tokens": generated, "total_tokens": len(prompt) + generated
    }  # fmt: skip


def _split(text: str) -> tuple[str, str]:
    """The content of a closed think block at the start of the text, and what follows; without one, all of the text."""
    start = text.lstrip()
    if not start.startswith(THINK_OPEN) or THINK_CLOSE not in start:
        return "", text
    reasoning, _, rest = start.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    return reasoning.strip(), rest.lstrip()


def _tool_call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": to_json(call.arguments)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
