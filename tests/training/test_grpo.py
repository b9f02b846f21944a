"""Advantages and configuration. Rows: test_rows.py. The update itself: test_grpo_gradient.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from looptool_jax.training.grpo import GrpoConfig, group_advantages

torch = pytest.importorskip("torch")


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0.1, 1]))
)
def test_advantages(rewards):
    values = group_advantages(rewards)
    assert values.dtype == np.float32
    for group, found in zip(torch.tensor(rewards), values, strict=True):
        if len(set(group.tolist())) == 1:
            assert (found == 0).all()
        else:
            np.testing.assert_allclose(found, (group - group.mean()) / (group.std() + 1e-6), rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ratio": "sequence"}, "set train.grpo.loss_agg='seq-mean-token-mean'"),
        ({"ratio": "word"}, "train.grpo.ratio is 'word'"),
        ({"loss_agg": "sum"}, "train.grpo.loss_agg is 'sum'"),
        ({"compute_dtype": "int8"}, "train.grpo.compute_dtype is 'int8'"),
        ({"micro_tokens": 0}, "train.grpo.micro_tokens: at least 1, found 0"),
        ({"logprob_chunk": 0}, "train.grpo.logprob_chunk: at least 1, found 0"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        GrpoConfig(**options)
