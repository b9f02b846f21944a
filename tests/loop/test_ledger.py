"""What a run keeps beside its manifest: the costs of its stages, and what it ran with."""

import json
from importlib.metadata import version
from importlib.util import find_spec

import jax

from looptool_jax.loop.environment import environments, record_environment
from looptool_jax.loop.ledger import Cost, Ledger


def test_costs_of_a_stage_add_up_and_old_rows_have_no_prompts(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps({"stage": "eval-0", "seconds": 1.5, "tokens": 10}) + "\n")
    ledger = Ledger(str(path))
    ledger.record("eval-0", 0.5, 5, 7)
    ledger.record("round-1/train", 2.0, 9, 3)
    assert Ledger(str(path)).costs() == {"eval-0": Cost(2.0, 15, 7), "round-1/train": Cost(2.0, 9, 3)}


def test_the_environment_is_recorded_where_it_changes(tmp_path):
    path = str(tmp_path / "environment.jsonl")
    assert environments(path) == []
    for parameters in (100, 100, 200):
        record_environment(path, {"policy": parameters, "judge": None}, adapters=False)
    first, second = environments(path)
    assert first["models"] == {"policy": 100, "judge": None} and second["models"]["policy"] == 200
    assert first["packages"]["jax"] == jax.__version__
    for package in ("llguidance", "tokenizers"):  # what is generated depends on them
        if find_spec(package):
            assert first["packages"][package] == version(package)
    assert first["devices"] == {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "hosts": 1}
