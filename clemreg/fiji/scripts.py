"""Run scripts through SciJava's script service, with their error and its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clemreg.errors import ConfigError
from clemreg.fiji.macros import MacroError, Value


def run_scijava_script(gateway: Any, path: Path, parameters: Mapping[str, Value]) -> dict[str, Any]:
    """Run a script with its ``#@`` parameters and return its outputs.

    A parameter that is not named has its default, never what was last typed into Fiji's dialog.

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
    ConfigError
        It has no such parameter, or needs one that is not given.
    """
    import jpype

    file = jpype.JClass("java.io.File")(str(path))
    info = jpype.JClass("org.scijava.script.ScriptInfo")(gateway.context(), file)
    module = info.createModule()
    gateway.context().inject(module)
    # SciJava only logs what a script throws, unless it has somewhere to write it.
    errors = jpype.JClass("java.io.StringWriter")()
    module.setErrorWriter(errors)
    inputs = _inputs(path.name, list(info.inputs()), parameters)
    done = gateway.module().run(module, True, inputs).get()
    text = str(errors.toString()).strip()
    if text:
        raise script_error(path.name, text)
    # A script that lacks an input is not run, and nothing says so.
    for item in info.inputs():
        if item.isRequired() and done.getInput(item.getName()) is None:
            raise ConfigError(f"{path.name} needs a value for its parameter {item.getName()}")
    return {str(key): value for key, value in dict(done.getOutputs()).items()}


def _inputs(name: str, items: list[Any], parameters: Mapping[str, Value]) -> Any:
    """Return a Java map of values: those given, defaults, and null for what may be left out.

    SciJava would fill in what is absent: from the dialog of the last time, and a single file by
    asking for it, which in a headless Fiji ends the script without a word.
    """
    import jpype

    if unknown := sorted(set(parameters) - {str(item.getName()) for item in items}):
        raise ConfigError(f"{name} has no parameter {', '.join(unknown)}")
    values = jpype.JClass("java.util.HashMap")()
    for item in items:
        item.setPersisted(False)  # the next dialog shows what a person typed, not this
        value = parameters.get(str(item.getName()), item.getDefaultValue())
        if value is not None or not item.isRequired():
            values.put(item.getName(), value)
    return values


def script_error(name: str, text: str) -> MacroError:
    r"""Make an error of a Java stack trace: what it says, and the line in the script.

    Groovy calls a script that SciJava gives it ``Script1.groovy``, whatever its file is called.

    Examples
    --------
    >>> script_error("a.groovy", "java.lang.X: bad\n\tat Script1.run(Script1.groovy:7)").line
    7
    """
    said = text.split("\n\tat ")[0]
    if _STARTUP.match(said):
        said = _STARTUP.sub("", said).splitlines()[0]
    names = rf"(?:{re.escape(name)}|Script\d+\.groovy)"
    match = re.search(rf"{names}: ?(\d+)", text) or re.search(r"line (\d+)", text)
    line = int(match.group(1)) if match else None
    where = f"{name}, line {line}" if line else name
    return MacroError(f"{where}: {said}", line=line)


_STARTUP = re.compile(r"^.*startup failed:\s*(?:Script\d+\.groovy: \d+: )?")
"""What Groovy says before what is wrong with a script that it cannot read."""
