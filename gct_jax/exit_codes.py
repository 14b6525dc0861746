"""How every command ends: an exit code, and bad input told in one line instead of a traceback."""

import errno
import sys
from collections.abc import Callable

from gct_jax.errors import GctError

BAD_INPUT = 2
INTERRUPTED = 130
# Of files where the operating system names none: a full disk, an exceeded quota.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def exit_code(program: str, run: Callable[[], None]) -> int:
    """0 after `run`; or, told in one line on stderr that begins with the name of `program`, 2 after
    bad input or a file that cannot be read or written, 130 after Ctrl-C."""
    try:
        run()
        return 0
    except GctError as error:
        message, code = f"error: {' '.join(str(error).splitlines())}", BAD_INPUT
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        message, code = f"error: {_described(error)}", BAD_INPUT
    except KeyboardInterrupt:
        message, code = "interrupted; unfinished output is discarded", INTERRUPTED
    print(f"{program}: {message}", file=sys.stderr)
    return code


def _described(error: OSError) -> str:
    """`[the file: ]what the operating system says`."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
