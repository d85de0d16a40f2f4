from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "itk",
    "dask",
    "distributed",
    "jpype",
    "scyjava",
    "imagej",
    "matplotlib",
    "pandas",
)
PROBE = """
import atexit, sys
heavy = {heavy!r}
atexit.register(
    lambda: sys.stderr.write("LOADED " + " ".join(m for m in heavy if m in sys.modules))
)
{code}
"""


@pytest.mark.parametrize(
    "code", ["import clemreg", "import clemreg.cli; clemreg.cli.main(['--help'])"]
)
def test_start_up_loads_no_engine(code):
    probe = PROBE.format(heavy=HEAVY, code=code)
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("LOADED"), done.stderr
    if "--help" in code:
        assert "clemreg" in done.stdout


def test_help_imports_few_modules():
    """A count, not a clock: 0.5 s of start-up is about this many modules (plain Python has 60)."""
    code = "import sys, clemreg.cli.app; sys.stdout.write(str(len(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 450
