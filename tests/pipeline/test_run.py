from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_volume

pytestmark = [pytest.mark.slow, pytest.mark.elastix, pytest.mark.xdist_group("elastix")]

QUICK = ["--set", "register.stability_seeds=0", "--set", "register.threads=2"]
QUICK += ["--set", "register.halves=0"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A small simulated pair; its true labels stand in for the prediction."""
    folder = tmp_path_factory.mktemp("pair")
    words = ["simulate", "clem", "--out", str(folder), "--seed", "3"]
    assert run_app([*words, "--em-shape", "160,150,72", "--em-spacing", "26,26,26 nm"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(pair) -> Path:
    assert run_app(["run", str(pair / "config.toml"), *QUICK]) == 0
    return pair / "run"


def report(run):
    return json.loads((run / "report.json").read_text())


def test_the_whole_job_reaches_its_goal(run):
    found = report(run)
    assert found["verdict"]["status"] == "pass"
    assert found["landmarks"]["median_nm"] < 60
    assert found["truth"]["tre_median_nm"] < 60
    assert found["jacobian"]["without_affine"]["fold_fraction"] == 0
    assert set(found["timings_s"]) >= {"segment", "register", "export"}
    assert found["provenance"]["config"]["register"]["stability_seeds"] == 0


def test_every_output_is_there_and_agrees(run, pair):
    transform = read_transform(run / "registration" / "transform.json")
    lm = open_volume(pair / "lm.zarr", frame="lm")
    points = lm.grid.points_nm()[::8, ::30, ::30].reshape(-1, 3)
    elastix = read_transform(run / "export" / "elastix" / "TransformParameters.1.txt")
    np.testing.assert_allclose(elastix(points), transform(points), atol=1e-3)
    with h5py.File(run / "export" / "bdv.h5") as file:
        # EM, three predictions, two light channels, EM warped.
        assert len([k for k in file if k.startswith("s")]) == 7
        np.testing.assert_array_equal(file["t00000/s04/0/cells"][:], lm.channel("mito").read())
    warped = open_volume(run / "warped_em.zarr", frame="lm")
    assert (warped.read() > 0).mean() > 0.3
    assert "data:image/png" in (run / "report.html").read_text()


def test_halves_of_the_mitochondria_predict_the_error(run, pair):
    assert report(run)["stability"] is None
    assert not (run / "predicted_error.zarr").exists()
    other = pair / "halves"
    shutil.copytree(run, other)
    words = ["run", str(pair / "config.toml"), *QUICK, "--set", f'output.dir="{other}"']
    assert run_app([*words, "--set", "register.halves=1"]) == 0
    stability = report(other)["stability"]
    assert set(stability) == {"seeds", "rms_nm", "p95_nm", "halves", "suggested_landmarks"}
    assert stability["seeds"] is None
    assert 0 < stability["halves"]["rms_nm"] < stability["halves"]["p95_nm"]
    found = open_volume(other / "predicted_error.zarr", frame="lm")
    place = stability["suggested_landmarks"][0]
    at = 1e3 * np.array([place["z_um"], place["y_um"], place["x_um"]])
    index = tuple(np.rint(found.grid.to_index(at[None])[0]).astype(int))
    assert found.read()[index] == pytest.approx(place["error_nm"], abs=0.1)
    assert "Add landmarks here" in (other / "report.html").read_text()


def test_a_second_run_is_up_to_date_and_a_changed_key_redoes_its_step(run, pair, capsys):
    words = ["run", str(pair / "config.toml"), *QUICK]
    assert run_app(words) == 0
    states = capsys.readouterr().err
    assert states.count("up to date") == 7
    assert run_app([*words, "--set", "output.title=Other"]) == 0
    states = capsys.readouterr().err
    assert "evaluate: up to date" in states
    assert "report: running" in states
    assert "<title>Other</title>" in (run / "report.html").read_text()


def test_report_can_be_written_again(run):
    before = report(run)
    (run / "report.html").unlink()
    assert run_app(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert report(run)["provenance"]["command"] == before["provenance"]["command"]


def test_the_images_agree_better_at_the_end_than_at_the_start(run):
    overlap = report(run)["overlap"]
    assert overlap["result"]["ncc"] > overlap["start"]["ncc"] + 0.02
    assert overlap["result"]["surface"]["mean_nm"] < overlap["start"]["surface"]["mean_nm"]


def stop_in(step, pair, sent):
    """Start the run at `step` and send a signal as soon as it is at work; return the exit code."""
    config = pair / "config.toml"
    words = [sys.executable, "-m", "clemreg", "run", str(config), *QUICK, "--from", step]
    # A shell's background job ignores SIGINT, and so would what it starts.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    )
    for line in child.stderr:
        if line.startswith(f"{step}: running"):
            break
    os.kill(child.pid, sent)
    _, rest = child.communicate(timeout=60)
    return child.returncode, rest


STEPS = ["segment", "prepare", "register", "apply", "evaluate", "report", "export"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("step", STEPS)
def test_a_stopped_step_is_not_finished(run, pair, step, sent):
    """`test_after_all_the_stops_the_run_still_ends_well` goes on from there."""
    code, said = stop_in(step, pair, sent)
    assert not (run / "steps" / f"{step}.json").exists()
    if sent == signal.SIGINT:
        assert code == 130
        assert "goes on where it stopped" in said
        assert "Traceback" not in said
    else:
        assert code == -signal.SIGKILL


def test_after_all_the_stops_the_run_still_ends_well(run, pair):
    assert run_app(["run", str(pair / "config.toml"), *QUICK]) == 0
    assert report(run)["verdict"]["status"] == "pass"
    leftovers = [p.name for p in run.rglob("*.partial*")] + [p.name for p in run.rglob("*.old")]
    assert leftovers == []


# -- bad input ------------------------------------------------------------------------------------


def refused(pair, capsys, *words):
    out = ["--set", f'output.dir="{pair / "refused"}"']
    code = run_app(["run", str(pair / "config.toml"), *QUICK, *out, *words])
    text = capsys.readouterr().err
    assert code == 1, text
    assert "Traceback" not in text
    return text


def test_a_missing_channel_lists_those_there_are(pair, capsys):
    text = refused(
        pair, capsys, "--set", "lm.channel=nucleus",
        "--set", f'em.prediction="{pair / "em_labels.zarr"}"',
    )  # fmt: skip
    assert "mito, er" in text


def test_an_empty_mask_is_named(pair, capsys, tmp_path):
    from clemreg.io.volumes import write_volume
    from clemreg.volume import Volume

    em = open_volume(pair / "em.zarr")
    write_volume(tmp_path / "empty.zarr", Volume(np.zeros(em.shape, np.uint8), em.grid))
    text = refused(pair, capsys, "--set", f'em.prediction="{tmp_path / "empty.zarr"}"')
    assert "nothing is left to register" in text


def lm_with(pair, folder, change):
    """Write the mitochondria channel, changed, as a light volume of its own."""
    from clemreg.io.volumes import write_volume
    from clemreg.volume import Volume

    lm = open_volume(pair / "lm.zarr").channel("mito")
    pixels = change(lm.read().astype(np.float32))
    grid = replace(lm.grid, shape=pixels.shape)
    write_volume(folder / "lm.zarr", Volume(pixels, grid))
    return folder / "lm.zarr"


def with_nan(pixels):
    pixels[5, 40:50, 50:60] = np.nan
    return pixels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_nan, "holds 100 NaN or infinite voxels"),
        (lambda pixels: pixels[10:11], "too thin for registration in 3-D"),
        (np.zeros_like, "is 0 everywhere"),
    ],
    ids=["nan", "one slice", "all zero"],
)
def test_an_unusable_light_volume_is_named(pair, capsys, tmp_path, change, message):
    lm = lm_with(pair, tmp_path, change)
    labels = f'em.prediction="{pair / "em_labels.zarr"}"'
    only = ["--set", "lm.channel=0", "--set", "lm.check_channel=0"]
    text = refused(pair, capsys, "--set", f'lm.path="{lm}"', "--set", labels, *only)
    assert message in text
    assert "lm.zarr" in text
    assert "hint" in text


def test_an_em_of_one_slice_is_named(pair, capsys, tmp_path):
    from clemreg.io.volumes import write_volume
    from clemreg.space.grid import Box
    from clemreg.volume import Volume

    em = open_volume(pair / "em.zarr")
    box = Box((30, 0, 0), (31, *em.shape[1:]))
    write_volume(tmp_path / "em.zarr", Volume(em.read(box), em.grid.crop(box)))
    text = refused(pair, capsys, "--set", f'em.path="{tmp_path / "em.zarr"}"')
    assert "em.zarr has 1 x" in text
    assert "too thin for registration in 3-D" in text


@pytest.mark.parametrize("which", ["em", "lm"])
def test_an_unreadable_chunk_stops_the_run_with_its_name(pair, capsys, tmp_path, which):
    shutil.copytree(pair / f"{which}.zarr", tmp_path / f"{which}.zarr")
    chunk = next(p for p in sorted((tmp_path / f"{which}.zarr" / "s0" / "c").rglob("*/0/0")))
    chunk = chunk if chunk.is_file() else next(p for p in sorted(chunk.rglob("*")) if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:40])
    words = ["--set", f'{which}.path="{tmp_path / f"{which}.zarr"}"']
    if which == "lm":
        words += ["--set", f'em.prediction="{pair / "em_labels.zarr"}"']
    text = refused(pair, capsys, *words)
    assert f"{which}.zarr" in text
    assert "cannot be read" in text or "damaged" in text


def test_a_thousandfold_voxel_size_is_named(pair, capsys):
    text = refused(pair, capsys, "--set", 'em.voxel_size="26,26,26 mm"')
    assert "hint" in text


def test_swapped_channels_are_not_passed(pair):
    """The ER channel in place of mitochondria: a report that warns or fails, also unchecked."""
    words = ["run", str(pair / "config.toml"), *QUICK, "--set", "lm.channel=er"]
    words += ["--set", f'output.dir="{pair / "swapped"}"', "--set", "export.bdv=false"]
    words += ["--set", f'em.prediction="{pair / "run" / "prediction.zarr"}"']
    for extra in ([], ["--set", "proof={}"]):
        assert run_app([*words, *extra]) == 0
        assert report(pair / "swapped")["verdict"]["status"] in ("warn", "fail")


def test_exports_of_a_finished_run(run, tmp_path):
    bdv = ["export", "bdv", str(run), "--storage=n5", f"--out={tmp_path / 'b' / 'all.xml'}"]
    mobie = ["export", "mobie", str(run), f"--out={tmp_path / 'm'}"]
    neuroglancer = ["export", "neuroglancer", str(run), f"--out={tmp_path / 's.json'}"]
    for words in (bdv, mobie, neuroglancer):
        assert run_app(words) == 0
    assert len(list((tmp_path / "b" / "all.n5").glob("setup*"))) == 7
    assert "em-transforms.csv" in (tmp_path / "m" / "collection.csv").read_text()
    layers = json.loads((tmp_path / "s.json").read_text())["layers"]
    assert [layer["name"] for layer in layers] == ["EM (affine)", "EM warped", "LM mito", "LM er"]
