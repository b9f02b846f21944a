"""Settings of seed synthesis."""

from __future__ import annotations

from dataclasses import dataclass, field

from looptool_jax.inference.answers import AnswerConfig
from looptool_jax.limits import at_least


@dataclass
class SynthesisConfig:
    """Seed synthesis (`looptool synthesize`).

    count: API documents or dialogues to write. drafts: of each tree; the first valid one is taken.
    least_tools, most_tools: tools of a dialogue. least_turns, most_turns: user turns planned. verify: the second tier,
        "verdict": the judge is asked about every step; "rules": nothing further.
    temperature, top_p, top_k: of the generator, which plays all four roles; as in the released code.
    chunk: documents, or dialogues that advance together, committed at once.
    """

    count: int = 1000
    drafts: int = 4
    least_tools: int = 20
    most_tools: int = 30
    least_turns: int = 5
    most_turns: int = 9
    verify: str = "verdict"
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 20
    answers: AnswerConfig = field(default_factory=lambda: AnswerConfig(prompt_tokens=16384))
    verify_answers: AnswerConfig = field(default_factory=lambda: AnswerConfig(prompt_tokens=16384))
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.verify not in ("verdict", "rules"):
            raise ValueError(f"synthesis.verify: expected verdict or rules, found {self.verify!r}")
        for name in ("count", "drafts", "least_tools", "least_turns", "chunk"):
            at_least(f"synthesis.{name}", getattr(self, name), 1)
        at_least("synthesis.most_tools", self.most_tools, self.least_tools)
        at_least("synthesis.most_turns", self.most_turns, self.least_turns)
        at_least("synthesis.temperature", self.temperature, 0)
        at_least("synthesis.top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"synthesis.top_p: more than 0 and at most 1, found {self.top_p}")
