"""Checkpoints on `gs://`: Orbax's folders and TensorStore's arrays against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looptool_jax.data import store
from looptool_jax.training.checkpoint import CheckpointError, latest, logical_hash, restore, save, step_path

ROOT = Path(__file__).resolve().parents[2]


def tree(value: float = 0.0):
    return {
        "w": jnp.arange(6.0).reshape(2, 3) + value,
        "b": {"bf16": jnp.linspace(0, 1, 5).astype(jnp.bfloat16), "step": jnp.array(7, jnp.int32)},
    }


def abstract(values):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), values)


def names(url: str) -> list[str]:
    return store.list_names(url)


def test_round_trip_retention_and_latest(bucket):
    root = f"{bucket}/run/checkpoints"
    assert latest(root) is None
    for step in (1, 2, 10):
        digest = save(step_path(root, step), tree(step), {"cursor": step}, keep=2)
    assert names(root) == ["step_00000002", "step_00000010"]
    assert str(latest(root)) == f"{root}/step_00000010"
    found = restore(latest(root), abstract(tree()))
    assert found.extra == {"cursor": 10} and found.hash == digest == logical_hash(found.state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), found.state, tree(10)))
    save(step_path(root, 10), tree(3), {"cursor": 3})
    assert restore(latest(root), abstract(tree())).extra == {"cursor": 3}


def test_no_tensorflow_is_loaded_for_it(bucket):
    code = f"""
        import sys
        import jax.numpy as jnp
        from looptool_jax.training.checkpoint import latest, save, step_path
        save(step_path("{bucket}/checkpoints", 1), {{"w": jnp.ones(3)}}, {{}})
        assert latest("{bucket}/checkpoints") is not None
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)


def test_a_checkpoint_without_its_commit_is_none(bucket):
    """What a kill leaves in the middle of a save, and what one leaves in the middle of a removal."""
    root = f"{bucket}/checkpoints"
    for step in (1, 2):
        save(step_path(root, step), tree(step), {"n": step})
    store.remove(f"{root}/step_00000002/commit_success.txt")
    assert str(latest(root)) == f"{root}/step_00000001"
    with pytest.raises(CheckpointError, match=r"step_00000002 was never finished: delete it"):
        restore(step_path(root, 2), abstract(tree()))
    save(step_path(root, 2), tree(5), {"n": 5}, keep=1)
    assert names(root) == ["step_00000002"]
    assert restore(latest(root), abstract(tree())).extra == {"n": 5}


SAVE = """
    import sys
    import numpy as np
    from looptool_jax.training.checkpoint import save, step_path
    save(step_path(sys.argv[1], int(sys.argv[2])), {"w": np.full(300_000, 7.5)}, {"n": int(sys.argv[2])}, keep=1)
"""


def saving(root: str, step: int, environment: dict[str, str], before: str = "") -> subprocess.Popen[str]:
    code = f"{before}\n{textwrap.dedent(SAVE)}"
    return subprocess.Popen(
        [sys.executable, "-c", code, root, str(step)], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("mark", [b"process_0%2Fd%2F", b"/step_00000002/commit_success.txt&upload_id"])
def test_a_save_killed_in_the_middle_of_an_upload_leaves_the_last_checkpoint(mark, bucket, proxy):
    root, state = f"{bucket}/checkpoints", {"w": np.full(300_000, 7.5)}
    save(step_path(root, 1), state, {"n": 1})
    before = store.list_tree(f"{root}/step_00000001")
    proxy.stall_in(mark, 20)
    process = saving(root, 2, proxy.environment)
    try:
        assert proxy.stalled.wait(60)
    finally:
        process.kill()
        process.communicate()
    assert len(names(root)) == 2
    assert restore(latest(root), state).extra == {"n": 1}
    assert store.list_tree(f"{root}/step_00000001") == before
    again = saving(root, 2, proxy.environment)
    assert again.communicate() and again.returncode == 0
    assert names(root) == ["step_00000002"] and restore(latest(root), state).extra == {"n": 2}


@pytest.mark.parametrize("mark", [b"process_0%2Fd%2F", b"/step_00000001/commit_success.txt&upload_id"])
def test_a_save_over_a_connection_that_falls_silent_ends_well(mark, bucket, proxy):
    root, state = f"{bucket}/checkpoints", {"w": np.full(300_000, 7.5)}
    proxy.stall_in(mark, 20)
    impatient = {**proxy.environment, "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "2"}
    process = saving(root, 1, impatient, "from looptool_jax.data import object_store; object_store.SILENCE = 2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert proxy.stalled.is_set()
    assert restore(latest(root), state).extra == {"n": 1}


def test_a_missing_bucket_is_one_line(store_server):
    with pytest.raises(CheckpointError, match=r"^the checkpoint at gs://no-such-bucket/c could not be written: .*\Z"):
        save("gs://no-such-bucket/c", tree(), {})
    assert latest("gs://no-such-bucket/c") is None
