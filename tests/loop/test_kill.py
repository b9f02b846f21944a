"""A `micro` run killed at every commit point ends with the same manifest, byte for byte, as an undisturbed one.

Every attempt is a process of its own that kills itself (SIGKILL) before or after its first commit (a rename, an append
to a progress file, a checkpoint); the next one resumes. A fork server that has imported, but not started, JAX keeps
the attempts short; compiled programs come from a cache on disk.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

SPAWN = multiprocessing.get_context("forkserver")
MOST_ATTEMPTS = 400


def attempt(run_dir: str, cache: str, kill: str | None) -> None:
    """One process: run, and die before or after the first commit."""
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

    def commit(real):
        def guarded(*args, **kwargs):
            if kill == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if kill == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return guarded

    os.replace, os.rename = commit(os.replace), commit(os.rename)
    Progress.append = commit(Progress.append)  # type: ignore[method-assign]
    checkpoint.save = commit(checkpoint.save)
    cfg = load_config("micro", [f"run_dir={run_dir}"])
    keep_config(cfg)
    Runner(cfg, Console()).run()


def run_process(run_dir: Path, cache: Path, kill: str | None) -> int:
    process = SPAWN.Process(target=attempt, args=(str(run_dir), str(cache), kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.timeout(1500)
def test_micro_survives_a_kill_at_every_commit_point(tmp_path):
    SPAWN.set_forkserver_preload(["jax", "flax.nnx", "optax", "orbax.checkpoint", "jetstream.engine.engine_api"])
    cache = tmp_path / "cache"
    assert run_process(tmp_path / "undisturbed", cache, None) == 0
    kills = 0
    while True:
        code = run_process(tmp_path / "killed", cache, ("before", "after")[kills % 2])
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "killed.log").read_text()[-3000:]
        kills += 1
        assert kills < MOST_ATTEMPTS
    print(f"{kills} kills")
    assert kills > 60
    undisturbed = (tmp_path / "undisturbed" / "manifest.json").read_bytes()
    assert (tmp_path / "killed" / "manifest.json").read_bytes() == undisturbed
    leftovers = [
        file.name for file in (tmp_path / "killed").rglob("*") if "progress" in file.name or "tmp" in file.name
    ]
    assert not leftovers
