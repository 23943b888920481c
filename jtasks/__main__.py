"""The command: python -m jtasks --config=NAME --workdir=DIR. `jtasks` and main.py begin here too."""

import contextlib
import os
import signal
import sys
from types import FrameType

from jtasks.environment import STOPPING
from jtasks.errors import EXIT_STOPPED


def main() -> None:
    """Run the command of this process and exit."""
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _stop)  # while there is nothing to save; training installs its own handlers
    from jtasks import cli  # long enough for a Ctrl-C, which Python by itself answers with a traceback

    cli.main()


def _stop(number: int, frame: FrameType | None) -> None:
    text = f"{signal.Signals(number).name}: stopped; run the same command again"
    for other in STOPPING:
        signal.signal(other, signal.SIG_DFL)  # a second signal ends the process at once
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    if tell := getattr(
        sys.modules.get("jtasks.distributed.processes"), "report_failure", None
    ):  # the module may be half imported
        tell(EXIT_STOPPED, text)  # other processes end with the same code
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()
