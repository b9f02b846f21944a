"""The dialogues of a policy with BFCL's multi-turn rows: all rows advance together, an answer each at a time.

As in the released harness, a step is an answer; its calls are made to the row's services and their replies shown as
tool messages, and an answer without a call that can be read ends the turn. A turn takes STEPS steps at most. Functions
that a turn adds join the tools, with the sentence that the harness has for models that are given tools apart from the
messages; its handlers of local models write the documents into the message instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from looptool_jax.evaluation.bfcl.multi_turn import MultiTurnRow, call_text, released_step
from looptool_jax.evaluation.kept_answers import Given
from looptool_jax.toolcall import Message, Sample, Target

STEPS = 21  # the harness gives up after the calls of a 21st step
ADDED = "I have updated some more functions you can choose from. What about now?"
_THINK_CLOSE = "</think>"

Finish = Literal["stop", "length", "prompt_too_long", "steps"]


@dataclass(frozen=True)
class Trajectory:
    """turns: the answers of each turn, think blocks taken off. finish: "stop"; "length" where an answer was cut; where
    the dialogue ended too soon, "prompt_too_long" or "steps"."""

    turns: tuple[tuple[str, ...], ...]
    finish: Finish


def converse(
    rows: Sequence[MultiTurnRow],
    ask: Callable[[Sequence[Sample]], list[Given]],
    on_turns: Callable[[int], None] = lambda count: None,
) -> list[Trajectory]:
    """A dialogue for each row. ask: answers the samples it is given, one for each row that waits. on_turns: told how
    many more turns are over."""
    dialogues = [_Dialogue(row) for row in rows]
    while waiting := [dialogue for dialogue in dialogues if not dialogue.over]:
        before = sum(dialogue.turns_over for dialogue in waiting)
        for dialogue, answer in zip(waiting, ask([each.sample() for each in waiting]), strict=True):
            dialogue.take(answer)
        on_turns(sum(dialogue.turns_over for dialogue in waiting) - before)
    return [dialogue.trajectory() for dialogue in dialogues]


class _Dialogue:
    def __init__(self, row: MultiTurnRow) -> None:
        self.row = row
        self.session = row.session()
        self.tools = row.tools
        self.messages: list[Message] = []
        self.turns: list[list[str]] = []
        self.finish: Finish = "stop"
        self.over = False
        self._begin_turn()

    @property
    def turns_over(self) -> int:
        return len(self.row.turns) if self.over else len(self.turns) - 1

    def sample(self) -> Sample:
        """What the policy is to answer next."""
        place = f"{self.row.id}:{len(self.turns) - 1}.{len(self.turns[-1])}"
        return Sample(place, self.tools, tuple(self.messages), Target(intent="answer"), category=self.row.category)

    def take(self, answer: Given) -> None:
        """Go on by one answer."""
        if answer.finish == "prompt_too_long":
            self._end("prompt_too_long")
            return
        if answer.finish != "stop":
            self.finish = "length"
        reasoning, text = _without_thinking(answer.text)
        self.turns[-1].append(text)
        calls = released_step(text)
        if not calls:
            self.messages.append(Message("assistant", text, reasoning=reasoning))
            if len(self.turns) == len(self.row.turns):
                self.over = True
            else:
                self._begin_turn()
            return
        shown = all(_is_json(call.to_json()) for call in calls)
        self.messages.append(
            Message("assistant", "" if shown else text, tuple(calls) if shown else (), reasoning=reasoning)
        )
        for call in calls:
            reply = self.session.run(call_text(call)).encode("utf-8", "replace").decode("utf-8")
            self.messages.append(Message("tool", reply, name=call.name if shown else ""))
        if len(self.turns[-1]) == STEPS:
            self._end("steps")

    def trajectory(self) -> Trajectory:
        return Trajectory(tuple(map(tuple, self.turns)), self.finish)

    def _begin_turn(self) -> None:
        number = len(self.turns)
        added = self.row.added.get(number, ())
        self.tools = (*self.tools, *added)
        self.messages += [Message("user", ADDED)] if added else self.row.turns[number]
        self.turns.append([])

    def _end(self, finish: Finish) -> None:
        self.finish, self.over = finish, True


def _without_thinking(text: str) -> tuple[str, str]:
    """The content of the think block, and what stands behind the last one, as the released harness takes them apart."""
    thinking, close, rest = text.rpartition(_THINK_CLOSE)
    if not close:
        return "", text
    return thinking.split(_THINK_CLOSE)[0].split("<think>")[-1].strip("\n"), rest.lstrip("\n")


def _is_json(value: object) -> bool:
    """Whether JSON and a tokenizer can write a value: NaN and half a surrogate pair they cannot."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return True
