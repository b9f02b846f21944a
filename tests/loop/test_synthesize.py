"""D_seed and held-out from a user's file: nothing held out is trained on, nothing is counted twice."""

from __future__ import annotations

import pytest

from looptool_jax.data.store import DataError, write_samples
from looptool_jax.loop.synthesize import DataConfig, _load, split_heldout
from looptool_jax.toolcall import Call, Message, Sample, Target, Tool


def step(dialogue: int, turn: int) -> Sample:
    messages = [Message("user", f"Question {dialogue}")]
    for i in range(turn):
        messages += [Message("assistant", f"Answer {i}"), Message("user", f"And {i}?")]
    return Sample(f"d{dialogue}-{turn}", (Tool("ping"),), tuple(messages), Target((Call("ping"),)))


def test_steps_of_a_dialogue_stay_on_one_side():
    samples = [step(dialogue, turn) for dialogue in range(40) for turn in range(1 + dialogue % 4)]
    heldout, seeds = split_heldout(samples, 20, seed=0)
    assert len(heldout) == 20
    assert not {s.messages[0].content for s in heldout} & {s.messages[0].content for s in seeds}
    assert len(samples) - len(heldout) - len(seeds) < 4  # of the last dialogue
    assert split_heldout(samples, 20, seed=0) == (heldout, seeds)
    assert split_heldout(samples, 20, seed=1)[0] != heldout


def test_repeated_requests_stay_on_one_side():
    samples = [step(dialogue % 10, 0) for dialogue in range(40)]
    heldout, seeds = split_heldout(samples, 8, seed=0)
    assert not {s.messages[0].content for s in heldout} & {s.messages[0].content for s in seeds}


def test_ids_are_unique(tmp_path):
    file = str(tmp_path / "mine.jsonl")
    write_samples(file, [step(1, 0), step(1, 1), step(1, 0)])
    with pytest.raises(DataError, match="two samples have the id d1-0"):
        _load(DataConfig(source=file), str(tmp_path))
