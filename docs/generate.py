"""Writes what is made from the program itself: the reference of settings and of commands, and the Colab notebook.

    python docs/generate.py           # write the files
    python docs/generate.py --check   # exit status 1 where one is out of step

Tests hold the files against what this would write.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "docs/CONFIGURATION.md"
COMMANDS = ROOT / "docs/COMMANDS.md"
NOTEBOOK_SOURCE = ROOT / "launch/colab.py"
NOTEBOOK = ROOT / "launch/colab.ipynb"

WRITTEN = "<!-- Written by docs/generate.py; change the program's own words and run it again. -->"
CONFIGURATION_HEAD = f"""# Configuration

{WRITTEN}

A configuration is a YAML file; `--config` takes its path or a shipped name, and `key=value` on the command line goes on
top. Every key below can be set either way. A key that is not here is an error that names the nearest one, and a value
that does not fit is an error that names its key. `null` stands for nothing.

```bash
looptool run --config quickstart train.batch=8 judge.enabled=false
looptool run --config quickstart 'train.lora={{rank: 8}}' 'compose.shares=[[0.2, 0.3, 0.3, 0.2]]'
```

Defaults below are those of a file that does not set the key; the shipped files set many. What a run used stands in its
`config.yaml`. These are shipped:
"""
COMMANDS_HEAD = f"""# Commands

{WRITTEN}

What `--help` says. Everything that computes takes `key=value` settings ([configuration](CONFIGURATION.md)) and
continues where it stood when it is given again.
"""
SHARED = {"ModelConfig": "A model", "EndpointConfig": "A server", "AnswerConfig": "Sizes of answers"}
"""Headings of the settings that stand under several keys."""
BAR = "\\|"  # in a cell of a table
TYPES = {int: "integer", float: "number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Setting:
    """A field of a configuration's dataclass. group: the dataclass that it holds, if it is no plain value."""

    key: str
    type: str
    default: str
    meaning: str
    group: type | None = None

    @property
    def heading(self) -> str:
        """Of the section with the settings of the group."""
        return SHARED.get(self.group.__name__, self.key) if self.group else ""


def settings_of(config: type, prefix: str = "") -> list[Setting]:
    """The settings of a dataclass, in its order, `prefix` before their keys."""
    described, comments = field_texts(config), _comments(config)
    hints = get_type_hints(config)
    rows = []
    for field in fields(config):
        if not field.init:
            continue
        group = _dataclass_in(hints[field.name])
        value = _default(field)
        meaning = described.get(field.name) or comments.get(field.name, "")
        shown = _differences(group, value) if group else f"`{_yaml(value)}`"
        rows.append(Setting(f"{prefix}{field.name}", _type_name(hints[field.name]), shown, meaning, group))
    return rows


def field_texts(config: type) -> dict[str, str]:
    """What a dataclass's docstring says of its fields: `name: text` or `name, other: text`, up to the next such."""
    return {name: text for names, text in _field_parts(config) for name in names}


def description(config: type) -> str:
    """What the docstring says before it comes to a field."""
    text = inspect.cleandoc(config.__doc__ or "")
    first = next(_starts(config, text), None)
    text = text[: first.start()] if first else text
    return "" if text.startswith(f"{config.__name__}(") else " ".join(text.split())


def _field_parts(config: type) -> Iterator[tuple[list[str], str]]:
    text = inspect.cleandoc(config.__doc__ or "")
    starts = list(_starts(config, text))
    for i, start in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(text)
        words = text[start.end() : end].split("\n\n")[0]
        yield start[1].split(", "), " ".join(words.split()).rstrip(".")


def _starts(config: type, text: str) -> Iterator[re.Match[str]]:
    names = "|".join(sorted((field.name for field in fields(config)), key=len, reverse=True))
    return re.finditer(rf"(?:(?<=\s)|^)((?:{names})(?:, (?:{names}))*):\s", text)


def _comments(config: type) -> dict[str, str]:
    """Comments behind fields, on their lines."""
    lines = textwrap.dedent(inspect.getsource(config)).splitlines()
    (body,) = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for part in body.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.end_lineno:
            _, sign, comment = lines[part.end_lineno - 1].partition("  # ")
            if sign:
                found[part.target.id] = comment.strip()
    return found


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    assert field.default_factory is not MISSING, f"{field.name} has no default"
    return field.default_factory()


def _dataclass_in(hint: Any) -> type | None:
    return next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None)


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _type_name(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return "list of lists" if get_origin(get_args(hint)[0]) is list else "list"
    return TYPES.get(hint, "settings")


def _yaml(value: Any) -> str:
    """A value as it stands in a YAML file or behind `key=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return '""' if value == "" else str(value)


def _differences(group: type, value: Any) -> str:
    """What the default of a group has otherwise than the group alone."""
    if value is None:
        return "`null`"
    own = group()
    changed = [
        f"`{field.name}: {_yaml(getattr(value, field.name))}`"
        for field in fields(group)
        if getattr(value, field.name) != getattr(own, field.name)
    ]
    return ", ".join(changed)


def configuration_page() -> str:
    """docs/CONFIGURATION.md."""
    from looptool_jax.config import shipped_configs
    from looptool_jax.loop.run_config import RunConfig

    lines = [CONFIGURATION_HEAD, f"{', '.join(f'`{name}`' for name in shipped_configs())}.", ""]
    rows = settings_of(RunConfig)
    own = [row for row in rows if row.group is None or row.heading != row.key]
    lines += ["## The run", "", description(RunConfig), "", *_table(own), ""]
    for row in rows:
        lines += _section(row)
    for group, keys in _shared(RunConfig).items():
        where = ", ".join(f"`{key}`" for key in keys)
        words = [_sentence(description(group)), ""] if description(group) else []
        lines += [f"## {SHARED[group.__name__]}", "", *words, f"Where: {where}.", "", *_table(settings_of(group)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(row: Setting) -> list[str]:
    """The settings of a group that has a section of its own, and below it the groups in it."""
    if row.group is None or row.heading != row.key:
        return []
    words = [_sentence(row.meaning), _sentence(description(row.group)), "Default: null." * (row.default == "`null`")]
    inner = settings_of(row.group, f"{row.key}.")
    text = " ".join(part for part in words if part)
    lines = [f"## {row.key}", "", *([text, ""] if text else []), *_table(inner), ""]
    return lines + [line for part in inner for line in _section(part)]


def _shared(config: type, prefix: str = "") -> dict[type, list[str]]:
    """The groups that stand under several keys, with these keys."""
    found: dict[type, list[str]] = {}
    for row in settings_of(config, prefix):
        if row.group is not None:
            if row.heading != row.key:
                found.setdefault(row.group, []).append(row.key)
            for group, keys in _shared(row.group, f"{row.key}.").items():
                found.setdefault(group, []).extend(keys)
    return found


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", ":")) else f"{text}."


def _table(rows: list[Setting]) -> list[str]:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        meaning = row.meaning
        if row.group is not None:
            anchor = re.sub(r"[^a-z0-9_-]", "", row.heading.lower().replace(" ", "-"))
            meaning = " ".join(part for part in (_sentence(meaning), f"[{row.heading}](#{anchor})") if part)
        lines.append(f"| `{row.key}` | {row.type} | {row.default} | {meaning.replace('|', BAR)} |")
    return lines


def commands_page() -> str:
    """docs/COMMANDS.md."""
    import typer

    from looptool_jax.cli import app

    lines = [COMMANDS_HEAD]
    for name, command in _walk(typer.main.get_command(app), "looptool"):
        lines += _command(name, command)
    return "\n".join(lines).rstrip() + "\n"


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for child, part in getattr(command, "commands", {}).items():
        yield f"{name} {child}", part
        yield from _walk(part, f"{name} {child}")


def _command(name: str, command: Any) -> list[str]:
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    lines = [f"## {name}", "", *_paragraphs(text)]
    if examples:
        lines += ["```bash", *(line.rstrip() for line in examples.strip().splitlines()), "```", ""]
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        required, default = parameter.required, parameter.default
        names = ", ".join(f"`{option}`" for option in parameter.opts)
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        plain = isinstance(default, str | int | float) and not isinstance(default, bool) and not required
        what = (getattr(parameter, "help", "") or "").replace("|", BAR)
        rows.append(f"| {names}{' (required)' if required else ''} | {f'`{default}`' if plain else ''} | {what} |")
    if rows and not hasattr(command, "commands"):
        lines += ["| | default | |", "|---|---|---|", *rows, ""]
    return lines


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, with a blank line behind each."""
    return [line for part in text.strip().split("\n\n") if part.strip() for line in (*part.strip().splitlines(), "")]


def notebook() -> str:
    """launch/colab.ipynb, from its source."""
    import jupytext
    import nbformat

    book = jupytext.read(NOTEBOOK_SOURCE)
    book.metadata.pop("jupytext", None)
    for number, cell in enumerate(book.cells):
        cell["id"], cell["source"] = f"cell-{number}", cell.source.strip("\n")
    return nbformat.writes(book) + "\n"


PAGES = {CONFIGURATION: configuration_page, COMMANDS: commands_page, NOTEBOOK: notebook}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a file is out of step")
    check = parser.parse_args().check
    stale = []
    for path, write in PAGES.items():
        text = write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
                print(f"{path.relative_to(ROOT)}: written")
    if check and stale:
        sys.exit("\n".join(f"{path.relative_to(ROOT)}: out of step; run python docs/generate.py" for path in stale))


if __name__ == "__main__":
    main()
