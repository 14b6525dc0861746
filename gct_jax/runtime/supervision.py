"""A parent for each process of a run on several hosts: it tells in one line what ended its child.

When a host is lost, the collective operations of the others fail or wait, and JAX ends them with an
abort and a stack trace. The parent does not use JAX, so it survives, and it waits for nobody.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import IO

from gct_jax.runtime.exit_codes import BAD_INPUT, UNFINISHED, exit_code
from gct_jax.runtime.stopping import SIGNALS

SUPERVISED = "GCT_JAX_SUPERVISED"  # file descriptor that is closed when the parent dies
LOST = 70  # of a child that found another process lost
# What JAX and its libraries say on stderr about an abort, and the lines that follow.
FATAL = re.compile(
    rb"^(F\d{4} |E\d{4} .*(coordination|Coordination)|terminate called|\*\*\* |Fatal Python error)"
)
MAY_BE_FATAL = (b"F", b"E", b"*", b"t")  # how such a line begins
# What an error says of a collective operation or a barrier that another process left.
LOSS = re.compile(
    r"[Gg]loo|[Cc]onnection (reset|closed|refused)|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|"
    r"coordination service|[Bb]arrier|ABORTED"
)


class LostError(Exception):
    """Another process of the run is gone."""


def is_supervised() -> bool:
    """Whether this process is such a child."""
    return SUPERVISED in os.environ


def supervise(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` as a child; the exit code to end with.

    Signals to stop are handed on. If the child ends because another process of the run was lost,
    one line says so and the code is that of an unfinished run.
    """
    alive, held = os.pipe()
    os.set_inheritable(alive, True)
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, SUPERVISED: str(alive)},
        stderr=subprocess.PIPE,
        pass_fds=(alive,),
        start_new_session=True,  # Ctrl-C comes once, from here
    )
    os.close(alive)
    previous = {
        number: signal.signal(number, lambda number, frame: _hand_on(child, number))
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    assert child.stderr is not None
    pump = threading.Thread(target=_pass_on, args=(child.stderr,), daemon=True)
    pump.start()
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(held)
    pump.join(timeout=5)
    if code not in (LOST, -signal.SIGABRT, -signal.SIGKILL):
        return code if code >= 0 else 128 - code
    what = (
        "this process was killed"
        if code == -signal.SIGKILL
        else "another process of the run was lost or ended with an error"
    )
    print(
        f"{module}: {what}; run the same command on all hosts again to go on from the last "
        "checkpoint, on as many hosts as there are now",
        file=sys.stderr,
    )
    return UNFINISHED


def _hand_on(child: subprocess.Popen, number: int) -> None:
    if child.poll() is None:
        child.send_signal(number)


def _pass_on(stream: IO[bytes]) -> None:
    """The child's stderr as it comes, up to the lines of an abort."""
    line = b""  # since the last line break
    shown = 0  # bytes of it
    while chunk := os.read(stream.fileno(), 1 << 16):
        for piece in chunk.splitlines(keepends=True):
            line += piece
            whole = line.endswith((b"\n", b"\r"))
            if FATAL.match(line):
                while os.read(stream.fileno(), 1 << 16):
                    pass
                return
            if whole or not line.startswith(MAY_BE_FATAL):
                sys.stderr.buffer.write(line[shown:])
                sys.stderr.buffer.flush()
                shown = len(line)
            if whole:
                line, shown = b"", 0
    sys.stderr.buffer.write(line[shown:])
    sys.stderr.buffer.flush()


def run_supervised(program: str, run: Callable[[], None]) -> int:
    """`exit_code` of a child. But for success it ends the process here: a clean end would wait for
    the other processes, which may wait for this one."""
    _end_with_parent()

    def heeding() -> None:
        try:
            run()
        except Exception as error:
            if _is_loss(error):  # also where it was told as something that cannot be saved
                raise LostError from error
            raise

    try:
        code = exit_code(program, heeding)
    except LostError:
        code = LOST
    except Exception:
        traceback.print_exc()
        code = 1
    if code not in (0, UNFINISHED):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _is_loss(error: Exception) -> bool:
    """Whether a collective operation or a barrier failed because another process is gone. Only what
    JAX itself raised counts: a store that cannot be reached says similar things."""
    import jax

    causes = [error, error.__cause__, error.__context__]
    return jax.process_count() > 1 and any(
        isinstance(cause, jax.errors.JaxRuntimeError) and LOSS.search(str(cause))
        for cause in causes
    )


def _end_with_parent() -> None:
    """End at once when the parent has died, so that nothing trains unseen."""
    descriptor = int(os.environ[SUPERVISED])

    def wait() -> None:
        os.read(descriptor, 1)
        os._exit(BAD_INPUT)

    threading.Thread(target=wait, daemon=True).start()
