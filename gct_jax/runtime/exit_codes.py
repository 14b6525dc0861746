"""How every command ends: an exit code, and bad input told in one line instead of a traceback.

0     done
2     bad input, or a file that cannot be read or written
75    training stopped before its last step and saved; the same command goes on
128+n ended by signal n: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP
"""

import errno
import sys
from collections.abc import Callable

from gct_jax.errors import GctError, UnfinishedError
from gct_jax.runtime import stopping
from gct_jax.runtime.streams import tolerant_streams

BAD_INPUT = 2
UNFINISHED = 75  # sysexits.h: a temporary failure, the user is invited to retry
INTERRUPTED = 130
# Of files where the operating system names none: a full disk, an exceeded quota.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def exit_code(program: str, run: Callable[[], None]) -> int:
    """The code listed above after `run`; but for 0, one line on stderr begins with `program` and
    says why. Defects keep their traceback."""
    with tolerant_streams():
        try:
            with stopping.stop_signals():
                run()
            return 0
        except UnfinishedError as stop:
            message, code = str(stop), UNFINISHED
        except GctError as error:
            message, code = f"error: {' '.join(str(error).splitlines())}", BAD_INPUT
        except OSError as error:
            if error.filename is None and error.errno not in NO_ROOM:
                raise
            message, code = f"error: {_described(error)}", BAD_INPUT
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", None)
            message = "interrupted; unfinished output is discarded"
            code = INTERRUPTED if number is None else 128 + number
        print(f"{program}: {message}", file=sys.stderr)
        return code


def _described(error: OSError) -> str:
    """`[the file: ]what the operating system says`."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
