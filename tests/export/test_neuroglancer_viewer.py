"""The real Neuroglancer, in a browser without a screen, shows each image where it is."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from clemreg.export.neuroglancer import NeuroglancerLayer, neuroglancer_state
from clemreg.export.ngff import Display
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_volume
from clemreg.pipeline.scene import SceneFiles
from clemreg.pipeline.viewers import NeuroglancerCommand, export_neuroglancer
from clemreg.space import Affine, Grid
from clemreg.volume import Volume

from .axis_orders import write_in_order

pytestmark = [pytest.mark.slow, pytest.mark.interop]

BROWSER = shutil.which("chromium")
EM = Grid((30, 40, 50), (20.0, 16.0, 12.0), (300.0, -200.0, 70.0), "em")
LM = Grid((16, 30, 28), (60.0, 35.0, 30.0), (0.0, -400.0, 100.0), "lm")
MATRIX = np.eye(4)
MATRIX[:3] = [[0.95, 0.1, 0.05, 40], [-0.15, 1.1, 0.2, -70], [0.05, -0.25, 0.9, 90]]
WIDTH, HEIGHT, NM_A_PIXEL = 400, 300, 3.0


class Served(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_words):
        """Say nothing."""


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(Served, directory=str(tmp_path))
    program = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=program.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{program.server_port}"
    program.shutdown()
    program.server_close()


@pytest.fixture
def viewer(tmp_path_factory):
    """Neuroglancer with a browser that draws in software."""
    neuroglancer = pytest.importorskip("neuroglancer")
    if BROWSER is None:
        pytest.skip("not installed: chromium")
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    words = [
        BROWSER, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--window-size=500,400",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}", str(viewer.get_viewer_url()),
    ]  # fmt: skip
    browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield viewer
    browser.kill()
    browser.wait()
    neuroglancer.stop()


def seen(viewer, state):
    """What is drawn of the plane in the middle, (y, x, colour) from 0 to 1."""
    plain = dict.fromkeys(("showAxisLines", "showDefaultAnnotations", "showScaleBar"), False)
    state |= {**plain, "layout": "xy", "crossSectionScale": NM_A_PIXEL}
    viewer.set_state(state | {"crossSectionBackgroundColor": "#000000"})
    pictures = []
    size = [WIDTH, HEIGHT]
    wait = threading.Thread(
        target=lambda: pictures.append(viewer.screenshot(size=size)), daemon=True
    )
    wait.start()
    wait.join(timeout=300)
    assert pictures, "Neuroglancer drew nothing within 300 s"
    image = Image.open(io.BytesIO(pictures[0].screenshot.image)).convert("RGB")
    return np.asarray(image) / 255


def values_there(data, grid, to_world, centre):
    """The voxels that each pixel of the picture falls into, 0 outside."""
    x = centre[2] + (np.arange(WIDTH) + 0.5 - WIDTH / 2) * NM_A_PIXEL
    y = centre[1] + (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) * NM_A_PIXEL
    places = np.stack(np.broadcast_arrays(centre[0], y[:, None], x[None]), axis=-1)
    index = np.round(grid.to_index(to_world.inverse()(places.reshape(-1, 3)))).astype(int)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    found = np.zeros(len(index))
    found[inside] = data[tuple(index[inside].T)]
    return found.reshape(HEIGHT, WIDTH) > 0


def overlap(found, expected):
    return (found & expected).sum() / (found | expected).sum()


def asymmetric(shape, corner):
    """A hook that is its own mirror image or turn in no direction."""
    z, y, x = corner
    data = np.zeros(shape, "u1")
    data[z:-z, y:-y, x : x + 6] = 200
    data[z:-z, -y - 5 : -y, x:-x] = 200
    data[z : z + 3, y : y + 3, x : -2 * x] = 200
    return data


@pytest.mark.parametrize("order", ["tczyx", "xyz", "zcyx"])
def test_images_with_other_axes_are_drawn_where_they_are(viewer, server, tmp_path, order):
    em, mito = asymmetric(EM.shape, (5, 8, 10)), asymmetric(LM.shape, (2, 4, 5))
    write_in_order(tmp_path / "em.zarr", em, EM, order)
    write_in_order(tmp_path / "lm.zarr", mito, LM, order)
    to_lm = Affine(MATRIX, "em", "lm")
    write_transform(to_lm.inverse(), tmp_path / "t.json")
    paths = (str(tmp_path / name) for name in ("t.json", "em.zarr", "lm.zarr"))
    command = NeuroglancerCommand(SceneFiles(*paths), tmp_path / "s.json", None, server, tmp_path)
    state = json.loads(json.dumps(export_neuroglancer(command)))
    centre = to_lm(EM.centre_nm[None])[0]
    state["position"] = centre[::-1].tolist()
    both = state["layers"]
    places = [(em, EM, to_lm), (mito, LM, Affine(np.eye(4), "lm", "lm"))]
    for layer, (data, grid, to_world) in zip(both, places, strict=True):
        drawn = seen(viewer, state | {"layers": [layer]}).max(axis=-1) > 0.5
        assert overlap(drawn, values_there(data, grid, to_world, centre)) > 0.99


def test_em_and_channels_are_drawn_where_they_are(viewer, server, tmp_path):
    em, mito = asymmetric(EM.shape, (5, 8, 10)), asymmetric(LM.shape, (2, 4, 5))
    er = mito[::-1, ::-1, ::-1].copy()
    write_volume(tmp_path / "em.zarr", Volume(em, EM))
    write_volume(tmp_path / "lm.zarr", Volume(np.stack([mito, er]), LM, ("mito", "er")))
    to_lm = Affine(MATRIX, "em", "lm")
    displays = (
        Display("mito", (255, 0, 0), (0.0, 200.0)),
        Display("er", (0, 255, 0), (0.0, 200.0)),
    )
    layers = [
        NeuroglancerLayer("EM", "em.zarr", (Display("", (0, 0, 255), (0.0, 200.0)),), "zyx", to_lm),
        NeuroglancerLayer("LM", "lm.zarr", displays, "czyx"),
    ]
    state = json.loads(json.dumps(neuroglancer_state(layers, LM, server)))
    centre = to_lm(EM.centre_nm[None])[0]
    state["position"] = centre[::-1].tolist()
    drawn = seen(viewer, state) > 0.5
    still = Affine(np.eye(4), "lm", "lm")
    expected = [
        values_there(mito, LM, still, centre),
        values_there(er, LM, still, centre),
        values_there(em, EM, to_lm, centre),
    ]
    assert all(part.sum() > 1000 for part in expected)
    scores = [overlap(drawn[..., i], part) for i, part in enumerate(expected)]
    assert min(scores) > 0.99, scores
