"""``report.html``: one file, no links to the outside, figures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

HEADINGS = {"pass": "Pass", "warn": "Look before you use it", "fail": "Do not use it"}
Rows = list[tuple[str, Mapping[str, Any]]]


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


@dataclass(frozen=True)
class Card:
    """A key number: what it is, and what it means."""

    value: str
    name: str
    meaning: str


def render_html(
    title: str, report: Mapping[str, Any], figures: Sequence[Figure], worst: Sequence[Any] = ()
) -> str:
    """Fill the template; every text is escaped.

    Parameters
    ----------
    title
        Heading.
    report
        The whole object of ``report.json``.
    figures
        In the order in which they are shown.
    worst
        Rows (name, error nm, dz, dy, dx nm) of the landmarks with the largest errors.
    """
    return fill(
        "template.html",
        title=title,
        heading=HEADINGS[report["verdict"]["status"]],
        verdict=report["verdict"],
        cards=list(key_numbers(report)),
        figures=figures,
        worst=worst,
        landmarks=_landmark_rows(report),
        jacobian=_jacobian_rows(report),
        suggestions=(report.get("stability") or {}).get("suggested_landmarks") or (),
        overlap=_overlap_rows(report),
        affine=report.get("affine") or {},
        timings=_timing_rows(report.get("timings_s") or {}),
        provenance=report.get("provenance") or {},
        config=_toml((report.get("provenance") or {}).get("config")),
    )


def fill(template: str, **values: Any) -> str:
    """Fill in one of the templates of this folder, which may include others of it."""
    from jinja2 import Environment, FunctionLoader

    environment = Environment(
        loader=FunctionLoader(lambda name: (files("clemreg.report") / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share}
    return environment.get_template(template).render(**values)


def number(value: Any, digits: int = 1) -> str:
    """Write a number with so many digits after the point; a dash for what is not known.

    Examples
    --------
    >>> number(31.96), number(0.00001, 2), number(-0.2, 0), number(None), number(float("nan"))
    ('32.0', '<0.01', '0', '–', '–')
    """
    if not isinstance(value, (int, float)) or value != value:
        return "–"
    smallest = 10.0**-digits
    if digits > 1 and 0 < value < smallest / 2:
        return f"<{smallest:.{digits}f}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0"


def share(fraction: Any) -> str:
    """Write a fraction in per cent; none at all is ``0 %``, a dash is for what is not known."""
    if not isinstance(fraction, (int, float)):
        return "–"
    return "0 %" if fraction == 0 else f"{number(100 * fraction, 2)} %"


def key_numbers(report: Mapping[str, Any]) -> Iterator[Card]:
    """Return the numbers a reader should see first, as far as they were measured."""
    yield from _accuracy_cards(report.get("landmarks") or {}, report.get("truth") or {})
    after = (report.get("jacobian") or {}).get("without_affine") or {}
    if after.get("fold_fraction") is not None:
        yield Card(
            share(after["fold_fraction"]),
            "folds",
            f"of the volume; local volume changes by {number(after.get('min'), 2)} "
            f"to {number(after.get('max'), 2)}",
        )
    scores = report.get("scores") or {}
    if scores.get("final") is not None:
        yield Card(
            number(scores["final"], 2),
            "correlation inside the EM",
            f"of both images where the EM was imaged; {number(scores.get('start'), 2)} in the "
            f"start pose, {number(scores.get('affine'), 2)} after the affine",
        )
    stability = report.get("stability") or {}
    if stability.get("rms_nm") is not None:
        yield Card(
            f"{number(stability['rms_nm'])} nm",
            "repeatability",
            f"scatter of {stability.get('seeds')} registrations with different seeds (rms)",
        )
    halves = stability.get("halves") or {}
    if halves.get("rms_nm") is not None:
        yield Card(
            f"{number(halves['rms_nm'], 0)} nm",
            "predicted error",
            "from random halves of the mitochondria (rms); 95 % of the imaged volume is below "
            f"{number(halves.get('p95_nm'), 0)} nm",
        )
    back = (report.get("round_trip_nm") or {}).get("max")
    if back is not None:
        yield Card(f"{number(back, 3)} nm", "there and back", "largest error of the inverse")


def _accuracy_cards(landmarks: Mapping[str, Any], truth: Mapping[str, Any]) -> Iterator[Card]:
    if landmarks.get("median_nm") is not None:
        yield Card(
            f"{number(landmarks['median_nm'], 0)} nm",
            "median error",
            f"half of {landmarks.get('n')} landmarks that were not fitted are closer than this",
        )
        people = landmarks.get("between_raters") or {}
        if people.get("median_nm") is not None:
            yield Card(
                f"{number(people['median_nm'], 0)} nm",
                "person to person",
                "what two people differ by at the same landmarks (median): the floor",
            )
        affine = landmarks.get("affine_only") or {}
        if affine.get("median_nm") is not None:
            yield Card(
                f"{number(affine['median_nm'], 0)} nm",
                "affine alone",
                "median error without the deformation",
            )
    if truth.get("tre_median_nm") is not None:
        yield Card(
            f"{number(truth['tre_median_nm'], 0)} nm",
            "from the truth",
            "median over the imaged volume; known because the data are simulated",
        )


def _landmark_rows(report: Mapping[str, Any]) -> Rows:
    """Rows of the landmark table: who against what."""
    landmarks = report.get("landmarks") or {}
    if not landmarks.get("n"):
        return []
    raters = landmarks.get("by_rater") or {}
    basis = "result, against the mean of the people" if len(raters) > 1 else "result"
    rows: list[tuple[str, Any]] = [(basis, landmarks)]
    rows += [(f"result, against {name}", stats) for name, stats in raters.items()]
    rows += [
        ("person against person", landmarks.get("between_raters")),
        ("affine part alone", landmarks.get("affine_only")),
        (
            "affine through the other landmarks (leave one out)",
            landmarks.get("leave_one_out_affine"),
        ),
        ("landmarks that took part in the fit (no accuracy)", landmarks.get("fre")),
    ]
    return [(name, stats) for name, stats in rows if stats and stats.get("mean_nm") is not None]


def _jacobian_rows(report: Mapping[str, Any]) -> Rows:
    jacobian = report.get("jacobian") or {}
    names = (("whole transform", "with_affine"), ("after the best affine", "without_affine"))
    return [(name, jacobian[key]) for name, key in names if jacobian.get(key)]


def _overlap_rows(report: Mapping[str, Any]) -> Rows:
    overlap = report.get("overlap") or {}
    names = (("start pose", "start"), ("result", "result"))
    rows = [(name, overlap[key]) for name, key in names if overlap.get(key)]
    for channel, found in (overlap.get("held_out") or {}).items():
        for words, key in (("affine alone", "affine_only"), ("result", "result")):
            rows.append((f"{channel}, not used: {words}", found[key]))
    return rows


def _timing_rows(timings: Mapping[str, float]) -> list[tuple[str, float]]:
    """Put each part, named ``step: part``, after its step."""
    order = {name: i for i, name in enumerate(timings) if ":" not in name}

    def place(item: tuple[str, float]) -> tuple[int, bool]:
        step, colon, _ = item[0].partition(":")
        return order.get(step, len(order)), bool(colon)

    return sorted(timings.items(), key=place)


def _toml(config: Any) -> str:
    """Write the resolved configuration as ``clemreg run`` reads it."""
    if not isinstance(config, Mapping):
        return ""
    import tomli_w

    return tomli_w.dumps(_without_null(config)).strip()


def _without_null(value: Any) -> Any:
    """TOML has no null: a key that is not set is left out."""
    if isinstance(value, Mapping):
        return {k: _without_null(v) for k, v in value.items() if v is not None}
    return value
