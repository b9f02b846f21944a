"""Reading configurations: a named file of `configs/`, or any YAML file, and `key=value` overrides on top.

The schema is `RunConfig`; a wrong key or type is an error that names the right one.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from looptool_jax.data.importers.data_sets import is_data_set
from looptool_jax.data.store import (
    dump_json,
    exists,
    file_sha256,
    is_file,
    join,
    lock_directory,
    parse_json,
    read_text,
    shard_files,
    write_bytes,
    write_text,
)
from looptool_jax.inference.lm import EndpointConfig, ModelConfig
from looptool_jax.loop.run_config import RunConfig, flat
from looptool_jax.loop.tracking import TrackingConfig
from looptool_jax.loop.train import TrainConfig
from looptool_jax.loop.warmup import WarmupConfig
from looptool_jax.models.lora import LoraConfig

# What may differ when a run is resumed: where it lies, more rounds, who is told of it, and how a server is reached and
# used.
RESUMABLE = (
    "run_dir",
    "rounds",
    *(f"tracking.{field.name}" for field in fields(TrackingConfig)),
    *(
        f"{model}.endpoint.{field.name}"
        for model in ("judge_model", "generator_model")
        for field in fields(EndpointConfig)
        if field.name != "model"
    ),
)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key or file and the remedy."""


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration `name` (shipped in `configs/`, or a path or URL of a YAML file) with overrides such as
    `train.batch=64`. Without `run_dir` the run goes to `runs/<name>`.

    Raises ConfigError.
    """
    file = _find(name)
    merged = OmegaConf.structured(RunConfig)
    merged.run_dir = f"runs/{Path(file).stem}"
    try:
        loaded = OmegaConf.load(io.StringIO(read_text(file)))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    except Exception as error:  # PyYAML's errors share no base class with ValueError
        raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())[:160]})") from None
    merged = _merge(merged, loaded, str(file))
    given: Any = DictConfig({})
    for override in overrides:
        key, sign, _ = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"{override!r}: expected key=value, such as train.batch=64")
        try:
            part = OmegaConf.from_dotlist([override])
        except Exception as error:
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ConfigError(f"{override!r}: the value is not valid YAML ({problem})") from None
        merged, given = _merge(merged, part, override), OmegaConf.merge(given, part)
    cfg = _to_object(merged)
    _check_noise(cfg, given, file)
    return cfg


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the program, by name."""
    return {file.stem: file for file in sorted(_folder().glob("*.yaml"))}


def shipped_trees() -> dict[str, Path]:
    """The trees of domains that come with the program, by name."""
    return {file.stem: file for file in sorted((_folder() / "trees").glob("*.yaml"))}


def find_trees(name: str) -> str:
    """The file of a domain's trees: shipped ones by their name, others by their path. Raises ConfigError."""
    if name in shipped_trees():
        return str(shipped_trees()[name])
    if not is_file(name):
        raise ConfigError(f"{name}: no such file; there are the trees {', '.join(shipped_trees())}, or give a path")
    return name


def shipped_sweeps() -> dict[str, Path]:
    """The sweeps that come with the program, by name."""
    return {file.stem: file for file in sorted((_folder() / "sweep").glob("*.yaml"))}


def find_sweep(name: str) -> str:
    """The file of a sweep: shipped ones by their name, others by their path. Raises ConfigError."""
    if name in shipped_sweeps():
        return str(shipped_sweeps()[name])
    if not name.endswith((".yaml", ".yml")) or not is_file(name):
        raise ConfigError(f"{name}: no such sweep; there are {', '.join(shipped_sweeps())}, or give a YAML file's path")
    return name


def keep_config(cfg: RunConfig) -> None:
    """Write the configuration into the run directory, or hold it against the one that is there.

    Until the first stage is done, other settings replace it. Raises ConfigError where the directory holds a run with
    other settings, or settings that cannot be read; DataError where another process runs there.
    """
    with lock_directory(cfg.run_dir):
        _keep_config(cfg, join(cfg.run_dir, "config.yaml"))


def keep_command(out: str, command: str, cfg: RunConfig, data: Sequence[str], round_: int = 1) -> None:
    """Write into the folder `out` which command works there, with what configuration and on what sample sets or
    files, or hold that against what stands there. The caller has the folder locked.

    Until something is done there, another command replaces it. Raises ConfigError where the folder holds the results of
    anything else: they would be taken for this command's own.
    """
    settings = {key: value for key, value in flat(asdict(cfg)).items() if key not in RESUMABLE}
    task = {"command": command, "round": round_, "data": [part for path in data for part in _content(path)], **settings}
    path = join(out, "command.json")
    begun = any(exists(join(out, name)) for name in ("progress.jsonl", "checkpoints"))
    if not begun or not exists(path):
        write_bytes(path, dump_json(task) + b"\n")
        return
    try:
        old = parse_json(read_text(path))
        changed = [key for key in task if old.get(key) != task[key]]
    except (ValueError, AttributeError):
        raise ConfigError(
            f"{path}: not the settings of a command; remove the folder, or choose another --out"
        ) from None
    if changed:
        key = changed[0]
        what = "other data" if key == "data" else f"other settings ({key} was {old.get(key)!r}, now {task[key]!r})"
        raise ConfigError(f"{out}: holds results of {what}; choose another --out, or remove the folder")


def _content(data: str) -> list[str]:
    """The hashes of the files of a sample set; a data set of TFDS or Hugging Face is known by its name."""
    if is_data_set(data):
        return [data]
    single = data.endswith(".jsonl") or is_file(data)
    return [file_sha256(file) for file in ([data] if single else shard_files(data))]


def check_kept(cfg: RunConfig) -> None:
    """Raises ConfigError where the run directory holds a run with other settings; more or fewer rounds are none."""
    old, new = kept_settings(cfg.run_dir), flat(asdict(cfg))
    concern = [key for key in sorted(old | new) if key not in RESUMABLE and not key.startswith("synthesis.")]
    changed = [key for key in concern if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{cfg.run_dir}: holds a run with other settings ({key} was {old.get(key)!r}, now {new.get(key)!r}"
            f"{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}); "
            "give the same settings to resume it, or another run_dir"
        )


def kept_settings(run_dir: str) -> dict[str, Any]:
    """The settings of the run that a directory holds, by their full keys. Raises ConfigError, DataError."""
    path = join(run_dir, "config.yaml")
    try:
        settings = flat(OmegaConf.to_container(OmegaConf.create(read_text(path))))
    except (yaml.YAMLError, OmegaConfBaseException):
        settings = {}
    if not isinstance(settings.get("rounds"), int):
        raise ConfigError(f"{path}: not the settings of a run; restore the file, or choose another run_dir")
    return settings


def _keep_config(cfg: RunConfig, path: str) -> None:
    text = OmegaConf.to_yaml(OmegaConf.create(asdict(cfg)))
    if exists(path) and exists(join(cfg.run_dir, "manifest.json")):
        check_kept(cfg)
        old, new = kept_settings(cfg.run_dir), flat(asdict(cfg))
        if new["rounds"] < old["rounds"]:
            raise ConfigError(f"{cfg.run_dir}: holds a run of {old['rounds']} rounds; rounds can only grow")
        if old == new:
            return
    write_text(path, text)


def _folder() -> Path:
    """`configs/` inside the installed package, or beside it in a source checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _find(name: str) -> str:
    if name in shipped_configs():
        return str(shipped_configs()[name])
    if name.endswith((".yaml", ".yml")):
        if not is_file(name):
            raise ConfigError(f"{name}: no such file")
        return name
    raise ConfigError(
        f"{name}: no such configuration; there are {', '.join(shipped_configs())}, or give the path of a YAML file"
    )


def _merge(base: DictConfig, part: Any, source: str) -> DictConfig:
    if not isinstance(part, DictConfig):
        raise ConfigError(f"{source}: expected keys and values at the top level")
    try:
        return OmegaConf.merge(base, part)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = _reason(error)
        place = "" if source.startswith(f"{reason.partition(':')[0]}=") else f"{source}: "
        raise ConfigError(f"{place}{reason}") from None


def _check_noise(cfg: RunConfig, given: Any, file: str) -> None:
    """Labels that a user brings are corrupted only where the same words ask for it, not by a shipped share."""
    source, noise = (OmegaConf.select(given, key) for key in ("data.source", "data.noise"))
    if cfg.data.noise and cfg.data.source != "world" and source is not None and noise is None:
        raise ConfigError(
            f"data.source={source}: {file} corrupts {cfg.data.noise:.0%} of the labels on purpose; give data.noise=0 "
            "with data of your own, or the share by which label repair is to be measured"
        )


def _to_object(merged: DictConfig) -> RunConfig:
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error
        raise ConfigError(_reason(cause)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _reason(error: BaseException) -> str:
    """OmegaConf's message on one line, with the full key, and for an unknown one the right one."""
    line = str(error).splitlines()[0]
    key = getattr(error, "full_key", None)
    if "is not a subclass" in line:
        return "a group of settings cannot be set to one value; set those in it"
    if not key:
        return line
    if isinstance(error, ConfigKeyError):
        return f"{key}: no such setting; {_nearest(key)}"
    if "is not a ListConfig" in line:
        return f"{key}: expected a list, such as '{key}=[a, b]'"
    if isinstance(error, ValidationError) and "'None'" in line:
        return f"{key}: no value is given"
    return f"{key}: {line}"


def _nearest(key: str) -> str:
    """What an unknown key may have meant: the same name elsewhere, or one that is spelt alike; else what there is."""
    known = [name for name in flat(asdict(_example())) if name]
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last or f".{last}." in f".{name}."]
    in_full, alike = difflib.get_close_matches(key, known, 3, 0.8), []
    parts = {part for name in known for part in name.split(".")}
    for part in difflib.get_close_matches(last, parts, 1, 0.7):
        alike += [name for name in known if part in name.split(".")]
    group = key.rpartition(".")[0]
    nearest_first = sorted(in_full or same or alike, key=lambda name: not name.startswith(f"{group}."))
    if found := list(dict.fromkeys(nearest_first)):
        return f"did you mean {' or '.join(found[:3])}?"
    names = sorted({name.removeprefix(f"{group}.").split(".")[0] for name in known if name.startswith(f"{group}.")})
    return f"there are {', '.join(names or sorted({name.split('.')[0] for name in known}))}"


def _example() -> RunConfig:
    """A configuration in which every group is there."""
    model = ModelConfig(endpoint=EndpointConfig("http://127.0.0.1:8000/v1", "model"))
    return RunConfig(
        judge_model=model, generator_model=model, warmup=WarmupConfig(), train=TrainConfig(lora=LoraConfig())
    )
