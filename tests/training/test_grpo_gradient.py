"""The compiled GRPO step against a plain one: torch, float64, every answer with its own copy of the prompt."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.training.grpo import GrpoBatch, GrpoConfig, group_advantages, make_grpo_step
from looptool_jax.training.optimizer import init_state, state_shardings

CFG = DecoderConfig("qwen3", 61, 32, 48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
SHARDED = {"vocab": None, "layers": None, "embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
# Keeps the gradients in its state and changes nothing.
RECORD = optax.chain(optax.trace(decay=0.0), optax.set_to_zero())


# ---------------------------------------------------------------- the plain implementation


def _norm(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + CFG.rms_norm_eps) * weight


def _rotate(x):
    """x [time, heads, head_dim]; the two halves are the two coordinates of each pair."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * CFG.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def plain_logits(params, ids):
    """[time, vocab] of one sequence: no batch, no cache, full softmax attention."""
    x = params["embedding"][torch.tensor(ids)]
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    for i in range(CFG.num_layers):
        p = {name: leaf[i] for name, leaf in params["layers"].items()}
        y = _norm(x, p["attention_norm"])
        q = _rotate(_norm(torch.einsum("td,dhc->thc", y, p["q"]), p["q_norm"]))
        k = _rotate(_norm(torch.einsum("td,dhc->thc", y, p["k"]), p["k_norm"]))
        v = torch.einsum("td,dhc->thc", y, p["v"])
        k, v = (z.repeat_interleave(CFG.num_heads // CFG.num_kv_heads, dim=1) for z in (k, v))
        scores = torch.einsum("thc,shc->hts", q, k) / CFG.head_dim**0.5
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        x = x + torch.einsum("hts,shc,hcd->td", weights, v, p["o"])
        y = _norm(x, p["mlp_norm"])
        x = x + (torch.nn.functional.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    return _norm(x, params["final_norm"]) @ params["embedding"].T


def plain_logprobs(params, prompt, answer):
    logprobs = plain_logits(params, [*prompt, *answer]).log_softmax(-1)
    return [logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]


def plain_surrogate(grpo, log_ratio, advantage):
    ratio = torch.exp(log_ratio)
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high))
    return torch.minimum(loss, -advantage * grpo.dual_clip) if advantage < 0 else loss


def plain_loss(params, grpo, batch):
    """One sample, one token at a time. Returns the loss and how many terms sat in which region."""
    per_answer, regions = [], {"clipped": 0, "dual": 0, "free": 0}
    for n in range(len(batch.prompts)):
        prompt = batch.prompts[n, : batch.prompt_lengths[n]].tolist()
        for g in range(batch.answers.shape[1]):
            answer = batch.answers[n, g, : batch.answer_lengths[n, g]].tolist()
            if not answer:
                continue
            advantage = torch.tensor(float(batch.advantages[n, g]), dtype=torch.float64)
            new = plain_logprobs(params, prompt, answer)
            if batch.old_logprobs is None:
                old = [x.detach() for x in new]
            else:
                old = torch.tensor(batch.old_logprobs[n, g, : len(answer)], dtype=torch.float64)
            kl = [torch.exp(b - a) - (b - a) - 1 for a, b in zip(new, old, strict=True)]
            if grpo.ratio == "token":
                log_ratios = [a - b for a, b in zip(new, old, strict=True)]
            else:
                log_ratios = [sum(a - b for a, b in zip(new, old, strict=True))]
            terms = [plain_surrogate(grpo, x, advantage) for x in log_ratios]
            for x in log_ratios:
                r = x.exp().item()
                dual = advantage < 0 and r > grpo.dual_clip
                clipped = (advantage > 0 and r > 1 + grpo.clip_high) or (advantage < 0 and r < 1 - grpo.clip_low)
                regions["dual" if dual else "clipped" if clipped else "free"] += 1
            per_answer.append((terms, kl))
    if grpo.ratio == "sequence":
        policy = sum(terms[0] for terms, _ in per_answer) / len(per_answer)
    else:
        policy = _aggregate(grpo, [terms for terms, _ in per_answer])
    return policy + grpo.kl_coefficient * _aggregate(grpo, [kl for _, kl in per_answer]), regions


def _aggregate(grpo, terms):
    if grpo.loss_agg == "token-mean":
        return sum(sum(t) for t in terms) / sum(len(t) for t in terms)
    return sum(sum(t) / len(t) for t in terms) / len(terms)


def plain_gradients(params, grpo, batch):
    params = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), params)
    loss, regions = plain_loss(params, grpo, batch)
    loss.backward()
    return loss.item(), jax.tree.map(lambda x: x.grad.numpy(), params), regions


# ---------------------------------------------------------------- the compiled step


@pytest.fixture(scope="module")
def params():
    values = decoder.init_params(CFG, jax.random.key(0))
    # The tied head at its usual scale gives near-uniform predictions; larger ones make every term count.
    return {**values, "embedding": values["embedding"] * 15}


def step_gradients(params, grpo, batch, mesh_shape=(1, 1, 1)):
    devices = np.array(jax.devices()[: np.prod(mesh_shape)]).reshape(mesh_shape)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"))
    axes = jax.tree.map(
        lambda names: NamedSharding(mesh, PartitionSpec(*(SHARDED.get(name) for name in names))),
        decoder.logical_axes(CFG),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    shardings = state_shardings(RECORD, params, axes, mesh)
    step = _compiled(grpo, mesh, shardings)
    state, metrics = step(init_state(RECORD, params, shardings), batch)
    return {k: float(v) for k, v in metrics.items()}, jax.tree.map(np.asarray, state.opt_state[0].trace)


_STEPS = {}


def _compiled(grpo, mesh, shardings):
    key = (grpo, mesh)
    if key not in _STEPS:
        _STEPS[key] = make_grpo_step(CFG, grpo, RECORD, mesh, shardings)
    return _STEPS[key]


def relative_error(found, expected):
    found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def random_batch(seed, n, group, prompt_len, answer_len, flat_groups=0):
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 2, (n, group)).astype(float)
    rewards[:, 0], rewards[:, -1] = 0, 1
    rewards[:flat_groups] = 1
    advantages = group_advantages(rewards).values if group > 1 else rng.normal(size=(n, 1)).astype(np.float32)
    return GrpoBatch(
        rng.integers(0, CFG.vocab_size, (n, prompt_len)).astype(np.int32),
        rng.integers(1, prompt_len + 1, n).astype(np.int32),
        rng.integers(0, CFG.vocab_size, (n, group, answer_len)).astype(np.int32),
        rng.integers(1, answer_len + 1, (n, group)).astype(np.int32),
        advantages,
    )


def with_old_logprobs(params, batch, seed, spread):
    """Old log-probs shifted away from the current ones, so that ratios fall in every region of the clip."""
    padded = np.zeros(batch.answers.shape, np.float32)
    plain = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64), params)
    for n, g in np.ndindex(*batch.answer_lengths.shape):
        answer = batch.answers[n, g, : batch.answer_lengths[n, g]].tolist()
        prompt = batch.prompts[n, : batch.prompt_lengths[n]].tolist()
        padded[n, g, : len(answer)] = [x.item() for x in plain_logprobs(plain, prompt, answer)]
    shift = np.random.default_rng(seed).normal(scale=spread, size=padded.shape)
    return batch._replace(old_logprobs=(padded + shift).astype(np.float32))


@pytest.mark.parametrize("group", [1, 2, 8])
def test_on_policy_gradient(params, group):
    batch = random_batch(group, 4, group, prompt_len=9, answer_len=6, flat_groups=group > 1)
    loss, expected, _ = plain_gradients(params, GrpoConfig(), batch)
    metrics, found = step_gradients(params, GrpoConfig(logprob_chunk=4), batch)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["clip_fraction"] == 0
    assert metrics["tokens"] == batch.answer_lengths.sum()
    assert metrics["prompt_tokens"] == batch.prompt_lengths.sum()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000))
def test_clipped_gradient(params, seed):
    grpo = GrpoConfig(logprob_chunk=4, micro_batches=2)
    batch = with_old_logprobs(params, random_batch(seed, 4, 3, 7, 5), seed, spread=1.2)
    loss, expected, regions = plain_gradients(params, grpo, batch)
    assert min(regions.values()) > 0
    metrics, found = step_gradients(params, grpo, batch)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert metrics["dual_clip_fraction"] * metrics["tokens"] == pytest.approx(regions["dual"], abs=1e-3)


@pytest.mark.parametrize(
    "grpo",
    [
        GrpoConfig(loss_agg="seq-mean-token-mean"),
        GrpoConfig(ratio="sequence", loss_agg="seq-mean-token-mean"),
        GrpoConfig(kl_coefficient=0.3, micro_batches=2, remat=True),
    ],
    ids=["seq-mean", "sequence-ratio", "kl"],
)
def test_options_gradient(params, grpo):
    batch = with_old_logprobs(params, random_batch(5, 4, 3, 7, 5), 5, spread=0.6)
    loss, expected, regions = plain_gradients(params, grpo, batch)
    assert regions["clipped"] and regions["free"]
    metrics, found = step_gradients(params, grpo, batch)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
