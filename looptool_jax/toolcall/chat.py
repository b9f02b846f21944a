"""Chat formats: from tools and messages to the text, and the token ids, that a model reads.

A prompt is rendered as segments that remember who wrote them: the template or the content. Joined, they are exactly
the text of the model's own chat template. Tokenised, only the template's control tokens are control tokens: an
`<|im_end|>` that a user typed or a tool returned stays text, nothing can close a turn from inside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from looptool_jax.toolcall.parser import THINK_CLOSE, THINK_OPEN
from looptool_jax.toolcall.records import Call, Message, Target, Tool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FormatName = Literal["qwen3", "smollm2"]

_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call><|im_end|>\n"
)


class ChatError(ValueError):
    """A conversation or a tokenizer that a chat format cannot work with."""


class Segment(NamedTuple):
    """A piece of a prompt. Control tokens are read in the template's own text only."""

    text: str
    from_template: bool


def _template(text: str) -> Segment:
    return Segment(text, True)


def _content(text: str) -> Segment:
    return Segment(text, False)


@dataclass(frozen=True)
class ChatFormat:
    """A ChatML format with Hermes-style tool calls, as a model family's template writes it.

    default_system: the system prompt where the conversation has none and there are no tools ("" = no system turn).
    can_think: whether the template knows think blocks.
    """

    name: FormatName
    default_system: str = ""
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
        out = self._head(messages[0], tools)
        turns = messages[1:] if messages[0].role == "system" else messages
        last_query = max((i for i, turn in enumerate(turns) if _is_query(turn)), default=len(turns) - 1)
        for i, turn in enumerate(turns):
            if turn.role == "tool":
                out += _tool_turn(turn, first=i == 0 or turns[i - 1].role != "tool",
                                  last=i == len(turns) - 1 or turns[i + 1].role != "tool")  # fmt: skip
            elif turn.role == "assistant":
                out += self._assistant_turn(turn, after_query=i > last_query, last=i == len(turns) - 1)
            else:
                out += _plain_turn(turn.role, turn.content)
        if generation_prompt:
            out.append(_template("<|im_start|>assistant\n"))
            if self.can_think and not thinking:
                out.append(_template("<think>\n\n</think>\n\n"))
        return out

    def target_segments(self, target: Target) -> list[Segment]:
        """The target in pieces; joined, they are what `render_target` returns."""
        return _answer(target.text, target.calls)

    def _head(self, first: Message, tools: Sequence[Tool]) -> list[Segment]:
        system = first.content if first.role == "system" else None
        if tools:
            out = [_template("<|im_start|>system\n")]
            if system is not None:
                out += [_content(system), _template("\n\n")]
            out.append(_template(_TOOLS_HEAD))
            for tool in tools:
                out += [_template("\n"), _content(to_json({"type": "function", "function": tool.to_json()}))]
            return [*out, _template(_TOOLS_TAIL)]
        if system is not None:
            return _plain_turn("system", system)
        return _plain_turn("system", self.default_system) if self.default_system else []

    def _assistant_turn(self, turn: Message, *, after_query: bool, last: bool) -> list[Segment]:
        content, reasoning = turn.content, turn.reasoning
        if not reasoning and THINK_CLOSE in content:
            head, content = content.split(THINK_CLOSE)[0], content.split(THINK_CLOSE)[-1].lstrip("\n")
            reasoning = head.rstrip("\n").split(THINK_OPEN)[-1].lstrip("\n")
        out = [_template("<|im_start|>assistant\n")]
        if self.can_think and after_query and (last or reasoning):
            out += [_template("<think>\n"), _content(reasoning.strip("\n")), _template("\n</think>\n\n")]
            body = _answer(content.lstrip("\n"), turn.calls, newline=bool(content))
        else:
            body = _answer(content, turn.calls)
        return [*out, *body, _template("<|im_end|>\n")]


_FORMATS: dict[str, ChatFormat] = {
    "qwen3": ChatFormat("qwen3", can_think=True),
    "smollm2": ChatFormat(
        "smollm2", default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
}


def get_format(name: str) -> ChatFormat:
    """The chat format of that name. Raises ChatError naming the known ones."""
    if name not in _FORMATS:
        raise ChatError(f"unknown chat format {name!r}; known: {', '.join(_FORMATS)}")
    return _FORMATS[name]


def to_json(value: Any) -> str:
    """JSON as chat templates write it: one line, ", " and ": ", keys in order, no ASCII escapes."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ChatError(f"a tool or a call holds a value that JSON cannot write: {error}") from None


def _is_query(turn: Message) -> bool:
    """A user turn that is not a tool's answer in disguise."""
    wrapped = turn.content.startswith("<tool_response>") and turn.content.endswith("</tool_response>")
    return turn.role == "user" and not wrapped


def _plain_turn(role: str, content: str) -> list[Segment]:
    return [_template(f"<|im_start|>{role}\n"), _content(content), _template("<|im_end|>\n")]


def _tool_turn(turn: Message, *, first: bool, last: bool) -> list[Segment]:
    """A tool's result; consecutive ones share one user turn."""
    out = [_template("<|im_start|>user")] if first else []
    out += [_template("\n<tool_response>\n"), _content(turn.content), _template("\n</tool_response>")]
    return [*out, _template("<|im_end|>\n")] if last else out


def _answer(text: str, calls: Sequence[Call], *, newline: bool | None = None) -> list[Segment]:
    """Text, then call blocks, each on a new line. `newline` overrides whether one stands before the first block."""
    out = [_content(text)] if text else []
    for i, call in enumerate(calls):
        if i or (bool(text) if newline is None else newline):
            out.append(_template("\n"))
        out += [
            _template('<tool_call>\n{"name": '), _content(to_json(call.name)),
            _template(', "arguments": '), _content(to_json(call.arguments)), _template("}\n</tool_call>"),
        ]  # fmt: skip
    return out


class ChatTokenizer:
    """A tokenizer that speaks a chat format.

    Ordinary text gets exactly the ids that the model's own tokenizer gives it. Control tokens are written by the
    template only; where content spells one, it is encoded as the characters it is made of.
    """

    def __init__(self, tokenizer: Tokenizer, format: str) -> None:
        """Takes the tokenizer over: truncation and padding, if it has any, are switched off.

        Raises ChatError if it lacks the format's control tokens, or cannot spell one as text.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.format = get_format(format)
        self._added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        im_end, end_of_text = self._control_id("<|im_end|>"), self._control_id("<|endoftext|>")
        self._control_id("<|im_start|>")
        self.eos_ids: tuple[int, ...] = (im_end, end_of_text)
        self.pad_id: int = end_of_text
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        for text, i in self._added.items():
            if i in self._encode_plain(text):
                raise ChatError(f"this tokenizer cannot spell its control token {text} as plain text")

    @staticmethod
    def from_pretrained(path: str | Path, format: str) -> ChatTokenizer:
        """Load from a folder in Hugging Face's layout: `tokenizer.json`, or what transformers can convert to one.

        Nothing is downloaded. Raises ChatError if there is no tokenizer in the folder, or a damaged one.
        """
        from tokenizers import Tokenizer

        folder = Path(path)
        file = folder / "tokenizer.json"
        if file.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises nothing more special
                raise ChatError(f"{file}: no readable tokenizer ({' '.join(str(error).split())[:160]})") from None
            return ChatTokenizer(tokenizer, format)
        if not folder.is_dir():
            raise ChatError(f"{folder}: no such folder; expected one with a tokenizer.json")
        from transformers import AutoTokenizer

        try:
            slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ChatError(f"{folder}: no tokenizer found ({str(error).splitlines()[0]})") from None
        return ChatTokenizer(slow.backend_tokenizer, format)

    def encode_prompt(self, messages: Sequence[Message], tools: Sequence[Tool], thinking: bool) -> list[int]:
        """Token ids of the prompt, up to where the assistant begins to write."""
        return self._encode(self.format.segments(messages, tools, thinking=thinking))

    def encode_target(self, target: Target) -> list[int]:
        """Token ids of what the assistant writes for the target, without an end-of-turn token."""
        return self._encode(self.format.target_segments(target))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it are text."""
        return self._encode([_content(text)])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer. End-of-turn and padding tokens are dropped; every other token is shown as it is."""
        dropped = {*self.eos_ids, self.pad_id}
        return self.tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False)

    def _encode(self, segments: Sequence[Segment]) -> list[int]:
        """Split at the template's control tokens only; all text between two of them is encoded as one run."""
        ids: list[int] = []
        run = ""
        for text, from_template in segments:
            if not from_template:
                run += text
                continue
            *pairs, rest = self._control.split(text)
            for before, control in zip(pairs[::2], pairs[1::2], strict=True):
                ids += self._encode_run(run + before)
                ids.append(self._added[control])
                run = ""
            run += rest
        return ids + self._encode_run(run)

    def _encode_run(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            if self._control.search(text):
                return self._encode_plain(text)
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise ChatError("text with half a surrogate pair cannot be tokenised; remove it from the data") from None

    def _encode_plain(self, text: str) -> list[int]:
        """The tokenizer's own steps without its search for added tokens."""
        pipeline = self.tokenizer
        if pipeline.normalizer is not None:
            text = pipeline.normalizer.normalize_str(text)
        words = [text]
        if pipeline.pre_tokenizer is not None:
            words = [word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in pipeline.model.tokenize(word)]

    def _control_id(self, text: str) -> int:
        if text not in self._added:
            raise ChatError(f"the tokenizer has no control token {text}, which the format {self.format.name} needs")
        return self._added[text]
