"""ImageJ or Fiji in this Python process: images there and back, macros, scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clemreg.errors import ConfigError, DependencyError, MissingError
from clemreg.fiji.images import Look, find_image, from_imageplus, to_imageplus
from clemreg.fiji.jvm import JvmOptions, Mode, let_go, start_jvm
from clemreg.fiji.macros import MacroError, Value, run_macro_code, with_parameters
from clemreg.fiji.scripts import run_scijava_script
from clemreg.volume import Volume

GATEWAY = "net.imagej.ImageJ"


@dataclass(frozen=True, eq=False)
class ImageJ:
    """A running ImageJ.

    Attributes
    ----------
    mode
        ``"headless"``, ``"hidden"`` or ``"shown"``.
    gateway
        ImageJ2's gateway (``net.imagej.ImageJ``) in a Fiji; None with ImageJ 1 alone.
    """

    mode: Mode
    gateway: Any | None = None

    @property
    def version(self) -> str:
        """Version of ImageJ 1, for example ``"1.53t"``."""
        import jpype

        return str(jpype.JClass("ij.IJ").getVersion())

    def to_imageplus(self, volume: Volume, look: Look | None = None) -> Any:
        """Copy a volume to an ImagePlus; see `clemreg.fiji.images.to_imageplus`."""
        return to_imageplus(volume, look)

    def from_imageplus(self, image: Any, *, frame: str = "") -> Volume:
        """Copy an ImagePlus to a volume; see `clemreg.fiji.images.from_imageplus`."""
        return from_imageplus(image, frame=frame)

    def to_dataset(self, volume: Volume, look: Look | None = None) -> Any:
        """Copy a volume to an ImageJ2 Dataset.

        Raises
        ------
        DependencyError
            This ImageJ has no ImageJ2 part.
        """
        import jpype

        gateway = self._require_gateway("a Dataset")
        return gateway.convert().convert(
            to_imageplus(volume, look), jpype.JClass("net.imagej.Dataset")
        )

    def from_dataset(self, dataset: Any, *, frame: str = "") -> Volume:
        """Copy an ImageJ2 Dataset to a volume.

        Raises
        ------
        DependencyError
            This ImageJ has no ImageJ2 part.
        """
        import jpype

        gateway = self._require_gateway("a Dataset")
        image = gateway.convert().convert(dataset, jpype.JClass("ij.ImagePlus"))
        return from_imageplus(image, frame=frame)

    def show(self, volume: Volume, look: Look | None = None) -> Any:
        """Open a volume as an image of ImageJ and return it; `image` finds it by its name.

        Raises
        ------
        ConfigError
            ImageJ is headless: it has no windows.
        """
        if self.mode == "headless":
            raise ConfigError(
                "a headless ImageJ shows nothing", hint="open it with mode 'hidden' or 'shown'"
            )
        image = to_imageplus(volume, look)
        image.show()
        return image

    def image(self, title: str = "", *, frame: str = "") -> Volume:
        """Copy an open image, by its title or the one in front.

        Raises
        ------
        MissingError
            No such image is open.
        """
        return from_imageplus(find_image(title), frame=frame)

    def log(self) -> str:
        """Return the text of ImageJ's log window, to which ``print`` of macros writes."""
        import jpype

        return str(jpype.JClass("ij.IJ").getLog() or "")

    def run_macro(
        self, code: str, parameters: Mapping[str, Value] | None = None, argument: str = ""
    ) -> str | None:
        """Run a macro (its text) with values for its ``#@`` parameters, and return its answer.

        Raises
        ------
        MacroError
            The macro failed; `line` says where.
        ConfigError
            A parameter is unknown or missing, or ImageJ 1 alone is headless: most of its commands
            need a display then.
        """
        if self.mode == "headless" and self.gateway is None:
            raise ConfigError(
                "macros need a display, unless it is Fiji that is headless",
                hint="open with mode 'hidden' under `xvfb-run -a`, or name a Fiji folder",
            )
        prepared = with_parameters(code, parameters or {})
        return run_macro_code(prepared, argument, watched=self.mode == "shown")

    def run_script(
        self, path: str | Path, parameters: Mapping[str, Value] | None = None
    ) -> dict[str, Any]:
        """Run a script file: ``.ijm`` always, other languages in a Fiji; return its outputs.

        Raises
        ------
        MacroError
            The script failed; the text and `line` say where.
        DependencyError
            The language needs a Fiji.
        MissingError
            There is no such file.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingError(f"there is no script {path}")
        if path.suffix.lower() in (".ijm", ".txt"):
            answer = self.run_macro(path.read_text(encoding="utf-8"), parameters)
            return {} if answer is None else {"result": answer}
        gateway = self._require_gateway(f"a {path.suffix} script")
        return run_scijava_script(gateway, path, parameters or {})

    def _require_gateway(self, what: str) -> Any:
        if self.gateway is None:
            raise DependencyError(
                f"{what} needs ImageJ2, and ImageJ {self.version} runs alone",
                hint="name a Fiji folder: open_imagej(fiji=...)",
            )
        return self.gateway


def open_imagej(options: JvmOptions | None = None) -> ImageJ:
    """Start ImageJ in this process, or return to the one that runs.

    Parameters
    ----------
    options
        Fiji folder or ``ij.jar``, mode, memory. Default: the ``ij.jar`` of this computer, headless.

    Raises
    ------
    ConfigError
        Java runs already in this process with another Fiji or mode.
    DependencyError, MissingError
        Java, ImageJ, scyjava or a display is missing.
    """
    options = options or JvmOptions()
    start_jvm(options)
    gateway = _gateway(options)
    if gateway is None and options.mode != "headless":
        _start_imagej1(options.mode)
    return ImageJ(options.mode, gateway)


def open_endpoint(endpoint: str, mode: Mode = "headless") -> ImageJ:
    """Start a Fiji that Maven resolves, for example ``"sc.fiji:fiji:2.18.0"``; needs the network.

    Raises
    ------
    ConfigError
        Java runs already in this process.
    DependencyError
        pyimagej is missing, or the endpoint cannot be had.
    """
    import jpype

    if jpype.isJVMStarted():
        raise ConfigError(
            "Java runs already in this process; an endpoint must come first",
            hint="use another Python process",
        )
    try:
        import imagej
        import scyjava

        # "always", the default, downloads a Java; "never" crashes imagej.init (1.8.0).
        scyjava.config.set_java_constraints(fetch="auto")
        gateway = imagej.init(endpoint, mode="headless" if mode == "headless" else "interactive")
        scyjava.when_jvm_stops(let_go)
    except (ImportError, RuntimeError, OSError, UnboundLocalError) as error:
        raise DependencyError(
            f"{endpoint} cannot be started: {error}",
            hint="check the network, or name the folder of a Fiji instead",
        ) from error
    if mode == "shown":
        gateway.ui().showUI()
    return ImageJ(mode, gateway)


def _gateway(options: JvmOptions) -> Any | None:
    """Start ImageJ2 if this is a Fiji; pyimagej is not needed for that."""
    import jpype

    if options.fiji is None:
        return None
    try:
        kind = jpype.JClass(GATEWAY)
    except TypeError:
        return None  # an ImageJ 1 folder: no ImageJ2 in it
    gateway = kind()
    if options.mode == "shown":
        gateway.ui().showUI()
    return gateway


def _start_imagej1(mode: Mode) -> None:
    """Start ImageJ 1 unless it runs: macros need its menus."""
    import jpype

    if jpype.JClass("ij.IJ").getInstance() is not None:
        return
    kind = jpype.JClass("ij.ImageJ")
    kind(None, kind.STANDALONE if mode == "shown" else kind.NO_SHOW)


__all__ = ["ImageJ", "JvmOptions", "Look", "MacroError", "open_endpoint", "open_imagej"]
