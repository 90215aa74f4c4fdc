"""Run a command that must not outlive its caller, whatever happens to the caller.

    python supervisor.py LOG COMMAND ARGUMENT ...

The caller holds the other end of standard input. When the input ends, because the caller was
killed, the command and its children are killed too. The command writes to the file descriptor LOG;
standard output gets the largest resident memory of the command in bytes. The script needs the
standard library only, and is started by its path, so that it costs no import of the package.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main(log: int, command: list[str]) -> int:
    """Run the command; return its exit code, with a signal as a shell does: 128 and its number."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )

    def kill(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        kill()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, kill)
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    unit = 1 if sys.platform == "darwin" else 1024
    with suppress(BrokenPipeError):  # the caller is gone
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit, flush=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
