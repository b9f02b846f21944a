"""The dual trees of a domain (paper, section 3.1): what functions there are, and how their documents are written.

A trees file is YAML or JSON:

    domain: Travel
    context:                       # topics, subtopics, functions; a list holds leaves
      Trains:
        Tickets: [Seat Reservation, Ticket Refund]
    constraints:                   # one leaf of every branch is drawn
      naming:
        snake: {say: Write all names in snake_case., case: snake}

A leaf of the constraint tree says what the writer has to do, and may hold what rules can check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from looptool_jax.data.store import DataError, PathLike, exists, join, read_text, write_jsonl, write_text
from looptool_jax.data.yaml_text import dump_yaml, parse_yaml
from looptool_jax.inference.answers import ChatModel, ChatRequest
from looptool_jax.loop.console import Console
from looptool_jax.loop.keys import key_for
from looptool_jax.loop.prompts.synthesis import (
    Unreadable,
    constraint_tree_messages,
    context_tree_messages,
    parse_object,
)
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.parallel.processes import by_first

CASES = ("simple", "snake", "camel", "kebab")
TYPES = ("string", "integer", "number", "boolean", "array", "object")
MAX_LEVELS = 8

Path = tuple[str, ...]


class TreeError(ValueError):
    """A tree that cannot be used; the message names the place in it."""


@dataclass(frozen=True)
class Constraint:
    """A leaf of the constraint tree.

    say: what the writer is told. What rules check, None where nothing: case of names; least and most parameters; types
    that parameters may have; needs: types of which at least one parameter has to be.
    """

    path: Path
    say: str
    case: str | None = None
    least: int | None = None
    most: int | None = None
    types: tuple[str, ...] | None = None
    needs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Trees:
    """The trees of a domain: the leaf paths of one, and those of every branch of the other."""

    domain: str
    places: tuple[Path, ...]
    constraints: dict[str, tuple[Constraint, ...]]

    def draw(self, rng: Random) -> tuple[Path, list[Constraint]]:
        """A leaf path of the context tree, behind the domain, and a leaf of every branch of the constraint tree."""
        place = (self.domain, *rng.choice(self.places))
        return place, [rng.choice(leaves) for leaves in self.constraints.values()]


def read_trees(path: PathLike) -> Trees:
    """The trees of a YAML or JSON file. Raises DataError naming the place that does not fit."""
    try:
        raw = parse_yaml(read_text(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {str(error)[:200]}") from None
    try:
        if not isinstance(raw, dict) or set(raw) != {"domain", "context", "constraints"}:
            raise TreeError("expected the keys domain, context and constraints")
        domain = raw["domain"]
        if not isinstance(domain, str) or not domain.strip():
            raise TreeError(f"domain: expected a name, found {domain!r}")
        return Trees(domain.strip(), read_context(raw["context"]), read_constraints(raw["constraints"]))
    except TreeError as error:
        raise DataError(f"{path}: {error}") from None


def read_context(raw: Any) -> tuple[Path, ...]:
    """The leaf paths of a context tree. Raises TreeError; it has two levels at least, and no leaf twice."""
    if not isinstance(raw, dict):
        raise TreeError(f"context: expected topics, found {_kind(raw)}")
    paths = _context_paths(raw, ())
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(" ".join(path[-1].split()).casefold(), path)
        if other is not path:
            raise TreeError(f"context: {' > '.join(other)} and {' > '.join(path)} are the same function")
    return tuple(paths)


def _context_paths(node: Any, above: Path) -> list[Path]:
    where = " > ".join(("context", *above))
    if len(above) > MAX_LEVELS:
        raise TreeError(f"{where}: more than {MAX_LEVELS} levels")
    if not isinstance(node, dict | list) or not node:
        raise TreeError(f"{where}: expected a list of functions or an object of topics, found {_kind(node)}")
    paths: list[Path] = []
    for name in node:
        if not isinstance(name, str) or not name.strip():
            raise TreeError(f"{where}: expected a name, found {_kind(name)}")
        place = (*above, name.strip())
        paths += [place] if isinstance(node, list) else _context_paths(node[name], place)
    return paths


def read_constraints(raw: Any) -> dict[str, tuple[Constraint, ...]]:
    """The leaves of every branch of a constraint tree. Raises TreeError."""
    if not isinstance(raw, dict) or not raw:
        raise TreeError(f"constraints: expected branches, found {_kind(raw)}")
    return {str(branch): tuple(_constraint_leaves(node, (str(branch),))) for branch, node in raw.items()}


def _constraint_leaves(node: Any, above: Path) -> list[Constraint]:
    """The leaves below a node: an object with "say" is one, a text is one that only says something."""
    where = " > ".join(("constraints", *above))
    if len(above) > MAX_LEVELS:
        raise TreeError(f"{where}: more than {MAX_LEVELS} levels")
    if isinstance(node, str):
        node = {"say": node}
    if not isinstance(node, dict) or not node:
        raise TreeError(f"{where}: expected a leaf with say, or an object of leaves, found {_kind(node)}")
    if "say" not in node:
        return [leaf for name, child in node.items() for leaf in _constraint_leaves(child, (*above, str(name)))]
    if strangers := [key for key in node if key not in ("say", "case", "least", "most", "types", "needs")]:
        raise TreeError(f"{where}: {strangers[0]!r} is no part of a leaf (say, case, least, most, types, needs)")
    say, case, least, most = (node.get(key) for key in ("say", "case", "least", "most"))
    if not isinstance(say, str) or not say.strip():
        raise TreeError(f"{where}: say is no text")
    if case is not None and case not in CASES:
        raise TreeError(f"{where}: case: expected one of {', '.join(CASES)}, found {case!r}")
    for name, value in (("least", least), ("most", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise TreeError(f"{where}: {name}: expected a number from 0, found {value!r}")
    if least is not None and most is not None and least > most:
        raise TreeError(f"{where}: least {least} is more than most {most}")
    types, needs = (_types(node.get(key), f"{where}: {key}") for key in ("types", "needs"))
    return [Constraint(above, say.strip(), case, least, most, types, needs)]


def _types(raw: Any, where: str) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or not raw or not all(name in TYPES for name in raw):
        raise TreeError(f"{where}: expected some of {', '.join(TYPES)}, found {raw!r}")
    return tuple(raw)


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"an empty {'object' if isinstance(value, dict) else 'list'}" if not value else type(value).__name__
    return repr(value)[:60]


_PARTS = {
    "context": (context_tree_messages, read_context),
    "constraints": (constraint_tree_messages, read_constraints),
}


def draft_trees(
    generator: ChatModel, domain: str, seed: int, cfg: SynthesisConfig, out: str, console: Console
) -> dict[str, Any]:
    """Have both trees of a domain drafted, and return the metrics.

    Writes `out/trees.yaml` with the first valid draft of each, and `out/rejected.jsonl` with the others' reasons. Given
    again when all is done, it leaves `out/trees.yaml`, which may be edited by now, as it is.
    Raises DataError where no draft of a tree is valid.
    """

    def work(parts: Sequence[str]) -> list[dict[str, Any]]:
        drafts = [(part, number) for part in parts for number in range(cfg.drafts)]
        requests = [
            ChatRequest(f"{part}-{number}", _PARTS[part][0](domain), key_for(seed, "tree", domain, part, number))
            for part, number in drafts
        ]
        replies = generator.chat(
            requests, cfg.answers, console.tokens, temperature=cfg.temperature, top_p=cfg.top_p, top_k=cfg.top_k
        )
        console.advance(len(parts))
        return [_draft(part, reply.text, reply.finish) for (part, _), reply in zip(drafts, replies, strict=True)]

    file, progress = join(out, "trees.yaml"), join(out, "progress.jsonl")
    written = exists(file) and exists(progress)
    rows = process_in_chunks(list(_PARTS), len(_PARTS), progress, work, console)
    write_jsonl(join(out, "rejected.jsonl"), [row for row in rows if row["reason"]])
    valid = {part: [row["tree"] for row in rows if row["part"] == part and not row["reason"]] for part in _PARTS}
    for part, drafted in valid.items():
        if not drafted:
            reason = next(row["reason"] for row in rows if row["part"] == part)
            raise DataError(
                f"{domain}: none of {cfg.drafts} drafts of the {part} tree is valid (the first: {reason}); they are in "
                f"{join(out, 'rejected.jsonl')}. Write it yourself, or use another model or seed in another --out"
            )
    document = {"domain": domain, **{part: drafted[0] for part, drafted in valid.items()}}
    by_first(lambda: None if written else write_text(file, dump_yaml(document)))
    trees = read_trees(file)
    return {
        "drafts": len(rows),
        "rejected": sum(bool(row["reason"]) for row in rows),
        "functions": len(trees.places),
        "constraints": sum(map(len, trees.constraints.values())),
    }


def _draft(part: str, reply: str, finish: str) -> dict[str, Any]:
    """A drafted tree, or why it is none."""
    try:
        if finish != "stop":
            raise Unreadable(f"the reply is not whole ({finish})")
        tree = parse_object(reply)
        _PARTS[part][1](tree)
    except (Unreadable, TreeError) as error:
        return {"part": part, "reason": str(error), "reply": reply}
    return {"part": part, "reason": "", "tree": tree}
