"""Tokens chosen among allowed ones, against a plain decoder that chooses among them too."""

from __future__ import annotations

import numpy as np
import pytest

from looptool_jax.inference.batch import Decoding, Request

LIMIT = 9


def allowed_at(number: int, place: int, vocab: int) -> np.ndarray:
    """Some ten tokens, others at every place of every request; never an end token."""
    rng = np.random.default_rng([number, place])
    return rng.choice(np.arange(6, vocab), 10, replace=False)


def as_bits(tokens: np.ndarray, vocab: int) -> np.ndarray:
    flags = np.zeros(-(-vocab // 32) * 32, np.uint8)
    flags[tokens] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


@pytest.fixture(scope="module")
def answers(single, tiny) -> dict[int, list[int]]:
    """Three requests in slots, the last of them free to choose."""
    decoding, vocab = Decoding(single, tiny.params), tiny.cfg.vocab_size
    requests = [Request(str(i), list(range(6, 10 + 7 * i)), (0, i), 0.0, LIMIT) for i in range(3)]
    decoding.prefill(list(enumerate(requests)), allowed={i: as_bits(allowed_at(i, 0, vocab), vocab) for i in range(2)})
    for place in range(1, LIMIT + 1):
        pending = decoding.pending()
        assert all(pending[i][0] in allowed_at(i, place - 1, vocab) for i in range(2))
        decoding.step(allowed={i: as_bits(allowed_at(i, place, vocab), vocab)[None] for i in range(2)})
    return {number: completion.tokens for number, [completion] in decoding.finished.items()}


def test_restricted_answers_are_the_best_of_the_allowed(answers, tiny):
    for number in range(2):
        tokens = list(range(6, 10 + 7 * number))
        start = len(tokens)
        for place in range(LIMIT):
            among = np.sort(allowed_at(number, place, tiny.cfg.vocab_size))
            tokens.append(int(among[tiny.logprobs(tokens)[-1][among].argmax()]))
        assert answers[number] == tokens[start:]


def test_who_is_not_restricted_decodes_as_ever(answers, tiny):
    assert answers[2] == tiny.greedy(list(range(6, 24)), LIMIT)
