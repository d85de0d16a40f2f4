"""Trace simulated microtubules at rising noise: the program beside threshold and skeleton."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial import cKDTree

from clemreg.measure.microtubules.baseline import skeleton_tracks
from clemreg.measure.microtubules.candidates import find_candidates
from clemreg.measure.microtubules.graph import build_graph
from clemreg.measure.microtubules.score import score_tracks
from clemreg.measure.microtubules.trace import trace
from clemreg.space.grid import Grid
from clemreg.volume import Volume

GRID = Grid((120, 200, 200), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
COUNT, GAPS = 12, 8


def draw_lines(rng: np.random.Generator) -> list[np.ndarray]:
    """Gently bent lines through the volume, at random angles."""
    size = GRID.extent_nm
    t = np.linspace(0, 1, 60)[:, None]
    lines = []
    for _ in range(COUNT):
        start = rng.uniform(0.1, 0.9, 3) * size * [1, 1, 0]
        end = rng.uniform(0.1, 0.9, 3) * size * [1, 1, 0] + size * [0, 0, 1]
        bow = rng.normal(scale=30, size=3) * [1, 1, 0] * np.sin(np.pi * t)
        lines.append(GRID.to_world((0, 0, 0)) + start + (end - start) * t + bow)
    return lines


def predict(lines: list[np.ndarray], noise: float, rng: np.random.Generator) -> Volume:
    """Quantised signed distance with smooth noise, and gaps of 50 nm that a network misses."""
    from scipy.ndimage import gaussian_filter

    points = np.concatenate(lines)
    fine = np.concatenate([np.linspace(a, b, 8) for a, b in itertools.pairwise(points)])
    keep = cKDTree(points).query(fine)[0] < 20
    for gap in points[rng.integers(0, len(points), GAPS)]:
        keep &= np.linalg.norm(fine - gap, axis=1) > 25
    distance, _ = cKDTree(fine[keep]).query(
        GRID.points_nm().reshape(-1, 3), distance_upper_bound=40
    )
    x = np.tanh((12.5 - np.minimum(distance, 80).reshape(GRID.shape)) / 50)
    smooth = gaussian_filter(rng.normal(size=x.shape), 1.5)
    x += noise * smooth / smooth.std()
    return Volume(np.clip(np.rint(128 * x + 127), 0, 255).astype("u1"), GRID)


def main() -> None:
    print("noise  method    precision recall    F1  splits merges   FP   FN")
    for noise in (0.1, 0.2):
        rng = np.random.default_rng(0)
        lines = draw_lines(rng)
        volume = predict(lines, noise, rng)
        graph = build_graph(find_candidates(volume), volume)
        for name, found in (
            ("program", trace(graph).lines_nm),
            ("skeleton", skeleton_tracks(volume)),
        ):
            s = score_tracks(found, lines)
            print(
                f"{noise:5.1f}  {name:9s} {s.precision:8.3f} {s.recall:6.3f} {s.f1:6.3f} "
                f"{s.splits:6d} {s.merges:6d} {s.false_positives:5d} {s.false_negatives:4d}"
            )


if __name__ == "__main__":
    main()
