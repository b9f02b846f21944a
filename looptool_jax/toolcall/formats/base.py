"""What a chat format is: tools, messages and targets in the words of one model family, and its answers read back.

A prompt is rendered as segments that remember who wrote them: the template or the content. Joined, they are exactly
the text of the family's own chat template. Everything after the model speaks the canonical text that
`toolcall.parser.parse` reads; `canonical` turns what the family writes into it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from looptool_jax.toolcall.parser import CALL_CLOSE, CALL_OPEN, before_marks
from looptool_jax.toolcall.records import Call, Message, Target, Tool


class ChatError(ValueError):
    """A conversation or a tokenizer that a chat format cannot work with."""


class Segment(NamedTuple):
    """A piece of a prompt. Control tokens are read in the template's own text only."""

    text: str
    from_template: bool


def template(text: str) -> Segment:
    return Segment(text, True)


def content(text: str) -> Segment:
    return Segment(text, False)


@dataclass(frozen=True)
class ChatFormat(ABC):
    """The chat format of a model family.

    name: as configurations give it. architectures: the `model_type`s (in config.json) that the family's models have.
    control: tokens that the template writes. ends: tokens that end an answer, the one that ends a turn first.
    pads: tokens to pad with; the first that a tokenizer has is taken.
    can_think: whether the template knows think blocks.
    """

    name: str
    architectures: tuple[str, ...]
    control: tuple[str, ...]
    ends: tuple[str, ...]
    pads: tuple[str, ...]
    can_think: bool = False

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, thinking: bool, generation_prompt: bool = True
    ) -> str:
        """The prompt as text. Raises ChatError for an empty conversation, or thinking in a format without it."""
        segments = self.segments(messages, tools, thinking=thinking, generation_prompt=generation_prompt)
        return "".join(segment.text for segment in segments)

    def render_target(self, target: Target) -> str:
        """What the assistant writes for a target, without the end of its turn."""
        return "".join(segment.text for segment in self.target_segments(target))

    def segments(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, thinking: bool, generation_prompt: bool = True
    ) -> list[Segment]:
        """The prompt in pieces; joined, they are what `render` returns."""
        if not messages:
            raise ChatError("a conversation needs at least one message")
        if thinking and not self.can_think:
            raise ChatError(f"the chat format {self.name} has no think blocks: set thinking to false")
        out = self.conversation(messages, tools)
        return [*out, *self.generation_prompt(thinking)] if generation_prompt else out

    @abstractmethod
    def conversation(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Segment]:
        """All turns of a conversation that is not empty."""

    @abstractmethod
    def generation_prompt(self, thinking: bool) -> list[Segment]:
        """The beginning of the turn that the assistant is to write."""

    @abstractmethod
    def target_segments(self, target: Target) -> list[Segment]:
        """The target in pieces; joined, they are what `render_target` returns."""

    @abstractmethod
    def canonical(self, text: str) -> str:
        """An answer of the family's model as the canonical text: a text answer as it is, calls as `<tool_call>`
        blocks, a broken attempt at a call as text that the strict parser rejects. Never raises on a string."""

    def before_calls(self, text: str) -> str:
        """The beginning of an unfinished answer that belongs to no call, whatever follows."""
        return before_marks(text, (CALL_OPEN,))


def call_block(call: Call) -> list[Segment]:
    """A call as a canonical block; it is also how Qwen and Hermes models write calls."""
    return [
        template(f'{CALL_OPEN}\n{{"name": '), content(to_json(call.name)),
        template(', "arguments": '), content(to_json(call.arguments)), template(f"}}\n{CALL_CLOSE}"),
    ]  # fmt: skip


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as chat templates write it: ", " and ": ", keys in order, no ASCII escapes; on one line without indent."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ChatError(f"a tool or a call holds a value that JSON cannot write: {error}") from None


def tool_json(tool: Tool) -> dict[str, Any]:
    """A tool as templates are given it."""
    return {"type": "function", "function": tool.to_json()}
