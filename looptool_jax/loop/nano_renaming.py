"""Renaming: the words of a sample exchanged for others, everywhere at once.

The world's training split has a few hundred functions, and a small model would rather remember their names than read
them. After renaming, "movie" is "zorvan" in the tool's name, its description, the request and the call: every sample
is about functions never seen before, and only reading and copying help.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from looptool_jax.toolcall import Sample
from looptool_jax.world import generate

_STRUCTURE = """
id category tools messages target origin role content calls name arguments type function description parameters
properties required enum default items string integer number boolean array object text intent missing kind seed round
parent scenario user assistant system tool tool_call tool_response clarify refuse answer expanded single multiple
parallel parallel_multiple missing_parameter irrelevant multi_turn world train heldout complexity persona interaction
data false true null lineage extra
"""
"""Words of the records' own JSON: neither they nor parts of them are replaced."""

_COMMON = re.compile(
    "the|and|for|its|two|all|any|one|out|per|with|from|that|this|have|need|would|could|please|into|once|each|same|"
    "also|then|first|second"
)


@dataclass(frozen=True)
class Renaming:
    """Old words to new ones, both in lower case."""

    words: dict[str, str]

    def text(self, text: str) -> str:
        """The text with every old word replaced, inside longer words too, capitalised where the old one was."""
        if not self.words:
            return text
        pattern = "|".join(map(re.escape, sorted(self.words, key=len, reverse=True)))
        return re.sub(pattern, self._new, text, flags=re.IGNORECASE)

    def sample(self, sample: Sample) -> Sample:
        """The sample with all its words replaced."""
        return Sample.from_json(json.loads(self.text(json.dumps(sample.to_json(), ensure_ascii=False))))

    def _new(self, found: re.Match[str]) -> str:
        old = found.group()
        if not (old.islower() or old.istitle()):
            return old
        return self.words[old] if old.islower() else self.words[old.lower()].capitalize()


def draw_renaming(sample: Sample, rng: Random) -> Renaming:
    """New words for about half of the words of the tools' descriptions and for a fifth of those of their parameters."""
    described = [word for tool in sample.tools for word in _words(tool.description)]
    named = [word for tool in sample.tools for name in tool.properties for word in _words(name)]
    old = [word for word in dict.fromkeys(described) if rng.random() < 0.5]
    old += [word for word in dict.fromkeys(named) if rng.random() < 0.2 and word not in old]
    return Renaming({word: _new_word(rng) for word in old})


def _words(text: str) -> list[str]:
    """The words of a text or name, in lower case, that are safe to replace in a sample's JSON."""
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]{3,}", text))
    return [word for word in words if not _COMMON.fullmatch(word) and word not in _STRUCTURE]


def _new_word(rng: Random) -> str:
    """A made-up word, or one of the world's in a strange place."""
    if rng.random() < 0.5:
        return rng.choice(_known_words())
    form = rng.choice(("cv", "cvc", "vc", "cvcv", "cvccv", "vcvc", "cvcvc")) * rng.choice((1, 1, 2))
    return "".join(rng.choice("aeiou" if letter == "v" else "bcdfghjklmnprstvwz") for letter in form)


@cache
def _known_words() -> Sequence[str]:
    samples = generate("train", 2000, 0)
    return sorted({word for sample in samples for tool in sample.tools for word in _words(tool.description)})
