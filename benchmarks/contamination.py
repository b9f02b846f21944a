"""Public training data and the procedural world beside BFCL and ACEBench.

    python benchmarks/contamination.py --data DIR --acebench DIR [--bfcl DIR] [--world 20000]

DIR of the data: the folders seal_tools, star, toolrl and glaive, as the projects of these names publish them. Each file
goes through its importer; steps of dialogues are samples of their own. Beside the counts: the CPU seconds of the check
alone, and of reading the benchmarks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from peers.alternate import table

from looptool_jax.data.contamination import ContaminationConfig, check_samples, fingerprints
from looptool_jax.data.importers import import_file
from looptool_jax.toolcall import Sample
from looptool_jax.world import generate

FILES = {
    "star/example_messages.jsonl": "openai",
    "toolrl/rlla_sft.json": "toolrl",
    "toolrl/rlla_test.parquet": "toolrl",
    "seal_tools/dev.jsonl": "seal_tools",
    "seal_tools/test_in_domain.jsonl": "seal_tools",
    "glaive/glaive_toolcall_en_demo.json": "sharegpt",
}
COLUMNS = ("exact", "normalised", "ngram", "contaminated", "tools_same", "tools_similar")


def data_sets(folder: Path, world: int) -> Iterator[tuple[str, list[Sample]]]:
    for name, format_ in FILES.items():
        yield name, list(import_file(folder / name, format_).samples)
    yield "the world's seeds", list(generate("train", world, seed=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--acebench", required=True)
    parser.add_argument("--bfcl", default="auto")
    parser.add_argument("--world", type=int, default=20_000)
    args = parser.parse_args()
    start = time.process_time()
    prints, not_checked = fingerprints(ContaminationConfig(args.bfcl, args.acebench))
    print(*not_checked, sep="\n")
    for item in prints:
        print(f"{item.benchmark}: {item.summary()}")
    print(f"read and hashed in {time.process_time() - start:.1f} s")
    rows = []
    for name, samples in data_sets(args.data, args.world):
        start = time.process_time()
        counts = check_samples(samples, prints).counts()
        seconds = time.process_time() - start
        for benchmark, found in counts.items():
            cells = [str(found[key]) for key in COLUMNS]
            rows.append([name, str(len(samples)), benchmark, *cells, f"{seconds:.1f}"])
    print(table(["data", "samples", "benchmark", *COLUMNS, "seconds"], rows))


if __name__ == "__main__":
    main()
