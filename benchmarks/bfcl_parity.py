"""Our BFCL verdicts beside those of the released evaluation, answer by answer.

    python benchmarks/bfcl_parity.py --peers DIR [--mutations 20000] [--texts 200000] [--seed 0]
    python benchmarks/bfcl_parity.py --peers DIR --results FILE

The answers are a right one for every single-turn row, and seeded mutations of right ones: other types, strings, numbers
and source text, arguments dropped, added and renamed, functions renamed, calls reordered, dropped, doubled and broken.
A third is held against rows whose labels or documents are changed too, for rules that the benchmark's own rows do not
need. Beside that, what both take random Java and JavaScript texts for. With --results, a model's answers in place of
all that: the single-turn rows of a results.jsonl that `looptool eval bfcl` wrote. The released evaluation runs in an
environment of its own (benchmarks/peers/README.md), on its own copy of the rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers.alternate import table

from looptool_jax.data.store import read_jsonl, write_jsonl
from looptool_jax.evaluation.bfcl.data import CATEGORIES, BfclRow, Category, read_category, reference_call
from looptool_jax.toolcall import Match, match_bfcl
from looptool_jax.toolcall.bfcl_literals import official_value

HERE = Path(__file__).parent
Calls = list[dict[str, Any]]
Answer = tuple[Category, int, BfclRow, str, str]  # category, place in it, row, text, what was done to it
FRAGMENTS = {
    "java": (
        "new ArrayList<", ">", "new ArrayList<>(Arrays.asList(", "))", ")", " ", "\n", ",", ", ", '"a"', "'b'", '"',
        "1", "-2L", "3.5f", "1e3", "new ArrayList<>() {{", "add(", 'put("k", ', "}}", "}", "{", "new int[]{", ";",
        "new String[] {", "new HashMap<String, Object>()", "new HashMap<>() {{ ", "x", "()",
    ),
    "javascript": (
        "[", "[[", "]", "]]", "{", "}", ":", ",", ", ", " ", "\n", '"', "'", '"a"', "'b'", "1", "2n", "3.5", "x",
        "new Array(", ")", "key: ", "{a: ", "-", "nan", "], [", ", b: ",
    ),
}  # fmt: skip
ENDS = {
    "Array": [("new int[]{", "}")],
    "ArrayList": [("new ArrayList<>(Arrays.asList(", "))"), ("new ArrayList<>() {{ ", "}}")],
    "HashMap": [("new HashMap<>() {{ ", "}}")],
    "array": [("[", "]"), ("[[", "]]"), ("new Array(", ")")],
    "dict": [("{", "}")],
}
TYPES = {
    "python": ("string", "integer", "float", "boolean", "array", "tuple", "dict", "any"),
    "java": (
        "byte",
        "integer",
        "long",
        "float",
        "double",
        "boolean",
        "char",
        "Array",
        "ArrayList",
        "HashMap",
        "String",
    ),
    "javascript": ("String", "integer", "float", "Bigint", "Boolean", "dict", "array", "any"),
}


def right_calls(row: BfclRow, rng: random.Random | None = None) -> Calls:
    """A right answer; with `rng` optional parameters may be there, and other accepted values."""
    calls = []
    for want in row.target.calls:
        accepted = want.accepted
        if rng is not None:
            accepted = {key: rng.sample(values, len(values)) for key, values in accepted.items()}
        shuffled = type(want)(want.name, accepted)
        calls.append(reference_call(shuffled, row.target, rng is not None and rng.random() < 0.5).to_json())
    return calls


def written(calls: Calls) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def other_string(text: str, rng: random.Random) -> Any:
    place = rng.randrange(len(text) + 1)
    return rng.choice((
        text.upper(), text.title(), f" {text}", f"{text}.", text.replace(" ", "-"), text.replace("'", '"'),
        text[:place] + rng.choice(" ,./-_*^'\"\n:[]{}()") + text[place:], text[:place] + text[place + 1 :], f"{text} x",
        f'"{text}"', f"'{text}'", "", " ", "-", text[::-1], f"-{text}", f"{text}L", f"{text}f", f"{text}n", f"{text}.0",
        text.replace(",", ", "), text.replace(", ", ","), text.replace('"', "'"), text.replace('"', ""),
        text.replace("{", "{\n"), text.replace("Arrays.asList", "List.of"), text.replace("ArrayList<", "ArrayList<x"),
        text.replace("(Arrays.asList(", "() {{ add(").replace("))", "); }}"), text.replace("[]{", "[] { "),
        text.replace("[", "new Array(").replace("]", ")"), f"[{text}]", f"[{text}, {text}]", f"{{{text}}}",
        f"{{a: {text}}}", text.replace(":", ": ["), text.replace("[", "[["), text.replace("]", "]]"), [text],
        {"value": text}, None, 1, True, text.split(" "), f"{text},", f"new int[]{{{text}}}", text.lower(), "true",
    ))  # fmt: skip


def other_number(value: float, rng: random.Random) -> Any:
    return rng.choice((value + 1, -value, float(value), int(value), str(value), value * 10, bool(value), [value], None,
                       {"value": value}, value + 0.5, f"{value}.0"))  # fmt: skip


def other_value(value: Any, rng: random.Random) -> Any:
    """Another value, or the same one otherwise written."""
    if isinstance(value, bool):
        return rng.choice((not value, int(value), str(value).lower(), str(value), float(value), None, [value]))
    if isinstance(value, (int, float)):
        return other_number(value, rng)
    if isinstance(value, str):
        return other_string(value, rng)
    if isinstance(value, list):
        return other_list(value, rng)
    if isinstance(value, dict):
        return other_object(value, rng)
    return rng.choice((False, "", 0, "null"))


def other_list(values: list[Any], rng: random.Random) -> Any:
    changed = list(values)
    place = rng.randrange(len(values)) if values else 0
    match rng.randrange(8):
        case 0:
            return changed[::-1]
        case 1:
            return changed[:place] + changed[place + 1 :]
        case 2:
            return [*changed, *changed[place : place + 1]]
        case 3:
            return rng.choice(([], "", json.dumps(values), {"value": values}, [values], values[:1]))
        case 4:
            return [other_value(value, rng) for value in values]
        case _:
            changed[place : place + 1] = [other_value(value, rng) for value in changed[place : place + 1]]
            return changed


def other_object(value: dict[str, Any], rng: random.Random) -> Any:
    changed = dict(value)
    key = rng.choice(list(value)) if value else "key"
    match rng.randrange(6):
        case 0:
            changed.pop(key, None)
        case 1:
            changed[rng.choice(("extra", key.upper(), key[:-1]))] = changed.get(key, 1)
        case 2:
            return rng.choice(({}, [value], [], json.dumps(value), list(value)))
        case _:
            changed[key] = other_value(changed.get(key), rng)
    return changed


def change_value(calls: Calls, row: BfclRow, rng: random.Random) -> None:
    arguments = rng.choice(calls)["arguments"]
    if arguments:
        key = rng.choice(list(arguments))
        arguments[key] = other_value(arguments[key], rng)
        if row.target.language != "python" and rng.random() < 0.3:
            arguments[key] = "".join(rng.choices(FRAGMENTS[row.target.language], k=rng.randrange(1, 10)))


def drop_argument(calls: Calls, row: BfclRow, rng: random.Random) -> None:
    arguments = rng.choice(calls)["arguments"]
    if arguments:
        del arguments[rng.choice(list(arguments))]


def add_argument(calls: Calls, row: BfclRow, rng: random.Random) -> None:
    """A documented one with its default, a documented one with anything, or one that nobody knows."""
    call = rng.choice(calls)
    documents = [each["parameters"]["properties"] for each in row.target.functions if each["name"] == call["name"]]
    documented = documents[0] if documents else {}
    key = rng.choice([*documented, "extra"])
    default = documented.get(key, {}).get("default", "")
    call["arguments"][key] = rng.choice((default, other_value(default, rng)))


def rename_argument(calls: Calls, row: BfclRow, rng: random.Random) -> None:
    arguments = rng.choice(calls)["arguments"]
    if arguments:
        key = rng.choice(list(arguments))
        arguments[rng.choice((key.upper(), f"{key}_", key.replace("_", "")))] = arguments.pop(key)


def rename_function(calls: Calls, row: BfclRow, rng: random.Random) -> None:
    call = rng.choice(calls)
    name = call["name"]
    others = [function["name"] for function in row.target.functions]
    call["name"] = rng.choice((name.replace(".", "_"), name.upper(), name.rpartition(".")[2], f"{name}2", *others))


def change_calls(calls: Calls, row: BfclRow, rng: random.Random) -> None:
    """Another order or number."""
    match rng.randrange(5):
        case 0:
            calls.pop(rng.randrange(len(calls)))
        case 1:
            calls.append(copy.deepcopy(rng.choice(calls)))
        case 2:
            calls[rng.randrange(len(calls))] = copy.deepcopy(rng.choice(calls))
        case _:
            rng.shuffle(calls)


def break_text(text: str, rng: random.Random) -> str:
    place = rng.randrange(len(text) + 1)
    return rng.choice((
        text[:place], text[:place] + text[place + 1 :], text.replace("\n</tool_call>", "</tool_call>"),
        text.replace("<tool_call>\n", "<tool_call>"), f"<think>\n{text}\n</think>\n\n{text}",
        f"<think>\n{text}\n</think>\n\nNo.", f"<think>\n{text}", f"Of course.\n{text}", f"{text}\nDone.",
        text.replace('"arguments"', '"parameters"'), text.replace('"name"', '"function"'), text.replace("}\n", "}}\n"),
        text.replace('"arguments": {', '"arguments": "{'), f"<tool_call>\n[]\n</tool_call>\n{text}",
        f"{text}\n<tool_call>\nnonsense\n</tool_call>", f"<tool_call>\n{{}}\n</tool_call>\n{text}", "", "No.",
        text.replace('"arguments": {', '"arguments": null, "x": {'), f"{text}\n<tool_call>", text.replace("\n", "\r\n"),
        text.replace('"arguments": {', '"arguments": {}, "arguments": {'),
    ))  # fmt: skip


MUTATIONS: dict[str, Callable[[Calls, BfclRow, random.Random], None]] = {
    "value": change_value,
    "argument dropped": drop_argument,
    "argument added": add_argument,
    "argument renamed": rename_argument,
    "function renamed": rename_function,
    "calls": change_calls,
}
WEIGHTS = (10, 2, 2, 1, 1, 2)


def change_label(row: BfclRow, rng: random.Random) -> BfclRow:
    """Other accepted values of a parameter, those of another call beside its own, or another documented type."""
    target = copy.deepcopy(row.target)
    want, other = rng.choice(target.calls), rng.choice(target.calls)
    function = rng.choice([each for each in target.functions if each["name"] == want.name])
    documented = function["parameters"]["properties"]
    way = rng.randrange(4)
    if want.accepted and way < 2:
        key = rng.choice(list(want.accepted))
        values = want.accepted[key]
        changed = other_value(rng.choice(values), rng) if values else 1
        values.insert(rng.randrange(len(values) + 1), rng.choice((changed, changed, "", "x", "[x]")))
        if rng.random() < 0.2:
            want.accepted[key] = rng.choice((values[:1], [value for value in values if value != ""]))
    elif documented and way == 2:
        document = documented[rng.choice(list(documented))]
        document["type"] = rng.choice(TYPES[target.language])
        document.setdefault("items", {})["type"] = rng.choice(TYPES[target.language])
    elif other.name == want.name:
        for key in want.accepted.keys() & other.accepted.keys():
            want.accepted[key] += copy.deepcopy(other.accepted[key])
        target = replace(target, calls=tuple(rng.sample(target.calls, len(target.calls))))
    return replace(row, target=target)


def mutated(row: BfclRow, rng: random.Random) -> tuple[str, str]:
    """An answer and what was done to it."""
    calls, kinds = right_calls(row, rng), []
    if not calls:
        names = [function["name"] for function in row.target.functions] or ["f"]
        calls = [{"name": rng.choice(names), "arguments": {"x": 1}}]
    for kind in rng.choices(list(MUTATIONS), WEIGHTS, k=rng.choice((1, 1, 1, 2, 3))):
        if calls:
            MUTATIONS[kind](calls, row, rng)
            kinds.append(kind)
    text = written(calls)
    if rng.random() < 0.1 or not row.target.calls:
        text = break_text(text, rng)
        kinds.append("text")
    return text, " + ".join(sorted(set(kinds)))


def single_turn(folder: Path) -> list[tuple[Category, int, BfclRow]]:
    """The rows, with their categories and places in them."""
    return [
        (category, index, row)
        for category in CATEGORIES.values()
        if category.kind != "multi_turn"
        for index, row in enumerate(read_category(folder, category))
    ]


def answered(folder: Path, results: Path) -> list[Answer]:
    """A model's answers."""
    given = {row["id"]: row["answer"] for row in read_jsonl(results) if isinstance(row["answer"], str)}
    rows = [(*place, row) for *place, row in single_turn(folder) if row.sample.id in given]
    return [(category, index, row, given[row.sample.id], "given") for category, index, row in rows]


def cases(folder: Path, mutations: int, seed: int) -> list[Answer]:
    rows = single_turn(folder)
    out = [(category, index, row, written(right_calls(row)), "right") for category, index, row in rows]
    rng = random.Random(seed)
    by_category: dict[str, list[tuple[Category, int, BfclRow]]] = {}
    for category, index, row in rows:
        by_category.setdefault(category.name, []).append((category, index, row))
    for _ in range(mutations):  # small categories have rules of their own: each is drawn as often as any other
        category, index, row = rng.choice(by_category[rng.choice(list(by_category))])
        if changed := bool(row.target.calls) and rng.random() < 1 / 3:
            row = change_label(row, rng)
        text, kind = mutated(row, rng)
        out.append((category, index, row, text, f"{kind} + label" if changed else kind))
    return out


def case(answer: Answer) -> dict[str, Any]:
    """An answer for the released evaluation, with the row where it is not the benchmark's own."""
    category, index, row, text, kind = answer
    out = {"category": category.name, "index": index, "text": text}
    if kind.endswith("label"):
        out["functions"] = list(row.target.functions)
        out["labels"] = [{want.name: want.accepted} for want in row.target.calls]
    return out


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Source text put together at random, and a type that it is read under."""
    rng, out = random.Random(seed), []
    for _ in range(count):
        language = rng.choice(("java", "javascript"))
        kind, item = rng.choice(TYPES[language]), rng.choice((None, *TYPES[language]))
        text = "".join(rng.choices(FRAGMENTS[language], k=rng.randrange(1, 12)))
        opening, closing = rng.choice([*ENDS.get(kind, ()), ("", "")])
        out.append({"language": language, "type": kind, "item": item if "rray" in kind else None,
                    "text": f"{opening}{text}{closing}"})  # fmt: skip
    return out


def ours_of(text: dict[str, Any]) -> str:
    try:
        return repr(official_value(text["text"], text["type"], text["item"], text["language"]))
    except ValueError:
        return "crash"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="of `looptool eval bfcl`")
    parser.add_argument("--show", type=int, default=5, help="most differences of a kind that are printed whole")
    args = parser.parse_args()
    python = args.peers.absolute() / "bfcl" / "bin" / "python"
    [data] = python.parent.parent.glob("lib/python*/site-packages/bfcl_eval/data")
    answers = answered(data, args.results) if args.results else cases(data, args.mutations, args.seed)
    sources = [] if args.results else texts(args.texts, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(f"{folder}/cases.jsonl", [*map(case, answers), *sources])
        subprocess.run([python, HERE / "peers" / "check_bfcl.py", folder], check=True, stdout=subprocess.DEVNULL)
        verdicts = list(read_jsonl(f"{folder}/verdicts.jsonl"))
    counts: dict[str, Counter[str]] = {}
    differences: Counter[str] = Counter()
    for (category, _, row, text, kind), theirs in zip(answers, verdicts, strict=False):
        ours, fair = match_bfcl(text, row.target), match_bfcl(text, row.target, "fixed")
        count_verdict(counts, category.name, kind, theirs, ours, fair)
        if ours.ok != theirs["ok"]:
            what = f"{category.name}: {kind}: theirs {theirs}, ours {ours}"
            differences[
                f"{category.kind} {category.language}: {theirs['why'] or 'right'} against {ours.reason[:40]}"
            ] += 1
            if differences.total() <= args.show:
                print(f"{what}\n  {text!r}\n  {[want.accepted for want in row.target.calls]}")
    print_verdicts(counts)
    print(f"{len(answers)} answers, {len(answers) - differences.total()} equal verdicts")
    for what, count in differences.most_common():
        print(f"  {count} x {what}")
    read = list(zip(sources, verdicts[len(answers) :], strict=True))
    crashes = sum(theirs["why"].startswith("crash") for _, theirs in read)
    other = [(source, theirs) for source, theirs in read if not theirs["why"].startswith("crash")]
    unequal = [(source, theirs["why"], ours_of(source)) for source, theirs in other if theirs["why"] != ours_of(source)]
    changed = sum(theirs["why"] != repr(source["text"]) for source, theirs in other)
    print(f"{len(read)} texts ({changed} read as a value, {crashes} crashes), {len(unequal)} read otherwise")
    for source, theirs, ours in unequal[: args.show]:
        print(f"  {source}: theirs {theirs}, ours {ours}")


def count_verdict(
    counts: dict[str, Counter[str]], category: str, kind: str, theirs: dict[str, Any], ours: Match, fair: Match
) -> None:
    """Count an answer to its category and to its kind of mutation."""
    for name in (category, f"~ {kind if '+' not in kind else 'several'}"):
        counts.setdefault(name, Counter()).update({
            "judged": 1, "right": theirs["ok"], "crashes": theirs["why"].startswith("crash"),
            "agree": ours.ok == theirs["ok"], "stricter": theirs["ok"] and not fair.ok,
            "milder": fair.ok and not theirs["ok"],
        })  # fmt: skip


def print_verdicts(counts: dict[str, Counter[str]]) -> None:
    head = ["judged", "right", "crashes", "agree", "stricter", "milder"]
    print(table(["", *head], [[name, *(f"{found[key]}" for key in head)] for name, found in sorted(counts.items())]))
    print("\nright, crashes: of the released evaluation. stricter, milder: mode fixed against it.")


if __name__ == "__main__":
    main()
