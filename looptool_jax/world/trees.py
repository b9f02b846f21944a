"""The two trees of the world (paper, section 3.1): context (domain → topic → function leaf) and constraints.

Both are YAML under `trees/`. They are read once and checked when read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from looptool_jax.world.errors import WorldError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
EFFECTS = ("lookup", "search", "create", "update", "delete", "act", "compute")


@dataclass(frozen=True)
class Parameter:
    """What a leaf can ask for. `shape` is kind, enum, boolean, list, object or id.

    key: snake_case name. kind: the value kind (kind, list), or the object's name (id). values: of an enum.
    fields: of an object, name → kind. say: natural mentions ({} is the value); on/off: phrases of a boolean.
    """

    key: str
    shape: str
    kind: str = ""
    values: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    say: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    join: str = ""
    prefix: str = ""

    @property
    def words(self) -> str:
        return self.key.replace("_", " ")


@dataclass(frozen=True)
class Leaf:
    """A function of the context tree: what it does, how people ask for it and which parameters it can have."""

    key: str
    domain: str
    topic: str
    effect: str
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    doc: str
    ask: tuple[str, ...]
    questions: tuple[str, ...]
    needs: tuple[Parameter, ...]
    may: tuple[Parameter, ...]
    object: str = ""
    prefix: str = ""
    returns: tuple[tuple[str, str], ...] = ()
    formula: str = ""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.needs, *self.may)

    @property
    def objects(self) -> frozenset[str]:
        """The words for the things that the leaf is about, without plural endings."""
        return frozenset(word.removesuffix("s") for word in " ".join(self.nouns).split())


@dataclass(frozen=True)
class Branch:
    """One child of a branching point of the constraint tree."""

    name: str
    weight: float
    settings: dict[str, Any]


def _read(name: str) -> Any:
    source = resources.files("looptool_jax.world").joinpath("trees", name)
    return yaml.load(source.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def phrases() -> dict[str, Any]:
    """Wording lists by name."""
    return _read("phrases.yaml")


@cache
def pools() -> dict[str, tuple[str, ...]]:
    """Value pools by name."""
    return {name: tuple(values) for name, values in _read("values.yaml").items()}


@cache
def constraints() -> dict[str, tuple[Branch, ...]]:
    """The constraint tree: branching point → its branches."""
    return {
        point: tuple(
            Branch(name, settings["weight"], {key: value for key, value in settings.items() if key != "weight"})
            for name, settings in branches.items()
        )
        for point, branches in _read("constraints.yaml").items()
    }


@cache
def parameters() -> dict[str, Parameter]:
    """Parameters by key."""
    return {key: _parameter(key, raw) for key, raw in _read("parameters.yaml").items()}


def _parameter(key: str, raw: dict[str, Any]) -> Parameter:
    common = {"say": tuple(raw.get("say", ())), "join": raw.get("join", "")}
    if "kind" in raw:
        return Parameter(key, "kind", kind=raw["kind"], **common)
    if "enum" in raw:
        return Parameter(key, "enum", values=tuple(raw["enum"]), **common)
    if "list" in raw:
        return Parameter(key, "list", kind=raw["list"], **common)
    if "fields" in raw:
        return Parameter(key, "object", fields=tuple(raw["fields"].items()), **common)
    if "on" in raw:
        return Parameter(key, "boolean", on=tuple(raw["on"]), off=tuple(raw["off"]), **common)
    raise WorldError(f"trees/parameters.yaml: {key} needs one of kind, enum, list, fields, on")


@cache
def leaves() -> dict[str, Leaf]:
    """Every function leaf by key, in the order of the files."""
    found: dict[str, Leaf] = {}
    folder = resources.files("looptool_jax.world").joinpath("trees", "context")
    for domain in sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")):
        for topic, content in _read(f"context/{domain}.yaml").items():
            for key, raw in content["leaves"].items():
                if key in found:
                    raise WorldError(f"trees/context/{domain}.yaml: leaf {key} exists twice")
                found[key] = _leaf(key, domain, topic, content["ids"], raw)
    return found


def _leaf(key: str, domain: str, topic: str, ids: dict[str, str], raw: dict[str, Any]) -> Leaf:
    def parameter(name: str) -> Parameter:
        if name.startswith("@"):
            return Parameter(f"{name[1:]}_id", "id", kind=name[1:], prefix=ids[name[1:]])
        return parameters()[name]

    made = raw.get("makes") or raw.get("finds") or ""
    leaf = Leaf(
        key, domain, topic, raw["effect"], tuple(raw["verbs"]), tuple(raw["nouns"]), raw["doc"], tuple(raw["ask"]),
        tuple(raw.get("q", ())), tuple(map(parameter, raw["needs"])), tuple(map(parameter, raw["may"])),
        made, ids[made] if made else "", tuple(raw.get("returns", {}).items()), raw.get("formula", ""),
    )  # fmt: skip
    if leaf.effect not in EFFECTS:
        raise WorldError(f"trees/context/{domain}.yaml: {key} has the unknown effect {leaf.effect}")
    if any(need.shape == "id" for need in leaf.needs) and not all(" the " in ask for ask in leaf.ask):
        raise WorldError(f'trees/context/{domain}.yaml: {key} takes an id, so each ask must end with "the <object>"')
    return leaf


@cache
def split_leaves(split: Split) -> tuple[Leaf, ...]:
    """The leaves of a split. In every domain the topic with the smallest hash is held out, so no leaf is shared."""
    if split not in SPLITS:
        raise WorldError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    topics: dict[str, set[str]] = {}
    for leaf in leaves().values():
        topics.setdefault(leaf.domain, set()).add(leaf.topic)
    held_out = {(domain, min(names, key=lambda name: _digest(f"{domain}/{name}"))) for domain, names in topics.items()}
    return tuple(leaf for leaf in leaves().values() if ((leaf.domain, leaf.topic) in held_out) == (split == "heldout"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
