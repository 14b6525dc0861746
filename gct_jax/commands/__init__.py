"""What `python -m gct_jax COMMAND` does: one module per command.

Each module has `add_parser(subparsers)` and `run(arguments) -> exit code`. Heavy imports happen in
`run`, so that `--help` answers at once and bad input is refused before anything is compiled.
"""
