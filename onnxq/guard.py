"""A command in a process of its own, so that what ends it from below is told: native code that fails, a full memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from onnxq.errors import CrashError

HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that somebody sends to the command, and means the work."""

CRASHES = ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE")
"""Signals of native code that failed."""

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""


def guarded(work: Callable[[], int]) -> int:
    """Do work in a child process, or right here where the system has no fork.

    Signals are handed on to the child. On Linux it does not outlive this process.

    Returns:
        What the work returns, in the child; its exit code, in this process.

    Raises:
        CrashError: the child was ended by a crash, or by the system.
    """
    if not hasattr(os, "fork"):
        return work()
    numbers = [signal.Signals[name] for name in HANDED_ON]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until both processes know what to do with them
    parent, child = os.getpid(), os.fork()
    if not child:
        _die_with(parent)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job ignores it
            signal.signal(signal.SIGINT, _interrupt_once)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return work()
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _hand_on(child))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else _told(-code)


def _hand_on(child: int) -> Callable[[int, FrameType | None], None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    return hand_on


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C reaches the child twice: from the terminal, and handed on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _die_with(parent: int) -> None:
    """Let this process be killed when its parent is."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed already
        os._exit(128 + signal.SIGKILL)


def _told(number: int) -> int:
    """What the end of the child means: an exit code, as shells count them, or an error."""
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if name in CRASHES:
        raise CrashError(
            f"Native code crashed ({name}): most likely ONNX Runtime, on this model or on its data. Outputs are whole, "
            "or as they were. Check the model, or try another version of ONNX Runtime."
        )
    if name == "SIGKILL":
        raise CrashError(
            "The system killed the process (SIGKILL): most likely the memory ran out. Outputs are whole, or as they "
            "were. Give --memory a limit, or a smaller --batch."
        )
    return 128 + number
