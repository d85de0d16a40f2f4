"""Run one peer in its own environment: images, start pose and coordinate images in, warped out.

`python peer_workers.py ants|greedy FOLDER`. Nothing of clemreg is imported here.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

AXES = "xyz"


def ants_syn(folder: Path) -> None:
    import ants

    fixed, moving = (ants.image_read(str(folder / f"{name}.nii")) for name in ("fixed", "moving"))
    found = ants.registration(
        fixed,
        moving,
        type_of_transform="SyN",
        initial_transform=str(folder / "start.tfm"),
        outprefix=str(folder / "ants_"),
        random_seed=1,
    )
    for axis in AXES:
        image = ants.image_read(str(folder / f"coordinate_{axis}.nii"))
        warped = ants.apply_transforms(
            fixed, image, found["fwdtransforms"], interpolator="linear", defaultvalue=1e6
        )
        ants.image_write(warped, str(folder / f"ants_{axis}.nii"))


def greedy(folder: Path) -> None:
    from picsl_greedy import Greedy3D

    engine = Greedy3D()
    pair = f"-i {folder}/fixed.nii {folder}/moving.nii -threads 2"
    affine, warp = folder / "greedy.mat", folder / "greedy_warp.nii"
    metric = "-m WNCC 2x2x2 -n 100x50x20"
    engine.execute(f"-a -dof 12 {metric} {pair} -ia {folder}/start.mat -o {affine}")
    engine.execute(f"{metric} {pair} -s 2vox 1vox -it {affine} -o {warp}")
    images = " ".join(
        f"-rm {folder}/coordinate_{axis}.nii {folder}/greedy_{axis}.nii" for axis in AXES
    )
    engine.execute(f"-rf {folder}/fixed.nii -rb 1e6 -ri LINEAR {images} -r {warp} {affine}")


def main(name: str, folder: Path) -> None:
    began = time.monotonic()
    {"ants": ants_syn, "greedy": greedy}[name](folder)
    seconds = time.monotonic() - began
    (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
