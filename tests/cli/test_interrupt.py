"""Ctrl-C where Python drops it: in a destructor, as one may run in the middle of an import."""

import subprocess
import sys
import textwrap

import pytest

DEAF = """
import os, signal
signal.signal(signal.SIGINT, {before})
from clemreg.cli import main
from clemreg.pipeline import init

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def work(*_):
    Deaf()
    print("unheard", flush=True)
    {then}
    print("went on", flush=True)
    return "out", []

init.write_config = work
main(["init", "folder", "--em", "em", "--lm", "lm"])
"""
BAR = 'from clemreg.cli.console import progress_bar as b\n    with b("x") as p: p(1, 2, "y")'
STEP = 'from clemreg.cli.run import _announce\n    _announce("segment", "running")'


def interrupted(before, then):
    script = textwrap.dedent(DEAF).format(before=before, then=then)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("then", [BAR, STEP])
def test_an_interrupt_that_was_swallowed_is_heard_when_progress_is_told(then):
    ended = interrupted("signal.default_int_handler", then)
    assert "KeyboardInterrupt" in ended.stderr  # Python says that it ignored it
    assert ended.stdout.split("\n")[0] == "unheard"
    assert "went on" not in ended.stdout
    assert ended.returncode == 130
    assert "interrupted; the same command goes on where it stopped" in ended.stderr


def test_who_ignores_interrupts_is_not_made_to_listen():
    ended = interrupted("signal.SIG_IGN", BAR)
    assert "went on" in ended.stdout
    assert ended.returncode == 0
