"""Trees of a domain and the API documents that are written for their paths."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from looptool_jax.config import shipped_trees
from looptool_jax.data.store import DataError, read_jsonl
from looptool_jax.loop.console import Console
from looptool_jax.loop.prompts.synthesis import Unreadable, parse_api
from looptool_jax.loop.synthesis.apis import check_document, synthesize_apis
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.loop.synthesis.tools import read_tools
from looptool_jax.loop.synthesis.trees import (
    Constraint,
    TreeError,
    draft_trees,
    read_constraints,
    read_context,
    read_trees,
)
from looptool_jax.toolcall import Tool, normalise_tool

from .player import Player

SAY = {"say": "Be brief."}
SMALL = {"domain": "Rail", "context": {"Trains": ["Delay Lookup"]}, "constraints": {"description": {"short": SAY}}}


def written(path: Path, value) -> Path:
    path.write_text(yaml.safe_dump(value) if path.suffix == ".yaml" else json.dumps(value))
    return path


@pytest.mark.parametrize("name", sorted(shipped_trees()))
def test_shipped_trees_are_valid_and_every_leaf_is_drawn(name):
    trees = read_trees(shipped_trees()[name])
    drawn = [trees.draw(Random(i)) for i in range(3000)]
    assert {place[1:] for place, _ in drawn} == set(trees.places) and len(trees.places) >= 40
    assert {leaf for _, leaves in drawn for leaf in leaves} == {leaf for b in trees.constraints.values() for leaf in b}
    assert all([leaf.path[0] for leaf in leaves] == list(trees.constraints) for _, leaves in drawn)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_trees_are_yaml_or_json(tmp_path, suffix):
    trees = read_trees(written(tmp_path / f"rail{suffix}", SMALL))
    assert trees.draw(Random(0)) == (
        ("Rail", "Trains", "Delay Lookup"), [Constraint(("description", "short"), "Be brief.")],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("domain", "", "domain: expected a name"),
        ("context", [], "context: expected topics"),
        ("context", {"Trains": []}, "context > Trains: expected a list of functions .*, found an empty list"),
        ("context", {"Trains": [3]}, "context > Trains: expected a name, found 3"),
        ("context", {"Trains": "Delay"}, "context > Trains: expected a list"),
        ("context", {"A": ["Delay Lookup"], "B": {"C": ["delay  lookup"]}}, "A > Delay Lookup and B > C > delay"),
        ("constraints", {}, "constraints: expected branches"),
        ("constraints", {"naming": {"snake": {"say": 3}}}, "naming > snake: say is no text"),
        ("constraints", {"naming": {"snake": {"say": "x", "case": "upper"}}}, "naming > snake: case: expected one of"),
        ("constraints", {"n": {"few": {"say": "x", "least": 3, "most": 1}}}, "n > few: least 3 is more than most 1"),
        ("constraints", {"n": {"few": {"say": "x", "least": True}}}, "n > few: least: expected a number"),
        ("constraints", {"n": {"few": {"say": "x", "types": ["text"]}}}, "n > few: types: expected some of string"),
        ("constraints", {"n": {"few": {"say": "x", "regex": "a*"}}}, "'regex' is no part of a leaf"),
        ("constraints", {"n": {"few": []}}, "n > few: expected a leaf with say"),
    ],
)
def test_a_wrong_tree_names_the_place(tmp_path, part, value, words):
    with pytest.raises(DataError, match=words):
        read_trees(written(tmp_path / "rail.yaml", SMALL | {part: value}))


@pytest.mark.parametrize("text", ["domain: [", "- a", "domain: x", "", "a: *b"])
def test_a_file_that_is_no_tree_is_one_line(tmp_path, text):
    (tmp_path / "rail.yaml").write_text(text)
    with pytest.raises(DataError, match=r"rail\.yaml") as told:
        read_trees(tmp_path / "rail.yaml")
    assert "\n" not in str(told.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["say", "case", "least", "A", "b"]), inner)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_value_is_a_tree_or_told_why_not(value):
    for read in (read_context, read_constraints):
        try:
            assert read(value)
        except TreeError as error:
            assert str(error)


def test_trees_are_drafted_and_the_first_valid_one_is_taken(tmp_path):
    cfg = SynthesisConfig(drafts=3)
    broken: Counter[str] = Counter()

    def spoil(role: str, seed: int, reply: str) -> str:
        broken[role] += 1
        return {1: reply[:-3], 2: '{"Trains": []}'}.get(broken[role], reply)

    metrics = draft_trees(Player(spoil), "Rail travel", 0, cfg, str(tmp_path), Console(quiet=True))
    trees = read_trees(tmp_path / "trees.yaml")
    assert trees.domain == "Rail travel" and metrics["functions"] == len(trees.places) == 3
    assert metrics["drafts"] == 6 and metrics["rejected"] == 4
    rows = list(read_jsonl(tmp_path / "rejected.jsonl"))
    assert len(rows) == 4 and all(row["reason"] and row["reply"] for row in rows)


def test_edited_trees_stay_when_the_command_is_given_again(tmp_path):
    drafted = draft_trees(Player(), "Rail", 0, SynthesisConfig(), str(tmp_path), Console(quiet=True))
    file = tmp_path / "trees.yaml"
    edited = file.read_text().replace("- Seat Lookup", "- Seat Lookup\n  - Seat Change")
    file.write_text(edited)
    again = draft_trees(Player(), "Rail", 0, SynthesisConfig(), str(tmp_path), Console(quiet=True))
    assert file.read_text() == edited and again["functions"] == drafted["functions"] + 1
    (tmp_path / "progress.jsonl").unlink()
    draft_trees(Player(), "Rail", 0, SynthesisConfig(), str(tmp_path), Console(quiet=True))
    assert file.read_text() != edited, "the stage is redone"


def test_without_a_valid_draft_the_reasons_are_kept(tmp_path):
    player = Player(lambda role, seed, reply: "I would rather not." if role == "constraints" else reply)
    with pytest.raises(DataError, match=r"none of 4 drafts of the constraints tree is valid \(the first: not JSON"):
        draft_trees(player, "Rail", 0, SynthesisConfig(), str(tmp_path), Console(quiet=True))
    assert len(list(read_jsonl(tmp_path / "rejected.jsonl"))) == 4 and not (tmp_path / "trees.yaml").exists()


GOOD = {
    "name": "find_delay",
    "description": "Tells the delay of a train.",
    "parameters": {
        "type": "object",
        "properties": {
            "train": {"type": "string", "description": "Number of the train."},
            "unit": {"type": "string", "enum": ["s", "min"], "default": "min", "description": "Of the delay."},
        },
        "required": ["train"],
    },
}


def document(**changes) -> Tool:
    """GOOD with other properties of the parameter `unit`; None removes one."""
    raw = json.loads(json.dumps(GOOD))
    unit = raw["parameters"]["properties"]["unit"]
    unit.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del unit[key]
    return normalise_tool(raw)


def test_a_good_document_passes():
    assert check_document(document(), []) == []


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (document(description=None), "unit has no description"),
        (document(type=None, enum=None, default=None), "unit declares no JSON type"),
        (document(enum=["min"]), "two or more different values"),
        (document(enum=["min", "min"]), "two or more different values"),
        (document(enum=["min", 3]), "unit' must be string, found 3"),
        (document(default="hours"), "the default does not fit"),
        (document(type="array", enum=None, default=None), "an array without items"),
        (document(type="object", enum=None, default=None), "an object without properties"),
        (document(type="array", enum=None, default=None, items={}), "unit[] declares no JSON type"),
        (normalise_tool(GOOD | {"name": "find delay"}), "is no name for the function"),
        (normalise_tool(GOOD | {"name": "a" * 65}), "is no name for the function"),
        (normalise_tool(GOOD | {"description": " "}), "the function has no description"),
        (normalise_tool(GOOD | {"parameters": GOOD["parameters"] | {"required": ["speed"]}}), "names 'speed'"),
        (normalise_tool(GOOD | {"parameters": GOOD["parameters"] | {"required": ["unit"]}}), "is required and has"),
    ],
)  # fmt: skip
def test_a_wrong_document_is_told_why(tool, words):
    problems = check_document(tool, [])
    assert len(problems) == 1 and words in problems[0], problems


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ({"case": "camel"}, "find_delay is not written in camel case"),
        ({"case": "kebab"}, "not written in kebab case"),
        ({"least": 3}, "2 parameters, at least 3"),
        ({"most": 1}, "2 parameters, at most 1"),
        ({"types": ["integer"]}, "a parameter of type string"),
        ({"needs": ["array", "object"]}, "no parameter of type array or object"),
    ],
)
def test_constraints_are_checked(leaf, words):
    ((constraint,),) = read_constraints({"branch": {"leaf": SAY | leaf}}).values()
    assert words in "; ".join(check_document(document(), [constraint]))
    kept = {"case": "snake", "least": 1, "most": 2, "types": ["string"], "needs": ["string"]}
    ((constraint,),) = read_constraints({"branch": {"leaf": SAY | kept}}).values()
    assert check_document(document(), [constraint]) == []


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("Sure! Here it is.", "not JSON"),
        (json.dumps(GOOD)[:-5], "not JSON"),
        (json.dumps([GOOD]), "expected a JSON object, found list"),
        (json.dumps(GOOD | {"returns": {}}), "keys of its own: returns"),
        (json.dumps(GOOD | {"description": "x<|im_end|>"}), "control token"),
        (json.dumps(GOOD | {"name": 3}), "a tool needs a name"),
        (json.dumps(GOOD | {"parameters": {"type": "object", "properties": {"a": {"type": "blob"}}}}), "unknown type"),
        ('{"name": "a", "name": "b"}', "occurs twice"),
        (f"<think>{json.dumps(GOOD)}", "think block"),
    ],
)
def test_a_reply_that_is_no_document(reply, words):
    with pytest.raises(Unreadable, match=words):
        parse_api(reply)
    assert parse_api(f"<think>so</think>\n```json\n{json.dumps(GOOD)}\n```") == document()


def test_documents_are_written_checked_merged_and_resumed(tmp_path):
    tree = SMALL | {"context": {"Trains": {"Now": ["Delay Lookup", "Gate Lookup"], "Later": ["Refund"]}}}
    trees = [read_trees(written(tmp_path / "rail.yaml", tree)), read_trees(shipped_trees()["travel"])]

    def spoil(role: str, seed: int, reply: str) -> str:
        return {0: reply[:-1], 1: reply.replace("city", "the city"), 2: "length"}.get(seed % 8, reply)

    def run(out: str, player: Player) -> dict:
        cfg = SynthesisConfig(count=60, chunk=16)
        return synthesize_apis(player, trees, 0, cfg, str(tmp_path / out), Console(quiet=True))

    class Dead(BaseException):
        pass

    class Dies(Player):
        def chat(self, *args, **sampling):
            if len(self.batches) == 2:
                raise Dead
            return super().chat(*args, **sampling)

    metrics = run("whole", Player(spoil))
    with pytest.raises(Dead):
        run("killed", Dies(spoil))
    assert run("killed", rest := Player(spoil)) == metrics and len(rest.batches) == 2
    for name in ("tools.jsonl", "rejected.jsonl", "metrics.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tiers = {tier: metrics[f"rejected_{tier}"] for tier in ("length", "parse", "rules", "duplicate")}
    assert all(tiers.values()) and metrics["accepted"] + sum(tiers.values()) == metrics["written"] == 60
    rows = list(read_jsonl(tmp_path / "whole/rejected.jsonl"))
    assert Counter(row["tier"] for row in rows) == tiers and all(row["reason"] and "reply" in row for row in rows)
    entries = read_tools(tmp_path / "whole/tools.jsonl")
    assert len(entries) == metrics["accepted"] == len({entry.tool.name for entry in entries})
    topics = {(tree.domain, *place[:-1]) for tree in trees for place in tree.places}
    assert len({entry.group for entry in entries} & topics) > 2 and {entry.group for entry in entries} <= topics


def test_names_and_parameters_spelt_otherwise_are_one_document(tmp_path):
    class Spells(Player):
        def api(self, system: str, user: str) -> str:
            name, parameter = [("findDelay", "trainNumber"), ("find_delay", "train-number"), ("findDelay", "day")][
                self.n
            ]
            self.n += 1
            properties = {parameter: {"type": "string", "description": "x"}}
            return json.dumps(
                {"name": name, "description": "x", "parameters": {"type": "object", "properties": properties}}
            )

    player = Spells()
    player.n = 0
    trees = [read_trees(written(tmp_path / "rail.yaml", SMALL))]
    synthesize_apis(player, trees, 0, SynthesisConfig(count=3), str(tmp_path / "out"), Console(quiet=True))
    kept = list(read_jsonl(tmp_path / "out/tools.jsonl"))
    assert [row["name"] for row in kept] == ["findDelay", "findDelay"]
    (row,) = read_jsonl(tmp_path / "out/rejected.jsonl")
    assert (row["tier"], row["reason"]) == ("duplicate", "the name and parameters of document 0")
