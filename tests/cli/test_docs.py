"""Every command that a page shows is there, with the options it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from clemreg.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^ *```(?:sh|bash)?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def shown(page):
    """Commands of the code blocks of a page, continued lines joined."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("clemreg "):
                yield line.strip()


WHOLE = typer.main.get_command(app)


def command_of(words):
    """The command that words name, and the words that are left."""
    command = WHOLE
    while isinstance(command, TyperGroup):
        found = command.commands.get(words[0]) if words else None
        assert found is not None, f"no command {' '.join(words[:2])}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_commands_and_options_are_there(page):
    for line in shown(page):
        words = shlex.split(line, comments=True)[1:]
        if any(mark in word for word in words for mark in ("|", "...", "[")) or words[0][0] == "-":
            continue  # a pattern, not a command
        command, rest = command_of(words)
        known = {name for parameter in command.params for name in parameter.opts}
        known |= {name for parameter in command.params for name in parameter.secondary_opts}
        unknown = [w for w in rest if w.startswith("--") and w.partition("=")[0] not in known]
        assert not unknown, line


def test_the_pages_show_commands():
    lines = [line for page in PAGES for line in shown(page)]
    assert len(lines) > 80
    for name in ("refine", "measure", "contacts", "planarity", "ribosomes", "microtubules"):
        assert any(line.startswith(f"clemreg {name} ") for line in lines), name
