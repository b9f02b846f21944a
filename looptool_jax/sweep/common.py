"""What trials have in common is computed once: a trial takes its first stages from one that began alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from looptool_jax.config import kept_settings
from looptool_jax.data.store import (
    DataError,
    Progress,
    copy_file,
    exists,
    is_url,
    join,
    lock_directory,
    remove_tree,
)
from looptool_jax.loop.console import Console
from looptool_jax.loop.environment import NAME as ENVIRONMENT
from looptool_jax.loop.environment import environments
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
_NEVER = {"run_dir", "rounds", "finish_loop", "tracking", "synthesis"}


def alike(one: Mapping[str, Any], other: Mapping[str, Any], plan: Sequence[str]) -> list[str]:
    """The stages of a run's plan, from its first one on, that are the same with two sets of settings (by full keys)."""
    keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    differ = {key.partition(".")[0] for key in keys} - _NEVER
    if not differ <= _FIRST.keys():
        return []
    kinds = {_FIRST[group] for group in differ}
    if "static" in differ:
        kinds.add("compose")  # what comes in place of probing
    end = next((place for place, stage in enumerate(plan) if kind(stage) in kinds), len(plan))
    return list(plan[:end])


def donor(trial: Trial, cfg: RunConfig, others: Mapping[Trial, str]) -> tuple[Trial, list[str]] | None:
    """The trial that has the most stages in common with `trial`, of those that have finished all of these, and the
    stages.

    cfg: the configuration of the trial. others: trials with their run directories. Raises ConfigError, DataError where
    what such a directory holds cannot be read.
    """
    plan = [stage.name for stage in Runner(cfg, Console(quiet=True)).stages()]
    if cfg.warmup and cfg.train.lora and is_url(cfg.run_dir):  # adapters name this base by the URL of their own run
        plan = plan[: plan.index("round-1/train")]
    shared = {other: len(alike(trial.settings, other.settings, plan)) for other in others if other != trial}
    for other in sorted(filter(shared.get, shared), key=lambda found: -shared[found]):
        if exists(join(others[other], MANIFEST)):
            stages = alike(kept_settings(others[other]), flat(asdict(cfg)), plan)
            if stages and set(Manifest(others[other]).stages).issuperset(stages):
                return other, stages
    return None


def take_over(source: str, target: str, stages: Sequence[str]) -> None:
    """Copy finished stages of a run into the directory of one that has not begun, with what they cost and ran with.

    The manifest comes last: killed before it, nothing has begun. Raises DataError, also where an artifact is not what
    its stage wrote, and where the other run has begun or is about to.
    """
    with lock_directory(target):
        done, begun = Manifest(source).stages, Manifest(target)
        if begun.stages:
            raise DataError(f"{target}: a run has begun there")
        for stage in stages:
            for file, digest in done[stage]["outputs"].items():
                if copy_file(join(source, file), join(target, file)) != digest:
                    raise DataError(f"{join(source, file)}: changed since stage {stage} wrote it")
        costs = [row for row in Progress(join(source, LEDGER)).rows() if row["stage"] in stages]
        for name, rows in ((LEDGER, costs), (ENVIRONMENT, environments(join(source, ENVIRONMENT)))):
            remove_tree(join(target, name))
            progress = Progress(join(target, name))
            for row in rows:
                progress.append(row)
        begun.stages = {stage: done[stage] for stage in stages}
        begun.save()
