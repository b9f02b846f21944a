"""What a sweep is: a base configuration, the settings that vary, and the trials that come of them.

A file, shipped in `configs/sweep/` or a user's own:

    config: quickstart                    # the base, by name or path
    settings: {rounds: 2}                 # the same in every trial
    grid:                                 # every combination
      train.optimizer.learning_rate: [1e-4, 3e-4]
      seed: range(3)
    zip: {train.batch: [8, 16], train.group: [16, 8]}                 # these move together
    variants: {full: {}, no-jglv: {judge.enabled: false}}             # named groups of settings, crossed with the grid
    search: {method: tpe, trials: 20, metric: accuracy, space: {compose.high_ppl: "choice(top,random)"}}
    prune: median                         # stop hopeless trials behind a round (default: off)
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from looptool_jax.config import find_sweep, load_config
from looptool_jax.data.store import DataError, exists, join, read_text, write_text
from looptool_jax.data.yaml_text import dump_yaml, parse_yaml
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.sweep.values import Choices, Distribution, SweepError, as_text, read_values

MOST_TRIALS = 2000
LONGEST_NAME = 180  # of a group; a file system takes 255 bytes
SEED = "seed"
KEPT = "sweep.yaml"
METRICS = ("accuracy", "gain", "reward")
_KEYS = ("config", "settings", "grid", "zip", "variants", "search", "prune")
_SEARCH_KEYS = ("method", "trials", "metric", "seed", "space")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,59}")
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")  # of a number in the one spelling that names a folder

Settings = dict[str, str]


@dataclass(frozen=True)
class Search:
    """method: "tpe" or "random". trials: points to try. metric: of the last round, the larger the better.
    seed: of the draws."""

    space: dict[str, Distribution]
    method: str = "tpe"
    trials: int = 20
    metric: str = "accuracy"
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One run of a sweep; its name says which. group: what it shares with the trials that differ by seed alone."""

    name: str
    group: str
    settings: Settings = field(compare=False)

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.settings.items()]

    @property
    def seed(self) -> str:
        return self.settings.get(SEED, "")


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep; `name` says where its folder lies when none is given."""

    name: str
    config: str
    settings: Settings = field(default_factory=dict)
    grid: dict[str, tuple[str, ...]] = field(default_factory=dict)
    zipped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variants: dict[str, Settings] = field(default_factory=dict)
    search: Search | None = None
    prune: bool = False

    @property
    def seeds(self) -> tuple[str, ...]:
        return self.grid.get(SEED, ())

    @property
    def keys(self) -> list[str]:
        """The settings that vary, the seed apart."""
        varied = [key for group in self.variants.values() for key in group]
        searched = list(self.search.space) if self.search else []
        return list(dict.fromkeys([*varied, *(key for key in self.grid if key != SEED), *self.zipped, *searched]))

    def trials(self) -> list[Trial]:
        """All trials of variants × grid × zip, in the order in which they run: a group's seeds behind each other."""
        grid = {key: values for key, values in self.grid.items() if key != SEED}
        together = [dict(zip(self.zipped, row, strict=True)) for row in zip(*self.zipped.values(), strict=True)]
        trials = []
        for variant, settings in (self.variants or {"": {}}).items():
            for row in itertools.product(*grid.values()):
                for moved in together or [{}]:
                    point = dict(zip(grid, row, strict=True)) | moved
                    trials += self.group(variant, settings | point, point)
        return trials

    def group(self, variant: str, settings: Settings, named: Settings) -> list[Trial]:
        """A trial a seed of one group of settings; `named`: those that its name tells beside the variant."""
        parts = [variant] if variant else []
        group = ",".join([*parts, *(f"{self._label(key)}={_slug(value)}" for key, value in named.items())]) or "base"
        if len(group) > LONGEST_NAME:
            group = f"{group[: LONGEST_NAME - 7]}~{_digest(group)}"
        if not self.seeds:
            return [Trial(group, group, self.settings | settings)]
        return [
            Trial(f"{group},seed={seed}", group, self.settings | settings | {SEED: seed}) for seed in self.seeds
        ]  # fmt: skip

    def trial_config(self, trial: Trial, run_dir: str, rounds: int | None = None) -> RunConfig:
        """The configuration of a trial. Raises ConfigError."""
        return load_config(self.config, [*trial.overrides, *_rounds(rounds), f"run_dir={run_dir}"])

    def _label(self, key: str) -> str:
        """The last part of a key, or all of it where another swept key ends alike."""
        last = key.rpartition(".")[2]
        varied = [*self.grid, *self.zipped, *(self.search.space if self.search else ())]
        return last if [other.rpartition(".")[2] for other in varied].count(last) == 1 else key

    def to_json(self) -> dict[str, Any]:
        """As a sweep file has it."""
        found: dict[str, Any] = {"config": self.config, "settings": self.settings}
        found |= {"grid": _lists(self.grid), "zip": _lists(self.zipped), "variants": self.variants}
        if self.search:
            space = {key: str(distribution) for key, distribution in self.search.space.items()}
            found["search"] = {key: getattr(self.search, key) for key in _SEARCH_KEYS} | {"space": space}
        return {key: value for key, value in found.items() if value} | ({"prune": "median"} if self.prune else {})


def read_sweep(
    name: str | None,
    config: str | None = None,
    arguments: Sequence[str] = (),
    prune: bool = False,
    **search: Any,
) -> Sweep:
    """A sweep from a file, by its name or path, with `key=values` of the command line on top, or from these alone.

    A single value is a setting of all trials, several are a grid, and take the place of what the file says of that key.
    search: settings of `Search`; None: as the file has them. Raises SweepError, ConfigError.
    """
    sweep = _from_file(name) if name else Sweep(Path(config or "quickstart").stem, config or "quickstart")
    if name and config:
        sweep = replace(sweep, config=config)
    settings, grid, zipped = dict(sweep.settings), dict(sweep.grid), dict(sweep.zipped)
    space = dict(sweep.search.space) if sweep.search else {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        key = key.strip()
        if not sign or not key:
            raise SweepError(f"{argument!r}: expected key=value or key=values, such as seed=range(3)")
        found = read_values(key, text)
        for part in (settings, grid, zipped, space):
            part.pop(key, None)
        if isinstance(found, Distribution):
            space[key] = found
        elif found.zipped:
            zipped[key] = found.values
        elif len(found.values) == 1 and "range(" not in text:
            settings[key] = found.values[0]
        else:
            grid[key] = found.values
    chosen = {key: value for key, value in search.items() if value is not None}
    if chosen and not space:
        raise SweepError(
            f"--{next(iter(chosen))}: there is nothing to search; vary a setting by loguniform(...) or the like"
        )
    found_search = _checked(replace(sweep.search or Search({}), space=space, **chosen), "--") if space else None
    return replace(
        sweep, settings=settings, grid=grid, zipped=zipped, search=found_search, prune=prune or sweep.prune
    )  # fmt: skip


def check(sweep: Sweep) -> list[Trial]:
    """The trials of a sweep, each checked against the configuration; of a search, those at its bounds and choices.

    Raises SweepError for settings that contradict each other, ConfigError for a trial that cannot be run.
    """
    _check_keys(sweep)
    if sweep.search:
        trials, space = [], sweep.search.space
        for index in range(max(len(distribution.arguments) for distribution in space.values())):
            point = {key: found.arguments[index % len(found.arguments)] for key, found in space.items()}
            trials += sweep.group("", point, point)
    else:
        together = max((len(values) for values in sweep.zipped.values()), default=1)
        count = math.prod(map(len, sweep.grid.values())) * max(1, len(sweep.variants)) * together
        if count > MOST_TRIALS:
            raise SweepError(f"{count} trials; at most {MOST_TRIALS} are run. Take values out")
        trials = sweep.trials()
    first = {trial.group: trial for trial in reversed(trials)}
    for trial in dict.fromkeys([*trials[: max(1, len(sweep.seeds))], *first.values()]):  # every seed, and every group
        cfg = sweep.trial_config(trial, "runs/trial")
        if (sweep.prune or (sweep.search and sweep.search.metric in ("accuracy", "gain"))) and not cfg.data.heldout:
            raise SweepError("data.heldout=0: there is no held-out accuracy to prune or search by; hold items out")
    return trials


def keep_sweep(sweep: Sweep, out: str) -> None:
    """Write the sweep's settings into its folder, or hold them against those that are there.

    More values, variants and points of a search may be added; nothing else may change. Raises SweepError.
    """
    path = join(out, KEPT)
    if exists(path):
        try:
            old = _from_json(parse_yaml(read_text(path)), path, sweep.name)
        except (ValueError, DataError) as error:
            raise SweepError(f"{error}; restore the file, or choose another --out") from None
        if old == sweep:
            return
        if key := _changed(old, sweep):
            raise SweepError(
                f"{out}: holds a sweep with other settings ({key} differs); values, variants and trials may be added, "
                "nothing else may change: choose another --out"
            )
    write_text(path, dump_yaml(sweep.to_json()))


def kept_sweep(out: str) -> Sweep:
    """The settings of the sweep in a folder. Raises SweepError, DataError."""
    path = join(out, KEPT)
    try:
        return _from_json(parse_yaml(read_text(path)), path, out)
    except DataError:
        raise
    except ValueError as error:
        raise SweepError(f"{path}: {error}") from None


def _changed(old: Sweep, new: Sweep) -> str:
    """The first thing in which a sweep does not continue an earlier one; "" where it does."""
    if old.config != new.config:
        return "config"
    for key in sorted({*old.settings, *new.settings}):
        if old.settings.get(key) != new.settings.get(key):
            return key
    for before, after in ((old.grid, new.grid), (old.zipped, new.zipped)):
        for key in sorted({*before, *after}):
            if key not in before or not set(before[key]) <= set(after.get(key, ())):
                return key
    rows, more = (set(zip(*(sweep.zipped[key] for key in old.zipped), strict=True)) for sweep in (old, new))
    if not rows <= more:
        return "zip"
    if bool(old.variants) != bool(new.variants):
        return "variants"
    for name, settings in old.variants.items():
        if new.variants.get(name) != settings:
            return f"variant {name}"
    if old.prune != new.prune:
        return "prune"
    if (old.search is None) != (new.search is None):
        return "search"
    if old.search and new.search and replace(old.search, trials=new.search.trials) != new.search:
        return "search"
    return "search.trials" if old.search and new.search and old.search.trials > new.search.trials else ""


def _check_keys(sweep: Sweep) -> None:
    searched = list(sweep.search.space) if sweep.search else []
    varied = [*sweep.grid, *sweep.zipped, *searched]
    in_variants = {key for settings in sweep.variants.values() for key in settings}
    for key in [*varied, *in_variants, *sweep.settings]:
        if key == "run_dir":
            raise SweepError("run_dir: every trial has one of its own in the sweep's folder; give --out")
    if not varied and not sweep.variants:
        raise SweepError("nothing varies; give several values, as in seed=range(3), or the name of a sweep")
    for key in varied:
        if key in sweep.settings:
            raise SweepError(f"{key}: is varied, and has a value for all trials in settings; leave one of them")
        if varied.count(key) > 1 or key in in_variants:
            raise SweepError(f"{key}: is varied twice (grid, zip, variants, search); leave one of them")
    for key in [*sweep.zipped, *searched, *in_variants]:
        if key == SEED:
            raise SweepError("seed: results are averaged over it, so it belongs into the grid: seed=range(3)")
    for seed in sweep.seeds:
        if not _WHOLE.fullmatch(seed):
            raise SweepError(f"seed: expected whole numbers, found {seed!r}")
    if len({len(values) for values in sweep.zipped.values()}) > 1:
        raise SweepError(f"{', '.join(sweep.zipped)}: parameters that move together need equally many values")
    if sweep.search and (sweep.variants or sweep.zipped or [key for key in sweep.grid if key != SEED]):
        raise SweepError("search: can be crossed with seeds alone; move the other settings into the search or out")
    if sweep.prune and sweep.variants:
        raise SweepError("prune: variants are there to be compared, so each runs to its end; leave it off")
    if sweep.prune and "rounds" in varied:
        raise SweepError("prune: stops trials behind their rounds, so rounds cannot vary; fix it or leave prune off")


def _from_file(name: str) -> Sweep:
    file = find_sweep(name)
    try:
        content = parse_yaml(read_text(file))
    except DataError:
        raise
    except ValueError as error:
        raise SweepError(f"{file}: {error}") from None
    return _from_json(content, file, Path(file).stem)


def _from_json(content: Any, source: str, name: str) -> Sweep:
    parts = _mapping(content, source)
    if unknown := sorted(parts.keys() - set(_KEYS)):
        raise SweepError(f"{source}: {unknown[0]}: no such part of a sweep; there are {', '.join(_KEYS)}")
    settings = _settings(parts.get("settings"), f"{source}: settings")
    variants = {}
    for variant, group in _mapping(parts.get("variants"), f"{source}: variants").items():
        if not _NAME.fullmatch(variant):
            raise SweepError(f"{source}: variant {variant!r}: a name is of letters, digits, '.', '_', '+' and '-'")
        variants[variant] = _settings(group, f"{source}: variant {variant}")
    prune = parts.get("prune", "off")
    if prune not in ("off", "median", False):
        raise SweepError(f"{source}: prune: expected off or median, found {prune!r}")
    config = parts.get("config", "quickstart")
    if not isinstance(config, str):
        raise SweepError(f"{source}: config: expected the name or path of a configuration, found {config!r}")
    grid = _grid(parts.get("grid"), f"{source}: grid")
    zipped = _grid(parts.get("zip"), f"{source}: zip")
    search = _search(parts["search"], f"{source}: search") if parts.get("search") else None
    return Sweep(name, config, settings, grid, zipped, variants, search, prune == "median")


def _settings(content: Any, source: str) -> Settings:
    return {key: as_text(key, value) for key, value in _mapping(content, source).items()}


def _grid(content: Any, source: str) -> dict[str, tuple[str, ...]]:
    grid = {}
    for key, value in _mapping(content, source).items():
        found = read_values(key, value)
        if isinstance(found, Distribution):
            raise SweepError(f"{source}: {key}: {found.kind}(...) belongs into search.space")
        grid[key] = found.values
    return grid


def _search(content: Any, source: str) -> Search:
    parts = _mapping(content, source)
    if unknown := sorted(parts.keys() - set(_SEARCH_KEYS)):
        raise SweepError(f"{source}: {unknown[0]}: no such setting; there are {', '.join(_SEARCH_KEYS)}")
    space: dict[str, Distribution] = {}
    for key, value in _mapping(parts.get("space"), f"{source}.space").items():
        found = read_values(key, value)
        space[key] = Distribution("choice", found.values) if isinstance(found, Choices) else found
    if not space:
        raise SweepError(f"{source}.space: nothing to search; give settings, such as a key: loguniform(1e-6,1e-4)")
    return _checked(Search(space, **{key: value for key, value in parts.items() if key != "space"}), f"{source}.")


def _checked(search: Search, prefix: str) -> Search:
    for key, choices in (("method", ("tpe", "random")), ("metric", METRICS)):
        if getattr(search, key) not in choices:
            raise SweepError(f"{prefix}{key}: expected {' or '.join(choices)}, found {getattr(search, key)!r}")
    for key, least in (("trials", 1), ("seed", 0)):
        value = getattr(search, key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_TRIALS:
            raise SweepError(f"{prefix}{key}: expected a whole number from {least} to {MOST_TRIALS}, found {value!r}")
    return search


def _mapping(content: Any, source: str) -> Mapping[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SweepError(f"{source}: expected keys and values")
    return content


def _lists(values: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {key: list(found) for key, found in values.items()}


def _rounds(rounds: int | None) -> list[str]:
    return [] if rounds is None else [f"rounds={rounds}"]


def _slug(value: str) -> str:
    """A value as a part of a folder's name; where letters had to go, with some of the hash of all."""
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "-", value).strip("-.")[:32]
    return kept if kept == value else f"{kept}~{_digest(value)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
