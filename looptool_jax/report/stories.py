"""What became of every sample of a run, read from the run's artifacts: its way through the rounds, its answers, what
was decided about its label, where it comes from and what grew from it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from looptool_jax.data.store import DataError, dump_json, join, read_jsonl, read_samples
from looptool_jax.evaluation.repair import Labels, is_right, true_labels
from looptool_jax.loop.manifest import data_file, eval_folder
from looptool_jax.report.tables import rounds_of
from looptool_jax.toolcall import Message, Sample, Target, Tool
from looptool_jax.world import validate

TITLE = 120  # characters

Stages = dict[str, dict[str, Any]]
"""Metrics of the finished stages, by their names."""


@dataclass(frozen=True)
class Entry:
    """A sample in a round's data set: why it is there, and under which label."""

    round: int
    kind: str
    label: Target


@dataclass(frozen=True)
class Answer:
    """A greedy answer: of the probe of round `round`, or, for a held-out sample, of the evaluation behind it (0: before
    training). label: what it was held against."""

    round: int
    right: bool
    text: str
    reason: str
    label: Target
    perplexity: float | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict on a mismatch. right: whether the label that it leaves is the true one (None: nobody knows, or there is
    none left); was_right: whether the label before it was."""

    round: int
    verdict: str
    decided_by: str
    votes: list[str | None]
    analysis: str
    right: bool | None = None
    was_right: bool | None = None


@dataclass
class Story:
    """A sample of the run. kind: what it began as, a seed, expanded, repeated, rejected or held-out.

    tools: their documents as JSON. tier, reason, reply: of a rejected expansion. valid: whether an expanded sample's
    label executes in the world and follows from its request. truth: the true label, where the seed's was corrupted.
    children: ids of what grew from it.
    """

    id: str
    kind: str
    category: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[str, ...] = ()
    label: Target | None = None
    parent: str | None = None
    scenario: str = ""
    entries: list[Entry] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    truth: Target | None = None
    valid: bool | None = None
    tier: str = ""
    reason: str = ""
    reply: str = ""

    @property
    def request(self) -> str:
        """What the user said last; of an expansion that could not be read, what the generator wrote."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), self.reply)

    @property
    def title(self) -> str:
        """The first words of the request."""
        return " ".join(self.request[: 4 * TITLE].split())[:TITLE] or self.id


@dataclass(frozen=True)
class Stories:
    """The samples that are told, by id, and how many the run has. error_seeds: their ids, by round."""

    told: dict[str, Story]
    total: int
    error_seeds: dict[int, list[str]]


def read_stories(run_dir: str, stages: Stages, most: int, most_bytes: int) -> Stories:
    """The stories of at most `most` samples, of fewer where those would be more than `most_bytes` of JSON. The first to
    be told are those that were judged and those that grew from errors, then the held-out ones, then the others in the
    order of the data sets, and rejected expansions last.

    Files are read row by row, so that what is not told takes no memory. Raises DataError.
    """
    order = _order(run_dir, stages)
    most = max(1, min(most, most_bytes // _usual_bytes(run_dir, stages)))
    told = {id_: Story(id_, "") for id_ in list(order)[:most]}
    _read_heldout(run_dir, stages, told)
    for round_ in _data_rounds(stages):
        for sample in read_samples(join(run_dir, data_file(round_))):
            if story := told.get(sample.id):
                _fill(story, sample)
                story.entries.append(Entry(round_, sample.origin.kind, sample.target))
    truths = _truths(run_dir, stages)
    of_world = any("expansion" in metrics for _, metrics in rounds_of(stages, "score"))
    error_seeds: dict[int, list[str]] = {}
    for round_, _ in rounds_of(stages, "probe"):
        _read_probes(run_dir, round_, told)
    for round_, _ in rounds_of(stages, "judge"):
        error_seeds[round_] = _read_judgements(run_dir, round_, told, truths)
    for round_, _ in rounds_of(stages, "expand"):
        _read_expansions(run_dir, round_, told, of_world)
    for story in told.values():
        if parent := told.get(story.parent or ""):
            parent.children.append(story.id)
    return Stories(told, len(order), error_seeds)


def _truths(run_dir: str, stages: Stages) -> Labels | None:
    """The true labels of the seeds whose labels were corrupted on purpose; None where no label is known to be true."""
    return true_labels((), join(run_dir, "seed/truth.jsonl")) if stages.get("seed", {}).get("corrupted") else None


def _data_rounds(stages: Stages) -> list[int]:
    """The rounds whose data set is there."""
    return [1] * ("seed" in stages) + [round_ + 1 for round_, _ in rounds_of(stages, "compose")]


def _evaluations(stages: Stages) -> dict[int, str]:
    """The folders of the evaluations, by the round behind which they come (0: before the first)."""
    rounds = [0] * ("eval-0" in stages) + [round_ for round_, _ in rounds_of(stages, "eval")]
    return {round_: eval_folder(round_) for round_ in rounds}


def _usual_bytes(run_dir: str, stages: Stages) -> int:
    """Of the JSON of a sample, a mean over the first of D_1."""
    rows = islice(read_jsonl(join(run_dir, data_file(1))), 200) if "seed" in stages else ()
    sizes = [len(dump_json(row)) for row in rows]
    return sum(sizes) // len(sizes) if sizes else 1


def _order(run_dir: str, stages: Stages) -> dict[str, None]:
    """The ids of all samples of the run, the ones to tell first at the front."""
    files = [f"round-{round_}/judge/judgements.jsonl" for round_, _ in rounds_of(stages, "judge")]
    files += [f"round-{round_}/expand/expanded.jsonl" for round_, _ in rounds_of(stages, "expand")]
    files += [f"{folder}/results.jsonl" for folder in list(_evaluations(stages).values())[:1]]
    files += [data_file(round_) for round_ in _data_rounds(stages)]
    files += [f"round-{round_}/expand/rejected.jsonl" for round_, _ in rounds_of(stages, "expand")]
    return dict.fromkeys(row["id"] for file in files for row in read_jsonl(join(run_dir, file)))


def _fill(story: Story, sample: Sample, kind: str = "") -> None:
    """What a story takes from the sample itself; what it began as is the oldest origin."""
    first = (*sample.lineage, sample.origin)[0]
    own = sample.origin if sample.origin.parent else first
    story.kind = kind or story.kind or ("seed" if own.kind in ("seed", "seed_new") else own.kind)
    story.category, story.messages, story.label = sample.category, sample.messages, sample.target
    story.tools = tuple(sys.intern(json.dumps(tool.to_json(), ensure_ascii=False)) for tool in sample.tools)
    story.parent = story.parent or own.parent
    story.scenario = story.scenario or own.scenario or ""


def _read_heldout(run_dir: str, stages: Stages, told: dict[str, Story]) -> None:
    folders = _evaluations(stages)
    for sample in read_samples(join(run_dir, "seed/heldout.jsonl")) if folders else ():
        if story := told.get(sample.id):
            _fill(story, sample, "held-out")
    for round_, folder in folders.items():
        for row in read_jsonl(join(run_dir, folder, "results.jsonl")):
            story = told.get(row["id"])
            if story and story.label:
                story.answers.append(Answer(round_, row["correct"], row["answer"], row["reason"], story.label))


def _read_probes(run_dir: str, round_: int, told: dict[str, Story]) -> None:
    for row in read_jsonl(join(run_dir, f"round-{round_}/probe/probes.jsonl")):
        if story := told.get(row["id"]):
            label = _label_in(story, round_)
            story.answers.append(Answer(round_, row["correct"], row["answer"], row["reason"], label, row["perplexity"]))


def _read_judgements(run_dir: str, round_: int, told: dict[str, Story], truths: Labels | None) -> list[str]:
    """Enter the verdicts of a round; returns the ids of its error seeds."""
    here = join(run_dir, f"round-{round_}/judge")
    left = {
        row["sample"]["id"]: Target.from_json(row["sample"]["target"]) for row in read_jsonl(join(here, "errors.jsonl"))
    }
    for row in read_jsonl(join(here, "judgements.jsonl")):
        story = told.get(row["id"])
        if story is None:
            continue
        was_right = right = None
        if truths is not None and story.kind == "seed":
            story.truth = truths.get(story.id)
            true = {story.id: story.truth or story.entries[0].label}  # a seed enters with its label as it came
            tools = tuple(Tool.from_json(json.loads(document)) for document in story.tools)
            sample = Sample(story.id, tools, story.messages, _label_in(story, round_))
            was_right = is_right(sample, sample.target, true)
            right = is_right(sample, left[story.id], true) if story.id in left else None
        story.judged.append(
            Judged(round_, row["verdict"], row["decided_by"], row["votes"], row["analysis"], right, was_right)
        )
    return list(left)


def _read_expansions(run_dir: str, round_: int, told: dict[str, Story], of_world: bool) -> None:
    here = join(run_dir, f"round-{round_}/expand")
    for sample in read_samples(join(here, "expanded.jsonl")):
        if story := told.get(sample.id):
            _fill(story, sample, "expanded")
            story.valid = not validate(sample) if of_world else None
    for row in read_jsonl(join(here, "rejected.jsonl")):
        if story := told.get(row["id"]):
            if "sample" in row:
                _fill(story, Sample.from_json(row["sample"]), "rejected")
            story.kind, story.parent, story.scenario = "rejected", row["parent"], row["scenario"]
            story.tier, story.reason, story.reply = row["tier"], row["reason"], row["reply"]


def _label_in(story: Story, round_: int) -> Target:
    """The label that the sample has in D_round. Raises DataError where it is not in it."""
    for entry in story.entries:
        if entry.round == round_:
            return entry.label
    raise DataError(f"{story.id}: probed or judged in round {round_}, but not in {data_file(round_)}")
