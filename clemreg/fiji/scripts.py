"""Run scripts through SciJava's script service, with their error and its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clemreg.fiji.macros import MacroError, Value


def run_scijava_script(gateway: Any, path: Path, parameters: Mapping[str, Value]) -> dict[str, Any]:
    """Run a script with its ``#@`` parameters and return its outputs.

    Parameters
    ----------
    gateway
        ``net.imagej.ImageJ``.
    path
        The script; its suffix says its language.
    parameters
        By name.

    Raises
    ------
    MacroError
        The script threw something.
    """
    import jpype

    file = jpype.JClass("java.io.File")(str(path))
    info = jpype.JClass("org.scijava.script.ScriptInfo")(gateway.context(), file)
    module = info.createModule()
    gateway.context().inject(module)
    # SciJava only logs what a script throws, unless it has somewhere to write it.
    errors = jpype.JClass("java.io.StringWriter")()
    module.setErrorWriter(errors)
    inputs = jpype.JClass("java.util.HashMap")()
    for name, value in parameters.items():
        inputs.put(name, value)
    done = gateway.module().run(module, True, inputs).get()
    text = str(errors.toString()).strip()
    if text:
        raise script_error(path.name, text)
    return {str(key): value for key, value in dict(done.getOutputs()).items()}


def script_error(name: str, text: str) -> MacroError:
    r"""Make an error of a Java stack trace: its first line, and the line in the script.

    Examples
    --------
    >>> script_error("a.groovy", "java.lang.X: bad\n\tat Script1.run(a.groovy:7)").line
    7
    """
    first = text.splitlines()[0]
    match = re.search(re.escape(f"({name}:") + r"(\d+)\)", text) or re.search(r"line (\d+)", text)
    line = int(match.group(1)) if match else None
    where = f"{name}, line {line}" if line else name
    return MacroError(f"{where}: {first}", line=line)
