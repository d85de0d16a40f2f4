"""The Java virtual machine: one per process, started once, with ImageJ on its class path."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clemreg.errors import ConfigError, DependencyError, MissingError
from clemreg.fiji.locate import OLDEST_JAVA, fiji_jars, find_ij_jar, find_java, require_fiji

Mode = Literal["headless", "hidden", "shown"]
MODES: tuple[Mode, ...] = ("headless", "hidden", "shown")
_MARK = "clemreg.jvm"
"""System property that tells how clemreg started the machine."""
_SECONDS_TO_END = 1.0
_OF_JAVA = re.compile(r"AWT-|DestroyJavaVM")


@dataclass(frozen=True)
class JvmOptions:
    """How to start Java.

    Attributes
    ----------
    fiji
        Folder of a Fiji; all its jars are used.
    ij_jar
        An ImageJ 1 jar, if there is no Fiji; default: the one found on this computer.
    mode
        ``"headless"``: no window at all. ``"hidden"``: ImageJ runs unseen; macros work, a display
        is needed (a virtual one will do). ``"shown"``: with its windows.
    heap
        Most memory, as Java writes it: ``"4g"``.
    options
        Further options of the machine.
    """

    fiji: Path | None = None
    ij_jar: Path | None = None
    mode: Mode = "headless"
    heap: str = "2g"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"no mode {self.mode!r}", hint=f"one of {', '.join(MODES)}")

    @property
    def fingerprint(self) -> str:
        """What two openings must share to use the same machine."""
        where = self.fiji or self.ij_jar
        return f"{where.resolve() if where else 'default'} {self.mode}"


def start_jvm(options: JvmOptions) -> None:
    """Start Java, or take the machine that runs already if it was started the same way.

    Raises
    ------
    ConfigError
        The machine of this process was started otherwise: it cannot be started again.
    DependencyError
        scyjava or Java is missing, or Java is too old.
    MissingError
        There is no ImageJ, or no display for a mode that needs one.
    """
    jpype = _import_jpype()
    if jpype.isJVMStarted():
        _require_same(jpype, options)
        return
    java = find_java()
    if java is None or java.version < OLDEST_JAVA:
        found = f"Java {java.version} at {java.path}" if java else "no Java"
        raise DependencyError(
            f"the Fiji bridge needs Java {OLDEST_JAVA} or newer, found {found}",
            hint="install a Java runtime and set JAVA_HOME, or use the one inside Fiji",
        )
    _require_display(options.mode)
    _start(options, _class_path(options))


def _import_jpype() -> Any:
    try:
        import jpype
        import scyjava  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"the Fiji bridge needs scyjava and jpype: {error}",
            hint="pip install 'clemreg-toolkit[fiji]'",
        ) from error
    return jpype


def _class_path(options: JvmOptions) -> tuple[Path, ...]:
    if options.fiji is not None:
        return fiji_jars(require_fiji(options.fiji))
    jar = options.ij_jar or find_ij_jar()
    if jar is None or not jar.is_file():
        raise MissingError(
            f"there is no ImageJ: {jar or 'no Fiji folder given and no ij.jar found'}",
            hint="name a Fiji folder, set CLEMREG_IJ_JAR, or install the package libij-java",
        )
    return (jar,)


def _start(options: JvmOptions, jars: tuple[Path, ...]) -> None:
    """Start through scyjava, without letting it download a Java or resolve Maven endpoints."""
    import scyjava

    config = scyjava.config
    config.set_java_constraints(fetch="never")
    # Importing imagej adds an endpoint that would be looked for on the network even with a Fiji.
    config.endpoints.clear()
    config.add_classpath(*map(str, jars))
    config.add_options([f"-Xmx{options.heap}", f"-D{_MARK}={options.fingerprint}"])
    if options.mode == "headless":
        config.add_option("-Djava.awt.headless=true")
    if options.fiji is not None:
        fiji = require_fiji(options.fiji)
        opened = "--add-opens=java.base/java.lang=ALL-UNNAMED"
        config.add_options([f"-Dplugins.dir={fiji}", f"-Dimagej.dir={fiji}", opened])
    config.add_options(list(options.options))
    scyjava.start_jvm()
    scyjava.when_jvm_stops(let_go)


def let_go() -> None:
    """Close ImageJ's images when Python ends; do not wait for what goes on all the same.

    Java ends when its last thread does, and each window of a stack has one: without this, a script
    that leaves an image open would never end.
    """
    import jpype

    manager = jpype.JClass("ij.WindowManager")
    for number in manager.getIDList() or ():
        image = manager.getImage(number)
        image.changes = False  # or ImageJ would ask whether to save it
        image.close()
    end = time.monotonic() + _SECONDS_TO_END
    while _threads() and time.monotonic() < end:
        time.sleep(0.05)
    if _threads():
        # Java goes on to the end of the process, and must not call into a Python that is gone.
        jpype.JClass("org.jpype.ref.JPypeReferenceQueue").getInstance().stop()
        jpype.config.destroy_jvm = False


def _threads() -> list[str]:
    """Names of the threads that would keep Java alive; those of its windows end with them."""
    import jpype

    kind = jpype.JClass("java.lang.Thread")
    this = kind.currentThread()
    alive = (t for t in kind.getAllStackTraces().keySet() if not t.isDaemon() and t != this)
    return [name for name in map(str, (t.getName() for t in alive)) if not _OF_JAVA.match(name)]


def _require_same(jpype: Any, options: JvmOptions) -> None:
    mark = jpype.java.lang.System.getProperty(_MARK)
    if mark is None:
        return _require_imagej(jpype)
    if str(mark) != options.fingerprint:
        raise ConfigError(
            f"Java runs already with ({mark}); it cannot be started again with "
            f"({options.fingerprint})",
            hint="one Java per process: use the same Fiji and mode, or another Python process",
        )
    return None


def _require_imagej(jpype: Any) -> None:
    try:
        jpype.JClass("ij.ImagePlus")
    except TypeError as error:
        raise ConfigError(
            "Java was started by something else in this process, without ImageJ",
            hint="open clemreg's bridge first, or put ij.jar on the class path",
        ) from error


def _require_display(mode: Mode) -> None:
    if mode == "headless" or sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY"):
        return
    raise MissingError(
        f"mode {mode!r} needs a display, and DISPLAY is not set",
        hint="run under `xvfb-run -a`, or use mode 'headless'",
    )
