"""The command line: `python -m gct_jax COMMAND`, also installed as `gct`."""

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import NoReturn

from gct_jax import __version__
from gct_jax.commands import convert, export, generate, tokens
from gct_jax.errors import GctError, InputError

BAD_INPUT = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a bad option like any other bad input: one line, no usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.run` is the chosen command's function."""
    parser = _Parser(prog="gct", description="Text to 3D chest CT.")
    parser.add_argument("--version", action="version", version=f"gct_jax {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (generate, tokens, convert, export):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit code: 0, 2 after bad input (told in one line on stderr), 130 after Ctrl-C.
    """
    try:
        arguments = build_parser().parse_args(argv)
        return arguments.run(arguments)
    except GctError as error:
        print(f"gct: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"gct: error: file name too long: {error.filename}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("gct: interrupted; unfinished output was removed", file=sys.stderr)
        return INTERRUPTED
