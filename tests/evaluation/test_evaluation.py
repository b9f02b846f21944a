"""Label repair against the hidden truth, and held-out results compared item by item."""

from __future__ import annotations

from dataclasses import replace

import pytest

from looptool_jax.data.store import read_jsonl, write_jsonl
from looptool_jax.evaluation.heldout import EvalConfig, evaluate
from looptool_jax.evaluation.repair import expansion_validity, label_repair, remaining_noise, true_labels
from looptool_jax.inference.answers import Answer
from looptool_jax.loop.console import Console
from looptool_jax.toolcall import Call, Message, Sample, Target, Tool
from looptool_jax.world import Truth, generate

TOOL = Tool("f", "", {"type": "object", "properties": {"x": {"type": "integer"}}})
RIGHT, WRONG, OTHER = (Target((Call("f", {"x": x}),)) for x in (1, 2, 3))


def sample(id_: str, target: Target = RIGHT) -> Sample:
    return Sample(id_, (TOOL,), (Message("user", "x is 1"),), target)


@pytest.fixture
def labels(tmp_path):
    """Ten seeds, all right in truth; w0 to w3 came with a wrong label."""
    pool = [sample(f"w{i}", WRONG) for i in range(4)] + [sample(f"r{i}") for i in range(6)]
    write_jsonl(tmp_path / "truth.jsonl", [Truth(f"w{i}", "wrong_value", RIGHT).to_json() for i in range(4)])
    return pool, true_labels(pool, str(tmp_path / "truth.jsonl"))


def test_label_repair(labels):
    pool, truth = labels
    verdicts = {
        "w0": "label_wrong",  # repaired
        "w1": "label_wrong",  # replaced by another wrong one
        "w2": "undecided",  # set aside
        "w3": "prediction_wrong",  # missed
        "r0": "label_wrong",  # harmed
        "r1": "label_wrong",  # replaced by an equal label
        "r2": "both_wrong",
        "new": "label_wrong",  # no seed: its truth is not known
    }
    repaired = [
        sample("w0"),
        sample("w1", OTHER),
        sample("w3", WRONG),
        sample("r0", WRONG),
        sample("r1"),
        sample("new"),
    ]
    probed = [*pool, sample("new", WRONG)]
    rows = [{"id": id_, "verdict": verdict} for id_, verdict in verdicts.items()]
    assert label_repair(probed, repaired, rows, truth) == {
        "seeds": 10,
        "wrong_labels": 4,
        "replaced": 4,
        "precision": 0.5,
        "recall": 0.5,
        "repaired": 0.25,
        "removed": 0.25,
        "harm": round(1 / 6, 6),
    }


def test_shares_of_nothing_are_none(labels):
    _, truth = labels
    nothing = label_repair([sample("r0")], [], [], truth)
    assert (nothing["precision"], nothing["recall"], nothing["repaired"], nothing["harm"]) == (None, None, None, 0.0)
    assert expansion_validity([]) == {"samples": 0, "valid": None}


def test_remaining_noise_counts_the_known_ones(labels):
    pool, truth = labels
    assert remaining_noise([*pool, sample("new", WRONG)], truth) == {"known": 10, "wrong": 4, "share": 0.4}


def test_expansions_are_checked_in_the_world():
    good = generate("train", 2, 0, ["single"])
    bad = replace(good[0], target=Target(text="No.", intent="refuse"))
    assert expansion_validity([*good, bad, sample("foreign")]) == {"samples": 4, "valid": 0.5}


class Counting:
    """Answers every sample with x=1 until it has answered `strength` of them."""

    def __init__(self, strength: int) -> None:
        self.strength, self.asked = strength, []

    def greedy(self, samples, cfg, on_tokens, drafts=None):
        self.asked += [sample.id for sample in samples]
        if len(self.asked) > self.strength:
            raise RuntimeError("the machine is gone")
        text = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
        return [Answer(text, [1], [0.0], "length" if sample.id == "s4" else "stop") for sample in samples]


def test_an_evaluation_that_was_killed_goes_on_behind_its_last_chunk(tmp_path):
    samples = [sample(f"s{i}", WRONG if i == 1 else RIGHT) for i in range(5)]
    cfg = EvalConfig(chunk=2, drafts=False)
    whole, weak, rest, console = Counting(9), Counting(3), Counting(9), Console(quiet=True)
    metrics = evaluate(whole, samples, cfg, str(tmp_path / "whole"), console)
    assert (metrics["accuracy"], metrics["truncated"]) == (0.6, 1)
    with pytest.raises(RuntimeError):
        evaluate(weak, samples, cfg, str(tmp_path / "killed"), console)
    assert evaluate(rest, samples, cfg, str(tmp_path / "killed"), console) == metrics
    assert rest.asked == ["s2", "s3", "s4"]
    assert list(read_jsonl(tmp_path / "killed/results.jsonl")) == list(read_jsonl(tmp_path / "whole/results.jsonl"))
