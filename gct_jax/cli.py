"""The command line: `python -m gct_jax COMMAND`, also installed as `gct`."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from gct_jax import __version__
from gct_jax.errors import InputError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.stopping import deferred


class _Parser(argparse.ArgumentParser):
    """Reports a bad option like any other bad input: one line, no usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.run` is the chosen command's function."""
    with deferred():  # their imports take a moment, in which Ctrl-C would be lost or told at length
        from gct_jax.commands import convert, export, generate, tokens

    parser = _Parser(prog="gct", description="Text to 3D chest CT.")
    parser.add_argument("--version", action="version", version=f"gct_jax {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (generate, tokens, convert, export):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit code: 0, or what `exit_code` says.
    """

    def run() -> None:
        arguments = build_parser().parse_args(argv)
        arguments.run(arguments)

    return exit_code("gct", run)
