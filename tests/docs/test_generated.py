"""What is made from the program itself is in step with it, and says something of every setting and every command."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer

from looptool_jax.cli import app
from looptool_jax.config import load_config, shipped_configs
from looptool_jax.loop.run_config import RunConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("looptool_docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["CONFIGURATION", "COMMANDS", "NOTEBOOK"])
def test_the_committed_file_is_what_would_be_written(generate, page):
    if page == "NOTEBOOK":
        pytest.importorskip("jupytext")
    path = getattr(generate, page)
    assert path.read_text() == generate.PAGES[path](), f"{path.name} is out of step; run python docs/generate.py"


def groups(generate, config: type, prefix: str = ""):
    for row in generate.settings_of(config, prefix):
        yield row
        if row.group is not None:
            yield from groups(generate, row.group, f"{row.key}.")


def test_every_setting_has_a_meaning(generate):
    """A word in the docstring of its dataclass (`name: ...`), or a comment beside the field."""
    rows = list(groups(generate, RunConfig))
    without = [row.key for row in rows if row.group is None and not row.meaning]
    assert not without, without
    page = generate.CONFIGURATION.read_text()
    for row in rows:
        shown = (f"| `{row.key}` |", f"| `{row.key.rpartition('.')[2]}` |", f"\n## {row.key}\n")
        assert any(text in page for text in shown), row.key


def test_the_page_has_the_defaults_that_a_configuration_gets(generate, tmp_path):
    (tmp_path / "own.yaml").write_text("policy: {format: qwen3}\njudge_model: {format: qwen3}\nrun_dir: r\n")
    cfg = load_config(str(tmp_path / "own.yaml"))
    assert f"| `train.batch` | integer | `{cfg.train.batch}` |" in generate.CONFIGURATION.read_text()
    assert f"| `train.grpo.clip_high` | number | `{cfg.train.grpo.clip_high}` |" in generate.CONFIGURATION.read_text()


def test_texts_of_fields_are_found_where_they_stand(generate):
    @dataclass
    class Inner:
        """Of no use alone."""

        size: int = 3  # of it

    @dataclass
    class Example:
        """What it is for: an example.

        one: the first. two, three: the others; null: none.
            They go on here. four: the last.
        """

        one: int = 1
        two: str = ""
        three: float | None = None
        four: bool = True
        five: str = "a"  # beside the field
        inner: Inner = field(default_factory=lambda: Inner(4))

    assert generate.description(Example) == "What it is for: an example."
    rows = {row.key: row for row in generate.settings_of(Example)}
    assert rows["one"].meaning == "the first" and rows["four"].meaning == "the last"
    assert rows["two"].meaning == rows["three"].meaning == "the others; null: none. They go on here"
    assert rows["five"].meaning == "beside the field"
    assert (rows["three"].type, rows["three"].default) == ("number or null", "`null`")
    assert (rows["four"].type, rows["four"].default) == ("true or false", "`true`")
    assert rows["two"].default == '`""`'
    assert rows["inner"].group is Inner and rows["inner"].default == "`size: 4`"


def test_every_command_and_every_option_is_on_the_page(generate):
    page = generate.COMMANDS.read_text()
    for name, command in generate._walk(typer.main.get_command(app), "looptool"):
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        assert f"```bash\n{name}" in section or "```bash\nlooptool" in section, name
        if not hasattr(command, "commands"):
            for parameter in command.params:
                if parameter.name != "help":
                    assert all(f"`{option}`" in section for option in parameter.opts if option.startswith("-")), name


def test_every_shipped_configuration_is_named(generate):
    for page in ("README.md", "docs/CONFIGURATION.md"):
        text = (ROOT / page).read_text()
        assert all(f"`{name}`" in text for name in shipped_configs()), page
