"""Our verdicts on BFCL dialogues beside those of the released evaluation, dialogue by dialogue.

    python benchmarks/bfcl_multi_turn_parity.py --peers DIR [--mutations 8000] [--seed 0]

The dialogues make the calls of the label of every multi-turn row, and seeded mutations of them: calls dropped, doubled,
swapped, moved to another turn, added, renamed, with other arguments or strings, broken, in other steps; turns emptied,
dropped and added. Both sides read them from the same texts. The released evaluation runs in an environment of its own
(benchmarks/peers/README.md), on its own copy of rows and services.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bfcl_parity import break_text, count_verdict, other_string, other_value, print_verdicts, written

from looptool_jax.data.store import read_jsonl, write_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES
from looptool_jax.evaluation.bfcl.multi_turn import MultiTurnRow, match_multi_turn, read_multi_turn
from looptool_jax.toolcall import Tool

HERE = Path(__file__).parent
Call = dict[str, Any]
Dialogue = list[list[list[Call]]]  # calls of each step of each turn
DONE = ("Done.", "", "I need to know more.", "<think>\nDone?\n</think>\n\nDone.")


def tools(row: MultiTurnRow) -> dict[str, Tool]:
    return {tool.name: tool for tool in (*row.tools, *(tool for part in row.added.values() for tool in part))}


def right(row: MultiTurnRow) -> Dialogue:
    """The calls of the label, each a step; arguments by place get the names of the document."""
    documented, turns = tools(row), []
    for wanted in row.labels:
        steps = []
        for text in wanted:
            call = ast.parse(text, mode="eval").body
            assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            arguments = dict(zip(documented[call.func.id].properties, map(ast.literal_eval, call.args), strict=False))
            arguments |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            steps.append([{"name": call.func.id, "arguments": arguments}])
        turns.append(steps)
    return turns


def texts(dialogue: Dialogue, rng: random.Random | None = None) -> list[list[str]]:
    """The answers of each turn, one without a call at its end."""
    return [[*map(written, turn), rng.choice(DONE) if rng else DONE[0]] for turn in dialogue]


def change_calls(dialogue: Dialogue, row: MultiTurnRow, rng: random.Random) -> str:
    """One change of which calls there are, and when."""
    full = [turn for turn in dialogue if turn]
    if not full:
        return "nothing"
    turn = rng.choice(full)
    place = rng.randrange(len(turn))
    match rng.choice(("dropped", "dropped", "doubled", "swapped", "swapped", "moved", "merged", "turn emptied")):
        case "dropped":
            del turn[place]
            return "call dropped"
        case "doubled":
            turn.insert(rng.randrange(len(turn) + 1), json.loads(json.dumps(turn[place])))
            return "call doubled"
        case "swapped":
            other = rng.randrange(len(turn))
            turn[place], turn[other] = turn[other], turn[place]
            return "calls swapped"
        case "moved":
            step = turn.pop(place)
            other_turn = rng.choice(dialogue)
            other_turn.insert(rng.choice((0, len(other_turn))), step)
            return "call moved"
        case "merged":
            turn[:] = [[call for step in turn for call in step]]
            return "steps merged"
        case _:
            turn.clear()
            return "turn emptied"


def add_call(dialogue: Dialogue, row: MultiTurnRow, rng: random.Random) -> str:
    """A call of any function, those held back and one that is not there included."""
    documented = tools(row)
    name = rng.choice([*documented, *(tool.name for part in row.added.values() for tool in part), "no_function"])
    said = [value for turn in dialogue for step in turn for call in step for value in call["arguments"].values()]
    properties = documented[name].properties if name in documented else {"x": {}}
    arguments = {}
    for key, schema in properties.items():
        plain = {"integer": 1, "number": 1.5, "boolean": True, "array": ["a"], "object": {}}.get(
            schema.get("type"), "a"
        )
        fitting = [value for value in said if type(value) is type(plain)]
        arguments[key] = rng.choice([plain, *fitting, *fitting])
    turn = rng.choice(dialogue)
    turn.insert(rng.randrange(len(turn) + 1), [{"name": name, "arguments": arguments}])
    return "call added"


def change_call(dialogue: Dialogue, row: MultiTurnRow, rng: random.Random) -> str:
    """One change inside a call."""
    calls = [call for turn in dialogue for step in turn for call in step]
    if not calls:
        return "nothing"
    call = rng.choice(calls)
    arguments = call["arguments"]
    key = rng.choice(list(arguments)) if arguments else ""
    match rng.randrange(9):
        case 0:
            arguments[rng.choice(("extra", "not a name", key.upper(), "x=1, y"))] = 1
            return "argument added"
        case 1 if key:
            del arguments[key]
            return "argument dropped"
        case 2:
            name = call["name"]
            call["name"] = rng.choice((f"{name}2", name.upper(), f"Service.{name}", *tools(row)))
            return "function renamed"
        case 3 if key and isinstance(arguments[key], str):
            word = rng.choice([*tools(row), "word"])
            arguments[key] += rng.choice((f" {word} (x)", f" {word}(", " (draft)", f"{word}  ()"))
            return "brackets in a string"
        case 4 if key and isinstance(arguments[key], str):
            arguments[key] = other_string(arguments[key], rng)
        case _ if key:
            arguments[key] = other_value(arguments[key], rng)
        case _:
            return "nothing"
    return "value"


def change_texts(turns: list[list[str]], rng: random.Random) -> str:
    """One change of what is said."""
    number = rng.randrange(len(turns))
    match rng.randrange(6):
        case 0:
            del turns[number]
            return "turn dropped"
        case 1:
            turns.insert(number, ["Done."])
            return "turn added"
        case 2:
            turns[number] = []
            return "turn without an answer"
        case 3:
            place = rng.randrange(len(turns[number]))
            turns[number][place] = (
                turns[number][place].replace('"arguments": {', '"arguments": "{').replace("}}", '}"}')
            )
            return "text"
        case _:
            place = rng.randrange(len(turns[number]))
            turns[number][place] = break_text(turns[number][place], rng).rpartition("</think>")[2]
            return "text"


def mutated(row: MultiTurnRow, rng: random.Random) -> tuple[list[list[str]], str]:
    dialogue, kinds = right(row), []
    for change in rng.choices((change_calls, add_call, change_call), (4, 3, 4), k=rng.choice((0, 1, 1, 1, 2, 3))):
        kinds.append(change(dialogue, row, rng))
    turns = texts(dialogue, rng)
    if not kinds or rng.random() < 0.1:
        kinds.append(change_texts(turns, rng))
    return [[answer.rpartition("</think>")[2].lstrip("\n") for answer in turn] for turn in turns], " + ".join(kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--mutations", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="most differences that are printed whole")
    args = parser.parse_args()
    python = args.peers.absolute() / "bfcl" / "bin" / "python"
    [data] = python.parent.parent.glob("lib/python*/site-packages/bfcl_eval/data")
    rows = [
        (index, row)
        for category in CATEGORIES.values()
        if category.kind == "multi_turn"
        for index, row in enumerate(read_multi_turn(data, category))
    ]
    rng = random.Random(args.seed)
    cases = [(index, row, texts(right(row)), "right") for index, row in rows]
    for _ in range(args.mutations):
        index, row = rng.choice(rows)
        cases.append((index, row, *mutated(row, rng)))
    with tempfile.TemporaryDirectory() as folder:
        sent = [{"category": row.category, "index": index, "turns": turns} for index, row, turns, _ in cases]
        write_jsonl(f"{folder}/cases.jsonl", sent)
        subprocess.run([python, HERE / "peers" / "check_bfcl.py", folder], check=True, stdout=subprocess.DEVNULL)
        verdicts = list(read_jsonl(f"{folder}/verdicts.jsonl"))
    counts: dict[str, Counter[str]] = {}
    unequal = 0
    for (_, row, turns, kind), theirs in zip(cases, verdicts, strict=True):
        ours, fair = match_multi_turn(row, turns), match_multi_turn(row, turns, "fixed")
        count_verdict(counts, row.category, kind, theirs, ours, fair)
        if ours.ok != theirs["ok"]:
            unequal += 1
            if unequal <= args.show:
                print(f"{row.id}: {kind}: theirs {theirs}, ours {ours}\n  {turns}\n  {row.labels}")
    print_verdicts(counts)
    print(f"{len(cases)} dialogues, {len(cases) - unequal} equal verdicts")


if __name__ == "__main__":
    main()
