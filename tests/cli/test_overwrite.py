"""No command writes over a file unasked. `tests/export/test_overwrite.py` has the exports."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import zarr

from clemreg.cli.app import app, run_app
from clemreg.cli.console import JsonOption, write_json
from clemreg.errors import StorageError
from clemreg.evaluate.results import COLUMNS, Result, ResultStore
from clemreg.io.atomic import atomic_write_json
from clemreg.io.volumes import open_labels, open_volume, write_volume
from clemreg.measure.tables import read_table
from clemreg.pipeline import measure, planarity
from clemreg.pipeline.simulate import OUTPUTS
from clemreg.pipeline.steps import Step, run_steps
from clemreg.simulate import pair
from clemreg.space import Grid
from clemreg.volume import Labels, Volume

# Of each command: arguments whose inputs are absent, so that only a check before all work can find
# what is there already; and each output, with the file of a user that lies in its place.
REFUSED = {
    "segment": ("absent", {"out": "o.zarr"}),
    "score": ("absent absent", {"report": "r.html"}),
    "validate": ("absent --setup s --iteration 1 --n5 absent", {"report": "r.html"}),
    "register": (
        "--fixed absent --moving absent",
        {
            "out": "o/transform.json",
            "out (pose)": "o/orientation.json",
            "out (figures)": "o/registration.json",
            "out (repeats)": "o/repeat-3.json",
            "out (elastix)": "o/elastix/TransformParameters.1.txt",
        },
    ),
    "register ": (
        "--fixed absent --moving absent --scan seed=1,2",
        {"out (table)": "o/scan.csv", "out (json)": "o/scan.json", "out (plot)": "o/scan.png"},
    ),
    "apply": ("absent absent --onto absent", {"out": "o.tif"}),
    "render": ("absent --spacing 50,50,50nm", {"out": "o.zarr"}),
    "refine-scan": ("absent", {"out": "o/scan.html", "out (json)": "o/scan.json"}),
    "ribosomes": (
        "absent",
        {"out": "o/ribosomes.csv", "out (zarr)": "o/spheres.zarr", "out (2)": "o/classes.zarr"},
    ),
    "microtubules": (
        "absent",
        {
            "out": "o/tracks.swc",
            "out (nml)": "o/tracks.nml",
            "out (wall)": "o/wall.zarr",
            "out (lumen)": "o/lumen.zarr",
        },
    ),
    "measure": ("absent", {"csv": "t.csv", "parquet": "t.parquet", "report": "r.html"}),
    "contacts": (
        "absent",
        {"out": "o.zarr", "csv": "t.csv", "parquet": "t.parquet", "graph": "g.graphml"},
    ),
    "interactions": ("absent", {"csv": "t.csv", "partners": "p.csv", "graph": "g.graphml"}),
    "skeletonize": ("absent", {"swc": "o/1.swc", "csv": "t.csv", "parquet": "t.parquet"}),
    "planarity": (
        "absent --out free.zarr",
        {
            "out": "o.zarr",
            "medial": "m.zarr",
            "reconstructed": "r.zarr",
            "csv": "t.csv",
            "thickness": "t.csv",
            "curvature": "t.csv",
            "sites": "t.csv",
            "report": "r.html",
        },
    ),
    "mesh": ("absent --out free", {"out": "o/17.ply", "csv": "t.csv", "parquet": "t.parquet"}),
    "mesh ": ("absent --format neuroglancer", {"out (ng)": "o/17:0"}),
    "holdout": ("absent a=absent", {"csv": "t.csv"}),
    "simulate organelles": (
        "--seed -1",
        {
            "out": "o/cell.toml",
            "out (predictions)": "o/predictions.zarr",
            "out (truth)": "o/mito.zarr",
            "out (ribosomes)": "o/ribosomes.csv",
            "out (recipe)": "o/recipe.toml",
        },
    ),
    "simulate clem": (
        "--labels absent --em absent",
        {
            "out": "o/config.toml",
            "out (em)": "o/em.zarr",
            "out (labels)": "o/em_labels.zarr",
            "out (lm)": "o/lm.zarr",
            "out (truth)": "o/truth.json",
            "out (landmarks)": "o/landmarks.csv",
        },
    ),
    "model import": ("absent", {"out": "m.safetensors"}),
    "model export": ("absent", {"out": "m.ts"}),
    "results best": ("absent", {"out": "t.csv"}),
    "results converged": ("absent", {"out": "t.csv"}),
    "results compare": ("absent raw-vs-refined", {"out": "t.csv"}),
    "results report": ("absent", {"out": "r.html"}),
    "ab start": ("absent absent absent", {"out": "o/pairs.html", "out (key)": "o/key.json"}),
    "ab read": ("absent absent", {"decoded": "d.csv"}),
    "evaluate jacobian": ("--transform absent --grid-of absent", {"map": "j.tif"}),
    "evaluate uncertainty": ("--transform absent --landmarks absent", {"out": "u.zarr"}),
}
# Outputs with a test of their own: here, in tests/export, or in the tests of the command.
ELSEWHERE = {
    "demo": {"out"},  # is `run` with a configuration of its own
    "init": {"folder"},
    "train": {"journal"},  # files get names of their own; TensorBoard reads all
    "validate": {"store"},  # scores are added; one that differs is refused without --replace
    "validate-training": {"store"},
    "refine": {"out"},
    "results import": {"store"},
    "results export": {"out"},
    "export bdv": {"out"},
    "export bigwarp": {"out", "project"},
    "export mobie": {"out"},
    "export dfield": {"out"},
    "export elastix": {"out"},
    "export itk": {"out"},
    "export ngff": {"out"},
    "export omezarr": {"out"},
    "export imagej": {"out"},
    "export ecclem": {"out"},
    "export neuroglancer": {"out"},
    "fiji install": {"fiji"},
    "fiji uninstall": {"fiji"},
}
READ = {
    "demo": {"data"},
    "run": {"config"},
    "init": {"landmarks"},
    "report": {"folder"},
    "doctor": {"config"},
    "train": {"config"},
    "score": {"annotated"},
    "validate": {"n5", "cellmap", "ids"},
    "validate-training": {"config"},
    "register": {"landmarks", "held_out", "params"},
    "microtubules": {"truth"},
    "interactions": {"tables"},
    "organelles": {"config"},
    "simulate clem": {"transform", "em", "labels"},
    "model import": {"source"},
    "results import": {"tables"},
    **{f"results {verb}": {"store"} for verb in ("export", "best", "converged", "report")},
    "results compare": {"store"},
    "ab read": {"folder", "choices"},
    "evaluate landmarks": {"landmarks"},
    "evaluate jacobian": {"mask", "grid_of"},
    "evaluate compare": {"mask", "grid_of"},
    "evaluate uncertainty": {"landmarks", "mask", "grid_of"},
    "export bdv": {"folder"},
    "export mobie": {"folder"},
    "export neuroglancer": {"folder", "root"},
    "fiji doctor": {"fiji"},
    "fiji macro": {"script", "fiji"},
}
CASES = [(command, option) for command, (_, outputs) in REFUSED.items() for option in outputs]


def commands(
    group: typer.Typer, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for one in group.registered_commands:
        name = one.name or one.callback.__name__.strip("_").replace("_", "-")
        yield " ".join((*words, name)), one.callback
    for inner in group.registered_groups:
        yield from commands(inner.typer_instance, (*words, inner.name))


def mentions_path(kind: Any) -> bool:
    return kind is Path or any(mentions_path(part) for part in typing.get_args(kind))


def test_every_path_that_a_command_takes_is_read_or_checked():
    """A new option that names an output fails here until it is in the table, and so is checked."""
    unknown = []
    for name, function in commands(app):
        hints = typing.get_type_hints(function, include_extras=True)
        tabled = {
            option.partition(" ")[0]
            for key in (name, f"{name} ")
            for option in REFUSED.get(key, ("", {}))[1]
        }
        known = tabled | ELSEWHERE.get(name, set()) | READ.get(name, set())
        for parameter, kind in hints.items():
            if parameter == "json":
                assert kind is JsonOption, name
            elif mentions_path(kind) and parameter.strip("_") not in known:
                unknown.append((name, parameter))
        if tabled:
            assert "overwrite" in hints, name
    assert not unknown


@pytest.mark.parametrize(("command", "option"), CASES)
def test_a_file_of_a_user_is_found_before_any_work(command, option, tmp_path, monkeypatch, capsys):
    arguments, outputs = REFUSED[command]
    monkeypatch.chdir(tmp_path)
    mine = Path(outputs[option])
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    given = arguments.split()
    flag = "--" + option.partition(" ")[0]
    if flag in given:
        at = given.index(flag)
        del given[at : at + 2]
    words = [*command.split(), *given, flag, mine.parts[0]]
    assert run_app(words) == 1
    said = capsys.readouterr()
    assert any(f"{path} exists already" in said.err for path in (mine, mine.parent))
    assert "add --overwrite" in said.err
    assert said.out == ""
    assert run_app([*words, "--overwrite"]) == 1
    assert "exists already" not in capsys.readouterr().err  # now it is the input that is missed
    assert mine.read_text() == "mine"
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]
    assert left == [tmp_path / mine]


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    grid = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    array = np.zeros(grid.shape, "u8")
    array[1:9, 1:15, 1:8] = 70_001
    array[2:10, 4:13, 12:21] = 9
    path = tmp_path_factory.mktemp("ids") / "ids.zarr"
    write_volume(path, Labels(array, grid))
    return path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["mesh", "--out"], {"9.ply", "70001.ply"}),
        (["mesh", "--format", "neuroglancer", "--out"], {"9:0", "9.mesh", "70001:0", "info"}),
        (["skeletonize", "--shortest-branch", "0 nm", "--swc"], {"9.swc", "70001.swc"}),
    ],
)
def test_a_folder_of_objects_is_replaced_as_a_whole(words, names, ids, tmp_path, capsys):
    out = tmp_path / "objects"
    command = [words[0], str(ids), *words[1:], str(out)]
    assert run_app(command) == 0
    assert names <= {path.name for path in out.iterdir()}
    (out / min(names)).rename(out / min(names).replace("70001", "5"))  # of an object that is gone
    assert run_app(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_app([*command, "--overwrite"]) == 0
    assert names <= {path.name for path in out.iterdir()}
    assert not [path for path in out.iterdir() if path.name.startswith("5")]
    (out / "thesis.txt").write_text("mine")
    assert run_app([*command, "--overwrite"]) == 1
    assert "is no earlier export: it has thesis.txt" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["objects"]


def test_meshes_of_another_format_do_not_go_on_with_those_of_a_stopped_run(
    ids, tmp_path, monkeypatch
):
    whole = measure.SaveMesh.__call__

    def stopped(self, number, mesh):
        if number != 9:
            raise KeyboardInterrupt
        whole(self, number, mesh)

    out = tmp_path / "objects"
    command = ["mesh", str(ids), "--executor", "serial", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(measure.SaveMesh, "__call__", stopped)
        assert run_app(command) == 130
    assert not out.exists()
    assert run_app([*command, "--format", "obj"]) == 0
    assert {path.name for path in out.iterdir()} == {"9.obj", "70001.obj"}


def test_a_planarity_that_was_stopped_goes_on_without_leave(ids, tmp_path, monkeypatch):
    out, medial, covered = (tmp_path / f"{name}.zarr" for name in ("out", "medial", "covered"))
    command = ["planarity", str(ids), "--out", str(out), "--medial", str(medial)]
    command += ["--reconstructed", str(covered), "--csv", str(tmp_path / "t.csv")]

    def stopped(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(planarity, "reconstruct", stopped)
        assert run_app(command) == 130
    assert [path.name for path in tmp_path.iterdir()] == [".out.zarr.work"]
    assert run_app(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "out.zarr", "medial.zarr", "covered.zarr", "t.csv"
    }  # fmt: skip
    np.testing.assert_array_equal(
        open_labels(covered).read() != 0, open_volume(out, frame="em").read() != 0
    )
    assert run_app(command) == 1
    assert run_app([*command, "--overwrite"]) == 0


def test_contacts_replace_what_they_wrote_if_told_so(ids, tmp_path):
    out, table = tmp_path / "sites.zarr", tmp_path / "sites.csv"
    command = ["contacts", str(ids), "--distance", "30 nm", "--out", str(out), "--csv", str(table)]
    assert run_app(command) == 0
    rows = len(read_table(table))
    assert rows
    table.write_text("mine")
    assert run_app(command) == 1
    assert table.read_text() == "mine"
    (out / "stale").write_text("old")
    assert run_app([*command, "--overwrite"]) == 0
    assert len(read_table(table)) == rows
    assert not (out / "stale").exists()


def test_a_simulation_that_was_stopped_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    out = tmp_path / "pair"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = ["simulate", "clem", "--out", str(out), "--em-shape", "64,60,24"]
    command += ["--em-spacing", "60,60,60 nm"]

    def stopped(out, *_arguments):
        assert (out / "em.zarr").is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pair, "_write_light", stopped)
        assert run_app(command) == 130
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert run_app(command) == 0
    assert {path.name for path in out.iterdir()} == {"notes.txt", *OUTPUTS}
    assert (out / "notes.txt").read_text() == "mine"


def test_a_network_that_no_checkpoint_belongs_to_is_not_trained_over(tmp_path, capsys):
    (tmp_path / "n.safetensors").write_text("mine")
    config = tmp_path / "train.toml"
    config.write_text(
        'name = "n"\nout = "n.safetensors"\n[[real]]\n'
        'name = "r"\nem = "absent"\nlabels = "absent"\nvoxel_size = "4, 4, 4 nm"\n'
    )
    assert run_app(["train", str(config)]) == 1
    assert "n.safetensors exists already" in capsys.readouterr().err
    assert run_app(["train", str(config), "--overwrite"]) == 1
    assert "exists already" not in capsys.readouterr().err  # now it is the EM that is missed
    (tmp_path / "n.checkpoint").write_text("of the training that made it")
    assert run_app(["train", str(config)]) == 1
    assert "exists already" not in capsys.readouterr().err
    assert (tmp_path / "n.safetensors").read_text() == "mine"


def test_tables_of_scores_do_not_replace_others(tmp_path, capsys):
    store = tmp_path / "scores.sqlite"
    row = Result(
        "p", "d", "setup03", 500_000, "mito", "1", "volumes/raw/s0", "n5", "jrc_hela-2", 127.0,
        False, "dice", "{}", 0.875,
    )  # fmt: skip
    ResultStore(store).add([row])
    mine = tmp_path / "tables" / "mito.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    command = ["results", "export", str(store), "--out", str(mine.parent)]
    assert run_app(command) == 1
    assert f"{mine} exists already" in capsys.readouterr().err
    assert run_app([*command, "--overwrite"]) == 0
    assert "0.875" in mine.read_text()


def test_no_scores_go_into_a_file_of_another_kind(tmp_path, capsys):
    store = tmp_path / "thesis.txt"
    store.write_text("mine" * 300)
    (tmp_path / "t.csv").write_text(",".join(COLUMNS) + "\n")
    assert run_app(["results", "import", str(store), str(tmp_path / "t.csv")]) == 1
    assert "is not an SQLite file" in capsys.readouterr().err
    assert store.read_text() == "mine" * 300


def test_steps_replace_what_steps_wrote_and_nothing_else(tmp_path):
    """So do `run`, `demo`, `organelles` and `refine`, which are made of steps."""
    report = tmp_path / "report.html"

    def steps(content):
        return [Step("report", lambda: report.write_text(content), {"is": content}, (), (report,))]

    report.write_text("mine")
    with pytest.raises(StorageError, match="exists already, and no run wrote it") as caught:
        run_steps(steps("a"), tmp_path)
    assert "another output folder" in caught.value.hint
    assert report.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    report.unlink()
    run_steps(steps("a"), tmp_path)
    run_steps(steps("b"), tmp_path)
    assert report.read_text() == "b"


def test_refine_keeps_an_image_that_it_did_not_make(ids, tmp_path, capsys):
    out = tmp_path / "cell.zarr"
    zarr.open_group(str(out), mode="w", zarr_format=3)
    write_volume(out / "mito", open_labels(ids))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    grid = Grid((11, 17, 23), (5.24, 4.0, 4.0), frame="em")
    write_volume(tmp_path / "p.zarr", Volume(np.full(grid.shape, 90, "u1"), grid))
    command = ["refine", str(tmp_path / "p.zarr"), "--recipe", "generic", "--organelle", "mito"]
    assert run_app([*command, "--out", str(out)]) == 1
    assert f"{out / 'mito'} exists already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    (out / "clemreg.json").write_text("{}")  # refine's own, copied without its working files
    assert run_app([*command, "--out", str(out)]) == 0
    assert not open_labels(out / "mito").read().any()


def test_a_run_keeps_a_file_that_has_the_name_of_its_record(sample_data, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("mine")
    config = tmp_path / "c.toml"
    config.write_text(
        f'[em]\npath = "{sample_data / "em.zarr"}"\n[lm]\npath = "{sample_data / "lm.zarr"}"\n'
        f'channel = 0\n[register]\npsf = "palm"\n[output]\ndir = "out"\n'
    )
    assert run_app(["run", str(config)]) == 1
    assert "run.json exists already, and no run wrote it" in capsys.readouterr().err
    assert (out / "run.json").read_text() == "mine"


def test_figures_replace_no_file_of_a_run(tmp_path, capsys):
    """Its own files are JSON as figures are, and its report would be made of other numbers."""
    (tmp_path / "run" / "steps").mkdir(parents=True)
    (tmp_path / "run" / "registration").mkdir()
    write_volume(
        tmp_path / "em.zarr", Volume(np.ones((3, 4, 5), "u1"), Grid((3, 4, 5), (8.0,) * 3))
    )
    files = ["run.json", "evaluation.json", "report.json", "registration/registration.json"]
    for name in files:
        atomic_write_json(tmp_path / "run" / name, {"jacobian": None})
    for name in files:
        path = tmp_path / "run" / name
        assert run_app(["info", str(tmp_path / "em.zarr"), "--json", str(path)]) == 1
        assert f"belongs to the run in {tmp_path / 'run'}" in capsys.readouterr().err
        assert json.loads(path.read_text()) == {"jacobian": None}
    free = tmp_path / "run" / "info.json"
    assert run_app(["info", str(tmp_path / "em.zarr"), "--json", str(free)]) == 0
    with pytest.raises(StorageError, match="belongs to the run"):
        write_json(tmp_path / "run" / "report.json", {})
