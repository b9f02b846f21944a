from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from looptool_jax.data import store
from looptool_jax.data.publish import publish, read_published
from looptool_jax.data.store import DataError
from looptool_jax.toolcall.records import Call, Message, Origin, Sample, Target, Tool


def samples(count: int, number: int) -> list[Sample]:
    tool = Tool("find", "Find.", {"type": "object", "properties": {"q": {"type": "string"}}})
    return [
        Sample(
            f"s-{(7 * index) % 101:04d}",
            (tool,),
            (Message("user", f"größe\u2028{index}"),),
            Target(calls=(Call("find", {"q": str(index), "n": [1, 1.0, None, True]}),)),
            Origin("error" if index % 2 else "seed", number),
        )
        for index in range(count)
    ]


def test_round_trip_without_tensorflow(tmp_path):
    """Writing and reading each happen in a process of their own that must not have imported TensorFlow."""
    first, second = samples(90, 1), samples(3, 2)
    store.write_samples(tmp_path / "one", first, shard_size=40)
    store.write_samples(tmp_path / "two.jsonl", second)
    write = """
        import sys
        from looptool_jax.data.publish import publish
        base = sys.argv[1]
        print(publish({1: base + "/one", 2: base + "/two.jsonl"}, base + "/out", "seed_set"))
        assert "tensorflow" not in sys.modules
    """
    read = """
        import sys
        import tensorflow_datasets as tfds
        base = sys.argv[1]
        source = tfds.data_source("seed_set/round_1", data_dir=base + "/out", split="train")
        print(len(source), source[89]["id"].decode(), source[89]["kind"].decode(), int(source[89]["round"]))
        from looptool_jax.data.publish import read_published
        from looptool_jax.data.store import read_samples
        assert list(read_published(base + "/out", "seed_set", 1)) == list(read_samples(base + "/one"))
        assert list(read_published(base + "/out", "seed_set", 2)) == list(read_samples(base + "/two.jsonl"))
        assert "tensorflow" not in sys.modules
    """
    assert run(write, tmp_path) == [f"{tmp_path}/out/seed_set"]
    assert run(read, tmp_path) == [f"90 {first[89].id} error 1"]
    written = sorted(path.relative_to(tmp_path / "out").parent.as_posix() for path in tmp_path.rglob("*.array_record*"))
    assert written == ["seed_set/round_1/1.0.0", "seed_set/round_2/1.0.0"]
    assert os.listdir(tmp_path / "out") == ["seed_set"]


def test_tfds_load_reads_a_round_and_without_a_name_the_last_one(tmp_path):
    publish({1: samples(3, 1), 2: samples(2, 2)}, tmp_path, "seed_set")
    code = """
        import sys
        import tensorflow_datasets as tfds
        assert tfds.builder("seed_set", data_dir=sys.argv[1]).info.config_name == "round_2"
        for name in ("seed_set/round_1", "seed_set/round_2", "seed_set"):
            rows = [row["id"].decode() for row in tfds.as_numpy(tfds.load(name, data_dir=sys.argv[1], split="train"))]
            print(name, *rows)
    """
    first, second = ([each.id for each in samples(count, 1)] for count in (3, 2))
    names = ("seed_set/round_1", "seed_set/round_2", "seed_set")
    expected = [" ".join([name, *ids]) for name, ids in zip(names, (first, second, second), strict=True)]
    assert run(code, tmp_path) == expected


def run(code: str, base: os.PathLike) -> list[str]:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(base)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_publish_says_what_is_wrong(tmp_path):
    good = samples(2, 1)
    with pytest.raises(DataError, match="'Seed-Set' is no data set name"):
        publish({1: good}, tmp_path, "Seed-Set")
    with pytest.raises(DataError, match="at least one round"):
        publish({}, tmp_path, "seed")
    with pytest.raises(DataError, match="round 2 has no samples"):
        publish({1: good, 2: []}, tmp_path, "seed")
    with pytest.raises(DataError, match="publish there and copy"):
        publish({1: good}, "gs://bucket/x", "seed")
    with pytest.raises(DataError, match="no sample set here"):
        publish({1: tmp_path / "absent"}, tmp_path, "seed")
    publish({1: good}, tmp_path, "seed")
    with pytest.raises(DataError, match="there is a data set already"):
        publish({1: good}, tmp_path, "seed")


def test_a_damaged_source_publishes_nothing(tmp_path):
    path = tmp_path / "set.jsonl"
    store.write_samples(path, samples(2, 1))
    with open(path, "a") as file:
        file.write("{torn")
    with pytest.raises(DataError, match=r"set\.jsonl:3: not JSON"):
        publish({1: path}, tmp_path / "out", "seed")
    with pytest.raises(DataError, match="no published data set here"):
        list(read_published(tmp_path / "out", "seed", 1))


def test_read_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no published data set here"):
        list(read_published(tmp_path, "seed", 1))
    directory = publish({1: samples(2, 1)}, tmp_path, "seed")
    with pytest.raises(DataError, match="the round round_2 is not in it"):
        list(read_published(tmp_path, "seed", 2))
    (record,) = Path(directory).rglob("*.array_record*")
    with open(record, "r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="round_1 cannot be read"):
        list(read_published(tmp_path, "seed", 1))
