"""What trials have in common is computed once: a trial takes its first stages from one that began alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from looptool_jax.config import RESUMABLE, kept_settings
from looptool_jax.data.store import Progress, copy_file, exists, join
from looptool_jax.loop.console import Console
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.manifest import NAME as MANIFEST
from looptool_jax.loop.manifest import Manifest
from looptool_jax.loop.metrics import kind
from looptool_jax.loop.run_config import RunConfig, flat
from looptool_jax.loop.runner import Runner
from looptool_jax.sweep.space import Trial

# The kind of stage at which a group of settings matters first; the others matter from the start, or never.
_FIRST = {
    "probe": "probe",
    "static": "probe",
    "judge": "judge",
    "judge_model": "judge",
    "expand": "expand",
    "generator_model": "expand",
    "compose": "expand",  # which error seeds are expanded
}
_NEVER = {*RESUMABLE, "finish_loop"}


def alike(one: Mapping[str, Any], other: Mapping[str, Any], plan: Sequence[str]) -> list[str]:
    """The stages of a run's plan, from its first one on, that are the same with two sets of settings (by full keys)."""
    differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    differ = {key for key in differ if key not in _NEVER and _group(key) != "synthesis"}
    if any(_group(key) not in _FIRST for key in differ):
        return []
    kinds = {_FIRST[_group(key)] for key in differ}
    if "static" in differ:
        kinds.add("compose")  # what comes in place of probing
    end = next((place for place, stage in enumerate(plan) if kind(stage) in kinds), len(plan))
    return list(plan[:end])


def donor(trial: Trial, cfg: RunConfig, others: Mapping[Trial, str]) -> tuple[Trial, list[str]] | None:
    """The trial that has finished the most stages which `trial` would only repeat, and those stages.

    cfg: the configuration of the trial. others: trials with their run directories. Raises ConfigError, DataError where
    what such a directory holds cannot be read.
    """
    plan = [stage.name for stage in Runner(cfg, Console(quiet=True)).stages()]
    shared = {other: len(alike(trial.settings, other.settings, plan)) for other in others if other != trial}
    for other in sorted(filter(shared.get, shared), key=lambda found: -shared[found]):
        if exists(join(others[other], MANIFEST)):
            stages = alike(kept_settings(others[other]), flat(asdict(cfg)), plan)
            if stages and set(Manifest(others[other]).stages).issuperset(stages):
                return other, stages
    return None


def take_over(source: str, target: str, stages: Sequence[str]) -> None:
    """Copy finished stages of a run into the directory of one that has not begun, with what they cost there.

    The manifest comes last: killed before it, nothing has begun. Raises DataError.
    """
    done, begun = Manifest(source).stages, Manifest(target)
    for stage in stages:
        for file in done[stage]["outputs"]:
            copy_file(join(source, file), join(target, file))
    ledger = Progress(join(target, LEDGER))
    costs = [row for row in Progress(join(source, LEDGER)).rows() if row["stage"] in stages]
    for row in costs[len(ledger.rows()) :]:
        ledger.append(row)
    begun.stages = {stage: done[stage] for stage in stages}
    begun.save()


def _group(key: str) -> str:
    return key.partition(".")[0]
