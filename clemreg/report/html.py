"""``report.html``: one file, no links to the outside, figures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture and what it shows.

    Attributes
    ----------
    title, caption
        Heading, and how to read it.
    png
        The picture.
    """

    title: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an inline image address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def render_html(
    title: str, report: Mapping[str, Any], figures: Sequence[Figure], worst: Sequence[Any] = ()
) -> str:
    """Fill the template; every text is escaped.

    Parameters
    ----------
    report
        The whole object of ``report.json``.
    worst
        Rows (name, error nm, dz, dy, dx nm) of the landmarks with the largest errors.
    """
    from jinja2 import Environment, select_autoescape

    environment = Environment(
        autoescape=select_autoescape(default_for_string=True), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    source = (files("clemreg.report") / "template.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=title, report=report, figures=figures, worst=worst, rows=_landmark_rows(report)
    )


def _number(value: Any, digits: int = 1) -> str:
    if value is None:
        return "not known"
    return f"{value:.{digits}f}"


def _landmark_rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of the landmark table: who against what."""
    landmarks = report.get("landmarks") or {}
    if not landmarks.get("n"):
        return []
    rows: list[tuple[str, Any]] = [("result, against the mean of the people", landmarks)]
    rows += [
        (f"result, against {name}", s) for name, s in (landmarks.get("by_rater") or {}).items()
    ]
    rows += [
        ("person against person", landmarks.get("between_raters")),
        ("affine part alone", landmarks.get("affine_only")),
        (
            "affine through the other landmarks (leave one out)",
            landmarks.get("leave_one_out_affine"),
        ),
    ]
    return [(name, stats) for name, stats in rows if stats and stats.get("mean_nm") is not None]
