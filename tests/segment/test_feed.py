"""Patches come the same however they are drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.errors import ConfigError, DataError  # noqa: E402
from clemreg.pipeline.train_volumes import SimulatedData, simulated_volumes  # noqa: E402
from clemreg.segment.training import Outlets, TrainOptions, train  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.xdist_group("torch"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
OPTIONS = TrainOptions(
    spacing_nm=8.0, steps=10, batch=2, output=8, margin=4, classes=("mito",), widths=(3, 4),
    down=(1, 1), up=(2,), threads=1, checkpoint_every=3, precision="float32",
)  # fmt: skip


class Noise:
    def draw(self, rng):
        em = rng.standard_normal((16, 16, 16), dtype=np.float32)
        target = np.tanh(em[None, 4:-4, 4:-4, 4:-4])
        return em, target, np.ones(target.shape, bool)


class Broken:
    def draw(self, _rng):
        raise DataError("the file is gone")


def stop(step, _network):
    raise KeyboardInterrupt(step)


@pytest.mark.parametrize("revisit", [0.0, 0.5])
def test_processes_draw_what_a_thread_draws(revisit, tmp_path):
    """Hard patches seen again, too; stopped after 7 steps, it goes on with other processes."""
    options = dataclasses.replace(OPTIONS, revisit=revisit)
    alone = train(Noise(), options)
    several = dataclasses.replace(options, workers=2)
    assert train(Noise(), several).losses == alone.losses
    with pytest.raises(KeyboardInterrupt, match="7"):
        train(
            Noise(),
            several,
            checkpoint=tmp_path / "c",
            outlets=Outlets(keep=stop, keep_every=7),
        )
    other = dataclasses.replace(options, workers=1)
    resumed = train(Noise(), other, checkpoint=tmp_path / "c")
    assert resumed.losses == alone.losses[6:]


def test_what_goes_wrong_in_a_process_is_told():
    with pytest.raises(DataError, match="the file is gone"):
        train(Broken(), dataclasses.replace(OPTIONS, workers=1))


def test_processes_are_counted():
    with pytest.raises(ConfigError, match="workers = -1"):
        dataclasses.replace(OPTIONS, workers=-1)


def test_simulated_volumes_do_not_depend_on_who_draws_them():
    data = SimulatedData(blocks=3, shape=(24, 40, 32), spacing_nm=(9.0, 11.0), weight=0.3)
    told = []
    alone = list(simulated_volumes(data))
    several = list(simulated_volumes(data, 2, lambda *values: told.append(values)))
    assert told == [(k, 3, "simulating EM") for k in (1, 2, 3)]
    assert len({v.spacing_nm for v in alone}) == 3
    for a, b in zip(alone, several, strict=True):
        assert (a.spacing_nm, a.weight, a.name) == (b.spacing_nm, b.weight, b.name)
        np.testing.assert_array_equal(a.em, b.em)
        for organelle in ("mito", "er"):
            np.testing.assert_array_equal(a.distances_nm[organelle], b.distances_nm[organelle])


def test_simulated_mitochondria_are_outlined_inside_their_membrane_if_people_do_so():
    """Half a membrane deeper, in nm whatever the voxels are; the EM and the ER stay as they are."""
    common = {"blocks": 1, "shape": (24, 40, 32), "spacing_nm": (9.0, 11.0)}
    (outer,) = simulated_volumes(SimulatedData(**common))
    (inset,) = simulated_volumes(SimulatedData(**common, inset_nm=9.5))
    np.testing.assert_array_equal(inset.em, outer.em)
    moved = outer.distances_nm["mito"] - inset.distances_nm["mito"]
    np.testing.assert_allclose(moved, 9.5, rtol=1e-4)
    np.testing.assert_array_equal(inset.distances_nm["er"], outer.distances_nm["er"])
