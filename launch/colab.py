# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     name: looptool-jax.ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # LoopTool on a Colab TPU
#
# LoopTool trains a model that calls tools, and repairs and grows its training data from what the model gets wrong. This
# notebook goes from an empty runtime to a finished run with plots, and then to Qwen3-0.6B with LoRA adapters.
#
# Choose **Runtime → Change runtime type → v5e-1 TPU** and run the cells from top to bottom. Nothing has to be
# restarted: the program gets an environment of its own, and Colab's own packages stay as they are. On a runtime without
# a TPU the same cells run a smaller configuration (`micro`, about a minute).
#
# What is known: every program of both parts compiles for a v5e-1 and fits its memory (`looptool preflight`). How long
# they take there has not been measured yet.

# %%
import json
import os
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt

# Where the program comes from. PLACEHOLDER: put the address of the repository here.
REPOSITORY = "https://github.com/OWNER/looptool-jax"
# Where runs go. A folder under /content/drive, once Drive is mounted, outlives the runtime.
RUNS = "runs"

# %% [markdown]
# ## Install
#
# `uv` makes an environment beside Colab's. The kernel of this notebook never imports JAX: a TPU belongs to one process
# at a time, and that process is `looptool`.

# %%


def sh(command):
    """Run a command, show its lines as they come, and stop here if it fails."""
    words = shlex.split(command)
    with subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"{command.split()[0]} ended with status {process.returncode}; its last line says why")


environment = Path("looptool-venv").resolve()
if shutil.which("looptool") is None and not (environment / "bin/looptool").exists():
    if "OWNER" in REPOSITORY:
        raise RuntimeError("REPOSITORY is still the placeholder; put the repository's address in the cell above")
    sh("pip install --quiet uv")
    sh(f"uv venv --quiet --clear --python 3.12 {environment}")
    sh(f"uv pip install --quiet --python {environment}/bin/python 'looptool-jax[tpu] @ git+{REPOSITORY}'")
os.environ["PATH"] += f":{environment}/bin"
sh("looptool --help")

# %% [markdown]
# ## Which machine is this?
#
# A process of its own asks JAX, and lets go of the TPU again. `quickstart` is the embedded model on 492 samples; on
# CPUs it takes minutes, and `micro` shows the same on 24.

# %%
python = os.path.join(os.path.dirname(shutil.which("looptool")), "python")
platform = subprocess.check_output([python, "-c", "import jax; print(jax.default_backend())"], text=True).strip()
TPU = platform == "tpu"
CONFIG = "quickstart" if TPU else "micro"
RUN = f"{RUNS}/{CONFIG}"
print(f"JAX computes on: {platform}; configuration: {CONFIG}")

# %% [markdown]
# ## The closed loop
#
# Two rounds: train by GRPO, probe what the policy can do, judge its mismatches, write new samples around its errors,
# compose the next data set. A tenth of the seed labels is wrong on purpose (a quarter in `micro`), so that repair can
# be measured. If the runtime goes away, run this cell again: it continues where it stood.

# %%
sh(f"looptool run --config {CONFIG} run_dir={RUN}")

# %% [markdown]
# ## What came out
#
# A run is a folder of plain files. `manifest.json` has the figures of every stage.


# %%
def figures(run):
    """The metrics of a run's stages, by the stage's name."""
    stages = json.loads(Path(run, "manifest.json").read_text())["stages"]
    return {name: stage["metrics"] for name, stage in stages.items()}


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rounds(run):
    return sorted(int(path.parent.name.split("-")[1]) for path in Path(run).glob("round-*/train"))


metrics = figures(RUN)
print("\n".join(metrics))

# %% [markdown]
# Held-out accuracy, by kind of request, before training and after every round. Held-out tools share no function with
# the training tools.


# %%
def plot_accuracy(run):
    metrics = figures(run)
    evaluations = {"before": metrics["eval-0"]} | {f"round {j}": metrics[f"round-{j}/eval"] for j in rounds(run)}
    names = ["all", *sorted(evaluations["before"]["by_category"])]
    _, axes = plt.subplots(figsize=(9, 3.5))
    width = 0.8 / len(evaluations)
    for i, (label, result) in enumerate(evaluations.items()):
        parts = [result, *(result["by_category"].get(name, {"accuracy": 0}) for name in names[1:])]
        places = [at + (i - (len(evaluations) - 1) / 2) * width for at in range(len(names))]
        axes.bar(places, [100 * part["accuracy"] for part in parts], width, label=label)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    axes.set_ylabel("right answers, %")
    axes.legend(ncols=len(evaluations), loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.show()


plot_accuracy(RUN)

# %% [markdown]
# The reward of every training step, and how many groups taught nothing (all answers right, or all wrong).


# %%
def plot_training(run):
    _, axes = plt.subplots(figsize=(9, 3))
    start = 0
    for j in rounds(run):
        steps = rows(f"{run}/round-{j}/train/steps.jsonl")
        places = range(start + 1, start + len(steps) + 1)
        axes.plot(places, [step["reward"] for step in steps], color="tab:blue", label="reward" if j == 1 else None)
        silent = [step["zero_variance"] for step in steps]
        axes.plot(places, silent, color="tab:grey", label="groups without signal" if j == 1 else None)
        start += len(steps)
        axes.axvline(start + 0.5, color="lightgrey")
    axes.set_xlabel("step")
    axes.set_ylim(0, 1)
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.show()


plot_training(RUN)

# %% [markdown]
# What the next data sets are made of (Eq. 5 of the paper): error seeds, samples written around them, mastered samples
# of high perplexity, new seeds, and mastered ones where a part was too small.


# %%
def plot_composition(run):
    metrics = figures(run)
    sets = {f"D{j + 1}": metrics[f"round-{j}/compose"]["parts"] for j in rounds(run) if f"round-{j}/compose" in metrics}
    _, axes = plt.subplots(figsize=(9, 0.8 + 0.6 * len(sets)))
    for row, parts in enumerate(sets.values()):
        left = 0
        for i, part in enumerate(parts):
            label = part["part"] if row == 0 else None
            axes.barh(row, part["taken"], left=left, color=f"C{i}", label=label)
            left += part["taken"]
    axes.set_yticks(range(len(sets)), list(sets))
    axes.invert_yaxis()
    axes.set_xlabel("samples")
    axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.show()


plot_composition(RUN)

# %% [markdown]
# An error and what the judge made of it: either the label stays and the answer was wrong, or the answer takes the
# label's place.

# %%
for error in rows(f"{RUN}/round-1/judge/errors.jsonl")[:2]:
    sample = error["sample"]
    print(sample["messages"][-1]["content"])
    print("  verdict: ", sample["origin"]["verdict"])
    print("  label now:", json.dumps(sample["target"]))
    print("  wrong:    ", error["wrong"].replace("\n", " "))

# %% [markdown]
# `report.html` in the run's folder shows all of this and more in one file; open it from the file browser on the left.

# %%
sh(f"looptool report {RUN}")

# %% [markdown]
# ## Qwen3-0.6B with LoRA on the TPU
#
# The same command with another configuration. `colab_v5e1` has Qwen3-0.6B as policy, judge and generator; `train.lora`
# trains adapters beside frozen weights, and adapters like a higher learning rate. The sizes below make one short round;
# leave `SIZE` empty for the whole configuration. It needs a TPU, and a network for the weights (1.5 GB).

# %%
MODEL = "Qwen/Qwen3-0.6B"
LORA = "'train.lora={rank: 16, alpha: 32}' train.optimizer.learning_rate=2e-5"
SIZE = "rounds=1 finish_loop=true data.pool=128 data.round_size=64 data.heldout=64"
QWEN_RUN = f"{RUNS}/qwen3"


def reachable(url):
    try:
        with urllib.request.urlopen(url, timeout=20):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


QWEN = TPU and reachable(f"https://huggingface.co/{MODEL}/resolve/main/config.json")
if QWEN:
    sh(f"looptool run --config colab_v5e1 run_dir={QWEN_RUN} {LORA} {SIZE}")
else:
    print("Left out:", "the model hub cannot be reached" if TPU else "there is no TPU here")

# %%
if QWEN:
    plot_accuracy(QWEN_RUN)
    plot_training(QWEN_RUN)
    plot_composition(QWEN_RUN)

# %% [markdown]
# ## Take the model with you
#
# The exported folder has Hugging Face's layout, adapters merged; transformers and vLLM read it. Ask it with
# `enable_thinking=False`, as it was trained.

# %%
sh(f"looptool export --run {QWEN_RUN if QWEN else RUN} --dtype bfloat16 --out policy")
