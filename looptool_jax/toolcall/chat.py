"""From a conversation to the token ids that a model reads, and from its ids back to text.

Only the template's control tokens become control tokens: an `<|im_end|>` that a user typed or a tool returned stays
text, nothing can close a turn from inside. The formats themselves are in `toolcall/formats`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from looptool_jax.toolcall.formats import FORMATS, ChatError, ChatFormat, Segment, content, get_format
from looptool_jax.toolcall.records import Message, Target, Tool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ChatError", "ChatFormat", "ChatTokenizer", "check_format", "get_format", "read_tokenizer"]


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
        if missing := missing_tokens(self.format, self._added):
            raise ChatError(f"the tokenizer has no control token {missing[0]}, which the format {format} needs")
        self.eos_ids: tuple[int, ...] = tuple(self._added[token] for token in self.format.ends)
        self.pad_id: int = next(self._added[token] for token in self.format.pads if token in self._added)
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1
        self._longest = max(len(token.encode("utf-8", "replace")) for token in vocab)
        for text, i in self._added.items():
            if i in self._encode_plain(text):
                raise ChatError(f"this tokenizer cannot spell its control token {text} as plain text")

    @staticmethod
    def from_pretrained(path: str | Path, format: str) -> ChatTokenizer:
        """Load from a folder in Hugging Face's layout: `tokenizer.json`, or what transformers can convert to one.

        Nothing is downloaded. Raises ChatError if there is no tokenizer in the folder, or a damaged one.
        """
        return ChatTokenizer(read_tokenizer(path), format)

    def encode_prompt(self, messages: Sequence[Message], tools: Sequence[Tool], thinking: bool) -> list[int]:
        """Token ids of the prompt, up to where the assistant begins to write."""
        return self._encode(self.format.segments(messages, tools, thinking=thinking))

    def fewest_tokens(self, text: str) -> int:
        """What a text has at least, found without tokenising it: no token stands for more than the longest one does."""
        return -(-len(text) // self._longest)

    def encode_target(self, target: Target) -> list[int]:
        """Token ids of what the assistant writes for the target, without an end-of-turn token."""
        return self._encode(self.format.target_segments(target))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it are text."""
        return self._encode([content(text)])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer. End-of-turn and padding tokens are dropped; every other token is shown as it is."""
        dropped = {*self.eos_ids, self.pad_id}
        return self.tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False)

    def control_parts(self, text: str) -> list[tuple[str, bool]]:
        """A template's text, split at its control tokens, and whether each part is one."""
        parts = [(part, i % 2 == 1) for i, part in enumerate(self._control.split(text))]
        return [(part, control) for part, control in parts if part]

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


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder. Raises ChatError if there is none, or a damaged one."""
    from tokenizers import Tokenizer

    folder = Path(path)
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more special
            raise ChatError(f"{file}: no readable tokenizer ({' '.join(str(error).split())[:160]})") from None
    if not folder.is_dir():
        raise ChatError(f"{folder}: no such folder; expected one with a tokenizer.json")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except (OSError, ValueError) as error:
        raise ChatError(f"{folder}: no tokenizer found ({str(error).splitlines()[0]})") from None


def missing_tokens(format: ChatFormat, added: Collection[str]) -> list[str]:
    """The tokens that a format needs and a tokenizer's added tokens lack."""
    return [token for token in (*format.control, *format.ends) if token not in added]


def check_format(name: str, architecture: str, tokenizer: Tokenizer) -> None:
    """Whether a model with this `model_type` and this tokenizer can have that chat format.

    Formats of one architecture with the same control tokens cannot be told apart; so "" (not set) is refused, never
    guessed. Raises ChatError naming the formats that are possible.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    fitting = [each for each in FORMATS.values() if architecture in each.architectures]
    possible = [each.name for each in fitting if not missing_tokens(each, added)]
    facts = f"model_type {architecture} and this tokenizer's control tokens"
    advice = f"{facts} fit {' and '.join(possible)}" if possible else f"no known format fits {facts}"
    if not name:
        raise ChatError(f"no chat format is set (known: {', '.join(FORMATS)}); {advice}")
    if architecture not in get_format(name).architectures:
        raise ChatError(f"the chat format {name} does not belong to a model of model_type {architecture}; {advice}")
