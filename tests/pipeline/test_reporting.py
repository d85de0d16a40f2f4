from __future__ import annotations

import numpy as np
import pytest

from clemreg.config import RunConfig
from clemreg.io.points import write_landmarks
from clemreg.io.volumes import write_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.evaluation import landmark_report
from clemreg.pipeline.reporting import _check, _rater_errors
from clemreg.space import Affine, Grid
from clemreg.space.grid import Box
from clemreg.space.landmarks import Landmarks
from clemreg.volume import Volume

TRUTH = Affine.from_linear(
    [[1.1, 0.2, -0.1], [0.05, -0.9, 0.3], [0.0, 0.15, 1.2]], [500.0, -3000.0, 12000.0], "lm", "em"
)


def test_the_figure_shows_the_landmarks_that_the_numbers_are_of(tmp_path):
    """Not those that were fitted, and not those of people who are not asked for."""
    rng = np.random.default_rng(0)
    lm = rng.uniform(0, 9000, (40, 3))
    names, role = tuple(str(i) for i in range(40)), ("held_out", "fit") * 20
    tables = [
        Landmarks(names, lm, TRUTH(lm) + rng.normal(0, noise, lm.shape), (rater,) * 40, role)
        for rater, noise in (("AW", 20.0), ("JB", 500.0), ("truth", 0.0))
    ]
    write_landmarks(Landmarks.concat(tables), tmp_path / "marks.csv")
    proof = {"landmarks": "marks.csv", "raters": ["AW"], "fixed_offset": "300, 200, 100 nm"}
    sections = {"em": {"path": "em.zarr"}, "lm": {"path": "lm.zarr"}, "proof": proof}
    context = RunContext(RunConfig.model_validate(sections), tmp_path, lambda _title: None)
    back = Affine.translation((-100.0, -200.0, -300.0), "lm", "lm").then(TRUTH)
    report = landmark_report(context, back)
    shown = _rater_errors(report)
    assert list(shown) == ["AW"]
    errors = np.linalg.norm(TRUTH(lm) - tables[0].em_nm, axis=1)[::2]
    np.testing.assert_allclose(shown["AW"], errors, atol=1e-6)
    assert report.to_json()["by_rater"]["AW"]["mean_nm"] == pytest.approx(errors.mean())
    assert _rater_errors(None) == {}


def test_the_check_channel_is_shown_on_the_registered_em(tmp_path):
    """With its own chromatic shift, of one voxel along x and two along y."""
    lm = Grid((6, 20, 24), (104.0, 60.0, 52.0), (300.0, -200.0, 70.0), "lm")
    pixels = np.zeros((2, *lm.shape), np.uint8)
    pixels[1, 3, 10, 12] = 200
    write_volume(tmp_path / "lm.zarr", Volume(pixels, lm, channels=("mito", "er")))
    part = lm.crop(Box((1, 4, 2), (5, 18, 22)))
    em = np.random.default_rng(0).integers(90, 160, part.shape).astype(np.uint8)
    write_volume(tmp_path / "run" / "warped_em.zarr", Volume(em, part))

    def shown(check, *further):
        light = {"path": "lm.zarr", "check_channel": check, "shifts": {"er": "52, 120, 0 nm"}}
        sections = {"em": {"path": "em.zarr"}, "lm": light, "output": {"dir": "run"}}
        sections["register"] = {"channels": further}
        return _check(RunContext(RunConfig.model_validate(sections), tmp_path, lambda _title: None))

    found = shown("er")
    assert found.grid == part
    assert np.argwhere(found.lm > 0.5).tolist() == [[2, 8, 11]]
    assert found.em.std() > 0.1
    assert shown(None) is shown("mito") is shown(0) is shown("er", "1=er.zarr") is None
