from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.rules import param_shardings
from looptool_jax.training import checkpoint
from looptool_jax.training.checkpoint import CheckpointError, latest, logical_hash, restore, save, step_path
from looptool_jax.training.grpo import GrpoConfig, make_grpo_step
from looptool_jax.training.optimizer import (
    OptimizerConfig,
    abstract_state,
    init_state,
    make_optimizer,
    state_shardings,
)
from looptool_jax.training.rows import Group, packed_rows

CFG = DecoderConfig("qwen3", 64, 16, 32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
INIT = jax.jit(decoder.init_params, static_argnums=(0, 2))
ROOT = Path(__file__).resolve().parents[2]


def tree():
    return {
        "w": jnp.arange(6.0).reshape(2, 3),
        "b": {"bf16": jnp.linspace(0, 1, 5).astype(jnp.bfloat16), "step": jnp.array(7, jnp.int32)},
    }


def abstract(values):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), values)


def test_round_trip(tmp_path):
    extra = {"cursor": 12, "keys": {"10": [1, 2], "9": [3]}, "rate": 0.1}
    digest = save(tmp_path / "c", tree(), extra)
    found = restore(tmp_path / "c", abstract(tree()))
    assert found.extra == extra and found.hash == digest == logical_hash(found.state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), found.state, tree()))


def test_logical_hash_is_over_key_shape_dtype_and_bytes():
    values = {"b": np.array([1, 2], np.int32), "a": {"x": np.ones((1, 2), np.float32)}}
    expected = hashlib.sha256()
    for key, array in (("a/x", values["a"]["x"]), ("b", values["b"])):
        expected.update(f"{key}\0{array.shape}\0{array.dtype}\0".encode() + array.tobytes())
    assert logical_hash(values) == expected.hexdigest()
    others = [
        {**values, "b": values["b"].astype(np.uint32)},
        {**values, "b": values["b"][None]},
        {**values, "b": values["b"][::-1]},
        {"c": values["b"], "a": values["a"]},
    ]
    assert len({logical_hash(other) for other in [values, *others]}) == 5


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, "x")])
def test_a_large_array_is_hashed_in_slices_with_the_same_result(monkeypatch, spec):
    values = {"a": jnp.arange(120.0).reshape(3, 8, 5), "b": jnp.arange(56).astype(jnp.bfloat16).reshape(7, 8)}
    placed = jax.device_put(values, NamedSharding(Mesh(np.array(jax.devices()), ("x",)), spec))
    whole = logical_hash(values)
    parts: list[int] = []

    class Recorder:
        def __init__(self):
            self.digest = hashlib.sha256()

        def update(self, data):
            parts.append(len(data))
            self.digest.update(data)

        def hexdigest(self):
            return self.digest.hexdigest()

    monkeypatch.setattr(checkpoint, "SLICE_BYTES", 64)
    monkeypatch.setattr(checkpoint, "hashlib", SimpleNamespace(sha256=Recorder))
    assert logical_hash(placed) == whole
    assert [size for size in parts if size > 40] == [160, 160, 160, 64, 48]


def test_saving_again_replaces(tmp_path):
    save(tmp_path / "c", tree(), {"n": 1})
    second = jax.tree.map(lambda x: x + 1, tree())
    save(tmp_path / "c", second, {"n": 2})
    found = restore(tmp_path / "c", abstract(tree()))
    assert found.extra == {"n": 2} and found.hash == logical_hash(second)


def test_latest_and_retention(tmp_path):
    assert latest(tmp_path / "none") is None
    for step in (1, 2, 10):
        save(step_path(tmp_path, step), tree(), {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000010"]
    assert latest(tmp_path) == step_path(tmp_path, 10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damaged_file_is_noticed(tmp_path):
    save(tmp_path / "good", tree(), {"cursor": 3})
    good = restore(tmp_path / "good", abstract(tree())).hash
    files = [f.relative_to(tmp_path / "good") for f in sorted((tmp_path / "good").rglob("*")) if f.is_file()]
    noticed = set()
    for file in files:
        for damage in ("removed", "cut", "flipped"):
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            target = tmp_path / "bad" / file
            data = bytearray(target.read_bytes())
            if damage == "removed":
                target.unlink()
            elif damage == "cut":
                target.write_bytes(data[: len(data) // 2])
            elif data:
                data[len(data) // 2] ^= 0x10
                target.write_bytes(data)
            try:  # either it is an error that names the folder, or the contents are whole
                assert restore(tmp_path / "bad", abstract(tree()))[1:] == ({"cursor": 3}, good)
            except CheckpointError as error:
                assert str(tmp_path / "bad") in str(error) and "\n" not in str(error)
                noticed.add(file.name if "record" in str(file) else file.parent.name)
            shutil.rmtree(tmp_path / "bad")
    assert {"metadata", "d"} <= noticed


def test_altered_values_are_noticed(tmp_path):
    """An intact folder of the same shapes whose arrays are not the ones the record was made for."""
    save(tmp_path / "a", tree(), {"n": 1})
    save(tmp_path / "b", jax.tree.map(lambda x: x + 1, tree()), {"n": 1})
    shutil.rmtree(tmp_path / "a" / "state")
    shutil.copytree(tmp_path / "b" / "state", tmp_path / "a" / "state")
    with pytest.raises(CheckpointError, match="an array was altered"):
        restore(tmp_path / "a", abstract(tree()))
    record = tmp_path / "b" / "record" / "metadata"
    record.write_text(json.dumps({**json.loads(record.read_text()), "extra": {"n": 2}}))
    with pytest.raises(CheckpointError, match="its record was altered"):
        restore(tmp_path / "b", abstract(tree()))


def test_missing_or_other_model(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}/none"):
        restore(tmp_path / "none", abstract(tree()))
    save(tmp_path / "c", tree(), {})
    for other, message in (
        ({**tree(), "w": jnp.zeros((2, 4))}, r"array w is float32\[2, 3\] there and float32\[2, 4\] here"),
        ({**tree(), "w": jnp.zeros((2, 3), jnp.bfloat16)}, r"float32\[2, 3\] there and bfloat16\[2, 3\] here"),
        ({**tree(), "z": jnp.zeros(1)}, r"array z is absent there and float32\[1\] here"),
        ({"b": tree()["b"]}, r"array w is float32\[2, 3\] there and absent here"),
    ):
        with pytest.raises(CheckpointError, match=message):
            restore(tmp_path / "c", abstract(other))


_DIES_IN_SAVE = """
import os, sys
import numpy as np
from orbax.checkpoint._src.path import atomicity
from looptool_jax.training.checkpoint import save, step_path
save(step_path(sys.argv[1], 1), {"w": np.ones(4)}, {"n": 1})
atomicity.AtomicRenameTemporaryPath.finalize = lambda self: os._exit(9)
save(step_path(sys.argv[1], 2), {"w": np.zeros(4)}, {"n": 2})
"""


def test_killed_save_leaves_the_last_checkpoint(tmp_path):
    """A process that dies when everything is written but not committed."""
    assert subprocess.run([sys.executable, "-c", _DIES_IN_SAVE, str(tmp_path)], cwd=ROOT).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2
    values = {"w": np.zeros(4)}
    assert restore(latest(tmp_path), values).extra == {"n": 1}
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        restore(step_path(tmp_path, 2), values)
    save(step_path(tmp_path, 3), values, {"n": 3}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def test_training_continues_with_the_same_bytes(tmp_path):
    """Six updates in one go, and three, a checkpoint, three: equal parameters and moments, bit for bit."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    axes, shapes = decoder.logical_axes(CFG), decoder.abstract_params(CFG)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, schedule="cosine", total_steps=8))
    shardings = state_shardings(optimizer, shapes, param_shardings(mesh, axes, shapes), mesh)
    step = make_grpo_step(CFG, GrpoConfig(compute_dtype="float32"), optimizer, mesh, shardings)
    rng = np.random.default_rng(0)
    batches = [
        packed_rows(
            [
                Group(
                    rng.integers(0, 64, rng.integers(1, 7)).tolist(),
                    [rng.integers(0, 64, rng.integers(1, 5)).tolist() for _ in range(2)],
                    rng.normal(size=2).tolist(),
                )
                for _ in range(4)
            ],
            micro_tokens=16,
            shards=2,
        )
        for _ in range(6)
    ]
    straight = init_state(optimizer, INIT(CFG, jax.random.key(1)), shardings)
    start = logical_hash(straight.params)
    for batch in batches:
        straight, _ = step(straight, batch)

    state = init_state(optimizer, INIT(CFG, jax.random.key(1)), shardings)
    for batch in batches[:3]:
        state, _ = step(state, batch)
    save(tmp_path / "c", state, {"cursor": 3})
    del state
    found = restore(tmp_path / "c", abstract_state(optimizer, shapes, shardings))
    state = found.state
    assert int(state.step) == found.extra["cursor"] == 3
    for batch in batches[found.extra["cursor"] :]:
        state, _ = step(state, batch)
    assert logical_hash(state) == logical_hash(straight)
    assert logical_hash(state.params) != start

    one = make_mesh(MeshConfig(), jax.devices()[:1])
    moved = abstract_state(
        optimizer, shapes, state_shardings(optimizer, shapes, param_shardings(one, axes, shapes), one)
    )
    assert restore(tmp_path / "c", moved).hash == found.hash


def test_a_file_url_is_a_local_path(tmp_path):
    save(f"file://{tmp_path}/step_00000001", {"x": jnp.ones(2)}, {})
    assert str(latest(str(tmp_path))) == str(latest(f"file://{tmp_path}")) == f"{tmp_path}/step_00000001"
