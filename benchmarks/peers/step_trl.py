"""The GRPO update of TRL: its trainer's own loop, given the answers instead of sampling them.

The variant is the dtype, and behind a colon the rows of a micro-batch: bfloat16 is TRL's mixed precision over float32
weights. No gradient checkpointing and no KL term.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import torch
from datasets import Dataset
from meter import Meter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    def __init__(self, folder: str, name: str) -> None:
        self.meter, self.path = Meter(), f"{folder}/{name}"

    def on_step_begin(self, args, state, control, **kwargs):
        self.meter.start()

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        self.meter.stop()
        if state.global_step == 1:
            moment = optimizer.state[model.model.layers[0].self_attn.q_proj.weight]["exp_avg"]
            np.save(self.path, moment.float().numpy())
            self.meter.warm()


def main() -> None:
    folder, variant, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dtype, rows = variant.split(":")
    problem = np.load(f"{folder}/problem.npz")
    answers = torch.tensor(problem["answers"])
    prompts = torch.tensor(problem["prompt"]).expand(len(answers), -1)
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(
            output_dir=out, use_cpu=True, bf16=dtype == "bfloat16", gradient_checkpointing=False, beta=0.0,
            per_device_train_batch_size=int(rows), gradient_accumulation_steps=len(answers) // int(rows),
            num_generations=len(answers), max_completion_length=answers.shape[1], max_steps=repeats + 1,
            learning_rate=1e-6, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0,
            epsilon_high=0.28, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        clock = Clock(folder, f"trl-{dtype}.npy")
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=args, train_dataset=Dataset.from_dict({"prompt": ["a"] * 64}), processing_class=tokenizer(),
            callbacks=[clock],
        )  # fmt: skip
        batch = {
            "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": answers,
            "completion_mask": torch.ones_like(answers), "advantages": torch.tensor(problem["advantages"]),
            "num_items_in_batch": torch.tensor(answers.numel()),
        }  # fmt: skip
        trainer._generate_and_score_completions = lambda inputs: dict(batch)
        trainer.train()
    first = trainer.state.log_history[0]
    clock.meter.report(loss=first["loss"], grad_norm=first["grad_norm"], moment=f"trl-{dtype}.npy")


def tokenizer() -> PreTrainedTokenizerFast:
    """The trainer wants one; it has nothing to do."""
    words = Tokenizer(WordLevel({"[PAD]": 0, "[EOS]": 1, "a": 2}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")


if __name__ == "__main__":
    main()
