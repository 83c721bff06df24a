"""An end to single computations that take too long. Worker processes import this module: it stays clear of torch."""

from __future__ import annotations

import ctypes
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from crystalvae.errors import ConfigError


class TimedOutError(BaseException):
    """The time given to `time_limit` has passed; no `Exception`, so that libraries do not swallow it."""


def check_time_limit(key: str, seconds: float | None) -> None:
    """Raise `ConfigError`, naming `key`, for anything but None and positive finite numbers of seconds."""
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"{key}={seconds}: expected a positive number of seconds, or null for no limit")


def time_limit(seconds: float | None) -> AbstractContextManager[None]:
    """Raise `TimedOutError` inside the block once it has run for this many seconds; None sets no limit.

    In a main thread by an alarm signal, elsewhere (threads, some clusters' workers) by an exception raised from another
    thread. Both arrive between two steps of Python: one call into compiled code is let finish.
    """
    if seconds is None:
        return nullcontext()
    alarm = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    return _by_alarm(seconds) if alarm else _by_thread(seconds)


@contextmanager
def _by_alarm(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimedOutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())
    lock, done = threading.Lock(), False

    def stop() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimedOutError))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # one that is on its way comes too late
