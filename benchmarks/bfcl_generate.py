"""The released `bfcl generate` and `bfcl evaluate`, unchanged, against `looptool serve`; beside `looptool eval bfcl`.

    python benchmarks/bfcl_generate.py --peers DIR [--model nano/policy] [--categories simple_python,multi_turn_base]
        [--rows 5] [--config quickstart] [key=value ...]

The rows of every category with the shortest documents, greedily, in two ways that the released program knows. "chat":
/v1/chat/completions with tools, so that prompts have the server's own chat format (the one model of its list whose
handler does no more than that is openbmb/MiniCPM-SALA-FC; the server takes its name). "completions": /v1/completions
with the prompt that the handler of local Qwen3 models writes. The released program runs in an environment of its own
(benchmarks/peers/README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.alternate import table

from looptool_jax.data.store import read_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES, Category, category_files, choose_categories
from looptool_jax.evaluation.bfcl.services import FILES

MAIN = "from looptool_jax.cli import main; main()"
CATEGORIES_BY_DEFAULT = "simple_python,multiple,parallel,irrelevance,live_simple,multi_turn_base"
FAILED = "Error during inference"


@dataclass(frozen=True)
class Arm:
    """A way to ask. model: of the released program's list. served: the name that its requests have. options: of
    `bfcl generate`. base_url: the variable that holds the server's address."""

    name: str
    model: str
    served: str
    options: tuple[str, ...]
    base_url: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--model", default="nano/policy")
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--categories", default=CATEGORIES_BY_DEFAULT)
    parser.add_argument("--rows", type=int, default=5, help="of each category")
    parser.add_argument("--arms", default="chat,completions")
    parser.add_argument("--positions", type=int, help="of the model, where rows need more than it was trained on")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    bfcl = args.peers.absolute() / "bfcl-cli" / "bin" / "bfcl"
    [data] = bfcl.parent.parent.glob("lib/python*/site-packages/bfcl_eval/data")
    categories = choose_categories(args.categories.split(","))
    sized = ["--config", args.config, *args.overrides]
    with tempfile.TemporaryDirectory() as folder:
        model, own, chosen = f"{folder}/model", f"{folder}/own", Path(folder, "bfcl_eval", "data")
        ids = {each.name: choose(data, each, args.rows, chosen) for each in categories}
        looptool("export", "--model", args.model, "--out", model)
        if args.positions:
            description = Path(model, "config.json")
            known = json.loads(description.read_text())
            description.write_text(json.dumps({**known, "max_position_embeddings": args.positions}))
        looptool("eval", "bfcl", "--model", model, "--data", str(chosen), "--categories", args.categories,
                 "--out", own, *sized)  # fmt: skip
        results = {row["id"]: row for row in read_jsonl(f"{own}/results.jsonl")}
        chat = "openbmb/MiniCPM-SALA-FC"
        arms = [
            Arm("chat", chat, chat, (), "OPENAI_BASE_URL"),
            Arm("completions", "Qwen/Qwen3-0.6B-FC", model, ("--skip-server-setup", "--local-model-path", model),
                "REMOTE_OPENAI_BASE_URL"),
        ]  # fmt: skip
        lines = []
        for arm in arms:
            if arm.name in args.arms.split(","):
                project = Path(folder, arm.name)
                with_server(arm, model, sized, bfcl, project, ids)
                lines += [[arm.name, *line] for line in compared(project, arm, ids, results)]
    print(
        table(["asked by", "category", "rows", "failed", "bfcl evaluate", "looptool eval bfcl", "same verdict"], lines)
    )


def choose(data: Path, category: Category, count: int, chosen: Path) -> list[str]:
    """The rows of a category with the shortest documents, by id; their lines and the services go into `chosen`."""

    def size(line: str) -> int:
        services = json.loads(line).get("involved_classes", ())
        return len(line) + sum(
            (data / "multi_turn_func_doc" / f"{FILES[name]}.json").stat().st_size for name in services
        )

    file, *labels = category_files(data, category)
    ids = [json.loads(line)["id"] for line in sorted(file.read_text().splitlines(), key=size)[:count]]
    for source in (file, *labels):
        target = chosen / source.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            "".join(f"{line}\n" for line in source.read_text().splitlines() if json.loads(line)["id"] in ids)
        )
    for shared, place in ((data / "multi_turn_func_doc", chosen), (data.parent / "eval_checker", chosen.parent)):
        if not (place / shared.name).exists():
            (place / shared.name).symlink_to(shared)
    return ids


def looptool(*words: str) -> None:
    subprocess.run([sys.executable, "-c", MAIN, *words], check=True, stdout=subprocess.DEVNULL, env=on_cpu())


def on_cpu(**more: str) -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", **more}


def with_server(arm: Arm, model: str, sized: list[str], bfcl: Path, project: Path, ids: dict[str, list[str]]) -> None:
    """`bfcl generate` and `bfcl evaluate` in the folder `project`, while a server is there."""
    project.mkdir()
    (project / "test_case_ids_to_generate.json").write_text(json.dumps(ids))
    command = [sys.executable, "-c", MAIN, "serve", "--model", model, "--name", arm.served, "--port", "0", *sized]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=on_cpu())
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].strip()
        env = {**os.environ, "BFCL_PROJECT_ROOT": str(project), "OPENAI_API_KEY": "none", arm.base_url: url}
        env["PYTHONPATH"] = ""
        options = ("--temperature", "0", "--num-threads", "8", "--run-ids", *arm.options)
        subprocess.run([bfcl, "generate", "--model", arm.model, *options], check=True, env=env, stdout=sys.stderr)
        chosen = ("--test-category", ",".join(ids), "--partial-eval")
        subprocess.run([bfcl, "evaluate", "--model", arm.model, *chosen], check=True, env=env, stdout=sys.stderr)
    finally:
        server.terminate()
        server.wait()


def compared(project: Path, arm: Arm, ids: dict[str, list[str]], own: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A line a category: rows, requests that failed, the released program's accuracy, ours, rows of equal verdict."""
    lines = []
    for name, rows in ids.items():
        place = Path(arm.model.replace("/", "_"), CATEGORIES[name].group)
        written = list(read_jsonl(str(project / "result" / place / f"BFCL_v4_{name}_result.json")))
        assert sorted(row["id"] for row in written) == sorted(rows)
        failed = sum(FAILED in json.dumps(row["result"]) for row in written)
        score, *wrong = read_jsonl(str(project / "score" / place / f"BFCL_v4_{name}_score.json"))
        theirs = {id_: id_ not in {row["id"] for row in wrong} for id_ in rows}
        ours = {id_: own[id_]["correct"] for id_ in rows}
        same = sum(theirs[id_] == ours[id_] for id_ in rows)
        accuracy = (f"{100 * value:.0f} %" for value in (score["accuracy"], sum(ours.values()) / len(rows)))
        lines.append([name, f"{len(rows)}", f"{failed}", *accuracy, f"{same} of {len(rows)}"])
    return lines


if __name__ == "__main__":
    main()
