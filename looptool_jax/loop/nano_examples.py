"""What the embedded model learns from: answering, judging, verifying and expanding, made from the world's samples.

The world knows the truth, so every comparison can be labelled: a response is right if the matcher says so. Before a
verdict, the judge writes what it expects (`Expected:` and a line per call, up to the first word at which a wrong
response goes another way), then what is wrong, in the matcher's words. Writing and comparing are one thing then: a
small model finds one word out of place where it cannot compare two whole calls.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from looptool_jax.loop.nano_mistakes import equivalent_response, wrong_response
from looptool_jax.loop.nano_renaming import Renaming, draw_renaming
from looptool_jax.loop.nano_tokenizer import SCAFFOLDS
from looptool_jax.loop.prompts import (
    SCENARIOS,
    VerdictKind,
    conversation_text,
    expand_messages,
    judge_messages,
    response_text,
    verify_messages,
)
from looptool_jax.toolcall import ChatTokenizer, Message, ParseFailure, Sample, Target, Tool, get_format, match, parse
from looptool_jax.world import variation

Task = Literal["answer", "judge", "verify", "expand"]
TASKS: tuple[Task, ...] = ("answer", "judge", "verify", "expand")


@dataclass(frozen=True)
class Example:
    """One prompt with the reply to learn. `reply` is a target (answer) or the text of a judge or generator."""

    task: Task
    messages: Sequence[Message]
    tools: Sequence[Tool]
    reply: Target | str

    def encode(self, tokenizer: ChatTokenizer, thinking: bool = False) -> tuple[list[int], int, int]:
        """Token ids with the end-of-turn token, how many of them are prompt, and where a verdict begins (their number
        where there is none)."""
        prompt = tokenizer.encode_prompt(self.messages, self.tools, thinking)
        if isinstance(self.reply, Target):
            reply = tokenizer.encode_target(self.reply)
        else:
            reply = tokenizer.encode_text(self.reply)
        ids = [*prompt, *reply, tokenizer.eos_ids[0]]
        if self.task not in ("judge", "verify"):
            return ids, len(prompt), len(ids)
        assert isinstance(self.reply, str)
        start = self.reply.find("\nResponse")
        verdict = self.reply[start if start >= 0 else self.reply.rindex("\n") :]
        return ids, len(prompt), len(ids) - 1 - len(tokenizer.encode_text(verdict))


def answer_example(sample: Sample) -> Example:
    return Example("answer", sample.messages, sample.tools, sample.target)


def verify_example(sample: Sample, wrong: str | None) -> Example:
    """The check of the sample's own target, or of a wrong response put in its place."""
    if wrong is None:
        shown = verify_messages("compact", sample)
        return Example("verify", shown, (), f"{expected(sample)}\nResponse: right.\n[CORRECT]")
    parsed = parse(wrong)
    if isinstance(parsed, ParseFailure) or not parsed.calls:
        target = Target(text=wrong, intent="answer")
    else:
        target = Target(parsed.calls, parsed.text)
    shown = verify_messages("compact", replace(sample, target=target))
    reply = f"{expected(sample, wrong)}\nResponse: {mistake(wrong, sample)}.\n[INCORRECT]"
    return Example("verify", shown, (), reply)


def judge_example(sample: Sample, response_1: str, response_2: str) -> Example:
    """The comparison of two responses, as an assistant writes them; the verdict follows from the matcher."""
    responses = (response_1, response_2)
    mistakes = [mistake(response, sample) for response in responses]
    line = expected(sample, *(response for response, reason in zip(responses, mistakes, strict=True) if reason))
    if all(mistakes) and sample.target.is_call:  # what comes first decides
        places = [len(expected(sample, response)) for response in responses]
        mistakes = [reason if place == min(places) else "" for reason, place in zip(mistakes, places, strict=True)]
    kind = {
        (False, False): VerdictKind.BOTH_CORRECT,
        (True, False): VerdictKind.RESPONSE1_INCORRECT,
        (False, True): VerdictKind.RESPONSE2_INCORRECT,
        (True, True): VerdictKind.BOTH_INCORRECT,
    }[bool(mistakes[0]), bool(mistakes[1])]
    lines = [f"Response {i}: {reason}." for i, reason in enumerate(mistakes, 1) if reason]
    reply = "\n".join([line, *lines, kind])
    return Example("judge", judge_messages("compact", sample, response_1, response_2), (), reply)


def expand_example(seed: Sample, wrong: str, new: Sample, scenario: str, shown_as: int) -> Example:
    """A new sample around an error on the seed; the analysis is a judge's that saw the error as response `shown_as`."""
    analysis = f"{expected(seed)}\nResponse {shown_as}: {mistake(wrong, seed)}."
    messages = expand_messages("compact", seed, written(seed.target), wrong, analysis, scenario)
    dialogue = [message for message in new.messages if message.role != "system"]
    reply = f"INPUT:\n{conversation_text(dialogue)}\nOUTPUT:\n{response_text(new.target)}"
    return Example("expand", messages, (), reply)


def expected(sample: Sample, *wrong: str) -> str:
    """The first lines of a judge's reply: the right calls, up to where a wrong response leaves them; or the kind of
    text that is right."""
    target = sample.target
    if target.is_call:
        right = _pieces(response_text(replace(target, text="")))
        places = [_first_difference(right, _pieces(response_text(response))) for response in wrong]
        return "Expected: " + "".join(right[: min(places, default=len(right)) + 1])
    if target.intent == "clarify":
        return f"Expected: a question about {', '.join(target.missing)}."
    return "Expected: no call, decline." if target.intent == "refuse" else "Expected: no call, answer."


def _pieces(text: str) -> list[str]:
    """The text in the tokenizer's words."""
    return _WORD.findall(text)


def _first_difference(right: list[str], other: list[str]) -> int:
    """The number of leading words that two texts have in common."""
    pairs = zip(right, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(right), len(other)))


_WORD = re.compile(
    "|".join([*map(re.escape, sorted(SCAFFOLDS, key=len, reverse=True)), r"\d", "[A-Z]?[a-z]+", r"[^\W\d_]", r"\s|\S"])
)


def mistake(response: str, sample: Sample) -> str:
    """Why a response is wrong, "" if it is right."""
    return match(response, sample.target, sample.tools).reason


def written(target: Target) -> str:
    """A target as an assistant writes it."""
    return get_format("qwen3").render_target(target)


def make(
    samples: Sequence[Sample], mix: Mapping[str, float], mistakes: Sequence[Mapping[str, Any]], seed: int
) -> list[Example]:
    """At most one example from each sample, its task drawn with the shares of `mix`; three of five are renamed.

    mistakes: rows {"sample", "response"} of real wrong answers; half of all examples but answers come from them, where
    there are any.
    """
    rng = random.Random(seed)
    tasks, shares = list(mix), list(mix.values())
    made = []
    for sample in samples:
        task = rng.choices(tasks, shares)[0]
        if task != "answer" and mistakes and rng.random() < 0.5:
            row = rng.choice(mistakes)
            sample, wrong = Sample.from_json(row["sample"]), row["response"]
        else:
            wrong = wrong_response(sample, rng)
        renaming = draw_renaming(sample, rng) if rng.random() < 0.6 else Renaming({})
        seen = renaming.sample(sample)
        if task == "answer":
            made.append(answer_example(seen))
        elif wrong is None:
            continue
        elif task == "verify":
            made.append(verify_example(seen, renaming.text(wrong) if rng.random() < 0.5 else None))
        elif task == "judge":
            made.append(judge_example(seen, *map(renaming.text, _pair(sample, wrong, rng))))
        elif sample.target.is_call:  # only errors on calls are expanded, and only into calls
            scenario = rng.choice(list(SCENARIOS))
            new = renaming.sample(variation(sample, scenario, rng))
            if new.target.is_call:
                made.append(expand_example(seen, renaming.text(wrong), new, scenario, rng.choice((1, 2))))
    return made


def _pair(sample: Sample, wrong: str, rng: random.Random) -> tuple[str, str]:
    """Two responses in random order: mostly one right and one wrong."""
    right = written(sample.target)
    kind = rng.random()
    pair = [right, wrong]
    if kind < 0.2 and (other := wrong_response(sample, rng)) is not None:
        pair = [other, wrong]
    elif kind > 0.92 and (other := equivalent_response(sample, rng)) is not None:
        pair = [right, other]
    rng.shuffle(pair)
    return pair[0], pair[1]
