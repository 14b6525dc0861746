"""A parent for each process of a run on several hosts: it tells in one line what ended its child.

When a host is lost, the collective operations of the others fail or wait, and JAX ends them with an
abort and a stack trace. The parent does not use JAX, so it survives, and it waits for nobody.
"""

import contextlib
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

# Of a child: a file descriptor that is closed when the parent dies, and one to write to when the
# other processes have been joined.
SUPERVISED = "GCT_JAX_SUPERVISED"
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

    Signals to stop are handed on; before the others have joined, when there is nothing to save and
    JAX hears none, they end the child. If the child ends because another process of the run was
    lost, one line says so and the code is that of an unfinished run.
    """
    alive, held = os.pipe()
    heard, joined = os.pipe()
    os.set_blocking(heard, False)
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, SUPERVISED: f"{alive},{joined}"},
        stderr=subprocess.PIPE,
        pass_fds=(alive, joined),
        start_new_session=True,  # Ctrl-C comes once, from here
    )
    os.close(alive)
    os.close(joined)
    has_joined = _Once(heard)
    ended_by: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        if child.poll() is not None:
            return
        if has_joined():
            child.send_signal(number)
        else:
            ended_by.append(number)
            child.kill()

    previous = {
        number: signal.signal(number, hand_on)
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
    if ended_by:
        print(f"{module}: stopped before all processes had joined", file=sys.stderr)
        return 128 + ended_by[0]
    if code not in (LOST, -signal.SIGABRT, -signal.SIGKILL):
        return code if code >= 0 else 128 - code
    if code == -signal.SIGKILL:
        what = "this process was killed"
    elif has_joined():
        what = "another process of the run was lost or ended with an error"
    else:
        print(
            f"{module}: the other processes did not come; nothing was trained. Start the same "
            "command on all hosts, with the same HOST:PORT and COUNT",
            file=sys.stderr,
        )
        return UNFINISHED
    print(
        f"{module}: {what}; run the same command on all hosts again to go on from the last "
        "checkpoint, on as many hosts as there are now",
        file=sys.stderr,
    )
    return UNFINISHED


class _Once:
    """Whether anything has been written to a pipe that does not block."""

    def __init__(self, descriptor: int):
        self._descriptor, self._found = descriptor, False

    def __call__(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._found = self._found or bool(os.read(self._descriptor, 1))
        return self._found


def tell_joined() -> None:
    """Tell the parent, if there is one, that all processes have joined."""
    if is_supervised():
        os.write(_descriptors()[1], b"j")


def _descriptors() -> tuple[int, int]:
    alive, joined = os.environ[SUPERVISED].split(",")
    return int(alive), int(joined)


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
            if is_loss(error):  # also where it was told as something that cannot be saved
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


def is_loss(error: Exception) -> bool:
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
    descriptor = _descriptors()[0]

    def wait() -> None:
        os.read(descriptor, 1)
        os._exit(BAD_INPUT)

    threading.Thread(target=wait, daemon=True).start()
