"""Two responses side by side, word by word and key by key: what stands in one of them alone is marked in it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

from looptool_jax.report.page import text
from looptool_jax.toolcall import Call, Parsed, Target, parse

MOST_WORDS = 800  # of a side; the time grows with the product of both
_WORDS = re.compile(r"\s+|\w+|.", re.DOTALL)
_BREAKS = re.compile(r"(\n\s*)")

Side = list[str]
"""Pieces of one side in turn: the same on both sides, only here, the same, ... (the first may be empty)."""


def laid_out(response: Target | str) -> str:
    """A response for reading: its text, then every call with an argument a line. The order of calls and of arguments
    says nothing to the matcher, so both are sorted. What cannot be parsed stays as it is."""
    if isinstance(response, Target):
        words, calls = response.text, response.calls
    else:
        parsed = parse(response)
        if not isinstance(parsed, Parsed):
            return response.strip() or "(empty)"
        words, calls = parsed.text, parsed.calls
    return "\n".join(filter(None, [words.strip(), *sorted(map(_call, calls))])) or "(empty)"


def _call(call: Call) -> str:
    arguments = (f"\n  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(call.arguments.items()))
    return call.name + "".join(arguments)


@lru_cache(maxsize=4096)
def word_diff(first: str, second: str) -> tuple[Side, Side]:
    """The two sides, whose pieces give the two texts again. Of texts that are too long for it, all but what they begin
    and end with alike is marked."""
    if first == second:
        return [first], [second]
    one, two = _WORDS.findall(first), _WORDS.findall(second)
    start = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    room = min(len(one), len(two)) - start
    end = next((i for i in range(room) if one[-1 - i] != two[-1 - i]), room)
    middle = one[start : len(one) - end], two[start : len(two) - end]
    blocks = [(0, 0, start)]
    if max(map(len, middle)) <= MOST_WORDS:
        found = SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks()
        blocks += [
            (a + start, b + start, size) for a, b, size in found if "".join(middle[0][a : a + size]).strip()
        ]  # white space alone keeps nothing together
    blocks.append((len(one) - end, len(two) - end, end))
    return _side(one, [(a, size) for a, _, size in blocks]), _side(two, [(b, size) for _, b, size in blocks])


def side_html(side: Side, kind: str) -> str:
    """One side as markup: what stands here alone in `<del>` (kind "del", the first side) or `<ins>`, line by line."""
    parts = []
    for number, piece in enumerate(side):
        for line in _BREAKS.split(piece):
            marked = number % 2 and line.strip()
            parts.append(f"<{kind}>{text(line)}</{kind}>" if marked else text(line))
    return "".join(parts)


def _side(words: Sequence[str], same: Sequence[tuple[int, int]]) -> Side:
    """Pieces in turn, from where the words are the same (start, size), in order."""
    pieces = [""]
    at = 0
    for start, size in same:
        if start > at:
            pieces += ["".join(words[at:start]), ""]
        pieces[-1] += "".join(words[start : start + size])
        at = start + size
    return pieces
