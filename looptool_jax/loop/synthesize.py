"""D_seed and the held-out set of a run (paper, section 3; the procedural world stands in for its API pool)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from looptool_jax.data.contamination import Fingerprint, clean_samples
from looptool_jax.data.importers import FORMATS, import_file, read_data_set, write_import
from looptool_jax.data.importers.data_sets import is_data_set
from looptool_jax.data.store import DataError, join, read_samples, write_jsonl, write_samples
from looptool_jax.inference.answers import Answerer
from looptool_jax.limits import at_least
from looptool_jax.loop.keys import random_for
from looptool_jax.toolcall import Sample
from looptool_jax.world import generate, inject


@dataclass
class DataConfig:
    """Where D_seed comes from.

    source: "world" (the procedural tool world), a file, or a data set as `data.importers.data_sets` reads it
    (tfds:NAME, hf:NAME). format: of its records; "samples" for this program's own.
    tools: a file of tool documents, for formats that keep them apart (seal_tools).
    pool: size of D_seed. round_size: size of every D_j. noise: share of seed labels to corrupt (the truth is kept
    apart, for evaluation). heldout: items kept for evaluation, 0: nothing is evaluated; in the world they share no tool
    with the seeds.
    """

    source: str = "world"
    format: str = "samples"
    tools: str | None = None
    pool: int = 28160
    round_size: int = 18304
    noise: float = 0.0
    heldout: int = 1000

    def __post_init__(self) -> None:
        at_least("data.heldout", self.heldout, 0)
        if self.format not in ("samples", *FORMATS):
            raise ValueError(f"data.format: expected samples or one of {', '.join(FORMATS)}, found {self.format!r}")
        if not 0 <= self.noise < 1:
            raise ValueError(f"data.noise: expected a share from 0 to below 1, found {self.noise}")
        if self.pool < self.round_size:
            raise ValueError(f"data.pool={self.pool} is smaller than data.round_size={self.round_size}")


def synthesize(
    cfg: DataConfig,
    policy: Answerer,
    prompt_limit: int,
    prints: Sequence[Fingerprint],
    action: str,
    seed: int,
    out: str,
    first_round: str,
) -> dict[str, Any]:
    """Write `out/pool.jsonl` (D_seed in the order in which rounds use it), `out/truth.jsonl` (true labels of the
    corrupted ones; only evaluation reads it), `out/heldout.jsonl`, `out/contaminated.jsonl` (seeds beside the rows of
    benchmarks, by their `prints`), and D_1 to `first_round`; return the metrics.

    Seeds whose prompt has more than `prompt_limit` tokens are left out and counted, never cut; contaminated ones are
    where `action` is drop.
    Raises DataError where the source holds too few samples.
    """
    if cfg.source == "world":
        seeds: Sequence[Sample] = generate("train", cfg.pool, seed)
        heldout: Sequence[Sample] = generate("heldout", cfg.heldout, seed=0)
        read = {"read": len(seeds) + len(heldout), "rejected": 0}
    else:
        samples, read = _load(cfg, out)
        heldout, seeds = split_heldout(samples, cfg.heldout, seed)
    short = [sample for sample in seeds if policy.prompt_length(sample) <= prompt_limit]
    heldout_short = [sample for sample in heldout if policy.prompt_length(sample) <= prompt_limit]
    pool, contamination = clean_samples(short, prints, action, join(out, "contaminated.jsonl"))
    clean = len(pool)
    random_for(seed, "pool").shuffle(pool)
    pool = pool[: cfg.pool]
    if len(pool) < cfg.round_size:
        raise DataError(
            f"{cfg.source}: {len(pool)} usable seeds, {cfg.round_size} are needed (data.round_size); of "
            f"{len(seeds) + len(heldout)} samples {len(heldout)} are held out (data.heldout), "
            f"{len(seeds) - len(short)} have prompts over {prompt_limit} tokens, "
            f"{len(short) - clean} are in a benchmark. "
            "Lower data.round_size or data.heldout, or raise the prompt limit"
        )
    noisy, truth = inject(pool, cfg.noise, seed)
    write_samples(join(out, "pool.jsonl"), noisy)
    write_jsonl(join(out, "truth.jsonl"), [row.to_json() for row in truth])
    write_samples(join(out, "heldout.jsonl"), heldout_short)
    write_samples(first_round, noisy[: cfg.round_size])
    return {
        **read,
        "pool": len(pool),
        "too_long": len(seeds) - len(short) + len(heldout) - len(heldout_short),
        "corrupted": len(truth),
        "heldout": len(heldout_short),
        **contamination,
    }


def split_heldout(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """`count` samples for evaluation, and the seeds, in random orders keyed by the run.

    Samples that open alike (steps of one dialogue, repetitions) stay on one side. Where the last dialogue held out
    has more steps than fit, the rest are used nowhere.
    """
    dialogues: dict[str, list[Sample]] = {}
    for sample in samples:
        opening = next((message.content for message in sample.messages if message.role == "user"), sample.id)
        dialogues.setdefault(" ".join(opening.split()).casefold(), []).append(sample)
    order = list(dialogues.values())
    random_for(seed, "heldout").shuffle(order)
    heldout: list[Sample] = []
    while order and len(heldout) < count:
        heldout += order.pop()
    return heldout[:count], [sample for dialogue in order for sample in dialogue]


def _load(cfg: DataConfig, out: str) -> tuple[list[Sample], dict[str, int]]:
    """The samples of a file, and how many records were read and rejected. Raises DataError."""
    if cfg.format == "samples":
        samples = list(read_data_set(cfg.source) if is_data_set(cfg.source) else read_samples(cfg.source))
        read = {"read": len(samples), "rejected": 0}
    else:
        result = import_file(cfg.source, cfg.format, tools=cfg.tools)
        write_import(result, join(out, "import"))
        samples, read = list(result.samples), {"read": result.read, "rejected": len(result.rejected)}
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"{cfg.source}: two samples have the id {sample.id}; ids must be unique")
        seen.add(sample.id)
    return samples, read
