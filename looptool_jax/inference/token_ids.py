"""What JetStream's Driver needs of a tokenizer when requests and answers are token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from jetstream.engine import tokenizer_api

NO_BOS = -1
"""The Driver of JetStream 0.2.2 puts `bos_id` before every prompt of token ids. Chat prompts begin with a control token
of their own, so this mark goes there, and the engine's `prefill` takes it away."""


class TokenIdsOnly(tokenizer_api.Tokenizer):
    """No text: clients send and receive token ids."""

    def __init__(self, eos_ids: tuple[int, ...], pad_id: int) -> None:
        self._eos_ids, self._pad_id = eos_ids, pad_id

    def encode(self, s: str, **kwargs: Any) -> tuple[np.ndarray, int]:
        raise ValueError("this engine takes token ids: send token_content, not text_content")

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        raise ValueError("this engine gives token ids: send token_content to get them")

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def eos_id(self) -> int:
        return self._eos_ids[0]

    @property
    def bos_id(self) -> int:
        return NO_BOS

    @property
    def stop_tokens(self) -> set[int]:
        return set(self._eos_ids)
