"""What the embedded model learns from: answering, judging, verifying and expanding, made from the world's samples.

The world knows the truth, so every comparison can be labelled: a response is right if the matcher says so. Before a
verdict, the judge writes what it expects (one `Expected:` line, or one line per call), then what is wrong, in the
matcher's words. A small model compares better with the right answer in front of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from looptool_jax.loop.nano_mistakes import equivalent_response, wrong_response
from looptool_jax.loop.nano_renaming import Renaming, draw_renaming
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

    def encode(self, tokenizer: ChatTokenizer, thinking: bool = False) -> tuple[list[int], int]:
        """Token ids with the end-of-turn token, and the number of prompt tokens among them."""
        prompt = tokenizer.encode_prompt(self.messages, self.tools, thinking)
        if isinstance(self.reply, Target):
            reply = tokenizer.encode_target(self.reply)
        else:
            reply = tokenizer.encode_text(self.reply)
        return [*prompt, *reply, tokenizer.eos_ids[0]], len(prompt)


def answer_example(sample: Sample) -> Example:
    return Example("answer", sample.messages, sample.tools, sample.target)


def verify_example(sample: Sample, wrong: str | None) -> Example:
    """The check of the sample's own target, or of a wrong response put in its place."""
    if wrong is None:
        return Example("verify", verify_messages("compact", sample), (), f"{expected(sample)}\n[CORRECT]")
    parsed = parse(wrong)
    if isinstance(parsed, ParseFailure) or not parsed.calls:
        target = Target(text=wrong, intent="answer")
    else:
        target = Target(parsed.calls, parsed.text)
    shown = verify_messages("compact", replace(sample, target=target))
    reply = f"{expected(sample)}\nResponse: {mistake(wrong, sample)}.\n[INCORRECT]"
    return Example("verify", shown, (), reply)


def judge_example(sample: Sample, response_1: str, response_2: str) -> Example:
    """The comparison of two responses, as an assistant writes them; the verdict follows from the matcher."""
    mistakes = [mistake(response_1, sample), mistake(response_2, sample)]
    kind = {
        (False, False): VerdictKind.BOTH_CORRECT,
        (True, False): VerdictKind.RESPONSE1_INCORRECT,
        (False, True): VerdictKind.RESPONSE2_INCORRECT,
        (True, True): VerdictKind.BOTH_INCORRECT,
    }[bool(mistakes[0]), bool(mistakes[1])]
    lines = [f"Response {i}: {reason}." for i, reason in enumerate(mistakes, 1) if reason]
    reply = "\n".join([expected(sample), *lines, kind])
    return Example("judge", judge_messages("compact", sample, response_1, response_2), (), reply)


def expand_example(seed: Sample, wrong: str, new: Sample, scenario: str, shown_as: int) -> Example:
    """A new sample around an error on the seed; the analysis is a judge's that saw the error as response `shown_as`."""
    analysis = f"{expected(seed)}\nResponse {shown_as}: {mistake(wrong, seed)}."
    messages = expand_messages("compact", seed, written(seed.target), wrong, analysis, scenario)
    dialogue = [message for message in new.messages if message.role != "system"]
    reply = f"INPUT:\n{conversation_text(dialogue)}\nOUTPUT:\n{response_text(new.target)}"
    return Example("expand", messages, (), reply)


def expected(sample: Sample) -> str:
    """The first lines of a judge's reply: the right calls, or what kind of text is right."""
    target = sample.target
    if target.is_call:
        return "Expected: " + response_text(replace(target, text=""))
    if target.intent == "clarify":
        return f"Expected: a question about {', '.join(target.missing)}."
    return "Expected: no call, decline." if target.intent == "refuse" else "Expected: no call, answer."


def mistake(response: str, sample: Sample) -> str:
    """Why a response is wrong, "" if it is right."""
    return match(response, sample.target, sample.tools).reason


def written(target: Target) -> str:
    """A target as an assistant writes it."""
    return get_format("qwen3").render_target(target)


def make(
    samples: Sequence[Sample], mix: Mapping[str, float], mistakes: Sequence[Mapping[str, Any]], seed: int
) -> list[Example]:
    """At most one example from each sample, its task drawn with the shares of `mix`; four of five are renamed.

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
        renaming = draw_renaming(sample, rng) if rng.random() < 0.8 else Renaming({})
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
