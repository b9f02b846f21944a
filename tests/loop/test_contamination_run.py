"""What a benchmark has is neither trained on as a seed nor as an expanded sample, also when the benchmark is gone."""

from __future__ import annotations

import shutil

import pytest

from looptool_jax.config import load_config
from looptool_jax.data.store import DataError, file_sha256, read_jsonl, read_samples, write_jsonl, write_samples
from looptool_jax.loop.console import Console
from looptool_jax.loop.runner import BENCHMARKS, Runner
from looptool_jax.toolcall import Call, Message, Sample, Target, Tool

TOOL = Tool("go", "", {"type": "object", "properties": {"to": {"type": "string"}}})


def sample(name: str) -> Sample:
    request = f"{name} wants to go there: " + " ".join(f"{name}{place}" for place in range(12))
    return Sample(name, (TOOL,), (Message("user", request),), Target((Call("go", {"to": name}),)))


class Lengths:
    """A policy for which every prompt is short."""

    def prompt_length(self, sample: Sample) -> int:
        return 1


def seeded(folder, *settings: str) -> tuple[Runner, dict]:
    """A run whose seed stage is done, on seeds of which s3 is in a benchmark; x1 is there too."""
    write_samples(folder / "mine.jsonl", [sample(f"s{i}") for i in range(10)])
    rows = [
        {"id": f"row-{name}", "function": [],
         "question": [[{"role": "user", "content": sample(name).messages[0].content}]]}
        for name in ("s3", "x1")
    ]  # fmt: skip
    write_jsonl(folder / "bench" / "BFCL_v4_multiple.json", rows)
    cfg = load_config("micro", [
        f"run_dir={folder}/run", f"data.source={folder}/mine.jsonl", "data.format=samples", "data.pool=10",
        "data.round_size=8", "data.heldout=0", "data.noise=0", f"contamination.bfcl={folder}/bench",
        "contamination.acebench=off", *settings,
    ])  # fmt: skip
    run = Runner(cfg, Console(quiet=True))
    run.policy_tokens = Lengths  # type: ignore[method-assign, assignment]
    return run, run._seed()


def ids(path) -> set[str]:
    return {item.id for item in read_samples(path)}


def test_seeds_are_dropped_counted_and_listed(tmp_path):
    run, metrics = seeded(tmp_path)
    assert metrics["contaminated"] == 1 and metrics["pool"] == 9
    counts = metrics["contamination"]["benchmarks"]["bfcl"]
    assert (counts["rows"], counts["exact"]) == (2, 1) and len(counts["sha256"]) == 64
    assert ids(run.path("seed/pool.jsonl")) == {f"s{i}" for i in range(10)} - {"s3"}
    [pair] = read_jsonl(run.path("seed/contaminated.jsonl"))
    assert (pair["sample"], pair["row"], pair["kind"]) == ("s3", "row-s3", "exact")
    _, reported = seeded(tmp_path / "second", "contamination.action=report")
    assert reported["contaminated"] == 1 and reported["pool"] == 10


def test_expanded_samples_are_dropped_after_the_benchmark_is_gone(tmp_path):
    run, _ = seeded(tmp_path)
    prints = file_sha256(run.path(BENCHMARKS))
    shutil.rmtree(tmp_path / "bench")
    here = run.path("round-1")
    write_jsonl(f"{here}/judge/judgements.jsonl", [])
    write_jsonl(f"{here}/judge/errors.jsonl", [])
    write_jsonl(f"{here}/probe/probes.jsonl", [])
    write_samples(f"{here}/expand/expanded.jsonl", [sample(f"x{i}") for i in range(7)])
    [stage] = [stage for stage in run.stages() if stage.name == "round-1/compose"]
    metrics = stage.work()
    assert metrics["contaminated"] == 1 and metrics["contamination"]["checked"] == 7
    assert ids(run.path("round-2/data.jsonl")) & {"x0", "x1", "x2"} == {"x0", "x2"}
    assert [pair["sample"] for pair in read_jsonl(f"{here}/compose/contaminated.jsonl")] == ["x1"]
    assert BENCHMARKS in stage.inputs and file_sha256(run.path(BENCHMARKS)) == prints
    assert run.compose_to(1, str(tmp_path / "out")) == metrics
    assert file_sha256(tmp_path / "out" / "data.jsonl") == file_sha256(run.path("round-2/data.jsonl"))


def test_too_few_seeds_are_left(tmp_path):
    with pytest.raises(DataError, match=r"9 usable seeds, 10 are needed .* 1 are in a benchmark"):
        seeded(tmp_path, "data.round_size=10")


def test_a_run_says_what_it_is_not_checked_against(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("looptool_jax.data.benchmarks._BFCL_PACKAGE", "bfcl_eval_that_is_not_there")
    run, _ = seeded(tmp_path)
    run.cfg.contamination.bfcl = "auto"
    run.console = Console()
    run._fingerprint()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("bfcl: data is not held against it (no copy is here; pip install")
    assert list(read_jsonl(run.path(BENCHMARKS))) == []


def test_off_is_a_setting(tmp_path):
    cfg = load_config("micro", ["contamination.bfcl=off", "contamination.acebench=mine"])
    assert (cfg.contamination.bfcl, cfg.contamination.acebench) == ("off", "mine")
    (tmp_path / "own.yaml").write_text("contamination: {bfcl: off, action: report}")
    cfg = load_config(str(tmp_path / "own.yaml"))
    assert (cfg.contamination.bfcl, cfg.contamination.action) == ("off", "report")
