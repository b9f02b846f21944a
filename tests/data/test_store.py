from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looptool_jax.data import store
from looptool_jax.data.lock import lock_directory
from looptool_jax.data.progress import Progress
from looptool_jax.data.store import DataError
from looptool_jax.toolcall.records import Call, Message, Sample, Target, Tool

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner),
    max_leaves=12,
)  # fmt: skip


def sample(number: int) -> Sample:
    tool = Tool("find", "Find.", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]})
    target = Target(calls=(Call("find", {"q": f"Zürich {number}"}),))
    return Sample(f"s-{number:04d}", (tool,), (Message("user", "line\u2028one\n"),), target, extra={"n": number})


@pytest.fixture(params=["local", "memory", "gs"])
def base(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
        return
    if request.param == "gs":
        yield f"{request.getfixturevalue('bucket')}/deep/run"
        return
    import fsspec

    url = f"memory://{tmp_path.name}"
    yield url
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(url):
        filesystem.rm(url, recursive=True)


def test_write_returns_the_hash_of_what_is_read_back(base):
    path = store.join(base, "deep", "folder", "a.txt")
    digest = store.write_text(path, "grün\n")
    assert digest == hashlib.sha256("grün\n".encode()).hexdigest() == store.file_sha256(path)
    assert store.read_text(path) == "grün\n"
    store.write_bytes(path, b"second")
    assert store.read_bytes(path) == b"second"
    assert store.list_names(store.join(base, "deep", "folder")) == ["a.txt"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(st.characters(exclude_categories=())), JSON_VALUES, max_size=4), max_size=4))
def test_jsonl_round_trip_loses_nothing(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    store.write_jsonl(path, rows)
    assert json.dumps(list(store.read_jsonl(path))) == json.dumps(rows)


def test_jsonl_refuses_what_json_cannot_hold(tmp_path):
    path = tmp_path / "rows.jsonl"
    store.write_jsonl(path, [{"a": 1}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: cannot be written as JSON"):
        store.write_jsonl(path, [{"a": 1}, {"a": float("nan")}])
    assert list(store.read_jsonl(path)) == [{"a": 1}]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 100"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 100"),
        (b'{"a": ' + b"7" * 5000 + b"}", "more than 4000 digits"),
    ],
)
def test_corrupt_line_is_named(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"ok": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: .*" + reason):
        list(store.read_jsonl(path))


def test_absent_file_is_one_clear_error(base):
    with pytest.raises(DataError, match="no such file"):
        list(store.read_jsonl(store.join(base, "absent.jsonl")))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_samples_round_trip_in_shards(base, count):
    path = store.join(base, "round-1")
    samples = [sample(number) for number in range(count)]
    shards = store.write_samples(path, samples, shard_size=4)
    assert list(store.read_samples(path)) == samples
    assert [shard.rows for shard in shards] == [min(4, count - at) for at in range(0, max(count, 1), 4)]
    for shard in shards:
        assert shard.sha256 == store.file_sha256(shard.file)
    one = store.join(base, "one.jsonl")
    store.write_samples(one, samples)
    assert list(store.read_samples(one)) == samples


def test_rewriting_a_set_removes_the_stale_shards(base):
    store.write_samples(base, [sample(number) for number in range(9)], shard_size=2)
    store.write_samples(base, [sample(number) for number in range(3)], shard_size=2)
    assert [item.id for item in store.read_samples(base)] == ["s-0000", "s-0001", "s-0002"]


def test_a_missing_shard_is_an_error(tmp_path):
    shards = store.write_samples(tmp_path, [sample(number) for number in range(9)], shard_size=3)
    os.unlink(shards[1].file)
    with pytest.raises(DataError, match=r"1 of 3 shards missing: samples-00001-of-00003\.jsonl"):
        list(store.read_samples(tmp_path))
    store.write_text(tmp_path / "samples-00000-of-00002.jsonl", "")
    with pytest.raises(DataError, match="two sample sets are mixed"):
        list(store.read_samples(tmp_path))
    with pytest.raises(DataError, match="no sample set here"):
        list(store.read_samples(tmp_path / "elsewhere"))
    store.write_text(tmp_path / "set.json", "[]")
    with pytest.raises(DataError, match=r"set\.json: no sample set here \(expected .*, or a \.jsonl file\)"):
        list(store.read_samples(tmp_path / "set.json"))


def test_a_line_that_is_no_sample_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    store.write_jsonl(path, [sample(0).to_json(), {"id": "x", "target": {}}])
    with pytest.raises(DataError, match=r"set\.jsonl:2: no sample: a target needs calls"):
        list(store.read_samples(path))
    broken = sample(0).to_json()
    broken["tools"][0]["parameters"]["required"] = None
    store.write_jsonl(path, [broken])
    with pytest.raises(DataError, match=r"set\.jsonl:1: no sample: parameters\.required: expected a list"):
        list(store.read_samples(path))


def test_file_size_limit_keeps_the_earlier_file(tmp_path):
    """A real failing write: the operating system refuses to let the file grow past the limit."""
    code = textwrap.dedent(
        """
        import resource, sys
        from looptool_jax.data import store
        from looptool_jax.data.progress import Progress
        base = sys.argv[1]
        store.write_text(base + "/a.txt", "earlier")
        progress = Progress(base + "/progress.jsonl")
        progress.append({"chunk": 0, "pad": "x" * 3000})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for action in (lambda: store.write_text(base + "/a.txt", "x" * 10_000),
                       lambda: progress.append({"chunk": 1, "pad": "x" * 3000})):
            try:
                action()
            except store.DataError as error:
                print(error)
        progress.append({"chunk": 2})
        """
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("is full; free some space or choose another directory" in line for line in lines)
    assert lines[0].startswith(str(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "progress.jsonl"]
    assert [row["chunk"] for row in Progress(tmp_path / "progress.jsonl").rows()] == [0, 2]


@pytest.fixture
def tiny_disk(tmp_path):
    """A mounted file system of 64 KiB."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(point)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_full_disk_is_one_clear_error(tiny_disk):
    store.write_text(tiny_disk / "a.txt", "earlier")
    with pytest.raises(DataError, match=r"a\.txt: cannot be written, the disk .* is full; free some space") as caught:
        store.write_text(tiny_disk / "a.txt", "x" * 200_000)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert (tiny_disk / "a.txt").read_text() == "earlier"
    assert os.listdir(tiny_disk) == ["a.txt"]
    progress = Progress(tiny_disk / "progress.jsonl")
    progress.append({"chunk": 0})
    with pytest.raises(DataError, match="is full"):
        progress.append({"chunk": 1, "pad": "x" * 200_000})
    progress.append({"chunk": 2})
    assert Progress(tiny_disk / "progress.jsonl").rows() == [{"chunk": 0}, {"chunk": 2}]


def test_a_failing_row_source_leaves_nothing_behind(tmp_path):
    def rows():
        yield {"a": 1}
        raise KeyError("source")

    with pytest.raises(KeyError):
        store.write_jsonl(tmp_path / "rows.jsonl", rows())
    assert os.listdir(tmp_path) == []


def test_progress_round_trip(base):
    path = store.join(base, "probe", "progress.jsonl")
    progress = Progress(path)
    assert progress.rows() == []
    for chunk in range(3):
        progress.append({"chunk": chunk})
    assert progress.rows() == Progress(path).rows() == [{"chunk": 0}, {"chunk": 1}, {"chunk": 2}]


def test_progress_survives_a_cut_at_every_byte(tmp_path):
    path = tmp_path / "progress.jsonl"
    progress = Progress(path)
    for chunk in range(3):
        progress.append({"chunk": chunk, "text": "ü"})
    whole = path.read_bytes()
    ends = [0, *(at + 1 for at, byte in enumerate(whole) if byte == 10)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        reopened = Progress(path)
        kept = sum(1 for end in ends[1:] if end <= cut)
        assert [row["chunk"] for row in reopened.rows()] == list(range(kept))
        assert path.read_bytes() == whole[: ends[kept]]
        for chunk in range(kept, 3):
            reopened.append({"chunk": chunk, "text": "ü"})
        assert path.read_bytes() == whole


def test_progress_drops_a_zero_filled_tail_but_not_a_damaged_middle(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"chunk": 0}\n' + b"\0" * 40 + b"\n")
    assert Progress(path).rows() == [{"chunk": 0}]
    assert path.read_bytes() == b'{"chunk": 0}\n'
    path.write_bytes(b'{"chunk": 0}\n{"ch\n{"chunk": 2}\n')
    with pytest.raises(DataError, match=r"progress\.jsonl:2: not JSON.*damaged"):
        Progress(path)


def test_trees_are_listed_and_removed(base):
    for name in ("tree/a.txt", "tree/deep/b.txt", "tree-2/c.txt"):
        store.write_text(store.join(base, name), name)
    assert store.list_tree(store.join(base, "tree")) == ["a.txt", "deep/b.txt"]
    assert store.list_names(store.join(base, "tree")) == ["a.txt", "deep"]
    assert store.list_names(store.join(base, "tree/a.txt")) == store.list_tree(store.join(base, "tree/a.txt")) == []
    assert store.is_file(store.join(base, "tree/a.txt")) and not store.is_file(store.join(base, "tree"))
    assert store.exists(store.join(base, "tree"))
    store.remove_tree(store.join(base, "tree"))
    store.remove_tree(store.join(base, "tree-2/c.txt"))
    store.remove_tree(store.join(base, "absent"))
    assert not any(store.exists(store.join(base, name)) for name in ("tree", "tree/deep/b.txt", "tree-2/c.txt"))


def test_a_missing_progress_object_is_an_error(bucket):
    url = f"{bucket}/progress.jsonl"
    progress = Progress(url)
    for chunk in range(3):
        progress.append({"chunk": chunk})
    store.remove(store.join(url, "000001.json"))
    with pytest.raises(DataError, match=r"000001\.json is missing"):
        Progress(url)


def test_lock_keeps_a_second_run_out(tmp_path, bucket):
    for path in (tmp_path / "run", f"{bucket}/run"):
        held = f"in use by another run \\(process {os.getpid()} on "
        with lock_directory(path), pytest.raises(DataError, match=held):
            lock_directory(path)
        lock_directory(path).release()
    with pytest.raises(DataError, match="local directory or on gs://"):
        lock_directory("memory://bucket/run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file: this is a file; name a directory"):
        lock_directory(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_lock_ends_with_its_process_and_leftovers_are_removed(tmp_path):
    code = textwrap.dedent(
        """
        import sys, time
        from looptool_jax.data import store
        from looptool_jax.data.lock import lock_directory
        lock = lock_directory(sys.argv[1])
        def rows():
            yield {"a": 1}
            print("holding", flush=True)
            time.sleep(600)
        store.write_jsonl(sys.argv[1] + "/stage/rows.jsonl", rows())
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "holding\n"
        with pytest.raises(DataError, match=f"process {owner.pid} on "):
            lock_directory(tmp_path)
        assert len(list((tmp_path / "stage").iterdir())) == 1
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
    with lock_directory(tmp_path):
        assert list((tmp_path / "stage").iterdir()) == []
    assert Path(tmp_path / ".lock").read_bytes() == b""
