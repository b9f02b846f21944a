"""The launch scripts against stand-ins that record how they are called; the local one for real."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
STAND_IN = """#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if "describe" in sys.argv:
    states = open(os.environ["STATES"]).read().split()
    if not states:
        sys.exit("ERROR: NOT_FOUND")
    print(states[0])
    open(os.environ["STATES"], "w").write(" ".join(states[1:] or states))
"""
SLICE = {"TYPE": "v5p-16", "ZONE": "us-east5-a", "WAIT_SECONDS": "0"}
SETTINGS = ("paper_8b", "run_dir=gs://bucket/run", "mesh={fsdp: 8, tensor: 2}")


class Launcher:
    def __init__(self, folder: Path) -> None:
        self.folder, self.record, self.states = folder, folder / "record", folder / "states"
        for name in ("gcloud", "xpk", "docker", "ssh", "scp"):
            file = folder / name
            file.write_text(STAND_IN.format(python=sys.executable))
            file.chmod(0o755)
        pip = folder / "python3"
        pip.write_text('#!/bin/sh\necho "$@" >> "$RECORD.pip"\n')
        pip.chmod(0o755)

    def __call__(self, script: str, *args: str, states: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        self.record.write_text("")
        self.states.write_text(states)
        path = f"{self.folder}:{os.environ['PATH']}"
        env = {**os.environ, **settings, "PATH": path, "RECORD": str(self.record), "STATES": str(self.states)}
        return subprocess.run([str(LAUNCH / script), *args], capture_output=True, text=True, env=env, timeout=120)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def launch(tmp_path) -> Launcher:
    return Launcher(tmp_path)


def test_shellcheck_finds_nothing():
    found = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", [file.name for file in SCRIPTS])
def test_help_has_an_example(script, launch):
    shown = launch(script, "--help")
    assert shown.returncode == 0 and f"launch/{script} " in shown.stdout and "--dry-run" in shown.stdout
    assert not launch.calls


def remote_words(call: list[str]) -> list[str]:
    """What a host's shell makes of a remote command."""
    return shlex.split(call[call.index("--command") + 1])


def test_a_slice_from_nothing_to_a_run(launch):
    done = launch("tpu_vm.sh", "up", "pod", *SETTINGS, states="ACCEPTED PROVISIONING ACTIVE", SPOT="1", **SLICE)
    assert done.returncode == 0, done.stderr
    create, *describes, clean, copy, install, start = launch.calls
    assert create == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id", "pod", "--zone", "us-east5-a",
        "--accelerator-type", "v5p-16", "--runtime-version", "v2-alpha-tpuv5", "--spot",
    ]  # fmt: skip
    assert len(describes) == 3 and all("describe" in call for call in describes)
    for call in (clean, copy, install, start):
        assert call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] and call[call.index("--worker") + 1] == "all"
    assert "looptool-venv/bin/looptool run" in " ".join(start)
    words = remote_words(start)
    assert words[words.index("run") : words.index(">")] == ["run", "--config", *SETTINGS]


@pytest.mark.parametrize(("type_", "image"), [("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v6e-8", "v2-alpha-tpuv6e")])
def test_every_type_has_its_image(type_, image, launch):
    assert launch("tpu_vm.sh", "create", "pod", states="ACTIVE", **{**SLICE, "TYPE": type_}).returncode == 0
    assert image in launch.calls[0] and "--spot" not in launch.calls[0]


@pytest.mark.parametrize(
    ("states", "kinds"),
    [
        ("ACTIVE", ["describe", "ssh"]),
        ("SUSPENDED ACTIVE", ["describe", "delete", "create", "describe", "ssh", "scp", "ssh", "ssh"]),
        ("", ["describe", "create", *5 * ["describe"]]),  # it is gone, and what is asked for never comes
    ],
)
def test_resume_asks_for_a_lost_slice_anew(states, kinds, launch):
    done = launch("tpu_vm.sh", "resume", "pod", *SETTINGS, states=states, **SLICE)
    verbs = {"describe", "ssh", "delete", "create", "scp"}
    found = [next(word for word in call if word in verbs) for call in launch.calls]
    assert found == kinds and (done.returncode == 0) == bool(states)


def test_a_failed_slice_is_told(launch):
    done = launch("tpu_vm.sh", "up", "pod", *SETTINGS, states="ACCEPTED FAILED", **SLICE)
    assert done.returncode == 2 and "pod is FAILED" in done.stderr
    assert not any("ssh" in call for call in launch.calls)


def test_gke(launch):
    settings = {"CLUSTER": "pods", "TYPE": "v5p-16", "IMAGE": "registry/me/looptool", "PROJECT": "mine"}
    assert launch("xpk.sh", "image", "run", **settings).returncode == 0
    assert [call[:2] for call in launch.calls] == [["docker", "build"], ["docker", "push"]]
    assert launch("xpk.sh", "start", "run", *SETTINGS, **settings).returncode == 0
    [call] = launch.calls
    assert call[:3] == ["xpk", "workload", "create"]
    options = dict(zip(call[3::2], call[4::2], strict=True))
    assert shlex.split(options.pop("--command")) == ["looptool", "run", "--config", *SETTINGS]
    assert options == {
        "--workload": "run", "--cluster": "pods", "--project": "mine", "--tpu-type": "v5p-16",
        "--docker-image": "registry/me/looptool", "--max-restarts": "100",
    }  # fmt: skip


def test_gpu_hosts(launch):
    hosts = "me@gpu-0 me@gpu-1"
    assert launch("gpu_hosts.sh", "start", hosts, "quickstart", "run_dir=/shared/run", "seed=1").returncode == 0
    assert [call[:2] for call in launch.calls] == [["ssh", "me@gpu-0"], ["ssh", "me@gpu-1"]]
    for index, call in enumerate(launch.calls):
        words = shlex.split(call[2])
        assert words[words.index("run") : words.index(">")] == [
            "run", "--config", "quickstart", "--coordinator", "gpu-0:8476", "--processes", "2", "--process", str(index),
            "run_dir=/shared/run", "seed=1",
        ]  # fmt: skip
    assert launch("gpu_hosts.sh", "install", hosts).returncode == 0
    assert [call[0] for call in launch.calls] == ["ssh", "scp", "ssh"] * 2
    assert launch("gpu_hosts.sh", "stop", hosts).returncode == 0 and len(launch.calls) == 2


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("tpu_vm.sh", ("up", "pod", *SETTINGS)),
        ("tpu_vm.sh", ("resume", "pod", *SETTINGS)),
        ("tpu_vm.sh", ("delete", "pod")),
        ("xpk.sh", ("start", "run", *SETTINGS)),
        ("gpu_hosts.sh", ("start", "a b", *SETTINGS)),
        ("local.sh", ("3", "micro")),
    ],
)
def test_a_dry_run_runs_nothing(script, args, launch):
    settings = {"CLUSTER": "pods", "IMAGE": "image", "PORT": "9999", **SLICE}
    shown = launch(script, "--dry-run", *args, **settings)
    assert shown.returncode == 0 and shown.stderr.startswith("+ ") and not launch.calls, shown.stderr
    assert not launch.record.with_suffix(".pip").exists()


@pytest.mark.parametrize(
    ("script", "args", "settings", "words"),
    [
        ("tpu_vm.sh", ("up",), {}, "no NAME is given"),
        ("tpu_vm.sh", ("up", "pod"), {"TYPE": "v5p-16"}, "ZONE is not set"),
        ("tpu_vm.sh", ("start", "pod", "paper_8b", "run_dir=/tmp/run"), SLICE, "run_dir=gs://bucket/... is missing"),
        ("tpu_vm.sh", ("create", "pod"), {**SLICE, "TYPE": "v9-8"}, "its image is not known here; set RUNTIME"),
        ("tpu_vm.sh", ("stroll", "pod"), SLICE, "stroll: no such command"),
        ("xpk.sh", ("start", "run", "paper_8b"), {"CLUSTER": "pods"}, "run_dir=gs://bucket/... is missing"),
        ("gpu_hosts.sh", ("start", "a b", "quickstart"), {}, "run_dir=... is missing"),
        ("local.sh", ("many", "micro"), {}, "many: expected the number of processes"),
    ],
)
def test_a_mistake_is_one_line(script, args, settings, words, launch):
    told = launch(script, *args, **settings)
    assert told.returncode != 0 and not launch.calls
    assert words in told.stderr and len(told.stderr.splitlines()) == 1, told.stderr


def test_the_skypilot_task_runs_what_it_says(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "resources", "workdir", "envs", "setup", "run"}
    venv = tmp_path / "looptool-venv/bin"
    venv.mkdir(parents=True)
    (venv / "looptool").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (venv / "looptool").chmod(0o755)
    env = {**task["envs"], "HOME": str(tmp_path), "RUN_DIR": "gs://bucket/run", "SETTINGS": "rounds=1 seed=2"}
    done = subprocess.run(["bash", "-c", task["run"]], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["run", "--config", "v5e8_4b", "run_dir=gs://bucket/run", "rounds=1", "seed=2"]


def test_skypilot_takes_the_task(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where SkyPilot keeps its state
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    task["envs"]["RUN_DIR"] = "gs://bucket/run"
    [resources] = sky.Task.from_yaml_config(task).resources  # raises where its schema or a value is wrong
    assert resources.accelerators == {"tpu-v5litepod-8": 1}


@pytest.mark.slow
def test_two_processes_here(tmp_path):
    """For real: `launch/local.sh 2 micro`, and a mistake that both processes tell."""
    run_dir = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [str(LAUNCH / "local.sh"), "2", "micro", f"run_dir={run_dir}", "rounds=1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "report.html").is_file()
    ended = subprocess.run(
        [*command, "no.such=1"], capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=600
    )
    assert ended.returncode == 2 and "no such setting" in ended.stderr and "logs are in" in ended.stderr
