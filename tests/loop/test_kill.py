"""A `micro` run killed at its commit points ends with the same manifest, byte for byte, as an undisturbed one.

Every attempt is a process of its own that kills itself (SIGKILL) before or after one commit (a rename, an append to
a progress file, a checkpoint); the next one resumes and dies at the next point. A fork server that has imported, but
not started, JAX keeps the attempts short; compiled programs come from a cache on disk.
"""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from looptool_jax.loop.ledger import Ledger

SPAWN = multiprocessing.get_context("forkserver")
MOST_ATTEMPTS = 400


def attempt(run_dir: str, cache: str, kill: int) -> None:
    """One process: run, and die before commit n (kill = 2n - 1) or after it (2n); 0: never."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = ""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.dup2(os.open(f"{run_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", cache)

    from looptool_jax.config import keep_config, load_config
    from looptool_jax.data.store import Progress
    from looptool_jax.loop.console import Console
    from looptool_jax.loop.runner import Runner
    from looptool_jax.training import checkpoint

    commits = 0

    def commit(real):
        def guarded(*args, **kwargs):
            nonlocal commits
            elsewhere = real in renames and not str(args[1]).startswith(run_dir)
            if elsewhere or str(args[-1]).endswith("status.json"):  # the heartbeat is no commit
                return real(*args, **kwargs)
            commits += 1
            number = commits
            if kill == 2 * number - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if kill == 2 * number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return guarded

    renames = (os.replace, os.rename)
    os.replace, os.rename = commit(os.replace), commit(os.rename)
    Progress.append = commit(Progress.append)  # type: ignore[method-assign]
    checkpoint.save = commit(checkpoint.save)
    cfg = load_config("micro", [f"run_dir={run_dir}"])
    keep_config(cfg)
    Runner(cfg, Console()).run()


def run_process(run_dir: Path, cache: Path, kill: int) -> int:
    process = SPAWN.Process(target=attempt, args=(str(run_dir), str(cache), kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def state(run_dir: Path) -> list[tuple[str, int]]:
    """What a resumed run starts from: the manifest, checkpoints, and the progress of all stages but training.

    Training logs a step before its checkpoint, and again when it is done again; so does the ledger with a stage before
    its entry in the manifest.
    """
    files = [run_dir / "manifest.json", run_dir / "environment.jsonl", *run_dir.rglob("progress.jsonl")]
    sizes = [(str(file), file.stat().st_size) for file in files if file.exists() and file.parent.name != "train"]
    return sizes + [(str(folder), 0) for folder in sorted(run_dir.rglob("checkpoints/step_????????"))]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("stride", "least"), [(16, 8), pytest.param(1, 60, marks=pytest.mark.slow)], ids=["some points", "every point"]
)
def test_micro_survives_kills_at_commit_points(stride, least, tmp_path):
    SPAWN.set_forkserver_preload(["jax", "flax.nnx", "optax", "orbax.checkpoint", "jetstream.engine.engine_api"])
    cache, killed = tmp_path / "cache", tmp_path / "killed"
    assert run_process(tmp_path / "undisturbed", cache, 0) == 0
    kills, point, before = 0, 1, state(killed)
    while True:
        code = run_process(killed, cache, point)
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "killed.log").read_text()[-3000:]
        kills += 1
        assert kills < MOST_ATTEMPTS
        # Go on to a later point of the same state, or start again behind a state that has advanced.
        after = state(killed)
        point, before = (point + stride if after == before else 1 + kills % stride), after
    print(f"{kills} kills")
    assert kills > least
    assert (killed / "manifest.json").read_bytes() == (tmp_path / "undisturbed/manifest.json").read_bytes()
    stages = json.loads((killed / "manifest.json").read_text())["stages"]
    assert list(Ledger(str(killed / "ledger.jsonl")).costs()) == list(stages)
    names = [file.name for file in killed.rglob("*")]
    assert not [name for name in names if "progress" in name or name.endswith((".tmp", ".partial"))]
