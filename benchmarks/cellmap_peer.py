"""One operation of cellmap-analyze, for `blocks_scaling.py`; runs in an environment of its own.

It pins an old dask and has other versions of much else, so it is not installed beside clemreg:

    python -m venv peer
    peer/bin/pip install cellmap-analyze==0.6.2
    python benchmarks/blocks_scaling.py --cellmap peer/bin/python

Prints JSON with the seconds of wall time. Arguments: operation, workers, output folder, inputs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    operation, workers, folder, *inputs = sys.argv[1:]
    out, count = Path(folder), int(workers)
    os.chdir(out)  # it writes logs and scratch files where it is started
    begin = time.perf_counter()
    if operation == "components":
        from cellmap_analyze.process.connected_components import ConnectedComponents

        ConnectedComponents(
            str(out / "out.zarr/ids"), inputs[0], intensity_threshold_minimum=1,
            connectivity=1, num_workers=count, delete_tmp=True,
        ).get_connected_components()  # fmt: skip
    elif operation == "measure":
        from cellmap_analyze.analyze.measure import Measure

        Measure(inputs[0], str(out), num_workers=count).get_measurements()
    else:
        from cellmap_analyze.process.contact_sites import ContactSites

        ContactSites(
            inputs[0], inputs[1], str(out / "out.zarr/sites"), contact_distance_nm=10,
            minimum_volume_nm_3=0, num_workers=count,
        ).get_contact_sites()  # fmt: skip
    sys.stdout.write("\n" + json.dumps({"wall_s": time.perf_counter() - begin}) + "\n")


if __name__ == "__main__":
    main()
