"""Run ImageJ macros: parameters in, the returned text out, errors with their line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from clemreg.errors import ClemregError, ConfigError
from clemreg.fiji.dialogs import MACRO_ERROR, closing_dialogs

_PARAMETER = re.compile(r"#@\s*(\w+)\s*(?:\((.*)\))?\s*(\w+)\s*$")
_ATTRIBUTE = re.compile(r'(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|\{[^}]*\}|[^,\s]+)')
_NUMBERS = {"Integer", "Long", "Short", "Byte", "Double", "Float", "Boolean"}
_SERVICE = re.compile(r"\w*Service")
Value = str | int | float | bool


class MacroError(ClemregError, RuntimeError):
    """A macro or script stopped.

    Parameters
    ----------
    message
        What ImageJ said.
    line
        Line of the macro, from 1; None where ImageJ does not know.
    """

    def __init__(self, message: str, *, line: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.line = line


def run_macro_code(code: str, argument: str = "", *, watched: bool = False) -> str | None:
    """Run a macro in the ImageJ of this process.

    Parameters
    ----------
    code
        Text of the macro.
    argument
        What ``getArgument()`` returns.
    watched
        Whether a person sees the windows; if not, every dialog is an error, since nobody answers.

    Returns
    -------
    str or None
        What the macro returns.

    Raises
    ------
    MacroError
        The macro has an error, ended with ``exit(text)``, or opened a dialog.
    """
    import jpype

    interpreter = jpype.JClass("ij.macro.Interpreter")()
    with _dialogs(watched) as dialogs:
        value, failure = _run(interpreter, code, argument)
    if interpreter.wasError():
        raise _with_line(str(interpreter.getErrorMessage()), _line(interpreter))
    if dialogs:
        raise MacroError(
            f"the macro opened a dialog that nobody can answer: {dialogs[0]}",
            hint="give commands all their arguments, or show ImageJ",
        )
    if failure is not None:
        raise _with_line(failure, None)
    return None if value is None else str(value)


def _dialogs(watched: bool) -> AbstractContextManager[list[str]]:
    return closing_dialogs(only=MACRO_ERROR if watched else "")


def _run(interpreter: Any, code: str, argument: str) -> tuple[Any, str | None]:
    import jpype

    try:
        return interpreter.run(code, argument), None
    except jpype.JException as error:
        return None, str(error.getMessage() or error)


def _line(interpreter: Any) -> int | None:
    """Line of the error; ImageJ's getLineNumber() is where it stopped reading."""
    import jpype

    kind = jpype.JClass("java.lang.Class").forName("ij.macro.Interpreter")
    try:
        field = kind.getDeclaredField("lineNumber")
        field.setAccessible(True)
        return int(field.get(interpreter)) or None
    except jpype.JException:
        return None


def _with_line(message: str, line: int | None) -> MacroError:
    where = f"macro, line {line}" if line else "macro"
    return MacroError(f"{where}: {message}", line=line)


def with_parameters(code: str, values: Mapping[str, Value]) -> str:
    r"""Replace the ``#@`` lines of a macro by assignments; line numbers stay.

    Parameters
    ----------
    code
        Macro with lines such as ``#@ String (label="Name", value="a") name``.
    values
        By name; parameters that are not named take their default.

    Raises
    ------
    ConfigError
        A value for a parameter that is not there, or none for one without default.

    Examples
    --------
    >>> with_parameters('#@ String s', {"s": 'say "hi"'})
    's = "say \\"hi\\"";'
    """
    lines, known = [], set()
    for line in code.removeprefix("\ufeff").splitlines():  # some editors on Windows add this mark
        match = _PARAMETER.match(line)
        if match is None:
            lines.append("" if line.startswith("#@") else line)
            continue
        kind, attributes, name = match.group(1), match.group(2) or "", match.group(3)
        known.add(name)
        service = kind == "output" or _SERVICE.fullmatch(kind)
        lines.append("" if service else _assignment(kind, name, attributes, values))
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"the macro has no parameter {', '.join(unknown)}")
    return "\n".join(lines)


def _assignment(kind: str, name: str, attributes: str, values: Mapping[str, Value]) -> str:
    default = dict(_ATTRIBUTE.findall(attributes)).get("value")
    if name in values:
        value = values[name]
    elif default is not None:
        value = default.strip('"')
    elif "required=false" in attributes.replace(" ", ""):
        value = ""
    else:
        raise ConfigError(f"the macro needs a value for its parameter {name}")
    return f"{name} = {_literal(kind, value)};"


def _literal(kind: str, value: Value) -> str:
    """Write a value so that no text in it can become code."""
    if isinstance(value, bool) or (kind == "Boolean" and str(value).lower() in ("true", "false")):
        return str(value).lower()
    if kind in _NUMBERS:
        try:
            return repr(float(value))
        except ValueError as error:
            raise ConfigError(f"{value!r} is not a number, as the macro wants") from error
    return json.dumps(str(value), ensure_ascii=False)
