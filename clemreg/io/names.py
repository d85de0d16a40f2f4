"""Names that a user gave, as other programs can take them."""

from __future__ import annotations


def one_line(name: str) -> str:
    r"""Return a name without line breaks, control characters and what UTF-8 cannot hold.

    Examples
    --------
    >>> one_line("mito\n A\x00")
    'mito A'
    """
    encodable = name.encode("utf-8", "replace").decode("utf-8")
    printable = (c if c.isprintable() else " " for c in encodable)
    return " ".join("".join(printable).split())
