"""ACEBench's Agent multi-step rows: a task, tools whose scenario is simulated, and the state that is to come out.

The scenarios are Python classes of a checkout (`model_inference/multi_step/scenariosen`). They are imported from there,
which runs that code; a model's calls reach their public methods alone, by name, with JSON values. Nothing of them comes
with the program, and the folder of the data alone is not enough. Agent multi-turn needs a second model as the user and
is not here.

Each step is one answer. Calls are executed and their results shown; an answer without a call ends the task if it says
FINISH, else it is told to go on. The released harness ends after 40 messages, half of them answers.

official: the states of the row's classes hold all that the label has. A class that the label spells otherwise than the
scenario does is not compared, and what is there beyond the label does not count. fixed: the states are equal, letter
case of a class's name aside.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from looptool_jax.data.store import DataError
from looptool_jax.evaluation.acebench.data import CATEGORIES, REMEDY, labelled_lines, read_functions
from looptool_jax.evaluation.kept_answers import Given
from looptool_jax.toolcall import (
    Call,
    Message,
    ParseFailure,
    RecordError,
    Sample,
    SchemaError,
    Target,
    normalise_tool,
    parse,
)
from looptool_jax.toolcall.acebench_match import official_calls, official_text

NAME = "agent_multi_step"
STEPS = 20
FINISH = "finish conversation"
_SCENARIOS = "model_inference/multi_step/scenariosen"
_SYSTEM = (
    "Do the user's task with calls of the tools, step by step; what a call returns tells the next step. All that is "
    f"needed is known or can be found out with the tools, so ask nothing. When the task is done, answer: {FINISH}"
)
_GO_ON = f"There is nobody who could answer. Go on with what is known, or answer: {FINISH}"

State = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class AgentRow:
    """states: what is to come out, the saved attributes of each class. milestones: accepted ways, each a list of calls
    in the benchmark's own format."""

    sample: Sample
    classes: tuple[str, ...]
    initial: dict[str, Any]
    states: State
    milestones: tuple[tuple[str, ...], ...]


class Scenario:
    """The simulated tools of one row, each class with a state of its own, as in the released harness."""

    def __init__(self, row: AgentRow, classes: dict[str, type]) -> None:
        self.instances: dict[str, Any] = {}
        for name in row.classes:
            if name not in classes:
                raise DataError(f"{row.sample.id}: there is no scenario {name}; {REMEDY}")
            try:
                instance = classes[name]()
                for part in (name, "BaseApi"):
                    instance._load_scenario(copy.deepcopy(row.initial.get(part, {})), long_context=False)
            except Exception as error:  # of the checkout's code
                raise DataError(f"{row.sample.id}: {name} cannot start as the row says ({error}); {REMEDY}") from None
            self.instances[name] = instance
        self.called: list[str] = []

    def call(self, calls: Sequence[Call], text: str) -> list[str]:
        """Execute calls, which were written as `text`; the result of each. A method of several classes is called on
        each, and the last result counts."""
        self.called.append(text)
        with contextlib.redirect_stdout(io.StringIO()):
            return [self._call(call) for call in calls]

    def _call(self, call: Call) -> str:
        having = [
            instance
            for instance in self.instances.values()
            if not call.name.startswith("_") and callable(getattr(type(instance), call.name, None))
        ]
        if not having:
            return f"Error during execution: there is no function {call.name}"
        try:
            result = [getattr(instance, call.name)(**copy.deepcopy(call.arguments)) for instance in having][-1]
            return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except Exception as error:  # of the checkout's code, for which any argument may be wrong
            return f"Error during execution: {error}"

    def state(self, row: AgentRow) -> State:
        """What the row's label names of each class, as JSON has it; {} where nothing was called."""
        if not self.called:
            return {}
        labelled = {name.casefold(): attributes for name, attributes in row.states.items()}
        state = {
            name: {key: getattr(instance, key, None) for key in labelled.get(name.casefold(), {})}
            for name, instance in self.instances.items()
        }
        return json.loads(json.dumps(state, default=str))


def scenario_files(folder: Path) -> list[Path]:
    """The scenarios' Python files, from the checkout of which `folder` is the data."""
    checkout = _checkout(folder)
    return sorted((checkout / _SCENARIOS).rglob("*.py")) if checkout else []


def _checkout(folder: Path) -> Path | None:
    folder = folder.resolve()
    return next((place for place in (folder, *folder.parents[:2]) if (place / _SCENARIOS).is_dir()), None)


def scenario_classes(folder: Path) -> dict[str, type] | None:
    """The scenarios' classes by name, from the checkout of which `folder` is the data; None where there are none.

    Raises DataError for a file that cannot be imported.
    """
    checkout = _checkout(folder)
    if checkout is None:
        return None
    classes: dict[str, type] = {}
    sys.path.insert(0, str(checkout))
    try:
        for file in scenario_files(folder):
            name = ".".join(file.relative_to(checkout).with_suffix("").parts)
            try:
                module = importlib.import_module(name)
            except Exception as error:
                raise DataError(f"{file}: cannot be imported ({type(error).__name__}: {error}); {REMEDY}") from None
            classes |= {key: value for key, value in vars(module).items() if isinstance(value, type)}
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.partition(".")[0] == "model_inference"]:
            del sys.modules[name]
    return classes or None


def read_rows(folder: Path, limit: int | None = None) -> list[AgentRow]:
    """The first `limit` rows, or all. Raises DataError naming file and line."""
    rows: list[AgentRow] = []
    for place, raw, label_place, answer in labelled_lines(folder, CATEGORIES[NAME], limit):
        try:
            id_, functions = read_functions(raw)
            tools = tuple(map(normalise_tool, functions))
            classes, initial = raw.get("involved_classes"), raw.get("initial_config")
            if not isinstance(classes, list) or not isinstance(initial, dict):
                raise RecordError("expected involved_classes and initial_config")
        except (RecordError, SchemaError) as error:
            raise DataError(f"{place}: no ACEBench row: {error}. {REMEDY}") from None
        try:
            states, milestones = _label(answer, id_)
        except RecordError as error:
            raise DataError(f"{label_place}: no label of {id_}: {error}. {REMEDY}") from None
        messages = (Message("system", _SYSTEM), Message("user", raw["question"]))
        sample = Sample(id_, tools, messages, Target(intent="answer"), category=NAME)
        rows.append(AgentRow(sample, tuple(classes), initial, states, milestones))
    return rows


def play(
    rows: Sequence[AgentRow],
    classes: dict[str, type],
    ask: Callable[[Sequence[Sample]], list[Given]],
    on_done: Callable[[int], None],
) -> list[tuple[Scenario, Sample, str]]:
    """A step of all unfinished tasks at a time, answered by `ask`. Of each row the scenario, the dialogue, and how it
    ended: stop, steps, length (an answer was cut) or prompt_too_long. on_done: told how many more tasks are over."""
    scenarios = [Scenario(row, classes) for row in rows]
    dialogues, ends = [row.sample for row in rows], ["steps"] * len(rows)
    going = list(range(len(rows)))
    for step in range(STEPS):
        if not going:
            break
        still = []
        asked = [replace(dialogues[place], id=f"{dialogues[place].id}:{step}") for place in going]
        for place, answer in zip(going, ask(asked), strict=True):
            messages, end = _step(scenarios[place], answer)
            dialogues[place] = replace(dialogues[place], messages=dialogues[place].messages + messages)
            ends[place] = end or "steps"
            still += [] if end else [place]
        on_done(len(going) - len(still))
        going = still
    on_done(len(going))
    return list(zip(scenarios, dialogues, ends, strict=True))


def _step(scenario: Scenario, answer: Given) -> tuple[tuple[Message, ...], str]:
    """What an answer adds to the dialogue, and how it ends it ("": it does not)."""
    if answer.finish == "prompt_too_long":
        return (), answer.finish
    text, finish = answer.text, answer.finish
    parsed = parse(text)
    if isinstance(parsed, ParseFailure):
        return (Message("assistant", text), Message("user", f"That cannot be read: {parsed.detail}")), _cut(finish)
    if parsed.calls:
        results = scenario.call(parsed.calls, official_text(text))
        replies = (Message("tool", reply, name=call.name) for reply, call in zip(results, parsed.calls, strict=True))
        return (Message("assistant", parsed.text, parsed.calls), *replies), _cut(finish)
    said = Message("assistant", parsed.text)
    if FINISH in parsed.text:
        return (said,), "stop"
    return (said, Message("user", _GO_ON)), _cut(finish)


def _cut(finish: str) -> str:
    return "" if finish == "stop" else "length"


def official_match(scenario: Scenario, row: AgentRow) -> bool:
    """The released verdict on the states."""
    state = scenario.state(row)
    if len(state) != len(row.states):
        return False
    for name, wanted in row.states.items():
        for key, value in wanted.items() if name in state else ():
            found = state[name][key]
            if isinstance(value, dict):
                if not isinstance(found, dict) or any(
                    part not in found or found[part] != value[part] for part in value
                ):
                    return False
            elif found != value:
                return False
    return True


def fixed_match(scenario: Scenario, row: AgentRow) -> bool:
    wanted = {name.casefold(): attributes for name, attributes in row.states.items()}
    return {name.casefold(): found for name, found in scenario.state(row).items()} == wanted


def milestones_met(scenario: Scenario, row: AgentRow) -> float:
    """The share of milestones met in their order, of the best accepted way; 1 where the end is right (official)."""
    if official_match(scenario, row):
        return 1.0
    return max(_in_order(scenario.called, way) for way in row.milestones)


def gold_scenario(row: AgentRow, classes: dict[str, type]) -> Scenario:
    """What comes of the label's own calls: of the accepted way that the released verdict takes, or of the first."""
    played = []
    for way in row.milestones:
        scenario = Scenario(row, classes)
        for text in way:
            if calls := official_calls(text.strip()):
                scenario.call(calls, text)
        played.append(scenario)
    return next((scenario for scenario in played if official_match(scenario, row)), played[0])


def _in_order(called: Sequence[str], way: Sequence[str]) -> float:
    rest: Iterator[str] = iter(called)
    met = 0
    for stone in way:
        met += any(text.strip() == stone.strip() for text in rest)  # goes on behind the one that was found
    return met / len(way) if way else 1.0


def _label(answer: Any, id_: str) -> tuple[State, tuple[tuple[str, ...], ...]]:
    if not isinstance(answer, dict) or answer.get("id") != id_:
        raise RecordError("labels are in the order of the rows")
    states, ways = answer.get("ground_truth"), answer.get("mile_stone")
    if not isinstance(states, list) or not all(isinstance(part, dict) for part in states):
        raise RecordError("ground_truth: expected a list of {class: {attribute: value}}")
    merged = {name: attributes for part in states for name, attributes in part.items()}
    if not all(isinstance(attributes, dict) for attributes in merged.values()):
        raise RecordError("ground_truth: expected a list of {class: {attribute: value}}")
    if not isinstance(ways, list) or not ways:
        raise RecordError("mile_stone: expected a list of calls")
    ways = ways if isinstance(ways[0], list) else [ways]
    if not all(isinstance(text, str) for way in ways for text in way):
        raise RecordError("mile_stone: expected a list of calls")
    return merged, tuple(tuple(way) for way in ways)
