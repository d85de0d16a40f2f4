"""A command that is killed near its end is given again, and ends as if nothing had happened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.skeletons import Skeleton, write_skeleton
from clemreg.io.volumes import write_volume
from clemreg.space import Grid
from clemreg.volume import Labels, Volume

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")

GRID = Grid((15, 24, 40), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
COMMANDS = {
    "measure": "measure IN/a.zarr --cell IN/b.zarr --csv m.csv --parquet m.parquet --json m.json "
    "--block 20",
    "contacts": "contacts IN/a.zarr IN/b.zarr --distance 12nm --out c.zarr --csv c.csv "
    "--graph c.graphml --json c.json --block 12",
    "interactions": "interactions IN/c.csv --csv i.csv --partners p.csv --graph i.graphml "
    "--json i.json",
    "skeletonize": "skeletonize IN/a.zarr --swc swc --csv s.csv --parquet s.parquet --json s.json "
    "--shortest-branch 8nm --block 20",
    "planarity": "planarity IN/a.zarr --out p.zarr --medial m.zarr --reconstructed r.zarr "
    "--csv h.csv --thickness t.csv --curvature k.csv --contacts IN/c.zarr --sites s.csv "
    "--json p.json --scales 2 --largest-radius 20nm --block 20",
    "mesh": "mesh IN/a.zarr --out meshes --csv m.csv --parquet m.parquet --json m.json --block 20",
    "holdout": "holdout IN/a.zarr raw=IN/b.zarr --csv h.csv --json h.json --block 20",
    "microtubules": "microtubules IN/mt.zarr --out mt --truth IN/truth.swc --json mt.json",
    "ribosomes": "ribosomes IN/ribo.zarr --out ribo --planarity IN/level.zarr --json r.json "
    "--block 20",
    "refine": "refine IN/mt.zarr --organelle ld --recipe IN/recipe.toml --out o.zarr "
    "--json r.json --block 20",
    "refine-scan": "refine-scan IN/mt.zarr --out scan --min-volume-nm3 100 --sigma-nm 4 "
    "--quantiles 0.25 --thresholds 0.5,0.9 --json s.json --block 20",
}

POINTS = [-4]  # while it puts in place or tidies up; for kills at work see test_same_result.py

# Forks for each run: one is counted, the others are killed just before a step, and given again.
CHILD = """
import json, os, shutil, signal, sys
import cc3d, edt, fast_simplification, matplotlib.backends.backend_agg, pyarrow.parquet, zarr
import scipy.ndimage, scipy.optimize, scipy.sparse.csgraph, scipy.spatial
import skimage.measure, skimage.morphology
import clemreg.pipeline.refine, clemreg.pipeline.scan, clemreg.pipeline.planarity
import clemreg.pipeline.objects, clemreg.pipeline.ribosomes, clemreg.pipeline.microtubules
from clemreg.cli.app import run_app

commands, points = json.loads(sys.argv[1])

def run(words, folder, dies_at=None):
    child = os.fork()
    if child == 0:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        sys.stdout = sys.stderr = open("../said", "w")
        steps = [0]
        def count(event, _arguments):
            if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                if steps[0] == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps[0] += 1
        sys.addaudithook(count)
        code = run_app(words)
        open("../steps", "w").write(str(steps[0]))
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for name, words in commands.items():
    os.makedirs(name)
    os.chdir(name)
    assert run(words, "whole") == 0, open("said").read()
    total = int(open("steps").read())
    for step in (p if p >= 0 else total + p for p in points if p < total):
        assert run(words, f"killed-{step}", step) == -signal.SIGKILL, (name, step)
        code = run(words, f"killed-{step}")
        print(json.dumps([name, f"killed-{step}", code, open("said").read()]), flush=True)
    os.chdir("..")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    a, b = np.zeros((2, *GRID.shape), "u8")
    a[2:7, 3:20, 3:30] = 70_001
    a[9:13, 3:20, 16:38] = 12
    b[7:9, 5:18, 6:38] = 2**40
    away = np.hypot(*(np.indices(GRID.shape)[:2].T - (7, 11)).T) * 4.5
    mt = np.clip(128 * np.tanh((12.5 - away) / 50) + 127, 0, 255).astype("u1")
    ribo = np.where(np.indices(GRID.shape)[2] % 9 < 3, mt, 0).astype("u1")
    write_volume(folder / "a.zarr", Labels(a, GRID))
    write_volume(folder / "b.zarr", Labels(b, GRID))
    for name, array in (("mt", mt), ("ribo", ribo), ("level", (a > 0).astype("u1") * 200)):
        write_volume(folder / f"{name}.zarr", Volume(array, GRID))
    line = GRID.to_world(np.array([[7.0, 11, 0], [7, 11, 39]]))
    write_skeleton(Skeleton.of_lines((line,)), folder / "truth.swc", unit="nm")
    steps = '{ do = "smooth" }, { do = "threshold" }, { do = "components", min_volume_nm3 = 9.0 }'
    steps += ', { do = "fill_holes", min_volume_nm3 = 9.0 }'
    (folder / "recipe.toml").write_text(f"[organelles.ld]\nsteps = [{steps}]\n")
    words = COMMANDS["contacts"].replace("IN", str(folder)).replace(" c.", f" {folder}/c.")
    assert run_app(words.split()) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of every file but hidden ones, without the lines that say how long it took."""
    return {
        path.relative_to(folder).as_posix(): re.sub(rb' *"seconds": .*\n', b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def ends(inputs, folder):
    """Tell how each command went when it was given again."""
    commands = {name: text.replace("IN", str(inputs)).split() for name, text in COMMANDS.items()}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([commands, POINTS])],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return [json.loads(line) for line in child.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_near_its_end_it_ends_as_if_it_had_not_been(ends, folder, name):
    whole = content(folder / name / "whole")
    assert whole
    found = [(where, code, said) for command, where, code, said in ends if command == name]
    assert len(found) == len(POINTS)
    for where, code, said in found:
        assert code == 0, (where, said)
        assert content(folder / name / where) == whole, where
        left = [path.name for path in (folder / name / where).glob(".*")]
        assert left == ([".o.zarr.work"] if name == "refine" else []), where
