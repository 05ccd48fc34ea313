"""Where the `pilotfish` command begins and ends: short to import, so that Ctrl-C is heard from the start.

Exit code 130 for Ctrl-C, whenever it comes, and never a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

_AGAIN_S = 0.01  # until a Ctrl-C that got lost is repeated


_NO_MEMORY = b"pilotfish: there is no memory left. Close other programs, or raise the limit (ulimit -v).\n"


def main() -> None:
    """The command of sys.argv, as cli.main() runs it. Ends the process."""
    try:
        _interruptible()
    except MemoryError:  # too little even to import what runs the command, or to print what is wrong
        os.write(2, _NO_MEMORY)
        os._exit(2)


def _interruptible() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # whoever started us wants none of it
        from .cli import main as run

        run()
        return
    signal.signal(signal.SIGINT, _leave)  # an exception could be lost: some packages take any for a failed import
    from .cli import main as run

    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:  # in the last lines of it
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    """End at once: there is nothing yet, or nothing any more, that would have to be put in order."""
    os._exit(130)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C is said once more where it met code that nobody can tell of errors: a finalizer, an engine's callback."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    import threading

    again = threading.Timer(_AGAIN_S, _interrupt)
    again.daemon = True
    again.start()


def _interrupt() -> None:
    """Ctrl-C for the main thread; where the system can, as a signal, which ends a wait, too."""
    import _thread
    import threading

    if sys.platform != "win32":
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


if __name__ == "__main__":
    main()
