"""The commands as a user meets them: a mistake is one line, exit status 2, and nothing is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from looptool_jax.data.store import lock_directory, write_samples
from looptool_jax.world import generate

MAIN = "from looptool_jax.cli import main; main()"


def looptool(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", MAIN, *args], capture_output=True, text=True, cwd=cwd, env=env)


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("looptool: "), result.stderr
    assert all(word in lines[0] for word in words), lines[0]


def test_help_lists_the_commands_without_importing_jax(tmp_path):
    code = "import sys; from looptool_jax import cli; import looptool_jax.cli; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    text = looptool("--help", cwd=tmp_path).stdout
    commands = (
        "run",
        "probe",
        "judge",
        "expand",
        "compose",
        "train",
        "warmup",
        "eval",
        "report",
        "import",
        "synthesize",
        "publish",
        "export",
        "data",
        "serve",
        "status",
        "sweep",
        "compare",
    )
    assert all(command in text for command in commands)


@pytest.mark.parametrize(
    "command",
    [
        *("run", "probe", "judge", "expand", "compose", "train", "warmup", "eval", "report", "import", "publish"),
        *("export", "serve", "sweep", "compare", "status"),
        *("data", "data inspect", "data export", "data tools", "data contamination"),
        *("synthesize", "synthesize trees", "synthesize apis", "synthesize dialogues"),
    ],
)
def test_every_help_has_an_example(command, tmp_path):
    assert f"looptool {command} " in looptool(*command.split(), "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "--config", "quikstart"], ["quikstart", "quickstart"]),
        (["run", "--config", "micro", "train.bacth=4"], ["batch"]),
        (["run", "--config", "micro", "policy.path=/no/such/model"], ["/no/such/model"]),
        (["run", "--config", "micro", "policy.format=llama3.1"], ["nano/policy", "model_type qwen3", "fit qwen3"]),
        (["run", "--config", "micro", "policy.path=package:nothing_here/x.gguf"], ["nothing_here", "not installed"]),
        (
            ["run", "--config", "micro", "data.source=/no/such/file.jsonl", "data.format=openai", "data.noise=0"],
            ["/no/such/file.jsonl"],
        ),
        (["run", "--config", "micro", "data.source=mine.jsonl"], ["corrupts 25% of the labels", "give data.noise=0"]),
        (["probe", "--data", "missing.jsonl", "--out", "out", "--config", "micro"], ["missing.jsonl"]),
        (["import", "missing.json", "--format", "openai", "--out", "out"], ["missing.json"]),
        (["publish", "nowhere", "--out", "out"], ["nowhere"]),
        (["import", "BFCL_v4_multiple.json", "--format", "xlam", "--out", "out"], ["BFCL benchmark", "eval bfcl"]),
        (["import", "tfds:no_such_set", "--format", "xlam", "--out", "out"], ["tfds:no_such_set"]),
        (["data", "inspect", "missing.jsonl"], ["missing.jsonl", "no such file"]),
        (["data", "export", "a.jsonl", "--format", "openai", "--out", "./a.jsonl"], ["this is the file that is read"]),
        (["data", "tools", "a.jsonl", "--format", "openai", "--out", "a.jsonl"], ["this is the file that is read"]),
        (["data", "export", "missing.jsonl", "--format", "xlam", "--out", "x.jsonl"], ["missing.jsonl"]),
        (["data", "tools", "missing.json", "--format", "openapi", "--out", "x.jsonl"], ["missing.json"]),
        (["warmup", "--out", "out", "stages=3"], ["hidden_size=256", "--data"]),
        (["synthesize", "apis", "--trees", "nowhere.yaml", "--out", "out"], ["nowhere.yaml"]),
        (["synthesize", "dialogues", "--tools", "nowhere.jsonl", "--out", "out"], ["nowhere.jsonl"]),
        (["synthesize", "trees", "--domain", " ", "--out", "out"], ["--domain", "what the functions are about"]),
        (
            ["synthesize", "dialogues", "--tools", "world", "--out", "out", "synthesis.most_turns=2"],
            ["most_turns", "5"],
        ),
        (["run", "--config", "micro", "policy.path=some-team/judge"], ["some-team/judge", "hf download"]),
        (["export", "--out", "out"], ["--run", "--model"]),
        (["export", "--run", "nowhere", "--out", "out"], ["nowhere", "no run"]),
        (["warmup", "--out", "gs://bucket/nano"], ["gs://bucket/nano", "local folder"]),
        (["run", "--config", "micro", "run_dir=gs://"], ["gs://", "names no bucket"]),
        (["export", "--model", "gs:///model", "--out", "out"], ["gs:///model", "names no bucket"]),
        (["sweep", "ablation"], ["ablation: no such sweep; there are ablations, "]),
        (["sweep", "micro", "--out", "/proc/x"], ["/proc/x", "cannot be made; choose another"]),
        (["compare", "gone", "gone"], ["gone: no finished stage of a run here"]),
        (["run", "--config", "micro", "run_dir=/proc/x"], ["/proc/x", "cannot be made; choose another"]),
        (["run", "--config", "micro", "run_dir=memory://run"], ["memory://run", "local directory or on gs://"]),
    ],
)
def test_a_mistake_is_one_line(args, words, tmp_path):
    assert_one_line(looptool(*args, cwd=tmp_path), *words)


def test_a_broken_data_file_names_the_line(tmp_path):
    (tmp_path / "seeds.jsonl").write_text('{"id": "a"}\n')
    result = looptool(
        "run",
        "--config",
        "micro",
        f"data.source={tmp_path}/seeds.jsonl",
        "data.noise=0",
        f"run_dir={tmp_path}/run",
        cwd=tmp_path,
    )
    assert_one_line(result, "seeds.jsonl:1")


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [("judge", "--probes", "other.jsonl:1: no probe"), ("expand", "--errors", "other.jsonl:1: no error seed")],
)
def test_a_stage_told_the_wrong_file_says_so(command, option, words, tmp_path):
    write_samples(str(tmp_path / "data.jsonl"), generate("train", 1, 0))
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    data = ["--data", "data.jsonl"] if command == "judge" else []
    assert_one_line(looptool(command, *data, option, "other.jsonl", "--out", "out", cwd=tmp_path), words)


def test_an_import_writes_into_a_folder_and_never_over_its_input(tmp_path):
    (tmp_path / "messages.jsonl").write_text('{"broken": true}\n')
    arguments = ["import", "messages.jsonl", "--format", "openai", "--out"]
    assert_one_line(looptool(*arguments, "messages.jsonl", cwd=tmp_path), "messages.jsonl", "name a folder")
    assert (tmp_path / "messages.jsonl").read_text() == '{"broken": true}\n'
    assert_one_line(looptool(*arguments, "out", cwd=tmp_path), "no record is of the format openai")
    assert "broken" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_no_samples_are_told(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    assert_one_line(looptool("probe", "--data", "none.jsonl", "--out", "out", cwd=tmp_path), "holds no samples")


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    listening = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"  # pytest may not
    command = [sys.executable, "-c", listening, "run", "--config", "micro", "run_dir=run"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert any(b"eval-0: started" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert running.stderr.read() == b"looptool: interrupted; give the same command again to continue\n"


def test_two_runs_in_one_directory(tmp_path):
    with lock_directory(tmp_path / "run"):
        result = looptool("run", "--config", "micro", f"run_dir={tmp_path}/run", cwd=tmp_path)
    assert_one_line(result, "in use by another run", str(os.getpid()))


def test_a_model_is_exported(tmp_path):
    result = looptool("export", "--model", "nano/policy", "--out", "model", "--dtype", "bfloat16", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout == "nano/policy  -> model\n" and not result.stderr
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } < names


def test_an_export_leaves_accelerators_alone(tmp_path):
    code = """
import jax
from typer.testing import CliRunner
from looptool_jax import cli
jax.config.update("jax_platforms", "tpu,cpu")
CliRunner().invoke(cli.app, ["export", "--model", "nowhere", "--out", "out"])
assert jax.config.jax_platforms == "cpu"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
