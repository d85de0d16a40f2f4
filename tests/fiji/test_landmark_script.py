"""The landmark report: from a table, from the open BigWarp, from points on two images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from imagej_process import SCRIPTS
from script_runs import LM, dialogs, run, texts

from clemreg.evaluate.landmarks import evaluate_landmarks
from clemreg.io.points import write_bigwarp
from clemreg.io.transforms import write_transform
from clemreg.space import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import random_affine

pytestmark = pytest.mark.xdist_group("imagej")


def landmarks_of(transform):
    """Pairs whose EM side is up to 50 nm off."""
    rng = np.random.default_rng(1)
    index = np.stack([rng.integers(0, n, 12) for n in LM.shape], axis=1)
    lm = LM.to_world(index)
    em = transform(lm) + rng.uniform(-50, 50, lm.shape)
    return Landmarks(tuple(f"Pt-{i}" for i in range(len(lm))), lm, em)


def test_landmarks_of_a_bigwarp_table(imagej, clemreg, files):
    folder, transform = files
    landmarks = landmarks_of(transform)
    write_bigwarp(landmarks, folder / "b.csv")
    parameters = {
        "transform": folder / "t.json",
        "table": folder / "b.csv",
        "json": folder / "report.json",
        "python": clemreg,
    }
    answer = run(imagej, "Landmark_Accuracy_Report", parameters)
    figures = json.loads((folder / "report.json").read_text())["landmarks"]
    truth = evaluate_landmarks(transform, landmarks).to_json()
    assert figures["n"] == 12
    assert figures["mean_nm"] == pytest.approx(truth["mean_nm"], abs=1e-3)
    assert "mean_nm" in answer["outputs"]["report"]
    assert dialogs(answer) == [answer["outputs"]["report"]]


POINTS = """
import jpype
from clemreg.fiji.images import Look, to_imageplus
from clemreg.space.grid import Grid
from clemreg.volume import Volume
for name, grid, index, unit in {images!r}:
    grid = Grid(*grid)
    image = to_imageplus(Volume(np.ones(grid.shape, "uint8"), grid, name=name), Look(unit=unit))
    image.show()
    points = jpype.JClass("ij.gui.PointRoi")(0.0, 0.0)
    points = None
    for z, y, x in index:
        image.setPosition(1, int(z) + 1, 1)
        if points is None:
            points = jpype.JClass("ij.gui.PointRoi")(float(x), float(y))
            points.setPosition(image.getCurrentSlice())
            image.setRoi(points)
            points = jpype.JClass("ij.gui.PointRoi")()
        points.addPoint(image, float(x), float(y))
    image.setRoi(points)
"""


def test_landmarks_of_points_on_two_images(imagej, clemreg, files):
    folder, _ = files
    rng = np.random.default_rng(2)
    em = Grid((11, 40, 44), (50.0, 20.0, 25.0), (808.0, -1192.0, 2408.0), "em")
    lm_index = np.stack([rng.integers(0, n, 6) for n in LM.shape], axis=1)
    em_index = np.stack([rng.integers(0, n, 6) for n in em.shape], axis=1)
    images = [
        ("EM", (em.shape, em.spacing_nm, em.origin_nm), em_index.tolist(), "nm"),
        ("light", (LM.shape, LM.spacing_nm), lm_index.tolist(), "um"),
    ]
    placed = imagej.python(POINTS.format(images=images))
    assert placed["error"] is None, placed["error"]
    transform = random_affine(rng)
    write_transform(transform, folder / "affine.json")
    parameters = {
        "transform": folder / "affine.json",
        "source": "points on two open images",
        "emImage": "EM",
        "lmImage": "light",
        "json": folder / "points.json",
        "python": clemreg,
    }
    run(imagej, "Landmark_Accuracy_Report", parameters)
    figures = json.loads((folder / "points.json").read_text())["landmarks"]
    difference = transform(LM.to_world(lm_index)) - em.to_world(em_index)
    expected = np.linalg.norm(difference, axis=1).mean()
    assert figures["mean_nm"] == pytest.approx(expected, abs=0.01)
    assert imagej.macro('selectImage("EM"); run("Select None");')["error"] is None
    answer = imagej.script(
        SCRIPTS / "Landmark_Accuracy_Report.groovy",
        texts(parameters | {"json": folder / "other.json"}),
    )
    assert dialogs(answer) == ["The EM image has no points: use the multi-point tool."]
    cut = 'selectImage("EM"); makeRectangle(3, 2, 6, 5); run("Crop"); makePoint(1, 1, "small");'
    assert imagej.macro(cut)["error"] is None
    answer = imagej.script(
        SCRIPTS / "Landmark_Accuracy_Report.groovy",
        texts(parameters | {"json": folder / "other.json"}),
    )
    (said,) = dialogs(answer)
    assert said.startswith("EM was cropped, sub-stacked or scaled")
    assert imagej.macro('run("Close All");')["error"] is None


OPEN = """
from clemreg.fiji.images import Look
from clemreg.space.grid import Grid
from clemreg.volume import Volume
volume = Volume(np.ones({shape}, "uint8"), Grid({shape}, *{grid}, "em"), name="EM")
ij.show(volume, Look(unit="nm"))
"""
# A window with the table of BigWarp; the methods are those of bigwarp.landmarks.LandmarkTableModel.
BIGWARP = """
#@ String rows
import groovy.json.JsonSlurper
import javax.swing.*
import javax.swing.table.AbstractTableModel

class LandmarkTableModel extends AbstractTableModel {
    List names = [], active = [], movingPts = [], targetPts = []
    int getRowCount() { names.size() }
    int getColumnCount() { 8 }
    Object getValueAt(int row, int column) { [names[row], active[row]][column] ?: 0.0d }
    int getNumdims() { 3 }
    boolean getIsActive(int row) { active[row] }
    ArrayList<Double[]> getPoints(boolean moving) { moving ? movingPts : targetPts }
    void save(File file) { throw new IllegalStateException("the user's unsaved mark must stay") }
}
def model = new LandmarkTableModel()
new JsonSlurper().parseText(rows).each { row ->
    model.names << row[0]
    model.active << row[1]
    def numbers = row[2..7].collect { it == null ? Double.POSITIVE_INFINITY : it as double }
    model.movingPts << (numbers[0..2] as Double[])
    model.targetPts << (numbers[3..5] as Double[])
}
def frame = new JFrame("Landmarks")
frame.contentPane.add(new JScrollPane(new JTable(model)))
frame.pack()
frame.visible = true
"""
CLOSE = "java.awt.Window.windows.findAll { it.title == 'Landmarks' }.each { it.dispose() }"


def test_landmarks_of_the_open_bigwarp(imagej, clemreg, files):
    """As BigWarp holds them: um, shown from 0, one row inactive, one without an EM point."""
    folder, transform = files
    pairs = landmarks_of(transform)
    em = Grid((11, 40, 44), (50.0, 20.0, 25.0), (808.0, -1192.0, 2408.0), "em")
    opened = imagej.python(OPEN.format(shape=em.shape, grid=(em.spacing_nm, em.origin_nm)))
    assert opened["error"] is None, opened
    moving = (pairs.em_nm - em.origin_nm)[:, ::-1] / 1e3
    rows = [[f'a "{i}", ]]>', True, *m, *f] for i, (m, f) in
            enumerate(zip(moving, pairs.lm_nm[:, ::-1] / 1e3, strict=True))]  # fmt: skip
    rows[3][1] = False
    rows[5][1:5] = [False, None, None, None]
    script = folder / "bigwarp.groovy"
    script.write_text(BIGWARP)
    parameters = {
        "transform": folder / "t.json",
        "source": "the landmarks in the open BigWarp",
        "emImage": "EM",
        "shown": True,
        "json": folder / "bw.json",
        "python": clemreg,
    }
    absent = imagej.script(SCRIPTS / "Landmark_Accuracy_Report.groovy", texts(parameters))
    assert "No landmark window of BigWarp is open" in dialogs(absent)[0]
    assert imagej.script(script, {"rows": json.dumps(rows)})["error"] is None
    try:
        run(imagej, "Landmark_Accuracy_Report", parameters)
        figures = json.loads((folder / "bw.json").read_text())["landmarks"]
        kept = [i for i in range(len(rows)) if i not in (3, 5)]
        distance = np.linalg.norm(transform(pairs.lm_nm) - pairs.em_nm, axis=1)[kept]
        assert figures["n"] == len(kept)
        assert figures["mean_nm"] == pytest.approx(distance.mean(), abs=1e-3)
        assert imagej.script(script, {"rows": json.dumps(rows)})["error"] is None
        two = imagej.script(
            SCRIPTS / "Landmark_Accuracy_Report.groovy", texts(parameters | {"json": ""})
        )
        assert "2 BigWarp windows are open" in dialogs(two)[0]
    finally:
        (folder / "close.groovy").write_text(CLOSE)
        imagej.script(folder / "close.groovy", {})
        imagej.macro('run("Close All");')
