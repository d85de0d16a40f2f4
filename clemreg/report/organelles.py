"""The page of ``clemreg organelles``: numbers of every organelle, and links to what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clemreg.io.atomic import atomic_write_text
from clemreg.report.html import fill


def write_organelles_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page; its links are relative, so that the folder can be moved.

    Parameters
    ----------
    path
        In the folder that the files of the report are relative to.
    report
        Content of ``organelles.json``.
    """
    config = json.dumps(report["provenance"]["config"], indent=1)
    atomic_write_text(path, fill("organelles.html", report=report, config=config))
