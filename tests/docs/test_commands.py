"""Every `bash` block of the README and of docs/: executed, or read by the real command line, or marked with its needs.

A block is executed where `<!-- runs: ... -->` stands above it. In any other, a `looptool` command is read by the real
command line up to the point where it would begin to work: unknown commands, options, settings, configurations and
formats fail. `launch/` scripts print what they would do, and the command they would start is read likewise. Anything
else needs a `<!-- needs: ... -->` above it, which says what this machine may lack; its `looptool` commands are still
read.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from looptool_jax.cli import app
from looptool_jax.config import ConfigError, find_trees, load_config, shipped_configs
from looptool_jax.data.exporters import EXPORTS
from looptool_jax.data.importers import FORMATS
from looptool_jax.data.store import DataError
from looptool_jax.data.tool_documents import TOOL_FORMATS
from looptool_jax.evaluation.acebench.data import choose_categories as acebench_categories
from looptool_jax.evaluation.bfcl.data import choose_categories as bfcl_categories
from looptool_jax.loop.warmup import NanoConfig
from looptool_jax.sweep.space import check as check_sweep
from looptool_jax.sweep.space import read_sweep
from looptool_jax.world import generate

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^(?:<!-- (needs|runs): (.+?) -->\n)?```(bash|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(looptool [^`]+)`")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]*\b(?!=)|…|\.\.\.|\[")


class Undocumented(Exception):
    """A command that neither runs here nor says what it needs."""


class Refused(ValueError):
    """What the command line says to a command."""


@dataclass(frozen=True)
class Block:
    place: str
    mark: str  # needs, runs or ""
    words: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands, word by word, without comments and what joins them; quotes may go over several lines."""
        found, open_ = [], ""
        for line in self.text.replace("\\\n", " ").splitlines():
            open_ += line if open_ else re.sub(r"(^|\s)#\s.*$", "", line)
            try:
                found += [command for command in _split(shlex.split(open_), "&&") if command]
                open_ = ""
            except ValueError:
                open_ += "\n"
        assert not open_, f"{self.place}: a quote is not closed"
        return found


def _split(words: list[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        parts.append([]) if word == at else parts[-1].append(word)
    return parts


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        assert text.count("```bash") == sum(match[3] == "bash" for match in BLOCK.finditer(text)), f"{page}: open block"
        for match in BLOCK.finditer(text):
            if match[3] == language:
                line = text[: match.start()].count("\n") + 1
                found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1] or "", match[2] or "", match[4]))
    return found


BASH = blocks("bash")


def read(arguments: list[str]) -> tuple[str, dict]:
    """The command that `looptool ARGUMENTS` calls, and with what. Raises Refused for what the command line refuses."""
    command, name = COMMANDS, "looptool"
    try:
        while hasattr(command, "commands"):
            context = command.make_context(name, list(arguments))
            name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        return name, command.make_context(name, list(arguments)).params
    except typer.Exit:  # --help
        return name, {}
    except Exception as error:
        if hasattr(error, "format_message"):
            raise Refused(error.format_message()) from None
        raise


def check(arguments: list[str]) -> None:
    """Read a command, and what its values name: settings, configurations, formats, categories, trees."""
    name, params = read(arguments)
    overrides = list(params.get("overrides") or ())
    if name == "warmup" and not params["data"]:  # the embedded model
        NanoConfig.with_sizes(overrides)
    elif "config" in params or overrides:
        config = params.get("config") or "quickstart"
        own = config.endswith(".yaml") and config not in shipped_configs()  # the reader's
        named = [f"policy.path={params['model']}"] if params.get("model") and not overrides else []
        load_config("quickstart" if own else config, [*named, *overrides])
    if name == "sweep":
        given = list(params["arguments"] or ())
        named = given.pop(0) if given and "=" not in given[0] else None
        if named is None or not named.endswith(".yaml"):  # that would be the reader's
            check_sweep(read_sweep(named, params["config"], given))
    formats = {"import": FORMATS, "export": EXPORTS, "tools": TOOL_FORMATS}
    if params.get("format_"):
        assert params["format_"] in formats[name], f"--format {params['format_']}"
    if name == "bfcl":
        bfcl_categories(params["categories"].split(","))
    if name == "acebench":
        acebench_categories(params["categories"].split(","))
    for trees in params.get("trees") or ():
        assert trees.endswith(".yaml") or find_trees(trees)


def launch(command: list[str]) -> None:
    """Have a launch script print what it would do, and read the `looptool run` in it."""
    env = {}
    while re.match(r"[A-Z_]+=", command[0]):
        env |= [command[0].split("=", 1)]
        command = command[1:]
    assert "--dry-run" in command, "a launch script that is not a dry run needs a mark"
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("+ "), done.stderr
    for line in done.stderr.splitlines():
        _, found, run = line.replace("\\ ", " ").replace("\\=", "=").partition("looptool run ")
        if found:
            check(["run", *shlex.split(re.split(r" > looptool\.log| \\> ", run)[0])])


def offline(command: list[str]) -> None:
    """Check one command of a block that is not executed. Raises Undocumented where nothing here can."""
    if command[0] == "looptool":
        check(command[1:])
    elif "launch/" in " ".join(command) and "--dry-run" in command:
        launch(command)
    elif command[:2] == ["python", "docs/generate.py"]:
        assert not command[2:]
    elif command == ["mkdocs", "build", "--strict", "--site-dir", "site"]:
        pass  # what test_site.py does
    else:
        raise Undocumented(f"`{' '.join(command)}` neither runs here nor says what it needs")


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.place)
def test_a_block_is_right_or_says_what_it_needs(block):
    for command in block.commands:
        try:
            offline(command)
        except Undocumented:
            if block.mark != "needs" and not (block.mark == "runs" and command[0] == "looptool"):
                raise
            known(command)
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{block.place}: `{' '.join(command)}`: {error}")


def known(command: list[str]) -> None:
    """What can be said of a marked command without running it: extras and scripts that it names exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in command:
        for named in re.findall(r"^(?:\.|looptool-jax)\[(.+?)\]", word):
            assert set(named.split(",")) <= set(extras), word
        if re.match(r"(benchmarks|launch|tests|docs|\.ci)/", word):
            assert (ROOT / word.split("::")[0]).exists(), word


def test_the_check_finds_what_is_wrong():
    for line, error in (
        ("looptool run --confg micro", Refused),
        ("looptool rn", Refused),
        ("looptool run --config quikstart", ConfigError),
        ("looptool run --config quickstart train.bacth=3", ConfigError),
        ("looptool run --config quickstart judge.verdicts=loud", ConfigError),
        ("looptool warmup --out nano hiden_size=256", DataError),
        ("looptool import a.jsonl --format opnai --out b", AssertionError),
        ("looptool eval bfcl --model m --categories sngle_turn --out e", ValueError),
        ("looptool synthesize apis --trees travl --out apis", ConfigError),
        ("launch/tpu_vm.sh --dry-run up pod", AssertionError),
        ("launch/local.sh --dry-run 2 micro train.bacth=3", ConfigError),
        ("launch/local.sh 2 micro", Undocumented),
        ("curl http://127.0.0.1:8000", Undocumented),
    ):
        with pytest.raises(error):
            offline(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_amid_the_text_are_right(page):
    """`looptool ...` in a sentence, unless it has placeholders. It may leave out what the command needs."""
    for found in INLINE.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        words = shlex.split(found.replace("\n", " "))
        for command in _split(words, "&&"):
            if PLACEHOLDER.search(" ".join(command)) or "--" not in " ".join(command):
                continue
            try:
                check(command[1:])
            except (AssertionError, ValueError) as error:
                if not str(error).startswith("Missing "):
                    pytest.fail(f"`{' '.join(command)}`: {error}")


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_settings_in_yaml_are_right(block, tmp_path):
    """Each paragraph of a `yaml` block is the file of a sweep or of a configuration."""
    for number, part in enumerate(re.split(r"\n\n+", block.text)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(part)
        if part.startswith("config:"):
            check_sweep(read_sweep(str(file)))
        else:
            load_config(str(file))


def messages() -> list[dict]:
    """A few records as OpenAI writes them."""
    records = []
    for sample in generate("train", 60, seed=3):
        if sample.target.is_call and len(sample.messages) == 1:
            calls = [
                {"id": f"call_{i}", "type": "function",
                 "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
                for i, call in enumerate(sample.target.calls)
            ]  # fmt: skip
            tools = [
                {"type": "function",
                 "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}}
                for tool in sample.tools
            ]  # fmt: skip
            user = {"role": "user", "content": sample.messages[0].content}
            answer = {"role": "assistant", "content": None, "tool_calls": calls}
            records.append({"messages": [user, answer], "tools": tools})
    return records


EXECUTED = [block for block in BASH if block.mark == "runs"]


@pytest.mark.slow
@pytest.mark.parametrize("block", EXECUTED, ids=lambda block: block.place)
def test_a_block_that_runs_runs(block, tmp_path, executed):
    """With what the mark names: `messages.jsonl`, or a finished run (that of the notebook)."""
    if "messages.jsonl" in block.words:
        (tmp_path / "messages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in messages()))
    if "runs/quickstart" in block.words:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/quickstart").symlink_to(executed.folder / "runs/micro")
    main = "from looptool_jax.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    for command in block.commands:
        assert command[0] == "looptool"
        done = subprocess.run(
            [sys.executable, "-c", main, *command[1:]], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_what_is_executed_is_not_nothing():
    assert len(EXECUTED) >= 2 and sum(len(block.commands) for block in EXECUTED) >= 8
