"""Our ACEBench verdicts beside those of the released evaluation, answer by answer.

    python benchmarks/acebench_parity.py --checkout DIR [--mutations 20000] [--tasks 2000] [--seed 0]

DIR is a checkout of ACEBench/ACEBench at commit 56dd66c; its scorer runs in a process of its own, on its own rows. The
answers are the label of each Normal and Special row, and seeded mutations of labels: other values and types, arguments
dropped, added and renamed, functions renamed, calls reordered, dropped and doubled, text broken. A third is against
rows whose labels or documents are changed too, for rules that the benchmark's own rows do not need. Beside that agent
tasks with changed steps, executed by the checkout's executor and by ours.
"""

from __future__ import annotations

import argparse
import copy
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from bfcl_parity import other_value
from peers.alternate import table

from looptool_jax.data.store import read_jsonl, write_jsonl
from looptool_jax.evaluation.acebench import agent
from looptool_jax.evaluation.acebench.data import (
    AceRow,
    Category,
    choose_categories,
    data_folder,
    gold_calls,
    read_category,
)
from looptool_jax.toolcall import AceTarget, Call
from looptool_jax.toolcall.acebench_match import match_official_text, official_calls, properties_of, write_calls

HERE = Path(__file__).parent
TYPES = ("string", "integer", "float", "boolean", "array", "tuple", "dict", "any", "list", "object", "objectArray",
         "list(string)", "list(enum)", "int", "enum", "number", "date")  # fmt: skip
Case = tuple[Category, AceRow, AceTarget, str, str]  # category, row, what it wants, answer, what was done to it


def change_calls(calls: list[Call], target: AceTarget, rng: random.Random) -> str:
    """Change one thing of the calls, in place; returns what."""
    place = rng.randrange(len(calls))
    call = calls[place]
    arguments = copy.deepcopy(call.arguments)
    documents = [function for function in target.functions if function["name"] == call.name]
    kind = rng.choice(("value",) * 5 + ("dropped", "added", "renamed", "function", "calls"))
    key = rng.choice(list(arguments)) if arguments else ""
    if kind == "value" and key:
        arguments[key] = other_value(arguments[key], rng)
    elif kind == "dropped" and key:
        del arguments[key]
    elif kind == "added":
        new = rng.choice([*(properties_of(documents[0]) if documents else ()), "extra"])
        arguments[new] = rng.choice((1, "x", True, [], {}, None))
    elif kind == "renamed" and key:
        arguments[rng.choice((key.upper(), f"{key}_", f"{key} x"))] = arguments.pop(key)
    elif kind == "function":
        names = [function["name"] for function in target.functions]
        call = Call(rng.choice((f"{call.name}_2", call.name.upper(), call.name[:-1], *names)), arguments)
    elif kind == "calls":
        match rng.randrange(4):
            case 0:
                calls.pop(place)
            case 1:
                calls.append(rng.choice(calls))
            case 2:
                calls[rng.randrange(len(calls))] = call
            case _:
                rng.shuffle(calls)
        return kind
    calls[place] = Call(call.name, arguments)
    return kind


def break_text(text: str, rng: random.Random) -> str:
    place = rng.randrange(len(text) + 1)
    return rng.choice((
        text[:place], text[:place] + text[place + 1 :], f"Of course: {text}", f"{text} Done.", text.strip("[]"), "",
        text.upper(), text.lower(), text.replace(" ", ""), text.replace(" ", "\n "), f"[{text}]", f"{text}{text}",
        f"```\n{text}\n```", text.replace("'", '"'), text.replace("=", ": "), text.replace("(", "(1, ", 1), "[]",
        text[:place] + rng.choice("[](){}'\",=") + text[place:], text.replace("True", "true"), text.replace("_", " "),
        text.replace("necessary ", ""), text.replace("value", "values"), f'["{text}"]', text[::-1],
    ))  # fmt: skip


def change_target(target: AceTarget, rng: random.Random) -> AceTarget:
    """Another labelled value, another documented type, or more accepted answers."""
    target = copy.deepcopy(target)
    label = rng.choice(target.labels)
    name = rng.choice(list(label))
    wanted = label[name]
    documents = [function for function in target.functions if function["name"] in name]
    documented = properties_of(documents[0]) if documents else {}
    match rng.randrange(4):
        case 0 if wanted:
            key = rng.choice(list(wanted))
            wanted[key] = other_value(wanted[key], rng)
        case 1 | 2 if documented:
            document = documented[rng.choice(list(documented))]
            document["type"] = rng.choice(TYPES)
            document["items"] = rng.choice(({"type": rng.choice(TYPES)}, {}, None))
        case _:
            other = copy.deepcopy(label)
            other[name] = {}
            return replace(target, labels=tuple(rng.sample((*target.labels, other), len(target.labels) + 1)))
    return target


def mutated(target: AceTarget, gold: str, rng: random.Random) -> tuple[str, str]:
    kinds, text = [], gold
    if target.kind == "calls":
        calls = list(gold_calls(target))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if calls:
                kinds.append(change_calls(calls, target, rng))
        text = write_calls(calls)
    if target.kind != "calls" or rng.random() < 0.15:
        text = break_text(text, rng)
        kinds.append("text")
    return text, kinds[0] if len(set(kinds)) == 1 else "several"


def cases(rows: dict[Category, list[AceRow]], mutations: int, seed: int) -> list[Case]:
    rng = random.Random(seed)
    out = [(category, row, row.target, row.gold, "label") for category, part in rows.items() for row in part]
    for _ in range(mutations):
        category = rng.choice(list(rows))
        row = rng.choice(rows[category])
        text, kind = mutated(row.target, row.gold, rng)
        target = row.target
        if target.kind == "calls" and rng.random() < 1 / 3:
            target, kind = change_target(target, rng), f"{kind} + row"
        out.append((category, row, target, text, kind))
    return out


def for_theirs(case: Case) -> dict[str, Any]:
    category, row, target, text, _ = case
    truth: Any = list(target.labels) if len(target.labels) > 1 else target.labels[0]
    question = {"id": row.sample.id, "question": "", "function": list(target.functions)}
    return {"category": category.name, "row": question, "label": {"ground_truth": truth}, "text": text}


def changed_way(way: list[str], other: list[str], rng: random.Random) -> list[str]:
    """The answers of a task: a label's own, with steps left out, doubled, reordered, broken or with other values."""
    steps = [text.strip() for text in way]  # a space behind it ends the reading there
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        place = rng.randrange(len(steps) + 1)
        calls = official_calls(steps[place].strip()) if place < len(steps) else None
        match rng.randrange(6):
            case 0:
                steps[place : place + 1] = []
            case 1:
                steps.insert(place, rng.choice(other))
            case 2:
                rng.shuffle(steps)
            case 3:
                steps.insert(place, rng.choice(("No.", "[nothing(x=1)]", "[login_device()]", "[turn_on_wifi(x=1)]")))
            case _ if calls:
                for call in calls:
                    for key, value in call.arguments.items():
                        if isinstance(value, (str, int)) and rng.random() < 0.5:
                            call.arguments[key] = other_value(value, rng)
                steps[place] = write_calls(calls)
    return steps


def agent_cases(folder: Path, count: int, seed: int) -> list[tuple[agent.AgentRow, list[str], dict[str, Any]]]:
    """Tasks, answers to them, and the cases for the released evaluation."""
    files = (folder / f"data_{agent.NAME}.json", folder / "possible_answer" / f"data_{agent.NAME}.json")
    raw = list(zip(agent.read_rows(folder), *(list(read_jsonl(file)) for file in files), strict=True))
    steps = [text.strip() for row, _, _ in raw for way in row.milestones for text in way]
    rng, out = random.Random(seed), []
    for number in range(count):
        row, question, label = raw[number % len(raw)]
        answers = changed_way(list(rng.choice(row.milestones)), steps, rng)
        case = {"category": agent.NAME, "row": question, "label": label, "text": answers}
        out.append((row, answers, case))
    return out


def our_task(row: agent.AgentRow, answers: list[str], classes: dict[str, type]) -> tuple[bool, float]:
    """Our verdict and the share of milestones met; the released harness counts every answer as a call of something."""
    scenario = agent.Scenario(row, classes)
    for text in answers:
        calls = official_calls(text.strip())
        if calls:
            scenario.call(calls, text)
    if scenario.called:
        scenario.called = answers
    return agent.official_match(scenario, row), agent.milestones_met(scenario, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--tasks", type=int, default=2_000, help="agent tasks with changed answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="most differences that are printed whole")
    args = parser.parse_args()
    folder = data_folder(str(args.checkout))
    rows = {category: read_category(folder, category) for category in choose_categories(["normal", "special"])}
    answers = cases(rows, args.mutations, args.seed)
    tasks = agent_cases(folder, args.tasks, args.seed)
    with tempfile.TemporaryDirectory() as work:
        write_jsonl(f"{work}/cases.jsonl", [*map(for_theirs, answers), *(case for _, _, case in tasks)])
        checker = HERE / "peers" / "check_acebench.py"
        subprocess.run([sys.executable, checker, args.checkout.absolute(), work], check=True)
        verdicts = list(read_jsonl(f"{work}/verdicts.jsonl"))
    counts: dict[str, Counter[str]] = {}
    differences = 0
    for (category, row, target, text, kind), theirs in zip(answers, verdicts, strict=False):
        ours = match_official_text(text, target)
        for name in (category.name, f"~ {kind}"):
            counts.setdefault(name, Counter()).update({
                "answers": 1, "right": theirs["ok"], "crashes": bool(theirs["why"]), "agree": ours.ok == theirs["ok"],
            })  # fmt: skip
        if ours.ok != theirs["ok"]:
            differences += 1
            if differences <= args.show:
                print(f"{row.sample.id}: {kind}: theirs {theirs}, ours {ours}\n  {text!r}\n  {target.labels}")
    head = ["answers", "right", "crashes", "agree"]
    print(table(["", *head], [[name, *(f"{found[key]}" for key in head)] for name, found in sorted(counts.items())]))
    print(f"\n{len(answers)} answers, {len(answers) - differences} equal verdicts")
    classes, unequal, right = agent.scenario_classes(folder) or {}, 0, 0
    for (row, steps, _), theirs in zip(tasks, verdicts[len(answers) :], strict=True):
        ok, met = our_task(row, steps, classes)
        right += theirs["ok"]
        if ok != theirs["ok"] or round(met, 3) != theirs["process"]:
            unequal += 1
            if unequal <= args.show:
                print(f"{row.sample.id}: theirs {theirs}, ours {ok} {met}\n  {steps}")
    print(f"{len(tasks)} tasks ({right} right), {len(tasks) - unequal} equal verdicts and milestones")


if __name__ == "__main__":
    main()
