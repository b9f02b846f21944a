"""How processes find each other, stay in step and end together; without models."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster

from looptool_jax.inference.batch import Request, generate
from looptool_jax.loop.console import Console
from looptool_jax.parallel import processes as here
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.parallel.processes import ProcessError, index_of, joined, on_tpu_pod

from .conftest import ended, free_port

MEMBER = str(Path(__file__).parent / "member.py")


def members(processes, mode: str, count: int, *rest: str, **where):
    started = processes.together(count, lambda i, address: [MEMBER, mode, str(i), str(count), address, *rest], **where)
    return [ended(process) for process in started]


def test_they_stay_in_step(processes):
    results = members(processes, "fine", 3)
    assert [result.code for result in results] == [0, 0, 0], results
    assert [result.out for result in results] == [["done"], [], []]
    assert not any(result.err for result in results)


def test_a_difference_is_told_and_ends_all(processes):
    results = members(processes, "differ", 3)
    assert [result.code for result in results] == [2, 2, 2], results
    for result in results:
        assert len(result.err) == 1 and "processes 0 and 2 differ in the colour" in result.err[0], result


def test_when_one_fails_all_end_with_its_reason(processes):
    begun = time.monotonic()
    first, second = members(processes, "fail", 2)
    assert (first.code, first.err) == (2, ["looptool: the disk is full"])
    assert (second.code, second.err) == (2, ["looptool: process 0 failed: the disk is full"])
    assert time.monotonic() - begun < 60


def test_drafted_trees_are_read_when_they_are_written(processes, tmp_path):
    first, second = members(processes, "drafted", 2, str(tmp_path))
    assert (first.code, second.code) == (0, 0), (first, second)
    assert first.out == ["1"] and not first.err + second.err


def test_a_folder_that_is_not_shared(processes, tmp_path):
    (tmp_path / "there").mkdir()
    first, second = members(processes, "shared", 2, "run", cwd=lambda i: [tmp_path, tmp_path / "there"][i])
    assert first.code == second.code == 2
    assert len(first.err) == len(second.err) == 1
    assert "run: process 1 on " in second.err[0] and "does not see what process 0 writes there" in second.err[0]
    assert not (tmp_path / "there/run").exists() and (tmp_path / "run/mine").read_text() == "0"
    assert members(processes, "shared", 2, str(tmp_path / "run"))[1].code == 0


def test_preemption_of_one_stops_all_at_the_same_step(processes):
    results = members(processes, "preempted", 2)
    assert [result.code for result in results] == [0, 0], results
    assert results[0].out == results[1].out and len(results[0].out) == 1
    assert [result.err.count(here.PREEMPTED) for result in results] == [1, 0], results


def test_one_of_them_asks_a_server_and_all_get_the_replies(processes, chat_server, tmp_path):
    server = chat_server(lambda body: f"reply to {body['messages'][0]['content']}")
    folder = tmp_path / "replies"
    results = members(processes, "served", 2, server.url, str(folder))
    assert [result.code for result in results] == [0, 0], results
    assert results[0].out == results[1].out == [str([f"reply to question {i}" for i in range(20)])]
    assert len(server.bodies) == 20
    server.faults = ["failing"] * 20
    next(folder.glob("*.json")).unlink()
    first, second = members(processes, "served", 2, server.url, str(folder))
    assert first.code == second.code == 2 and "no reply in 1 tries" in first.err[0]
    assert second.err == [f"looptool: process 0 failed: {first.err[0].removeprefix('looptool: ')}"]


def test_no_answer_from_the_coordinator(processes):
    for index in ("0", "1"):  # the coordinator itself, which waits for the other one; and one that finds none
        (process,) = processes.together(1, lambda _, address, index=index: [MEMBER, "alone", index, "2", address])
        result = ended(process)
        assert result.code == 2 and len(result.err) == 1, result
        assert "not all processes have reached the coordinator 127.0.0.1:" in result.err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "--processes and --process missing"),
        ((None, 2, 0), "--coordinator missing"),
        (("host:1", 2, 2), "--process 2: with --processes 2 it goes from 0 to 1"),
        (("host:1", 2, -1), "--process -1"),
        (("host:1", 0, 0), "--processes 0: there must be at least 1"),
        (("host", 2, 0), "--coordinator host: expected HOST:PORT"),
    ],
)
def test_arguments_that_do_not_do(arguments, message):
    with pytest.raises(ProcessError, match=message), joined(*arguments):
        pass


def test_arguments_from_the_environment(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ProcessError, match="--process missing"), joined():
        pass
    monkeypatch.setenv("JAX_PROCESS_ID", "5")
    with pytest.raises(ProcessError, match="--process 5"), joined():
        pass
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(ProcessError, match="JAX_PROCESS_ID is 'x'"), joined():
        pass


def test_a_process_alone_connects_to_nobody():
    with joined("nowhere:1", 1, 0), joined(None, 1, None):
        assert jax.process_count() == 1


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server; the attributes it knows."""
    attributes: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in os.environ if name.startswith(("TPU_", "MEGASCALE_", "JAX_PLATFORMS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    yield attributes
    server.shutdown()
    server.server_close()


def test_a_tpu_pod_is_recognised(metadata, monkeypatch, tmp_path):
    (tmp_path / "accel0").touch()
    chips = str(tmp_path)
    assert not on_tpu_pod(chips)  # the server knows nothing
    metadata["worker-network-endpoints"] = "unknown:unknown:10.0.0.2"
    assert not on_tpu_pod(chips)  # a TPU VM of its own
    metadata["tpu-env"] = "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\n"
    assert on_tpu_pod(chips)  # two slices of one host
    metadata["tpu-env"] = "ACCELERATOR_TYPE: 'v5litepod-16'\n"
    metadata["worker-network-endpoints"] = "a:b:10.0.0.2,a:b:10.0.0.3"
    assert on_tpu_pod(chips)
    assert not on_tpu_pod(str(tmp_path / "none"))  # another Google Cloud machine
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert not on_tpu_pod(chips)  # a notebook's machine
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not on_tpu_pod(chips)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    assert on_tpu_pod(str(tmp_path / "none"))  # GKE
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not on_tpu_pod(chips)


def test_which_process_this_is_without_joining(monkeypatch):
    assert index_of(None, None, None) is None and index_of("10.0.0.2:8476", 1, 0) is None
    assert index_of("10.0.0.2:8476", 3, 2) == 2
    with pytest.raises(ProcessError, match="--coordinator missing"):
        index_of(None, 2, 1)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    for name, value in (("TPU_WORKER_HOSTNAMES", "host-0,host-1"), ("TPU_WORKER_ID", "1")):
        monkeypatch.setenv(name, value)
    for name, value in (("MEGASCALE_NUM_SLICES", "2"), ("MEGASCALE_SLICE_ID", "1"), ("TPU_SKIP_MDS_QUERY", "1")):
        monkeypatch.setenv(name, value)
    assert index_of(None, None, None) == 3  # GKE: the second host of the second slice of two
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", False)
    with pytest.raises(ProcessError, match="which host of the pod this is"):
        index_of(None, None, None)


def test_a_metadata_server_that_is_not_there(monkeypatch, tmp_path, metadata):
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/0").touch()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{free_port()}")
    begun = time.monotonic()
    assert not on_tpu_pod(str(tmp_path))
    assert time.monotonic() - begun < 12


def test_a_dropped_interrupt_ends_the_work_at_the_next_sync():
    """Ctrl-C in a callback of the garbage collector: Python drops what it raises there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), here.joined():
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            here.stop_if_preempted()
            raise AssertionError("it went on")
        here.stop_if_preempted()  # the next work is not interrupted
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_preemption_between_two_syncs_ends_the_answers(capsys):
    """A stub of an engine whose answers never end."""
    syncs = 0

    def decode(params, state):
        nonlocal syncs
        syncs += 1
        if syncs == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        assert syncs < 10, "it went on"
        row = SimpleNamespace(valid=np.ones((1, 1), bool), tokens=np.ones((1, 1), np.int32))
        result = SimpleNamespace(get_result_at_slot=lambda slot: row)
        return state, SimpleNamespace(convert_to_numpy=lambda: result)

    engine = SimpleNamespace(
        slots=1, group=1, prompt_len=8, answer_len=1000, prefill_batch=1, pad_id=0, eos_ids=(0,),
        cfg=SimpleNamespace(vocab_size=9), bucket=lambda length: 8, load_params=lambda params: params,
        compile_ahead=lambda params: None, init_decode_state=lambda: None,
        prefill_many=lambda *_: None, insert_many=lambda *_, **__: None,
        generate=decode, log_probs=lambda result: np.zeros((1, 1)), leads=lambda result: np.zeros((1, 1)),
    )  # fmt: skip
    request = Request("a", [1, 2], (0, 0), 0.0, 1000)
    try:
        with pytest.raises(SystemExit) as stopped, joined():
            generate(engine, None, [request])
    finally:
        here._told_to_stop.clear()
    assert stopped.value.code == 0 and syncs == 3
    assert capsys.readouterr().err.splitlines() == [here.PREEMPTED]


def test_preemption_of_one_process_commits_the_chunk(tmp_path, capsys):
    done: list[int] = []

    def work(chunk):
        done.extend(chunk)
        if 3 in chunk:
            os.kill(os.getpid(), signal.SIGTERM)
        return [{"n": n} for n in chunk]

    def run():
        return process_in_chunks(range(8), 2, str(tmp_path / "progress.jsonl"), work, Console(quiet=True))

    try:
        with pytest.raises(SystemExit) as stopped, joined():
            run()
    finally:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        here._told_to_stop.clear()
    assert stopped.value.code == 0 and done == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [here.PREEMPTED]
    assert [row["n"] for row in run()] == list(range(8)) == done
