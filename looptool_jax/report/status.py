"""The status of a run, from what lies in its directory: from another terminal or machine, while it runs or after.

Nothing is written and no lock is taken (the caller says so to the store: `files.write_files(False)`).
"""

from __future__ import annotations

import time
from typing import Any

import rich.table
from rich.text import Text

from looptool_jax.data.files import is_file, tree_size
from looptool_jax.data.lock import LEASE, Owner, lock_owner
from looptool_jax.data.store import DataError, exists, join, parse_json, read_jsonl, read_text
from looptool_jax.data.yaml_text import parse_yaml
from looptool_jax.loop.console import HEARTBEAT, shown
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Cost, Ledger
from looptool_jax.loop.manifest import Manifest
from looptool_jax.loop.metrics import kind
from looptool_jax.report.tables import accuracies, duration, percent, which_run

KEYS = ("state", "moved", "run", "stage", "rewards", "memory", "warnings", "error")  # of a heartbeat
QUIET = 600.0  # seconds without progress after which a run is called quiet
STEPS = 20  # of training, whose rewards are compared


def read_status(run_dir: str) -> dict[str, Any]:
    """The status of a run as JSON; times are seconds. Raises DataError where `run_dir` holds no run."""
    if not any(exists(join(run_dir, name)) for name in ("config.yaml", "manifest.json", HEARTBEAT)):
        raise DataError(f"{run_dir}: holds no run; {which_run(run_dir)}")
    manifest = Manifest(run_dir)
    beat, note = _heartbeat(join(run_dir, HEARTBEAT))
    owner = lock_owner(run_dir)
    run, now = beat.get("run") or {}, time.time()
    age = max(0.0, now - beat["moved"]) if "moved" in beat else None
    plan = run.get("plan") or []
    done = bool(plan) and all(manifest.done(name) for name in plan)
    state = _state("finished" if done else beat.get("state"), owner, age)
    costs = Ledger(join(run_dir, LEDGER)).costs()
    begun = beat.get("stage")
    stage = begun if state in ("running", "quiet") else None
    if stage and manifest.done(stage["name"]):  # the next one has not yet been heard of
        stage = None
    left = _left(plan, manifest, costs, stage, age or 0.0)
    stages = {name: entry["metrics"] for name, entry in manifest.stages.items()}
    return {
        "run_dir": run_dir,
        "state": state,
        "owner": owner.name if owner else None,
        "heartbeat_age": age,
        "note": note,
        "round": _round([*manifest.stages, *([begun["name"]] if begun else [])]),
        "rounds": _rounds(run_dir),
        "stages_done": len(manifest.stages),
        "stages": len(plan) or None,
        "stage": stage,
        "stage_seconds_left": left[0],
        "run_seconds_left": left[1],
        "accuracy": [{"after": label, "accuracy": m["accuracy"]} for label, m in accuracies(stages)],
        "rewards": beat.get("rewards") or _rewards(run_dir, stages),
        "seconds_so_far": round(sum(cost.seconds for cost in costs.values()), 3),
        "disk_bytes": tree_size(run_dir),
        "memory": beat.get("memory") or {},
        "processes": run.get("processes"),
        "devices": run.get("devices"),
        "warnings": beat.get("warnings") or [],
        "error": beat.get("error"),
    }


def _heartbeat(path: str) -> tuple[dict[str, Any], str]:
    """What the run last said of itself, and a line where that cannot be used."""
    if not exists(path):
        return {}, f"{path}: absent; only what is committed is known (the run is of an earlier version, or just began)"
    try:
        beat = parse_json(read_text(path))
        if not isinstance(beat, dict) or not set(KEYS) <= beat.keys():
            raise ValueError("it is of another version")
    except ValueError as error:
        return {}, f"{path}: cannot be read ({error}); only what is committed is known"
    return beat, ""


def _state(said: str | None, owner: Owner | None, age: float | None) -> str:
    """running, quiet (nothing has moved for long), finished, preempted, stopped, failed, killed (ended without a word)
    or unknown."""
    alive = owner is not None and owner.lives is not False
    if owner is not None and owner.lives is None and age is not None and age > QUIET + LEASE:
        alive = False  # of another machine, and silent: most likely gone
    if alive:
        return "quiet" if age is not None and age > QUIET else "running"
    if said == "running":
        return "killed"
    return said or "unknown"


def _left(
    plan: list[str], manifest: Manifest, costs: dict[str, Cost], stage: dict[str, Any] | None, age: float
) -> tuple[float | None, float | None]:
    """Seconds that the stage at work and the run still need: by the stage's own pace, or what it cost in an earlier
    round. None where neither is known; for the run also where one stage of the rest is not."""
    known = {kind(name): cost.seconds for name, cost in costs.items()}  # of the latest round

    def of_stage(name: str) -> float | None:
        if stage is None or stage.get("name") != name:
            return known.get(kind(name))
        if stage.get("seconds_left") is not None:
            return max(0.0, stage["seconds_left"] - age)
        before = known.get(kind(name))
        return None if before is None else max(0.0, before - stage["seconds"] - age)

    rest = [of_stage(name) for name in plan if not manifest.done(name)]
    sure = [seconds for seconds in rest if seconds is not None]
    return (of_stage(stage["name"]) if stage else None), sum(sure) if plan and len(sure) == len(rest) else None


def _round(names: list[str]) -> int:
    """The round of the latest of these stages; 0 before the first."""
    rounds = [int(name.split("/")[0].removeprefix("round-")) for name in names if name.startswith("round-")]
    return max(rounds, default=0)


def _rounds(run_dir: str) -> int | None:
    try:
        rounds = parse_yaml(read_text(join(run_dir, "config.yaml")))["rounds"]
    except (ValueError, KeyError, TypeError):
        return None
    return rounds if isinstance(rounds, int) else None


def _rewards(run_dir: str, stages: dict[str, Any]) -> list[list[float]]:
    """(step, reward) of the last steps of the latest round that is trained."""
    trained = [name for name in stages if kind(name) == "train"]
    if not trained or not is_file(path := join(run_dir, trained[-1], "steps.jsonl")):
        return []
    before = sum(stages[name]["steps"] for name in trained[:-1])
    return [[before + row["step"], row["reward"]] for row in read_jsonl(path)][-STEPS:]


def status_table(status: dict[str, Any]) -> rich.table.Table:
    """The status for the terminal."""
    table = rich.table.Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(status):
        table.add_row(name, Text(shown(text)))
    return table


def _lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("run", status["run_dir"]), ("state", _state_line(status))]
    if status["note"]:
        lines.append(("note", status["note"]))
    of_all = f" of {status['rounds']}" if status["rounds"] else ""
    done = f"{status['stages_done']} of {status['stages']}" if status["stages"] else str(status["stages_done"])
    lines.append(("round", f"{status['round']}{of_all}, {done} stages done in {duration(status['seconds_so_far'])}"))
    if stage := status["stage"]:
        lines.append(("stage", _stage_line(stage, status["stage_seconds_left"], status["heartbeat_age"] or 0.0)))
    if status["state"] in ("running", "quiet"):
        left = status["run_seconds_left"]
        whole = "not known before a round is done" if left is None else f"about {duration(left)} left"
        lines.append(("whole run", whole))
    if status["accuracy"]:
        steps = (f"{row['after']} {percent(row['accuracy'])}" for row in status["accuracy"])
        lines.append(("held-out", ", ".join(steps)))
    if status["rewards"]:
        lines.append(("reward", _reward_line(status["rewards"])))
    lines.append(("disk", size(status["disk_bytes"])))
    if status["state"] in ("running", "quiet"):
        lines += [("memory", line) for line in _memory_lines(status["memory"])]
    now = time.time()
    for warning in status["warnings"]:
        lines.append(("warning", f"{duration(now - warning['time'])} ago: {warning['text']}"))
    if error := status["error"]:
        where = f" in {error['stage']}" if error["stage"] else ""
        lines.append(("last error", f"{duration(now - error['time'])} ago{where}: {error['text']}"))
    return lines


def _state_line(status: dict[str, Any]) -> str:
    words = {
        "quiet": "running, but nothing has moved for long: it compiles something large, or is stuck",
        "killed": "killed: it ended without a word; the same command continues it",
        "preempted": "preempted; the same command continues it",
        "stopped": "stopped; the same command continues it",
        "failed": "failed; the same command continues it when the cause is gone",
        "unknown": "not running; the same command continues it, or finds everything done",
    }
    parts = [words.get(status["state"], status["state"])]
    if status["state"] in ("running", "quiet") and status["owner"]:
        several = f", {status['processes']} processes" if (status["processes"] or 1) > 1 else ""
        parts.append(f"{status['owner']}{several}")
    if status["heartbeat_age"] is not None:
        parts.append(f"last progress {duration(status['heartbeat_age'])} ago")
    return "; ".join(parts)


def _stage_line(stage: dict[str, Any], left: float | None, age: float) -> str:
    parts = [stage["name"]]
    if stage["total"]:
        parts.append(f"{stage['done']} of {stage['total']}")
    if stage["tokens"]:
        parts.append(f"{stage['tokens'] / max(1e-9, stage['seconds']):,.0f} tokens/s")
    figures = stage["figures"].items()
    parts += [f"{name} {'not a finite number' if value is None else f'{value:.3f}'}" for name, value in figures]
    parts.append(
        f"for {duration(stage['seconds'] + age)}" + (f", about {duration(left)} left" if left is not None else "")
    )
    return "  ".join(parts)


def _reward_line(rewards: list[list[float]]) -> str:
    """The mean of the first and the second half of the last steps."""
    values, half = [value for _, value in rewards], max(1, len(rewards) // 2)
    first, last = (sum(part) / len(part) for part in (values[:half], values[-half:]))
    return f"{first:.3f} → {last:.3f} over the last {len(values)} steps, up to step {rewards[-1][0]:.0f}"


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    lines = []
    if host := memory.get("host"):
        lines.append(
            f"host: the process {size(host['process'])}, free {size(host['available'])} of {size(host['total'])}"
        )
    for device in memory.get("devices", ()):
        limit = f" of {size(device['limit'])}" if device["limit"] else ""
        most = f", at most {size(device['peak'])} so far" if device["peak"] else ""
        lines.append(f"device {device['device']} ({device['kind']}): {size(device['used'])}{limit}{most}")
    return lines


def size(count: float) -> str:
    """Bytes in powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
