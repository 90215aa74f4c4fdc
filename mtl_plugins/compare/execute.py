"""Do one run in processes of its own, from where an earlier call stopped."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mtl_plugins.compare.frameworks import FRAMEWORKS
from mtl_plugins.compare.runs import Run, Status

SUPERVISOR = Path(__file__).with_name("supervisor.py")
LAST_LINES = 12
_running: set[subprocess.Popen[str]] = set()
_stopped: set[subprocess.Popen[str]] = set()


class StepError(RuntimeError):
    """A command of a run that failed, with the end of its log."""


class StoppedError(RuntimeError):
    """A command that :func:`stop_all` has stopped."""


def execute(run: Run, env: Mapping[str, str] | None = None) -> str:
    """Train, test and draw, as far as that is not done; every engine calls this function.

    The folder is locked meanwhile. The commands hold the lock as well, so that a second call waits
    for what an earlier, killed call has left running.

    Args:
        run: The run.
        env: Environment variables beside those of this process.

    Returns:
        The error in words; empty if the run is done.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with (run.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            status = Status.read(run.path)
            if status.state != "done":
                _do(run, status, dict(env or {}), lock.fileno())
            return ""
    except (StepError, StoppedError) as error:
        return str(error)
    except OSError as error:
        return in_words(error, run.path)


def in_words(error: OSError, path: Path) -> str:
    """Return an error with the file that it is about, or with ``path``."""
    return f"{error.filename or path}: {error.strerror or error}"


def _do(run: Run, status: Status, env: dict[str, str], lock: int) -> None:
    framework = FRAMEWORKS[run.framework]
    status.error, status.host = "", socket.gethostname()
    try:
        if not status.trained:
            status.state = "training"
            status.attempts += 1
            command = framework.train(run)
            status.commands = [shlex.join(a for a in command if a != "--resume")]
            status.write(run.path)
            started = time.monotonic()
            try:
                peak = _call(run, "train", command, env, lock)
            finally:
                status.seconds += time.monotonic() - started
            status.peak_bytes = max(peak, status.peak_bytes)
            status.trained = True
        status.state = "testing"
        status.write(run.path)
        if test := framework.test(run):
            status.commands = [*status.commands[:1], shlex.join(test)]
            _call(run, "test", test, env, lock)
        if run.pictures:
            with suppress(StepError, OSError):  # a report without pictures is a report
                _call(run, "pictures", framework.draw(run, run.path / "pictures"), env, lock)
        status.state = "done"
        status.write(run.path)
    except (StepError, StoppedError, OSError) as error:
        status.state, status.error = "failed", str(error)
        with suppress(OSError):  # on a full disk the caller hears of the first error
            status.write(run.path)
        raise


def _call(run: Run, step: str, command: list[str], env: dict[str, str], lock: int) -> int:
    """Run a command, its output in a file of the run's folder; return its memory in bytes."""
    path = run.path / f"{step}.log"
    with path.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        supervisor = subprocess.Popen(
            [sys.executable, str(SUPERVISOR), str(log.fileno()), *command],
            cwd=run.where,
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(lock, log.fileno()),
            start_new_session=True,  # a signal to the group of the caller must not reach it
        )
        _running.add(supervisor)
        assert supervisor.stdin is not None and supervisor.stdout is not None
        try:
            said = supervisor.stdout.read().split()
            code = supervisor.wait()
        finally:
            supervisor.stdin.close()
            _running.discard(supervisor)
    if supervisor in _stopped:
        _stopped.discard(supervisor)
        raise StoppedError(f"{step}: stopped, the next call goes on from the last checkpoint")
    if code:
        raise StepError(f"{step}: {_ending(code)}; the end of {path}:\n{last_lines(path)}")
    return int(said[-1]) if said else 0


def stop_all() -> None:
    """Stop the commands of this process, and their children."""
    for supervisor in list(_running):
        _stopped.add(supervisor)
        assert supervisor.stdin is not None
        with suppress(OSError):
            supervisor.stdin.close()
    for supervisor in list(_running):
        supervisor.wait()


def last_lines(path: Path, count: int = LAST_LINES, width: int = 300) -> str:
    """Return the last lines of a log that say something, shortened to a width."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(line[:width] for line in lines[-count:])


def _ending(code: int) -> str:
    if code <= 128:
        return f"exit code {code}"
    name = signal.Signals(code - 128).name
    return f"killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
