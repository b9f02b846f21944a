"""Operations counted weight by weight and token by token, and the peak of devices."""

from __future__ import annotations

import importlib.util
import math

import jax
import pytest

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig, Experts
from looptool_jax.parallel.topology import FAMILIES, PEAK_FLOPS, slices
from looptool_jax.training.flops import forward_flops, update_flops

DENSE = DecoderConfig("qwen3", 64, 16, 32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
MIXTURE = DecoderConfig(
    "qwen3_moe", 64, 16, 32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, experts=Experts(8, 2, 24, True)
)


@pytest.mark.parametrize("cfg", [DENSE, MIXTURE])
def test_forward_flops_are_those_of_every_weight_and_every_pair(cfg):
    prompt, answers = 7, [3, 5]
    weights = 0.0
    for path, leaf in jax.tree.leaves_with_path(decoder.abstract_params(cfg)["layers"]):
        name = jax.tree_util.keystr(path)
        chosen = cfg.experts is not None and leaf.ndim == 4 and leaf.shape[1] == cfg.experts.count
        used = cfg.experts.per_token / cfg.experts.count if chosen else 1.0
        weights += 0.0 if "norm" in name else used * math.prod(leaf.shape)
    visible = [position + 1 for position in range(prompt)]
    visible += [prompt + position + 1 for answer in answers for position in range(answer)]
    attention = cfg.num_layers * sum(4 * cfg.num_heads * cfg.head_dim * tokens for tokens in visible)
    expected = 2 * weights * len(visible) + attention + 2 * cfg.hidden_size * cfg.vocab_size * sum(answers)
    assert forward_flops(cfg, prompt, answers) == expected
    assert update_flops(cfg, prompt, answers) == 3 * expected
    assert update_flops(cfg, prompt, answers, frozen=True) == 2 * expected + attention, "both factors are computed"


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_peak_of_every_tpu_family_is_known():
    for family in FAMILIES:
        assert slices(family.name)[1].devices()[0].device_kind in PEAK_FLOPS, family
