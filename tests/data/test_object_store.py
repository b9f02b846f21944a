"""`gs://` against a real server: outages, processes that die, locks, and what a person is told."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from looptool_jax.data import files, lock, object_store, store
from looptool_jax.data.lock import lock_directory
from looptool_jax.data.progress import Progress
from looptool_jax.data.store import DataError


def python(code: str, *args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def impatient(monkeypatch):
    """Waits between attempts take no time."""
    monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0.01, raising=False)
    monkeypatch.setattr(object_store, "PAUSE", 0.01)
    monkeypatch.setattr(object_store, "PATIENCE", 0.2)


@pytest.fixture
def through(proxy, monkeypatch):
    """This process reaches the store through the proxy."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
    return proxy


WRITE = """
    import sys
    from looptool_jax.data import files
    from looptool_jax.data.progress import Progress
    how, url, local = sys.argv[1:]
    if how == "put":
        files.write_bytes(url + "/file", b"new" * 1_000_000)
    elif how == "upload":
        store, name = files.open_store(url + "/file")
        store.put_file(local, name)
    else:
        Progress(url + "/progress.jsonl").append({"chunk": 1, "pad": "x" * 1_000_000})
"""


@pytest.mark.parametrize("how", ["put", "upload", "append"])
def test_a_process_killed_in_the_middle_of_an_upload_leaves_no_half_object(how, bucket, proxy, tmp_path):
    url = f"{bucket}/run"
    store.write_text(f"{url}/file", "earlier")
    Progress(f"{url}/progress.jsonl").append({"chunk": 0})
    (tmp_path / "local").write_bytes(b"new" * 3_000_000)
    proxy.stall_in(b"newnewnew" if how != "append" else b"xxxxxxxx", 1000)
    process = python(WRITE, how, url, str(tmp_path / "local"), **proxy.environment)
    try:
        assert proxy.stalled.wait(60), process.communicate()
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert store.read_text(f"{url}/file") == "earlier"
    assert store.list_tree(url) == ["file", "progress.jsonl/000000.json"]
    done = python(WRITE, how, url, str(tmp_path / "local"), **proxy.environment)
    assert done.communicate() and done.returncode == 0
    if how == "append":
        assert [row["chunk"] for row in Progress(f"{url}/progress.jsonl").rows()] == [0, 1]
    else:
        whole = b"new" * (1_000_000 if how == "put" else 3_000_000)
        assert store.file_sha256(f"{url}/file") == hashlib.sha256(whole).hexdigest()
        assert store.read_bytes(f"{url}/file") == whole


@pytest.mark.parametrize(
    ("how", "limit"), [("put", "SILENCE = 1.0"), ("append", "SILENCE = 1.0"), ("upload", "LONGEST = 5.0")]
)
def test_a_connection_that_falls_silent_is_made_again(how, limit, bucket, proxy, tmp_path):
    """The upload has more bytes than the system takes for a connection that nobody reads."""
    (tmp_path / "local").write_bytes(b"new" * 13_000_000)
    proxy.stall_in(b"newnewnew" if how != "append" else b"xxxxxxxx", 1000)
    impatiently = "from looptool_jax.data import object_store\nobject_store." + limit + "\n" + textwrap.dedent(WRITE)
    process = python(impatiently, how, f"{bucket}/run", str(tmp_path / "local"), **proxy.environment)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert proxy.stalled.is_set()
    if how == "append":
        assert [row["chunk"] for row in Progress(f"{bucket}/run/progress.jsonl").rows()] == [1]
    else:
        whole = b"new" * (1_000_000 if how == "put" else 13_000_000)
        assert store.file_sha256(f"{bucket}/run/file") == hashlib.sha256(whole).hexdigest()


def test_an_outage_is_waited_out(bucket, through):
    through.fail(True)
    threading.Timer(2.0, through.fail, [False]).start()
    progress = Progress(f"{bucket}/progress.jsonl")
    progress.append({"chunk": 0})
    assert through.refused > 0
    assert Progress(f"{bucket}/progress.jsonl").rows() == [{"chunk": 0}]


def test_an_outage_without_end_is_one_line_and_loses_nothing(bucket, through, impatient):
    progress = Progress(f"{bucket}/progress.jsonl")
    progress.append({"chunk": 0})
    store.write_text(f"{bucket}/file", "earlier")
    through.fail(True)
    for action in (
        lambda: progress.append({"chunk": 1}),
        lambda: store.write_text(f"{bucket}/file", "new"),
        lambda: store.read_text(f"{bucket}/file"),
        lambda: store.list_names(bucket),
        lambda: store.exists(f"{bucket}/file"),
        lambda: lock_directory(bucket),
    ):
        with pytest.raises(DataError, match=rf"^{bucket}\S*: .*does not answer.*give the same command again.*\Z"):
            action()
    through.fail(False)
    progress.append({"chunk": 1})
    assert Progress(f"{bucket}/progress.jsonl").rows() == progress.rows() == [{"chunk": 0}, {"chunk": 1}]
    assert store.read_text(f"{bucket}/file") == "earlier"


def test_a_put_whose_answer_was_lost_is_the_writers_own(bucket):
    files.create_bytes(f"{bucket}/a", b"one")
    files.create_bytes(f"{bucket}/a", b"one")
    with pytest.raises(DataError, match="another run has written it"):
        files.create_bytes(f"{bucket}/a", b"two")
    google = object_store.GoogleStore()
    first = google.replace(f"{bucket}/b", b"one", 0)
    assert google.replace(f"{bucket}/b", b"one", 0) == first
    assert google.replace(f"{bucket}/b", b"two", 0) is None
    assert google.current(f"{bucket}/b") == (b"one", first)


def test_two_runs_cannot_interleave_their_progress(bucket):
    first, second = (Progress(f"{bucket}/progress.jsonl") for _ in range(2))
    first.append({"chunk": 0, "of": "first"})
    with pytest.raises(DataError, match="another run has written it"):
        second.append({"chunk": 0, "of": "second"})
    assert Progress(f"{bucket}/progress.jsonl").rows() == [{"chunk": 0, "of": "first"}]


def test_the_hash_of_an_object_that_others_wrote_is_of_its_bytes(bucket):
    store.write_text(f"{bucket}/a", "ours")
    assert store.file_sha256(f"{bucket}/a") == hashlib.sha256(b"ours").hexdigest()
    google = object_store.GoogleStore()
    with google.open(f"{bucket}/a", "wb") as file:
        file.write(b"theirs")
    assert store.file_sha256(f"{bucket}/a") == hashlib.sha256(b"theirs").hexdigest()


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Beats and leases of a lock in tenths of seconds."""
    for name, seconds in (("BEAT", 0.1), ("POLL", 0.1), ("LEASE", 3.0)):
        monkeypatch.setattr(lock, name, seconds)


def foreign() -> bytes:
    """What a process on another machine writes into its lock."""
    owner = {"host": "worker-7", "pid": 4711, "since": "noon", "machine": "m", "started": "1"}
    return store.dump_json(owner)


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_at_once(bucket):
    code = """
        import sys, time
        from looptool_jax.data.lock import lock_directory
        with lock_directory(sys.argv[1]):
            print("holding", flush=True)
            time.sleep(600)
    """
    owner = python(code, bucket)
    try:
        assert owner.stdout.readline() == "holding\n"
        with pytest.raises(DataError, match=f"in use by another run .process {owner.pid} on "):
            lock_directory(bucket)
    finally:
        owner.kill()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # it is dead, though its number is still taken
        started = time.monotonic()
        with lock_directory(bucket):
            assert time.monotonic() - started < lock.LEASE / 4
        owner.communicate()
    assert store.list_names(bucket) == []


def test_an_abandoned_lock_of_another_machine_is_taken_after_the_lease(bucket, quick, caplog):
    files.write_bytes(f"{bucket}/.lock", foreign())
    started = time.monotonic()
    with lock_directory(bucket):
        assert time.monotonic() - started >= 3
        assert re.search("locked by process 4711 on worker-7 since noon; waiting up to 3 s", caplog.text)
        assert json.loads(store.read_bytes(f"{bucket}/.lock"))["pid"] == os.getpid()


def test_a_lock_that_lives_on_another_machine_is_respected(bucket, quick, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(lock, "_this_process", lambda: json.loads(foreign()))
        held = lock_directory(bucket)
        time.sleep(0.3)
        with pytest.raises(DataError, match=r"in use by another run .process 4711 on worker-7 since noon.; wait"):
            lock_directory(bucket)
        held.release()
    with lock_directory(bucket):
        pass


def test_a_lock_released_while_another_watches_it_is_taken(bucket, quick, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 60.0)
    files.write_bytes(f"{bucket}/.lock", foreign())
    threading.Timer(0.3, store.remove, [f"{bucket}/.lock"]).start()
    started = time.monotonic()
    with lock_directory(bucket):
        assert time.monotonic() - started < 30


def test_a_run_that_lost_its_lock_ends(bucket, quick):
    with pytest.raises(DataError, match="another run took this one's place"), lock_directory(bucket):
        files.write_bytes(f"{bucket}/.lock", foreign())
        time.sleep(5)
        raise AssertionError("it went on")
    assert store.read_bytes(f"{bucket}/.lock") == foreign()


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "nohup"])
def test_a_run_that_cannot_reach_its_lock_ends_before_another_may_take_it(interrupts, bucket, through, quick, request):
    before = signal.signal(signal.SIGINT, interrupts)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(DataError, match="has not answered for 2 s, and another run may"), lock_directory(bucket):
        started = time.monotonic()
        through.fail(True)
        time.sleep(10)
        raise AssertionError("it went on")
    assert time.monotonic() - started < lock.LEASE
    through.fail(False)


def test_a_beat_without_an_answer_is_given_up_and_the_next_one_keeps_the_lock(bucket, through, quick):
    with lock_directory(bucket):
        through.stall_in(b'"pid"', 1)
        assert through.stalled.wait(10)
        before = store.read_bytes(f"{bucket}/.lock")
        time.sleep(2.5)
        assert store.read_bytes(f"{bucket}/.lock") != before


def test_a_beat_whose_answer_never_came_loses_no_lock(bucket, quick):
    with lock_directory(bucket) as held:
        held._put(held._generation)
        time.sleep(0.5)  # leaving the block would raise


def test_of_two_runs_that_find_an_abandoned_lock_one_takes_it(bucket, quick):
    files.write_bytes(f"{bucket}/.lock", foreign())
    results = []

    def take():
        try:
            results.append(lock_directory(bucket))
        except DataError as error:
            results.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [result for result in results if isinstance(result, lock.DirectoryLock)]
    assert len(held) == 1 and all("in use by another run" in str(result) for result in results if result not in held)
    held[0].release()


# --- what a person is told --------------------------------------------------------------------------------------------


def test_a_missing_bucket(store_server):
    with pytest.raises(
        DataError, match=r"gs://no-such-bucket/a: cannot be written; there is no bucket gs://no-such-bu"
    ):
        store.write_text("gs://no-such-bucket/a", "")
    with pytest.raises(DataError, match=r"gs://no-such-bucket/a: no such file"):
        store.read_text("gs://no-such-bucket/a")
    with pytest.raises(DataError, match=r"there is no bucket gs://no-such-bucket: create it"):
        lock_directory("gs://no-such-bucket/run")


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (
            403,
            "me@x does not have storage.objects.create access",
            "lacks the permission .*me@x.* Storage Object User on",
        ),
        (401, "Anonymous caller does not have access", "no Google Cloud credentials are accepted"),
    ],
)
def test_refusals(status, message, words, monkeypatch, impatient):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"error": {"code": status, "message": message}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{server.server_port}")
        with pytest.raises(DataError, match=rf"^gs://mine/run/a: cannot be written; .*{words}"):
            store.write_text("gs://mine/run/a", "text")
        server.shutdown()


def test_no_credentials_is_one_line(tmp_path):
    """With no emulator: the real store, of which this machine knows no credentials."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "STORAGE_EMULATOR"))
    } | {"NO_GCE_CHECK": "true", "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path)}  # fmt: skip
    command = "from looptool_jax.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "run", "--config", "micro", "run_dir=gs://bucket/run"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "gs://bucket/run" in done.stderr and "gcloud auth application-default login" in done.stderr
