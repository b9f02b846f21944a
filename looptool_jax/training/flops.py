"""Floating-point operations of an update, counted from shapes, and the share of a chip's peak that they are (MFU)."""

from __future__ import annotations

from collections.abc import Sequence

from looptool_jax.models.config import DecoderConfig


def forward_flops(cfg: DecoderConfig, prompt: int, answers: Sequence[int]) -> int:
    """Of the matrix products for a prompt that is computed once with all of its answers, all in tokens: the layers,
    attention over the tokens that each token sees, and the head at the answers' tokens."""
    return _of_weights(cfg, prompt, answers) + _of_attention(cfg, prompt, answers)


def update_flops(cfg: DecoderConfig, prompt: int, answers: Sequence[int], frozen: bool = False) -> int:
    """Of forward and backward pass. What is computed again is not counted.

    The backward pass takes two products for each of the forward one, one for either factor's gradient. Frozen weights
    need none of their own (adapters learn: their products, below a per cent, are left out); attention has no weights.
    """
    return _of_weights(cfg, prompt, answers) * (2 if frozen else 3) + 3 * _of_attention(cfg, prompt, answers)


def _of_weights(cfg: DecoderConfig, prompt: int, answers: Sequence[int]) -> int:
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    mlp, router = 3 * cfg.intermediate_size, 0
    if cfg.experts is not None:
        mlp, router = 3 * cfg.experts.per_token * cfg.experts.intermediate_size, cfg.experts.count
    layer = cfg.hidden_size * (2 * heads + 2 * kv_heads + mlp + router)
    head = sum(answers) * cfg.hidden_size * cfg.vocab_size
    return 2 * (cfg.num_layers * (prompt + sum(answers)) * layer + head)


def _of_attention(cfg: DecoderConfig, prompt: int, answers: Sequence[int]) -> int:
    """Queries with keys, and weights with values, for each pair of tokens of which one sees the other."""
    pairs = _triangle(prompt) + sum(answer * prompt + _triangle(answer) for answer in answers)
    return 4 * cfg.num_layers * pairs * cfg.num_heads * cfg.head_dim


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
