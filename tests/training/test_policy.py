"""The policy under training: what an update does, in which dtype, and what a checkpoint and an export hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.inference.lm import LanguageModel
from looptool_jax.models import decoder, hf
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.lora import LoraConfig, load_adapters, merge
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.residents import Resident, Turns
from looptool_jax.training import checkpoint, policy
from looptool_jax.training.checkpoint import logical_hash
from looptool_jax.training.flops import update_flops
from looptool_jax.training.grpo import GrpoConfig, answer_logprobs, policy_loss
from looptool_jax.training.optimizer import OptimizerConfig
from looptool_jax.training.policy import PolicyTrainer
from looptool_jax.training.rows import Group, MicroBatch, packed_rows

CFG = DecoderConfig("qwen3", 64, 16, 32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
INIT = jax.jit(decoder.init_params, static_argnums=(0, 2))
PROMPTS = [[7, 8, 9], [10]]
RIGHT, WRONG = [1, 2, 3], [4, 5]
GRPO = GrpoConfig(compute_dtype="float32", micro_tokens=64)
LORA = LoraConfig(rank=4, alpha=8.0)
GROUPS = [[SimpleNamespace(tokens=ids, logprobs=[-4.0] * len(ids)) for ids in (RIGHT, WRONG, WRONG)]] * 2
REWARDS = np.array([[1.0, 0.0, 0.0]] * 2)


@pytest.fixture
def trainer_of(tmp_path):
    """A trainer of bfloat16 weights, and the policy that it starts from."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "tokenizer.json").write_text("{}")

    def make(rate: float, cfg: DecoderConfig = CFG, **options) -> tuple[PolicyTrainer, LanguageModel]:
        tokenizer = SimpleNamespace(vocab_size=64, pad_id=0, eos_ids=(0,))
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        lm = LanguageModel.of(cfg, INIT(cfg, jax.random.key(0), jnp.bfloat16), tokenizer, mesh)
        lm = replace(lm, folder=str(tmp_path / "policy"), name="some/model")
        optimizer = OptimizerConfig(learning_rate=rate)
        return PolicyTrainer(lm, optimizer, GRPO, str(tmp_path / "checkpoints"), (40, 40), 1.0, **options), lm

    return make


@jax.jit
def logprobs(params):
    """Of the right and of the wrong answer, for both prompts: [2, 2]."""
    groups = [Group(prompt, [RIGHT, WRONG], [0.0, 0.0]) for prompt in PROMPTS]
    [micro] = packed_rows(groups, 8, shards=2).micro_batches
    each = answer_logprobs(params, CFG, GRPO, jax.tree.map(jnp.asarray, micro))
    return jnp.stack([each[:, : len(RIGHT)].sum(axis=1), each[:, len(RIGHT) :].sum(axis=1)], axis=1)


def test_an_update_raises_what_was_rewarded_and_lowers_the_rest(trainer_of):
    trainer, lm = trainer_of(1e-2)
    before = logical_hash(lm.params)
    metrics = trainer.update(PROMPTS, GROUPS, REWARDS)
    change = logprobs(trainer.policy().params) - logprobs(lm.params)
    assert (change[:, 0] > 0).all() and (change[:, 1] < 0).all()
    assert logical_hash(lm.params) == before, "the starting policy changed"
    assert (metrics["tokens"], metrics["prompt_tokens"]) == (14, 4)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["grad_norm"] > 0


@pytest.mark.parametrize("updates", [1, 2])
def test_the_engine_and_the_trainer_are_compared_at_the_same_weights(updates, trainer_of):
    """The engine's log-probs are made from the trainer's by known differences; with a second update on the batch, the
    weights have moved, and the comparison has not."""
    trainer, lm = trainer_of(1e-1, updates=updates)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), lm.params)
    apart = [[[0.1, -0.2, 0.3], [0.0, 0.1], [-0.5, 0.1]], [[0.2, 0.0, 0.0], [0.1, -0.1], [0.1, 0.3]]]
    groups = []
    for prompt, offsets in zip(PROMPTS, apart, strict=True):
        alone = [Group(prompt, [answer], [0.0]) for answer in (RIGHT, WRONG, WRONG)]
        [micro] = packed_rows(alone, 8, shards=3).micro_batches
        told = np.asarray(answer_logprobs(params, CFG, GRPO, jax.tree.map(jnp.asarray, micro)))
        by_answer = {
            tuple(row[: len(ids)]): values
            for row, values in zip(micro.targets, told, strict=True)
            for ids in (RIGHT, WRONG)
        }
        groups.append([
            SimpleNamespace(tokens=ids, logprobs=(by_answer[tuple(ids)][: len(ids)] + np.array(offset)).tolist())
            for ids, offset in zip((RIGHT, WRONG, WRONG), offsets, strict=True)
        ])  # fmt: skip
    metrics = trainer.update(PROMPTS, groups, REWARDS)
    every = np.abs(np.concatenate([np.array(offset) for offsets in apart for offset in offsets]))
    assert metrics["rollout_logprob_diff_mean"] == pytest.approx(every.mean(), abs=1e-4)
    assert metrics["rollout_logprob_diff_max"] == pytest.approx(0.5, abs=1e-4)


def test_at_another_temperature_engine_and_trainer_are_not_compared(trainer_of, tmp_path):
    _, lm = trainer_of(1e-2)
    hot = PolicyTrainer(lm, OptimizerConfig(learning_rate=1e-2), GRPO, str(tmp_path / "hot"), (40, 40), 0.7)
    hot.policy()  # what is compiled ahead fits the rows
    assert not any("rollout" in name for name in hot.update(PROMPTS, GROUPS, REWARDS))


def test_which_bound_clipped_a_token():
    """Ratios 2 and 1/2 on both signs of the advantage: a rise is cut where it is rewarded, a fall where it is not. The
    tokens weigh differently, so that the bounds are told apart."""
    row = jnp.array([[0.5, 0.125, 0.125, 0.25]])
    answers = jnp.zeros((1, 4), jnp.int32)
    old, advantages = jnp.zeros((1, 4)), jnp.array([[1.0, 1.0, -1.0, -1.0]])
    micro = MicroBatch(answers, answers, answers, answers, answers, answers, advantages, row, row, old_logprobs=old)
    _, metrics = policy_loss(GRPO, jnp.log(jnp.array([[2.0, 0.5, 2.0, 0.5]])), micro)
    assert (metrics["clip_high_fraction"], metrics["clip_low_fraction"], metrics["clip_fraction"]) == (0.5, 0.25, 0.75)


def test_no_share_of_a_peak_that_is_not_known(trainer_of, monkeypatch):
    trainer, _ = trainer_of(1e-2)
    monkeypatch.setitem(policy.PEAK_FLOPS, "cpu", 1e12)
    assert trainer.share_of_peak(PROMPTS, GROUPS, 1.0) is None, "it computes in float32"
    trainer._compute_dtype = "bfloat16"
    assert trainer.share_of_peak(PROMPTS, GROUPS, 1.0) is not None
    monkeypatch.delitem(policy.PEAK_FLOPS, "cpu")
    assert trainer.share_of_peak(PROMPTS, GROUPS, 1.0) is None


def test_the_share_of_a_known_peak(trainer_of, monkeypatch):
    trainer, _ = trainer_of(1e-2)
    trainer._compute_dtype = "bfloat16"
    monkeypatch.setitem(policy.PEAK_FLOPS, trainer.lm.mesh.devices.flat[0].device_kind, 1e6)
    flops = sum(update_flops(CFG, len(prompt), [3, 2, 2]) for prompt in PROMPTS)
    assert trainer.share_of_peak(PROMPTS, GROUPS, 2.0) == flops / 2e6


def test_several_updates_count_the_whole_batch(trainer_of):
    trainer, _ = trainer_of(1e-2, updates=2)
    trainer.policy()
    metrics = trainer.update(PROMPTS, GROUPS, REWARDS)
    assert (metrics["tokens"], metrics["prompt_tokens"]) == (14, 4)
    assert metrics["ratio"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("options", [{}, {"updates": 2}, {"lora": LORA, "key": jax.random.key(0)}, {"offload": True}])
def test_an_update_behind_rollouts_compiles_no_gradient(options, trainer_of):
    (here, _), (ahead, _) = trainer_of(1e-2, **options), trainer_of(1e-2, **options)
    ahead.policy()
    assert ahead.update(PROMPTS, GROUPS, REWARDS) == here.update(PROMPTS, GROUPS, REWARDS)
    assert isinstance(ahead._step.gradient, jax.stages.Compiled) and isinstance(ahead._step.apply, jax.stages.Compiled)
    assert logical_hash(ahead.state) == logical_hash(here.state)
    ahead.policy()
    ahead.update(PROMPTS, GROUPS, REWARDS)


def test_small_updates_add_up_in_float32_master_weights(trainer_of):
    trainer, lm = trainer_of(1e-6)
    start = trainer.state.params
    before = logical_hash(start)
    trainer.update(PROMPTS, GROUPS, REWARDS)
    assert start["embedding"].is_deleted(), "the state is donated"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trainer.state.params))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(trainer.policy().params))
    assert logical_hash(trainer.state.params) != before
    ours = np.asarray(trainer.policy().params["layers"]["mlp_norm"])  # the turn of the policy ends with the next line
    np.testing.assert_array_equal(ours, lm.params["layers"]["mlp_norm"])


def test_checkpoints_and_export(trainer_of, tmp_path):
    trainer, _ = trainer_of(1e-2)
    assert trainer.restore() == 0
    trainer.update(PROMPTS, GROUPS, REWARDS)
    trainer.save(1)
    trainer.save(2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    fresh, _ = trainer_of(1e-2)
    assert fresh.restore() == 2
    assert logical_hash(fresh.state) == logical_hash(trainer.state)
    fresh.export(str(tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    exported = hf.load_params(tmp_path / "out", CFG, jnp.float32)
    assert logical_hash(exported) == logical_hash(trainer.state.params), "nothing is rounded between two rounds"


def test_adapters_are_trained_beside_frozen_weights(trainer_of, tmp_path):
    trainer, lm = trainer_of(1e-2, lora=LORA, key=jax.random.key(1))
    before = logical_hash(lm.params)
    start = np.asarray(logprobs(trainer.policy().params))
    np.testing.assert_array_equal(start, logprobs(lm.params))  # the terms start at zero
    metrics = [trainer.update(PROMPTS, GROUPS, REWARDS) for _ in range(3)]
    change = logprobs(trainer.policy().params) - start
    assert (change[:, 0] > 0).all() and (change[:, 1] < 0).all() and metrics[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert logical_hash(lm.params) == before, "the frozen weights changed"
    assert {leaf.dtype for leaf in jax.tree.leaves(trainer.state.params)} == {jnp.dtype(jnp.float32)}

    trainer.save(3)
    resumed, _ = trainer_of(1e-2, lora=LORA, key=jax.random.key(2))
    assert resumed.restore() == 3 and logical_hash(resumed.state) == logical_hash(trainer.state)

    trainer.export(str(tmp_path / "adapters"))
    adapters, sizes = load_adapters(str(tmp_path / "adapters"), CFG)
    assert sizes == LORA and logical_hash(adapters) == logical_hash(trainer.state.params)
    merged = merge(jax.tree.map(lambda x: x.astype(jnp.float32), lm.params), adapters, LORA)
    np.testing.assert_allclose(logprobs(merged), logprobs(trainer.policy().params), atol=0.02)  # of bfloat16 adapters


def test_adapters_of_other_sizes_are_refused(trainer_of):
    trainer, _ = trainer_of(1e-2, lora=LORA, key=jax.random.key(1))
    with pytest.raises(ModelError, match=r"train.lora: .*rank=8.* does not fit the policy's adapters: .*rank=4"):
        PolicyTrainer(trainer.policy(), OptimizerConfig(), GRPO, "", (40, 40), 1.0, lora=LoraConfig(rank=8))


def on_devices(shape) -> list[str]:
    arrays = [x for x in jax.live_arrays() if x.shape == shape]
    return sorted(x.dtype.name for x in arrays if x.sharding.memory_kind == "device")


def test_rollouts_and_updates_take_turns_on_the_devices(trainer_of):
    """The embedding stands for its tree: master weights and two moments in float32, a copy to decode in bfloat16."""
    trainer, _ = trainer_of(1e-2, replace(CFG, vocab_size=72), offload=True)  # a shape that no other test has
    shape = (72, CFG.hidden_size)
    trainer.policy().weights.get()
    assert on_devices(shape) == ["bfloat16"]
    trainer.update(PROMPTS, GROUPS, REWARDS)
    assert on_devices(shape) == ["float32"] * 3
    trainer._state.stays = True
    trainer.policy().weights.get()
    assert on_devices(shape) == ["bfloat16"] + ["float32"] * 3


def test_a_round_begins_and_resumes_without_the_other_models_on_the_devices(tmp_path, monkeypatch):
    """The policy comes from a folder, as in a run, and a judge has the devices when training begins."""
    cfg, shape = replace(CFG, vocab_size=80), (80, CFG.hidden_size)
    hf.save_pretrained(INIT(cfg, jax.random.key(0), jnp.float32), cfg, tmp_path / "policy")
    (tmp_path / "policy" / "tokenizer.json").write_text("{}")
    tokenizer = SimpleNamespace(vocab_size=64, pad_id=0, eos_ids=(0,))
    mesh, turns = make_mesh(MeshConfig(), jax.devices()[:1]), Turns()

    def load():
        return hf.load_params(tmp_path / "policy", cfg, jnp.bfloat16)

    seen: list[list[str]] = []
    for module, name in ((hf, "load_params"), (checkpoint, "restore")):
        original = getattr(module, name)

        def watched(*args, original=original, **kwargs):
            seen.append(on_devices(shape))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    def trainer_beside_a_judge() -> PolicyTrainer:
        judge = Resident(load, turns)
        folder = str(tmp_path / "policy")
        policy = LanguageModel(cfg, Resident(load, turns), tokenizer, mesh, "bfloat16", folder=folder, source=folder)
        policy.weights.get()
        judge.get()
        assert on_devices(shape) == ["bfloat16"]
        seen.clear()
        trainer = PolicyTrainer(policy, OptimizerConfig(), GRPO, str(tmp_path / "steps"), (40, 40), 1.0, offload=True)
        trainer.judge = judge  # it lives on
        return trainer

    trainer = trainer_beside_a_judge()
    assert trainer.restore() == 0
    trainer.update(PROMPTS, GROUPS, REWARDS)
    assert seen == [[]] and on_devices(shape) == ["float32"] * 3
    trainer.save(1)
    expected = logical_hash(trainer.state)
    trainer._state.drop()
    resumed = trainer_beside_a_judge()
    assert resumed.restore() == 1 and seen == [[]] and on_devices(shape) == ["float32"] * 3
    assert logical_hash(resumed.state) == expected


def test_the_next_round_goes_on_from_unrounded_adapters(trainer_of, tmp_path):
    trainer, lm = trainer_of(1e-3, lora=LORA, key=jax.random.key(1))
    trainer.update(PROMPTS, GROUPS, REWARDS)
    trainer.export(str(tmp_path / "adapters"))
    policy = lm.with_adapters(*load_adapters(str(tmp_path / "adapters"), CFG))
    again = PolicyTrainer(policy, OptimizerConfig(), GRPO, str(tmp_path / "next"), (40, 40), 1.0, lora=LORA)
    assert logical_hash(again.state.params) == logical_hash(trainer.state.params)
    assert policy.params["layers"]["q"].a.dtype == jnp.bfloat16


def test_int8_weights_are_not_trained(trainer_of):
    _, lm = trainer_of(1e-3)
    with pytest.raises(ModelError, match=r"policy.dtype: int8 weights cannot be trained; set train.lora"):
        PolicyTrainer(replace(lm, int8=True), OptimizerConfig(), GRPO, "", (40, 40), 1.0)
