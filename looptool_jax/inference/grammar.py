"""Answers that fit a grammar by construction: calls of given tools, JSON of a schema (the extra `grammar`, llguidance).

Before each token the grammar says which ones may follow, and the engine draws among those. Meanwhile every request in a
slot is decoded one step a sync, which can change the last bits of its logits.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from looptool_jax.toolcall import Call, ChatTokenizer, Target, Tool
from looptool_jax.toolcall.formats import Segment

EVERY = -1  # a word of bits that are all set
LARGEST = 1e15  # of numbers whose schema sets no bound
LONGEST = 1 << 16  # characters of a grammar; what llguidance does with one grows with the square of its properties
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as chat templates write JSON


class GrammarError(ValueError):
    """A schema that no grammar can be made of, an answer that outgrew its grammar's limits, or a missing llguidance."""


class Grammars:
    """Makes grammars for one tokenizer. vocab: of the model, whose last tokens the tokenizer may lack."""

    def __init__(self, tokenizer: ChatTokenizer, vocab: int) -> None:
        self.tokenizer, self.vocab = tokenizer, vocab

    @functools.cached_property
    def _tokens(self) -> Any:
        import llguidance

        text, ends = self.tokenizer.tokenizer.to_str(), list(self.tokenizer.eos_ids)
        try:
            return llguidance.LLTokenizer(text, n_vocab=self.vocab, eos_token=ends)
        except ValueError as error:
            raise GrammarError(f"llguidance cannot read this tokenizer: {' '.join(str(error).split())[:200]}") from None

    def of_calls(self, tools: Sequence[Tool], several: bool) -> str:
        """One call of a tool, or several, as the model's format writes them."""
        rules = [rule for number, tool in enumerate(tools) for rule in self._call(f"call_{number}", tool)]
        one, two = (self.tokenizer.format.render_target(Target(calls=count * (Call("f"),))) for count in (1, 2))
        more = f" ({json.dumps(two[len(one) : -len(one)])} call)*" if several else ""
        alternatives = " | ".join(f"call_{number}" for number in range(len(tools)))
        return "\n".join([f"start: call{more}", f"call: {alternatives}", *rules])

    def of_json(self, schema: dict[str, Any]) -> str:
        """One JSON value of a schema."""
        return f"start: {_json(schema)}"

    def constraint(self, grammar: str, answers: int) -> Constraint:
        """The grammar at the beginning of so many answers. Raises GrammarError."""
        import llguidance

        if reason := _too_long(grammar):
            raise GrammarError(reason)
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        matchers = [matcher, *(matcher.deep_copy() for _ in range(answers - 1))]
        return Constraint(matchers, self.tokenizer.eos_ids, -(-self.vocab // 32))

    def _call(self, name: str, tool: Tool) -> list[str]:
        segments = self.tokenizer.format.target_segments(Target(calls=(Call(tool.name),)))
        place = max(i for i, segment in enumerate(segments) if not segment.from_template)  # where the arguments stand
        before, after = self._literal(segments[:place]), self._literal(segments[place + 1 :])
        return [f"{name}: {before} {name}_arguments {after}", f"{name}_arguments: {_json(narrowed(tool.parameters))}"]

    def _literal(self, segments: Sequence[Segment]) -> str:
        """Text in the grammar's words; the template's control tokens stand for themselves."""
        words = []
        for text, from_template in segments:
            parts = self.tokenizer.control_parts(text) if from_template else [(text, False)]
            words += [part if control else json.dumps(part, ensure_ascii=False) for part, control in parts]
        return " ".join(words)


class Constraint:
    """Which tokens may come next in the answers of one request, as bits. first: in all of them."""

    def __init__(self, matchers: list[Any], eos_ids: Sequence[int], words: int) -> None:
        """Raises GrammarError."""
        self.matchers, self._eos_ids, self._words = matchers, eos_ids, words
        self._ended = [False] * len(matchers)
        self.first = self._row(matchers[0])

    def next(self, tokens: Sequence[int]) -> Int[np.ndarray, "G words"]:
        """Behind the next token of every answer; answers that have ended, or that nobody waits for, may go on with any.
        Raises GrammarError."""
        rows = np.full((len(tokens), self._words), EVERY, np.int32)
        for i, matcher in enumerate(self.matchers):
            self._ended[i] |= tokens[i] in self._eos_ids
            if not self._ended[i]:
                matcher.consume_token(tokens[i])
                rows[i] = self._row(matcher)
        return rows

    def _row(self, matcher: Any) -> Int[np.ndarray, " words"]:
        row = np.frombuffer(matcher.compute_bitmask(), np.int32)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().partition("<state>")[0].split())[:200]
            raise GrammarError(f"the grammar of this request does not go on ({reason})")
        return row[: self._words]


def narrowed(schema: dict[str, Any], closed: bool = True) -> dict[str, Any]:
    """The part of a tool's schema that the strict parser and `check_call` take whole: no properties but declared ones
    unless it asks for others, and numbers that do not overflow. (Where none are declared, a key may come twice.)"""
    out = dict(schema)
    kinds = out.get("type")
    if "number" in (kinds if isinstance(kinds, list) else [kinds]) and "enum" not in out:
        out.setdefault("minimum", -LARGEST)
        out.setdefault("maximum", LARGEST)
    if closed or out.get("properties"):
        out.setdefault("additionalProperties", False)
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in out:
            out[key] = [narrowed(branch, False) for branch in out[key]]
    if "properties" in out:
        out["properties"] = {name: narrowed(each, False) for name, each in out["properties"].items()}
    if isinstance(out.get("items"), dict):
        out["items"] = narrowed(out["items"], False)
    return out


def call_line(tools: Sequence[Tool]) -> str:
    """The rule `call`: one call of a tool as a line of JSON, {"name": ..., "arguments": {...}}."""
    lines = [
        f"call_{number}: {json.dumps(_before_arguments(tool), ensure_ascii=False)} {_json(narrowed(tool.parameters))} "
        '"}"'
        for number, tool in enumerate(tools)
    ]
    return "\n".join([f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}", *lines])


def installed() -> bool:
    return importlib.util.find_spec("llguidance") is not None


def check_installed(setting: str) -> None:
    """Raises GrammarError where `setting` asks for grammars and there are none."""
    if not installed():
        raise GrammarError(f"{setting}: needs llguidance, which is not installed: pip install 'looptool-jax[grammar]'")


def problem(grammar: str) -> str:
    """Why no answer can be held to a grammar, "" where one can."""
    import llguidance

    return _too_long(grammar) or _first_line(llguidance.LLMatcher.validate_grammar(grammar))


def _too_long(grammar: str) -> str:
    return f"{len(grammar)} characters as a grammar, of {LONGEST} at most" if len(grammar) > LONGEST else ""


def _first_line(text: str) -> str:
    return " ".join(text.partition("\n")[0].split())


def _before_arguments(tool: Tool) -> str:
    return f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': STYLE})}"
