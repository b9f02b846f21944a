"""The one score of an answer, used as reward (Eq. 1) and to decide what probing has mastered."""

from __future__ import annotations

from dataclasses import dataclass

from looptool_jax.toolcall import Match, Sample, match


@dataclass
class RewardConfig:
    """mode: "strict" (ours) or "paper" (the released reward, holes included).

    truncated_fails: an answer that hit the token limit scores 0 whatever it holds (the paper is silent;
    its code empties an output without `</think>`).
    """

    mode: str = "strict"
    truncated_fails: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("strict", "paper"):
            raise ValueError(f"reward.mode: expected strict or paper, found {self.mode!r}")


def score(answer: str, finish: str, sample: Sample, cfg: RewardConfig) -> Match:
    """Match of an answer against the sample's label; `finish` is "stop" or "length"."""
    if cfg.truncated_fails and finish == "length":
        return Match(False, "truncated at the token limit")
    return match(answer, sample.target, sample.tools, mode=cfg.mode)  # type: ignore[arg-type]
