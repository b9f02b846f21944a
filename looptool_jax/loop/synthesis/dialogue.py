"""One simulated dialogue (paper, section 3.2): planner, user, assistant and tool take their turns.

A dialogue is a state machine: it says which replies of the generator it needs next, and goes on with them. What it
does depends on its number, its tools and the replies alone, so hundreds advance side by side in any order.

    plan ─► user ─► assistant ─► (vote) ─► tools ─► assistant ─► ... ─► user ─► ... ─► over
                        ▲  a question ──► user │

A reply that is not what was asked for, or a step on which the samples do not agree, ends the dialogue there. The
steps before stand: each is a sample of its own, whose context holds nothing of what came after.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from random import Random
from typing import Any, Literal

from looptool_jax.inference.answers import Answer, ChatRequest
from looptool_jax.loop.keys import key_for, random_for
from looptool_jax.loop.prompts.synthesis import (
    KINDS,
    STYLES,
    Kind,
    Need,
    Unreadable,
    assistant_messages,
    parse_plan,
    parse_results,
    parse_step,
    parse_user,
    plan_messages,
    tool_messages,
    user_messages,
)
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.loop.synthesis.tools import TIMEOUT, Backend, ToolEntry, draw_tools, is_error
from looptool_jax.toolcall import Call, Message, Parsed, Target, Tool, check_call, equal_calls, match
from looptool_jax.toolcall.matcher import names_parameter
from looptool_jax.toolcall.schema import find_tool

Stage = Literal["plan", "user", "assistant", "vote", "tools", "over"]

TIERS = ("length", "plan", "user", "tool", "parse", "rules", "vote", "steps")
"""What can end a dialogue early: a prompt or reply over its limit, an unreadable reply of planner, user, tool or
assistant, a step against the rules, samples that disagree, a need that does not come to an end."""

MOST_CALL_STEPS = 6  # of one need
MOST_QUESTIONS = 2  # of one need
_COMPLEX: tuple[Kind, ...] = ("multi_step", "parallel")
_FIRST_DAY, _DAYS = date(2020, 1, 1), 7 * 365


class _Broken(ValueError):
    """A step against the rules; never leaves this module."""


@dataclass
class Step:
    """An assistant step: where it stands among the messages, the need it works on, and what it is as a label.
    recovers: it follows a call that failed. refused: what a tool answered where it did not accept the calls ("": it
    did)."""

    place: int
    need: int
    target: Target
    recovers: bool
    refused: str = ""


@dataclass
class _Draft:
    """One of the samples of an assistant step; `tier` names what makes it unusable."""

    reply: str
    message: Message | None = None
    target: Target | None = None
    tier: str = ""
    reason: str = ""


@dataclass
class _Progress:
    """How far the present need is.

    withheld: parameters that the user leaves out. to_fail: the next call is to fail. failed: one of the last calls did.
    succeeded: the calls that did not. questions, call_steps: how many there were.
    """

    withheld: tuple[str, ...]
    to_fail: bool
    failed: bool = False
    succeeded: list[Call] = field(default_factory=list)
    questions: int = 0
    call_steps: int = 0


class Dialogue:
    """Dialogue `number` over a few of the tools; `stage` "over" is its end, `tier` what ended it early."""

    def __init__(self, number: int, entries: Sequence[ToolEntry], seed: int, cfg: SynthesisConfig) -> None:
        self.id = f"dialogue-{seed}-{number:06d}"
        self.seed = seed
        rng = random_for(seed, "synthesize", self.id)
        chosen = draw_tools(rng, entries, rng.randint(cfg.least_tools, cfg.most_tools))
        self.tools = tuple(entry.tool for entry in chosen)
        self.backend = Backend(self.id, chosen)
        self.kinds = _draw_kinds(rng, rng.randint(cfg.least_turns, cfg.most_turns), self.tools)
        self.style = rng.choice(STYLES)
        self.date = (_FIRST_DAY + timedelta(rng.randrange(_DAYS))).isoformat()
        self.messages = [Message("system", f"The current time is {self.date}.")]
        self.stage: Stage = "plan"
        self.needs: tuple[Need, ...] = ()
        self.steps: list[Step] = []
        self.tier = self.reason = self.reply = ""
        self.votes = self.executed = self.simulated = 0
        self._need = -1
        self._now = _Progress((), to_fail=False)
        self._drafts: list[_Draft] = []
        self._results: list[tuple[Call, Any]] = []
        self._meant_to_fail = False

    def requests(self) -> list[ChatRequest]:
        """What the generator is asked next: two samples of an assistant step, one reply otherwise."""
        if self.stage == "plan":
            return [self._request(plan_messages(self.tools, self.backend.facts(), self.date, self.kinds))]
        if self.stage == "user":
            return [self._request(user_messages(self.messages, self.need, self._now.withheld, self.style))]
        if self.stage == "tools":
            waiting = [call for call, result in self._results if result is None]
            first_fails = self._now.to_fail and self._results[0][1] is None
            called = [tool for tool in self.tools if tool.name in {call.name for call in waiting}]
            return [self._request(tool_messages(self.messages, called, waiting, first_fails))]
        samples = (0, 1) if self.stage == "assistant" else (2,)
        prompt = assistant_messages(self.messages, self.tools)
        return [self._request(prompt, sample) for sample in samples]

    def receive(self, replies: Sequence[Answer]) -> None:
        """Go on with the replies to `requests`, in their order."""
        if self.stage in ("assistant", "vote"):
            self._drafts += [self._draft(reply) for reply in replies]
            self._decide()
            return
        (reply,) = replies
        role = {"plan": "plan", "user": "user", "tools": "tool"}[self.stage]
        if reply.finish != "stop":
            self._end("length", f"{role}: {_unfinished(reply)}", reply.text)
            return
        try:
            if self.stage == "plan":
                self.needs = parse_plan(reply.text, self.kinds, self.tools)
                self._next_need()
            elif self.stage == "user":
                self.messages.append(Message("user", parse_user(reply.text)))
                self.stage, self._now.failed = "assistant", False
            else:
                self._simulated(reply.text)
        except Unreadable as error:
            self._end(role, str(error), reply.text)

    @property
    def need(self) -> Need:
        """The need that the dialogue is at."""
        return self.needs[self._need]

    def to_json(self) -> dict[str, Any]:
        """The dialogue, its steps as labels at their places among the messages, and what ended it."""
        return {
            "id": self.id,
            "kinds": list(self.kinds),
            "plan": [need.to_json() for need in self.needs],
            "tools": [tool.to_json() for tool in self.tools],
            "messages": [message.to_json() for message in self.messages],
            "steps": [self._step_to_json(number, step) for number, step in enumerate(self.steps, 1)],
            "votes": self.votes,
            "executed": self.executed,
            "simulated": self.simulated,
            "tier": self.tier,
        } | ({"reason": self.reason, "reply": self.reply} if self.tier else {})

    def _step_to_json(self, number: int, step: Step) -> dict[str, Any]:
        return {
            "id": f"{self.id}-{number:02d}",
            "place": step.place,
            "turn": step.need + 1,
            "category": self._category(step),
            "target": step.target.to_json(),
            "tier": "refused" if step.refused else "",
        } | ({"reason": step.refused, "reply": ""} if step.refused else {})

    def _request(self, messages: list[Message], sample: int = 0) -> ChatRequest:
        key = key_for(self.seed, "synthesize", self.id, self.stage, len(self.messages), sample)
        return ChatRequest(f"{self.id}/{self.stage}-{len(self.messages)}-{sample}", messages, key)

    def _end(self, tier: str, reason: str, reply: str) -> None:
        self.stage, self.tier, self.reason, self.reply = "over", tier, reason, reply

    def _next_need(self) -> None:
        self._need += 1
        if self._need == len(self.needs):
            self.stage = "over"
            return
        self.stage = "user"
        self._now = _Progress(self.need.missing, to_fail=self.need.kind == "tool_error")

    def _draft(self, reply: Answer) -> _Draft:
        """A sample of the step, held against the rules."""
        if reply.finish != "stop":
            return _Draft(reply.text, tier="length", reason=f"assistant: {_unfinished(reply)}")
        try:
            message = parse_step(reply.text)
            return _Draft(reply.text, message, self._target(message))
        except Unreadable as error:
            return _Draft(reply.text, tier="parse", reason=str(error))
        except _Broken as error:
            return _Draft(reply.text, tier="rules", reason=str(error))

    def _target(self, message: Message) -> Target:
        """The step as a label. Raises _Broken where it is against the rules, or does not fit what the user was told."""
        text = message.content
        if message.calls:
            self._check_calls(message.calls)
            return Target(calls=message.calls, text=text)
        if self.need.kind == "no_tool":
            return Target(text=text, intent="refuse")
        if self._now.withheld:
            unnamed = [name for name in self._now.withheld if not names_parameter(text, name)]
            if "?" not in text or unnamed:
                raise _Broken(f"does not ask for {', '.join(unnamed or self._now.withheld)}")
            return Target(text=text, intent="clarify", missing=self._now.withheld)
        if "?" in text:
            if self._now.questions == MOST_QUESTIONS:
                raise _Broken(f"asks more than {MOST_QUESTIONS} questions about one need")
            return Target(text=text, intent="clarify", missing=self._asked_for(text))
        if not self._now.succeeded:
            raise _Broken("calls nothing, and asks for nothing, where a function can do what is wanted")
        return Target(text=text, intent="answer")

    def _check_calls(self, calls: Sequence[Call]) -> None:
        if self.need.kind == "no_tool":
            raise _Broken(f"calls {calls[0].name} where no function can do what is wanted")
        if self._now.withheld:
            raise _Broken(f"calls although the user did not give {', '.join(self._now.withheld)}")
        if problems := [f"{call.name}: {line}" for call in calls for line in check_call(call, self.tools)]:
            raise _Broken("; ".join(problems))
        for i, call in enumerate(calls):
            if any(equal_calls(call, other, self.tools) for other in calls[:i]):
                raise _Broken(f"{call.name}: the same call twice")
            if any(equal_calls(call, other, self.tools) for other in self._now.succeeded):
                raise _Broken(f"{call.name}: repeats a call that succeeded")

    def _asked_for(self, text: str) -> tuple[str, ...]:
        """The required parameters that a question before the first call names."""
        if self._now.call_steps:
            return ()
        tools = [tool for name in self.need.tools if (tool := find_tool(name, self.tools))]
        names = dict.fromkeys(name for tool in tools for name in tool.required)
        return tuple(name for name in names if names_parameter(text, name))

    def _decide(self) -> None:
        """Self-consistency: two samples that agree, else a third that agrees with one of them, else the end."""
        usable = [draft for draft in self._drafts if not draft.tier]
        pairs = [(a, b) for i, a in enumerate(usable) for b in usable[i + 1 :]]
        agreed = next((a for a, b in pairs if self._agree(a, b)), None)
        if agreed is None and usable and self.stage == "assistant":
            self.stage = "vote"
            self.votes += 1
            return
        drafts, self._drafts = self._drafts, []
        if agreed is not None:
            self._accept(agreed)
        elif len(usable) < 2:
            bad = next(draft for draft in drafts if draft.tier)
            self._end(bad.tier, bad.reason, bad.reply)
        else:
            self._end("vote", "no two samples agree", "\n---\n".join(draft.reply for draft in drafts))

    def _agree(self, one: _Draft, other: _Draft) -> bool:
        """Whether two samples are the same step by the matcher: the same calls, or texts that are of one intent and ask
        for the same."""
        assert one.target and other.target and other.message
        if one.target.intent != other.target.intent or set(one.target.missing) != set(other.target.missing):
            return False
        answer = Parsed(other.message.calls, other.message.content, "")
        return match(answer, one.target, self.tools).ok

    def _accept(self, draft: _Draft) -> None:
        assert draft.message and draft.target
        if draft.target.is_call and self._now.call_steps == MOST_CALL_STEPS:
            self._end("steps", f"more than {MOST_CALL_STEPS} steps of calls for one need", draft.reply)
            return
        self.steps.append(Step(len(self.messages), self._need, draft.target, self._now.failed))
        self.messages.append(draft.message)
        if draft.target.is_call:
            self._call(draft.message.calls)
        elif draft.target.intent == "clarify":
            self._now.questions += 1
            self._now.withheld = ()
            self.stage = "user"
        else:
            self._next_need()

    def _call(self, calls: Sequence[Call]) -> None:
        """Run what can be run; the generator simulates the rest."""
        self._now.call_steps += 1
        self._results, self._meant_to_fail = [], False
        for i, call in enumerate(calls):
            result = None
            if self.backend.executes(call):
                result = self.backend.time_out(call) if self._now.to_fail and i == 0 else self.backend.execute(call)
                self._meant_to_fail |= result == TIMEOUT
                self.executed += 1
            self._results.append((call, result))
        if any(result is None for _, result in self._results):
            self.stage = "tools"
        else:
            self._answered()

    def _simulated(self, reply: str) -> None:
        """Results of the calls that nothing executes. Raises Unreadable."""
        waiting = [call for call, result in self._results if result is None]
        results = parse_results(reply, waiting)
        if self._now.to_fail and self._results[0][1] is None:
            if not is_error(results[0]):
                raise Unreadable("the first call was to fail, and did not")
            self._meant_to_fail = True
        self.simulated += len(results)
        rest = iter(results)
        self._results = [(call, next(rest) if result is None else result) for call, result in self._results]
        self._answered()

    def _answered(self) -> None:
        """All results are there. A call that fails although nothing had it fail is no label."""
        for i, (call, result) in enumerate(self._results):
            self.messages.append(Message("tool", json.dumps(result, ensure_ascii=False), name=call.name))
            if not is_error(result):
                self._now.succeeded.append(call)
            elif i or not self._meant_to_fail:
                self.steps[-1].refused = f"{call.name}: {json.dumps(result, ensure_ascii=False)}"
        self._now.failed = any(is_error(result) for _, result in self._results)
        self._now.to_fail = False
        self.stage = "assistant"

    def _category(self, step: Step) -> str:
        """What a step tests, by what happened and not by the plan."""
        if not step.target.is_call:
            return {"clarify": "missing_parameter", "refuse": "no_tool"}.get(step.target.intent or "", "summary")
        if step.recovers:
            return "tool_error"
        if len(step.target.calls) > 1:
            return "parallel"
        calls = [other for other in self.steps if other.need == step.need and other.target.is_call]
        return "multi_step" if sum(not other.recovers for other in calls) > 1 else "single"


def _draw_kinds(rng: Random, count: int, tools: Sequence[Tool]) -> tuple[Kind, ...]:
    """Kinds of `count` turns; at least one takes several calls, as in the released planner's prompt. Where no tool
    requires anything, nothing can be missing."""
    weights = dict(KINDS)
    if not any(tool.required for tool in tools):
        del weights["missing_parameter"]
    kinds = rng.choices(list(weights), list(weights.values()), k=count)
    if not set(kinds) & set(_COMPLEX):
        kinds[rng.randrange(count)] = rng.choice(_COMPLEX)
    return tuple(kinds)


def _unfinished(reply: Answer) -> str:
    if reply.finish == "prompt_too_long":
        return "the prompt is over the limit (synthesis.answers.prompt_tokens, or the server's)"
    return "the reply is over the limit (synthesis.answers.answer_tokens)"
