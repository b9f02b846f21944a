"""The policy's answers in the order in which they were asked for, each kept before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.store import DataError, Progress, join
from looptool_jax.inference.answers import AnswerConfig, Answerer
from looptool_jax.parallel.processes import meet, stop_if_preempted
from looptool_jax.toolcall import Sample

CHUNK = 4  # answers that are committed at once, in engines full of prompts


@dataclass(frozen=True)
class Given:
    """An answer. finish: as in `Answer`; with "prompt_too_long" the text is empty."""

    text: str
    finish: str


class KeptAnswers:
    """Greedy answers, committed chunk by chunk to `out/progress.jsonl`. Asked the same again after a kill, it gives
    back what is there and goes on behind it."""

    def __init__(self, policy: Answerer, cfg: AnswerConfig, out: str, on_tokens: Callable[[int], None]) -> None:
        self.policy, self.cfg, self.on_tokens = policy, cfg, on_tokens
        self._progress = Progress(join(out, "progress.jsonl"))
        self._kept = self._progress.rows()
        self._given = 0
        meet(f"what is answered in {self._progress.path}", self._kept)

    def ask(self, samples: Sequence[Sample], on_answers: Callable[[int], None] = lambda count: None) -> list[Given]:
        """The answer to each sample. on_answers: told how many more there are.

        Raises DataError where the kept answers are to other samples, Preempted when the machine is wanted back.
        """
        size = CHUNK * self.cfg.slots
        answers: list[Given] = []
        for start in range(0, len(samples), size):
            answers += self._chunk(samples[start : start + size])
            on_answers(len(samples[start : start + size]))
        return answers

    def _chunk(self, samples: Sequence[Sample]) -> list[Given]:
        ids = [sample.id for sample in samples]
        if self._given == len(self._kept):
            meet(f"what chunk {self._given} of {self._progress.path} asks", [sample.to_json() for sample in samples])
            row: dict[str, Any] = {"ids": ids, "answers": [vars(answer) for answer in self._answers(samples)]}
            meet(f"chunk {self._given} of {self._progress.path}", row)
            self._progress.append(row)
            self._kept.append(row)
            stop_if_preempted()
        row = self._kept[self._given]
        if row.get("ids") != ids:
            raise DataError(f"{self._progress.path}: answers to other rows; choose another --out, or remove the file")
        self._given += 1
        return [Given(**answer) for answer in row["answers"]]

    def _answers(self, samples: Sequence[Sample]) -> list[Given]:
        fits = [self.policy.prompt_length(sample) <= self.cfg.prompt_tokens for sample in samples]
        runnable = [sample for sample, fit in zip(samples, fits, strict=True) if fit]
        answers = iter(self.policy.greedy(runnable, self.cfg, self.on_tokens))
        given = ((next(answers) if fit else None) for fit in fits)
        return [Given(answer.text, answer.finish) if answer else Given("", "prompt_too_long") for answer in given]
