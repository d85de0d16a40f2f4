"""The commands put together, and how failures become exit codes."""

from __future__ import annotations

import errno
import logging
import traceback
from typing import Any, cast

import typer

from clemreg.cli import (
    ab,
    apply,
    evaluate,
    export,
    fiji,
    inspect,
    measure,
    microtubules,
    model,
    organelles,
    refine,
    register,
    render,
    results,
    ribosomes,
    run,
    score,
    segment,
    shape,
    simulate,
    validate,
    validate_training,
)
from clemreg.cli.console import say
from clemreg.errors import ClemregError

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

# typer carries its own copy of click in newer releases: take the class from whichever it uses.
_UsageError: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)

app = typer.Typer(
    name="clemreg",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Register volume electron microscopy to light microscopy, and prove how well it worked.",
)


def _version(value: bool) -> None:
    if value:
        from clemreg import __version__
        from clemreg.cli.console import result

        result(f"clemreg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what is done."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    _show_version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    # The handler filters, too: distributed sets its own loggers to INFO.
    handler = logging.StreamHandler()
    handler.setLevel(level)
    form = "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level, format=form, handlers=[handler])


for group in (
    run,
    inspect,
    simulate,
    segment,
    model,
    score,
    validate,
    validate_training,
    results,
    ab,
    register,
    apply,
    render,
    evaluate,
    export,
    refine,
    ribosomes,
    microtubules,
    measure,
    shape,
    organelles,
    fiji,
):
    group.add_to(app)


def run_app(arguments: list[str]) -> int:
    """Run one command and return its exit code; every expected failure is one block of text."""
    try:
        code = app(args=arguments, prog_name="clemreg", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except ClemregError as error:
        return _failed(error, "--debug" in arguments)
    except OSError as error:
        return _os_failure(error, "--debug" in arguments)
    except _UsageError as error:
        cast("Any", error).show()
        return EXIT_USAGE
    if code == EXIT_INTERRUPTED:
        return _interrupted()
    return code if isinstance(code, int) else EXIT_OK


def _interrupted() -> int:
    say("interrupted; the same command goes on where it stopped")
    return EXIT_INTERRUPTED


def _failed(error: ClemregError, debug: bool) -> int:
    if debug:
        say(traceback.format_exc())
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return EXIT_FAILURE


def _os_failure(error: OSError, debug: bool) -> int:
    if debug:
        say(traceback.format_exc())
    say(f"error: {error}")
    if error.errno == errno.ENOSPC:
        say("hint: the disk is full; free some space and run the same command again")
    return EXIT_FAILURE
