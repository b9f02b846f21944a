"""The GRPO update of Tunix: its loss and its trainer's compiled step, prompts repeated before every answer.

The variant is the number of rows of a micro-batch.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from meter import Meter
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params
from tunix.rl import algo_core  # registers the loss
from tunix.rl.common import TrainExample
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig


def main() -> None:
    folder, rows, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problem = np.load(f"{folder}/problem.npz")
    answers = problem["answers"]
    prompts = np.broadcast_to(problem["prompt"], (len(answers), len(problem["prompt"])))
    model = llama_of(f"{folder}/model")
    adamw = optax.adamw(1e-6, b1=0.9, b2=0.999, weight_decay=0.01)
    clipped = optax.chain(norm_keeper(), optax.clip_by_global_norm(1.0), adamw)
    trainer = PeftTrainer(
        model, clipped, TrainingConfig(eval_every_n_steps=10**9, gradient_accumulation_steps=len(answers) // rows)
    )
    algorithm = GRPOConfig(num_generations=len(answers), beta=0.0, loss_agg_mode="token-mean")
    algorithm.temperature = 1.0

    def loss(model, train_example):
        return algo_core.grpo_loss_fn(model, train_example, algorithm, pad_id=0, eos_id=1)

    trainer.with_loss_fn(loss, has_aux=True).with_gen_model_input_fn(lambda x: {"train_example": x})
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    parts = [
        TrainExample(
            prompt_ids=jnp.array(prompts[i : i + rows]), prompt_mask=jnp.ones((rows, prompts.shape[1]), bool),
            completion_ids=jnp.array(answers[i : i + rows]), completion_mask=jnp.ones((rows, answers.shape[1]), bool),
            advantages=jnp.array(problem["advantages"][i : i + rows]),
            ref_per_token_logps=None, old_per_token_logps=None,
        )
        for i in range(0, len(answers), rows)
    ]  # fmt: skip
    meter, losses = Meter(), []
    for number in range(repeats + 1):
        meter.start()
        for part in parts:
            losses.append(step(part)[0])
        jax.block_until_ready(nnx.state(trainer.optimizer))
        meter.stop()
        if number == 0:
            optimizer = nnx.to_pure_dict(nnx.state(trainer.optimizer))
            first = np.asarray(optax.tree.get(optimizer, "mu")["layers"][0]["attn"]["q_proj"]["w"])
            np.save(f"{folder}/tunix.npy", first.reshape(len(first), -1).T)
            found = {"loss": float(np.mean(losses)), "grad_norm": float(optax.tree.get(optimizer, "norm"))}
            meter.warm()
    meter.report(**found, moment="tunix.npy")


def norm_keeper() -> optax.GradientTransformation:
    """Keeps the norm of the whole batch's gradient; that of the step is of one micro-batch."""

    def update(grads, state, params=None):
        return grads, {"norm": optax.tree.norm(grads)}

    return optax.GradientTransformation(lambda params: {"norm": jnp.zeros(())}, update)


def llama_of(folder: str) -> llama3.Llama3:
    """Tunix's Llama with the sizes and the weights of a Hugging Face folder. By itself it would rotate with a base of a
    million whatever the configuration says."""
    config = json.loads((Path(folder) / "config.json").read_text())
    sizes = llama3.ModelConfig(
        num_layers=config["num_hidden_layers"], vocab_size=config["vocab_size"], embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"], num_heads=config["num_attention_heads"],
        head_dim=config["head_dim"], num_kv_heads=config["num_key_value_heads"], norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"], weight_tying=config["tie_word_embeddings"],
    )  # fmt: skip
    llama3.apply_rope = partial(llama3.apply_rope, rope_theta=sizes.rope_theta)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    return llama3_params.create_model_from_safe_tensors(folder, sizes, mesh, jnp.float32)


if __name__ == "__main__":
    main()
