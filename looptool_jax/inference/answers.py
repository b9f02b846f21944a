"""Samples and chats in, answers out: how the stages of the loop use a language model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from looptool_jax.inference.batch import Completion, Request, generate
from looptool_jax.inference.drafts import greedy
from looptool_jax.inference.grammar import Constraint, Grammars
from looptool_jax.inference.lm import LanguageModel
from looptool_jax.limits import at_least
from looptool_jax.parallel.processes import stop_if_preempted
from looptool_jax.toolcall import Message, Sample, Target

if TYPE_CHECKING:
    from looptool_jax.inference.engine import DecoderEngine
    from looptool_jax.inference.scoring import Scorer

OnTokens = Callable[[int], None]

DRAFTS = 2  # most guesses of one answer
CHOICE_TOKENS = 32  # most of a reply to choose
NO_ANSWERS: Mapping[str, Sequence[int]] = MappingProxyType({})


def ignore(count: int) -> None:
    """For callers who need no tokens counted."""


@dataclass
class AnswerConfig:
    """Sizes of the engine that answers.

    prompt_tokens: the longest prompt. answer_tokens: the longest answer. slots: prompts decoded at a time.
    steps_per_sync: decode steps between two looks of the host. prefill_batch: prompts prefilled at a time; null: one a
    data shard.
    """

    prompt_tokens: int = 4096
    answer_tokens: int = 1024
    slots: int = 64
    steps_per_sync: int = 8
    prefill_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "answer_tokens", "slots", "steps_per_sync"):
            at_least(f"answers.{name}", getattr(self, name), 1)
        if self.prefill_batch is not None:
            at_least("answers.prefill_batch", self.prefill_batch, 1)


@dataclass(frozen=True)
class Answer:
    """Generated text without its end token, and the ids it came from with it. text: of an answer to a sample, the
    canonical text (calls as `<tool_call>` blocks, whatever the model's own syntax); of a reply in a chat, as written.
    finish: "stop", "length", or "prompt_too_long" (nothing was generated). drafted, near_tie: as in `Completion`."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str
    drafted: int = 0
    near_tie: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """A prompt for the judge or the generator. key: for sampled replies, two uint32 words. grammar: that the reply fits
    by construction (`inference/grammar.py`; the model then does not think first), "": none; a server is not told of
    it."""

    id: str
    messages: Sequence[Message]
    key: tuple[int, int] = (0, 0)
    grammar: str = ""


class ChatModel(Protocol):
    """A judge or generator, on the mesh (`Answerer`) or behind a server (`EndpointChatModel`)."""

    def chat(
        self,
        requests: Sequence[ChatRequest],
        cfg: AnswerConfig,
        on_tokens: OnTokens,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[Answer]:
        """One reply for each request, in their order. A prompt that does not fit gets an empty answer (finish
        "prompt_too_long"). on_tokens: told how many tokens were generated. top_k: 0 is off."""
        ...


class Answerer:
    """A language model as the stages see it. on_prompts: told of how many tokens the prompts are that it reads."""

    def __init__(self, lm: LanguageModel, thinking: bool = False, on_prompts: OnTokens = ignore) -> None:
        self.lm = lm
        self.thinking = thinking
        self.on_prompts = on_prompts

    def prompt(self, sample: Sample) -> list[int]:
        """Token ids of the sample's prompt, the generation prompt included."""
        return self.lm.tokenizer.encode_prompt(sample.messages, sample.tools, self.thinking)

    def prompt_length(self, sample: Sample) -> int:
        return len(self.prompt(sample))

    def draft(self, target: Target) -> list[int]:
        """Token ids of a target as an answer, its end token included; empty where the model thinks first, for then
        nobody can guess how its answer begins."""
        if self.thinking:
            return []
        return [*self.lm.tokenizer.encode_target(target), self.lm.tokenizer.eos_ids[0]]

    @property
    def exact_drafts(self) -> bool:
        """Whether checking drafts gives the tokens of step-by-step decoding. In a mixture of experts in bfloat16 a last
        bit can send a token to other experts, and no bound on the logits holds."""
        return self.lm.cfg.experts is None or self.lm.dtype == "float32"

    def greedy(
        self,
        samples: Sequence[Sample],
        cfg: AnswerConfig,
        on_tokens: OnTokens,
        drafts: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[Answer]:
        """The greedy answer of each sample.

        drafts: up to DRAFTS guesses of the token ids of each (`draft`); with them the answers are the same, sooner.
        Raises PromptTooLong where a prompt does not fit.
        """
        if not samples:
            return []
        requests = [Request(sample.id, self.prompt(sample), (0, 0), 0.0, cfg.answer_tokens) for sample in samples]
        self._read(requests)
        engine, params, progress = self.greedy_engine(cfg), self.lm.params, _increments(on_tokens)
        known = [[guess for guess in guesses if guess] for guesses in drafts or ()]
        if not self.exact_drafts or not any(known):
            completions = [completion for [completion] in generate(engine, params, requests, progress)]
        else:
            completions = greedy(engine, self.scorer(cfg), params, requests, known, progress)
        return [self._answer(completion) for completion in completions]

    def groups(
        self,
        samples: Sequence[Sample],
        group: int,
        keys: Sequence[tuple[int, int]],
        temperature: float,
        cfg: AnswerConfig,
        on_tokens: OnTokens,
    ) -> list[list[Answer]]:
        """`group` sampled answers of each sample; the keys belong to the samples."""
        requests = [
            Request(sample.id, self.prompt(sample), key, temperature, cfg.answer_tokens)
            for sample, key in zip(samples, keys, strict=True)
        ]
        if not requests:
            return []
        self._read(requests)
        groups = generate(self.engine(cfg, group=group), self.lm.params, requests, _increments(on_tokens))
        return [[self._answer(completion) for completion in completions] for completions in groups]

    def chat(
        self,
        requests: Sequence[ChatRequest],
        cfg: AnswerConfig,
        on_tokens: OnTokens,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[Answer]:
        """One reply for each request. A prompt that does not fit gets an empty answer (finish "prompt_too_long").

        What prompts have in common at their beginning is computed once: both orders of a judgement, expansions of one
        error, turns of one dialogue. Raises GrammarError where there is none of what a request names.
        """
        prompts = [
            self.lm.tokenizer.encode_prompt(request.messages, (), self.thinking and not request.grammar)
            for request in requests
        ]
        fits = [len(prompt) <= cfg.prompt_tokens for prompt in prompts]
        runnable = [
            Request(request.id, prompt, request.key, temperature, cfg.answer_tokens)
            for request, prompt, fit in zip(requests, prompts, fits, strict=True)
            if fit
        ]
        grammars = [request.grammar for request, fit in zip(requests, fits, strict=True) if fit]

        def constrain(number: int) -> Constraint | None:
            return self._grammars.constraint(grammars[number], 1) if grammars[number] else None

        replies: Iterator[list[Completion]] = iter(())
        if runnable:
            self._read(runnable)
            engine, scorer = self.engine(cfg, top_p=top_p, top_k=top_k), self.prompt_scorer(cfg)
            replies = iter(generate(engine, self.lm.params, runnable, _increments(on_tokens), scorer, constrain))
        return [self._reply(next(replies)[0]) if fit else Answer("", [], [], "prompt_too_long") for fit in fits]

    def choose(
        self, requests: Sequence[ChatRequest], choices: Sequence[str], cfg: AnswerConfig, on_tokens: OnTokens
    ) -> list[int | None]:
        """The most probable of the given replies to each request, by its place in `choices`; nothing is generated.

        The model does not think first. What the prompts of requests have in common is computed once. None: the prompt
        does not fit.
        """
        tokenizer = self.lm.tokenizer
        replies = [[*tokenizer.encode_text(choice), tokenizer.eos_ids[0]] for choice in choices]
        prompts = [tokenizer.encode_prompt(request.messages, (), False) for request in requests]
        fitting = [number for number, prompt in enumerate(prompts) if len(prompt) <= cfg.prompt_tokens]
        families = [[[*prompts[number], *reply] for reply in replies] for number in fitting]
        starts = [len(prompts[number]) for number in fitting]
        if (longest := max(map(len, replies))) > CHOICE_TOKENS:
            raise ValueError(f"a reply to choose has {longest} tokens; the most is {CHOICE_TOKENS}")
        scorer = self.chooser(cfg, len(choices))
        self.on_prompts(sum(starts))
        chosen: list[int | None] = [None] * len(requests)
        params = self.lm.params
        for rows in scorer.rows_of(families):
            stop_if_preempted()
            scores = scorer.scores(params, rows, families, starts)
            for family in {family for family, _ in scores}:
                sums = [float(scores[family, member].logprobs.sum()) for member in range(len(choices))]
                chosen[fitting[family]] = sums.index(max(sums))
            on_tokens(0)
        return chosen

    def engine(self, cfg: AnswerConfig, **more: Any) -> DecoderEngine:
        """The engine of these sizes; `more` are further arguments of `DecoderEngine`. Raises EngineError,
        ShardingError."""
        return self.lm.engine(
            slots=cfg.slots, prompt_len=cfg.prompt_tokens, answer_len=cfg.answer_tokens,
            steps_per_sync=cfg.steps_per_sync, prefill_batch=cfg.prefill_batch, **more,
        )  # fmt: skip

    def greedy_engine(self, cfg: AnswerConfig) -> DecoderEngine:
        """The engine of `greedy`; it can go on from a draft. Raises EngineError, ShardingError."""
        return self.engine(cfg, draft_len=cfg.answer_tokens)

    def scorer(self, cfg: AnswerConfig) -> Scorer:
        """What checks the drafts of `greedy`."""
        return self.lm.scorer(longest=cfg.prompt_tokens + cfg.answer_tokens, members=DRAFTS)

    def prompt_scorer(self, cfg: AnswerConfig) -> Scorer:
        """What computes the prompts of `chat`."""
        return self.lm.scorer(longest=cfg.prompt_tokens)

    def chooser(self, cfg: AnswerConfig, choices: int) -> Scorer:
        """What scores the replies of `choose`."""
        return self.lm.scorer(longest=cfg.prompt_tokens + CHOICE_TOKENS, members=choices)

    @functools.cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.lm.tokenizer, self.lm.cfg.vocab_size)

    def _read(self, requests: Sequence[Request]) -> None:
        self.on_prompts(sum(len(request.tokens) for request in requests))

    def _reply(self, completion: Completion) -> Answer:
        ids = completion.tokens[:-1] if completion.finish == "stop" else completion.tokens
        return Answer(
            self.lm.tokenizer.decode(ids), completion.tokens, completion.logprobs, completion.finish,
            completion.drafted, completion.near_tie,
        )  # fmt: skip

    def _answer(self, completion: Completion) -> Answer:
        reply = self._reply(completion)
        return replace(reply, text=self.lm.tokenizer.format.canonical(reply.text))


def label_and_last(
    policy: Answerer, samples: Sequence[Sample], last: Mapping[str, Sequence[int]]
) -> list[list[Sequence[int]]]:
    """Drafts of the answers to samples: the label, and the last answer where it was another."""
    drafts: list[list[Sequence[int]]] = []
    for sample in samples:
        label, before = policy.draft(sample.target), last.get(sample.id)
        drafts.append([label] if before is None or list(before) == label else [label, before])
    return drafts


def _increments(on_tokens: OnTokens) -> Callable[[int, int], None]:
    """Progress in sums of tokens, told to `on_tokens` as what has been added."""
    seen = 0

    def progress(_: int, tokens: int) -> None:
        nonlocal seen
        on_tokens(tokens - seen)
        seen = tokens

    return progress
