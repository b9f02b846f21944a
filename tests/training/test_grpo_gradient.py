"""The compiled GRPO step against a plain one: torch, float64, every answer with its own copy of the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.lora import LoraConfig, init_adapters
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.rules import batch_shards, param_shardings
from looptool_jax.training.grpo import (
    GrpoConfig,
    group_advantages,
    grpo_updates,
    make_grpo_step,
    make_logprob_step,
    policy_loss,
    trained_params,
)
from looptool_jax.training.optimizer import OptimizerConfig, init_state, lay_out, make_optimizer, state_shardings
from looptool_jax.training.rows import Group, Update, packed_rows

torch = pytest.importorskip("torch")

CFG = DecoderConfig("qwen3", 62, 32, 48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
INIT = jax.jit(decoder.init_params, static_argnums=(0, 2))
torch.set_num_threads(1)  # the matrices are tiny
# Keeps the gradients in its state and changes nothing.
RECORD = optax.chain(optax.trace(decay=0.0), optax.set_to_zero())


class Case(NamedTuple):
    """Padded prompts and groups of answers. A length of 0 marks a row that is not there."""

    prompts: np.ndarray
    prompt_lengths: np.ndarray
    answers: np.ndarray
    answer_lengths: np.ndarray
    advantages: np.ndarray
    old_logprobs: np.ndarray | None = None


def rows_of(case: Case, micro_tokens: int, shards: int = 1) -> tuple[Update, list[np.ndarray]]:
    """The case in packed rows, and for each micro-batch where its answer tokens stand in the case's answers."""
    there = [n for n in range(len(case.prompts)) if case.prompt_lengths[n]]

    def packed(answers: np.ndarray) -> Update:
        groups = [
            Group(
                case.prompts[n, : case.prompt_lengths[n]].tolist(),
                [answers[n, g, :size].tolist() for g, size in enumerate(case.answer_lengths[n])],
                case.advantages[n].tolist(),
            )
            for n in there
        ]
        return packed_rows(groups, micro_tokens, shards)

    places = [micro.targets for micro in packed(np.arange(case.answers.size).reshape(case.answers.shape)).micro_batches]
    update = packed(case.answers)
    if case.old_logprobs is not None:
        old = np.ravel(case.old_logprobs)
        micros = [replace(micro, old_logprobs=old[at]) for micro, at in zip(update.micro_batches, places, strict=True)]
        update = update._replace(micro_batches=micros)
    return update, places


def in_case(case: Case, update: Update, places: list[np.ndarray], values: list) -> np.ndarray:
    """Numbers of the answer tokens of all micro-batches, back in the shape of the case's answers; 0 elsewhere."""
    found = np.zeros(case.answers.size, np.float32)
    for micro, at, numbers in zip(update.micro_batches, places, values, strict=True):
        there = micro.token_shares > 0
        found[at[there]] = np.asarray(numbers)[there]
    return found.reshape(case.answers.shape)


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


def plain_logprobs(params, prompt, answer, temperature=1.0):
    logprobs = (plain_logits(params, [*prompt, *answer]) / temperature).log_softmax(-1)
    return [logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]


def plain_surrogate(grpo, log_ratio, advantage):
    ratio = torch.exp(log_ratio)
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high))
    return torch.minimum(loss, -advantage * grpo.dual_clip) if advantage < 0 else loss


def plain_loss(params, grpo, batch, logprobs=None, temperature=1.0):
    """One sample, one token at a time. Returns the loss and how many terms sat in which region."""
    per_answer, regions = [], {"clipped": 0, "dual": 0, "free": 0}
    for n in range(len(batch.prompts)):
        prompt = batch.prompts[n, : batch.prompt_lengths[n]].tolist()
        for g in range(batch.answers.shape[1]):
            answer = batch.answers[n, g, : batch.answer_lengths[n, g]].tolist()
            if not answer:
                continue
            advantage = torch.tensor(float(batch.advantages[n, g]), dtype=torch.float64)
            new = logprobs[n][g][: len(answer)] if logprobs else plain_logprobs(params, prompt, answer, temperature)
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


def plain_gradients(params, grpo, batch, temperature=1.0):
    params = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), params)
    loss, regions = plain_loss(params, grpo, batch, temperature=temperature)
    loss.backward()
    return loss.item(), jax.tree.map(lambda x: x.grad.numpy(), params), regions


# ---------------------------------------------------------------- the compiled step


@pytest.fixture(scope="module")
def params():
    values = INIT(CFG, jax.random.key(0))
    # The tied head at its usual scale gives near-uniform predictions; larger ones make every term count.
    return {**values, "embedding": values["embedding"] * 15}


def step_gradients(params, grpo, batch, mesh_cfg=None, temperature=1.0):
    mesh = make_mesh(mesh_cfg) if mesh_cfg else make_mesh(MeshConfig(), jax.devices()[:1])
    update, _ = rows_of(batch, grpo.micro_tokens, batch_shards(mesh))
    shardings = state_shardings(RECORD, params, param_shardings(mesh, decoder.logical_axes(CFG), params), mesh)
    step = compiled(grpo, mesh_cfg, mesh, shardings, temperature)
    state, metrics = step(init_state(RECORD, params, shardings), update)
    return {k: float(v) for k, v in metrics.items()}, jax.tree.map(np.asarray, state.opt_state[0].trace)


STEPS = {}


def compiled(grpo, mesh_cfg, mesh, shardings, temperature):
    key = (grpo, mesh_cfg, temperature)
    if key not in STEPS:
        STEPS[key] = make_grpo_step(CFG, grpo, RECORD, mesh, shardings, temperature)
    return STEPS[key]


def relative_error(found, expected):
    found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, expected))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"relative error {error:.1e}")
    return error


def random_batch(seed, n, group, prompt_len, answer_len):
    """Ragged prompts and answers, the last row empty, and one group without variance (where groups can have any)."""
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 2, (n, group)).astype(float)
    rewards[:, 0], rewards[:, -1] = 0, 1
    rewards[0] = 1
    advantages = group_advantages(rewards) if group > 1 else rng.normal(size=(n, 1)).astype(np.float32)
    batch = Case(
        rng.integers(0, CFG.vocab_size, (n, prompt_len)).astype(np.int32),
        rng.integers(1, prompt_len + 1, n).astype(np.int32),
        rng.integers(0, CFG.vocab_size, (n, group, answer_len)).astype(np.int32),
        rng.integers(1, answer_len + 1, (n, group)).astype(np.int32),
        advantages,
    )
    batch.prompt_lengths[-1], batch.answer_lengths[-1], batch.advantages[-1] = 0, 0, 0
    return batch


def with_old_logprobs(params, batch, seed, spread, temperature=1.0):
    """Old log-probs shifted away from the current ones, so that ratios fall in every region of the clip."""
    padded = np.zeros(batch.answers.shape, np.float32)
    plain = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64), params)
    for n, g in np.ndindex(*batch.answer_lengths.shape):
        answer = batch.answers[n, g, : batch.answer_lengths[n, g]].tolist()
        prompt = batch.prompts[n, : batch.prompt_lengths[n]].tolist()
        if answer:
            padded[n, g, : len(answer)] = [x.item() for x in plain_logprobs(plain, prompt, answer, temperature)]
    shift = np.random.default_rng(seed).normal(scale=spread, size=padded.shape)
    return batch._replace(old_logprobs=(padded + shift).astype(np.float32))


def test_on_policy_gradient(params):
    batch = random_batch(8, n=3, group=8, prompt_len=9, answer_len=6)
    loss, expected, _ = plain_gradients(params, GrpoConfig(compute_dtype="float32"), batch)
    metrics, found = step_gradients(params, GrpoConfig(compute_dtype="float32", micro_tokens=64), batch)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["clip_fraction"] == 0
    assert metrics["tokens"] == batch.answer_lengths.sum()
    assert metrics["prompt_tokens"] == batch.prompt_lengths.sum()


def test_gradient_at_the_temperature_of_the_rollouts(params):
    """New and old log-probs are those of the distribution that the answers were drawn from."""
    batch = random_batch(8, n=3, group=4, prompt_len=9, answer_len=6)
    same = with_old_logprobs(params, batch, 0, spread=0.0, temperature=0.7)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings = param_shardings(mesh, decoder.logical_axes(CFG), params)
    update, places = rows_of(batch, 32)
    scored = make_logprob_step(CFG, GrpoConfig(compute_dtype="float32"), mesh, shardings, 0.7)(params, update)
    old = in_case(batch, update, places, [micro.old_logprobs for micro in scored.micro_batches])
    np.testing.assert_allclose(old, same.old_logprobs, atol=1e-4)

    batch = with_old_logprobs(params, batch, 8, spread=0.8, temperature=0.7)
    loss, expected, regions = plain_gradients(params, GrpoConfig(compute_dtype="float32"), batch, temperature=0.7)
    assert regions["clipped"] and regions["free"]
    grpo = GrpoConfig(compute_dtype="float32", micro_tokens=32)
    metrics, found = step_gradients(params, grpo, batch, temperature=0.7)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000))
def test_clipped_gradient(params, seed):
    """Old log-probs far off, so that every region of the clip is taken; micro-batches of very different token counts,
    and groups that are cut between their answers."""
    grpo = GrpoConfig(compute_dtype="float32", logprob_chunk=4, micro_tokens=14)
    batch = random_batch(seed, 4, 3, 7, 5)
    batch.answer_lengths[0] = 1
    batch = with_old_logprobs(params, batch, seed, spread=1.5)
    loss, expected, regions = plain_gradients(params, grpo, batch)
    metrics, found = step_gradients(params, grpo, batch)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert metrics["dual_clip_fraction"] * metrics["tokens"] == pytest.approx(regions["dual"], abs=1e-3)
    sides = metrics["clip_low_fraction"] + metrics["clip_high_fraction"]
    assert metrics["clip_fraction"] == pytest.approx(sides, abs=1e-6)
    event(f"clipped {regions['clipped'] > 0}, dual {regions['dual'] > 0}")


def test_group_of_one_with_every_option(params):
    grpo = GrpoConfig(
        compute_dtype="float32", kl_coefficient=0.3, loss_agg="seq-mean-token-mean", remat="full", micro_tokens=20
    )
    batch = with_old_logprobs(params, random_batch(5, 5, 1, 7, 5), 5, spread=0.6)
    loss, expected, regions = plain_gradients(params, grpo, batch)
    assert regions["clipped"] and regions["free"]
    metrics, found = step_gradients(params, grpo, batch)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=3, alpha=6.0)], ids=["full", "lora"])
@pytest.mark.parametrize("group", [1, 5, 16])
def test_shared_prompts_equal_repeated_ones(params, group, lora):
    """The same answers, as groups and each with a prompt of its own: ragged lengths, old log-probs far off."""
    case = with_old_logprobs(params, random_batch(group, 4, group, 9, 6), group, spread=1.0)
    alone = Case(
        np.repeat(case.prompts, group, axis=0), np.repeat(case.prompt_lengths, group),
        *(x.reshape(-1, 1, *x.shape[2:]) for x in case[2:]),
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes, axes = trained_params(CFG, lora)
    shardings, _ = lay_out(RECORD, shapes, axes, mesh)
    step = make_grpo_step(CFG, GrpoConfig(compute_dtype="float32"), RECORD, mesh, shardings, lora=lora)
    trained, frozen = (params, ()) if lora is None else (init_adapters(CFG, lora, jax.random.key(1)), (params,))
    if lora is not None:  # fresh adapters have b = 0, and with it no gradient in a
        trained = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), trained)
    found = [
        step(init_state(RECORD, trained, shardings), rows_of(each, tokens)[0], *frozen)
        for each, tokens in ((case, 128), (alone, 64))
    ]
    (shared, metrics), (repeated, others) = found
    assert relative_error(shared.opt_state[0].trace, repeated.opt_state[0].trace) < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5, abs=1e-6)
    assert metrics["tokens"] == others["tokens"] and metrics["prompt_tokens"] * group == others["prompt_tokens"]


@pytest.mark.parametrize("mesh_cfg", [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices(params, mesh_cfg):
    grpo = GrpoConfig(compute_dtype="float32", micro_tokens=20, logprob_chunk=4)
    batch = with_old_logprobs(params, random_batch(7, 8, 2, 7, 5), 7, spread=1.5)
    loss, expected, regions = plain_gradients(params, grpo, batch)
    assert min(regions.values()) > 0
    metrics, found = step_gradients(params, grpo, batch, mesh_cfg)
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)


def test_several_updates_equal_torch_adamw(params):
    """Two updates on one batch, at a rate so large that the second is clipped against the policy before the first."""
    grpo, rate = GrpoConfig(compute_dtype="float32", micro_tokens=40), 0.02
    batch = random_batch(4, 8, 3, 7, 5)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=rate))
    shardings = state_shardings(optimizer, params, param_shardings(mesh, decoder.logical_axes(CFG), params), mesh)
    step = make_grpo_step(CFG, grpo, optimizer, mesh, shardings)
    logprob_step = make_logprob_step(CFG, grpo, mesh, shardings.params)
    state = init_state(optimizer, params, shardings)
    parts = [Case(*(x[part] for x in batch[:5])) for part in (slice(0, 4), slice(4, 8))]
    updates = [rows_of(part, grpo.micro_tokens)[0] for part in parts]
    state, history = grpo_updates(step, logprob_step, state, updates)
    assert int(state.step) == 2

    batch = with_old_logprobs(params, batch, 0, spread=0.0)
    reference = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), params)
    adamw = torch.optim.AdamW(jax.tree.leaves(reference), lr=rate, weight_decay=0.01)
    for part, metrics in ((slice(0, 4), history[0]), (slice(4, 8), history[1])):
        adamw.zero_grad()
        loss, regions = plain_loss(reference, grpo, Case(*(x[part] for x in batch)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(jax.tree.leaves(reference), 1.0)
        adamw.step()
        assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-3, abs=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-3)
    assert float(history[0]["clip_fraction"]) == 0 and regions["clipped"] > 0
    assert float(history[1]["clip_fraction"]) > 0 and float(history[1]["kl"]) > 0.01
    moved = jax.tree.map(lambda x, start: np.asarray(x) - np.asarray(start), state.params, params)
    expected = jax.tree.map(lambda x, start: x.detach().numpy() - np.asarray(start), reference, params)
    assert relative_error(moved, expected) < 1e-3


OPTIONS = [
    GrpoConfig(compute_dtype="float32", ratio=ratio, loss_agg=agg, kl_coefficient=kl)
    for ratio, agg in (("token", "token-mean"), ("token", "seq-mean-token-mean"), ("sequence", "seq-mean-token-mean"))
    for kl in (0.0, 0.5)
]
LOSS_GRADIENT = jax.jit(jax.value_and_grad(policy_loss, argnums=1, has_aux=True), static_argnums=0)


def loss_gradient(grpo, new, case):
    """Loss, metrics and gradient with respect to the log-probs, which have the shape of the case's answers."""
    update, places = rows_of(case, micro_tokens=200)
    [micro], [at] = update.micro_batches, places
    (loss, metrics), gradient = LOSS_GRADIENT(grpo, np.ravel(new).astype(np.float32)[at], micro)
    return loss, metrics, in_case(case, update, places, [gradient])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(OPTIONS))
def test_policy_loss_alone(seed, grpo):
    """The loss as a function of the log-probs, far more often than a whole model can be run."""
    batch = random_batch(seed, 4, 3, 2, 5)
    rng = np.random.default_rng(seed)
    new = -rng.exponential(size=batch.answers.shape)
    batch = batch._replace(old_logprobs=(new + rng.normal(scale=1.0, size=new.shape)).astype(np.float32))
    reference = torch.tensor(new, requires_grad=True)
    loss, regions = plain_loss(None, grpo, batch, [[[*tokens] for tokens in group] for group in reference])
    loss.backward()
    found, metrics, gradient = loss_gradient(grpo, new, batch)
    assert float(found) == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(gradient, reference.grad, rtol=1e-4, atol=1e-6)
    terms = sum(regions.values())
    assert float(metrics["dual_clip_fraction"]) * terms == pytest.approx(regions["dual"], abs=1e-3)
    event(f"dual clip {regions['dual'] > 0}")


def test_log_ratio_out_of_range_stays_finite():
    batch = random_batch(0, 2, 2, 2, 3)
    new = np.zeros(batch.answers.shape, np.float32)
    batch = batch._replace(old_logprobs=new - 1000)
    grpo = GrpoConfig(compute_dtype="float32", kl_coefficient=0.1)
    loss, _, gradient = loss_gradient(grpo, new, batch)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
