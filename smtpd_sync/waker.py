"""What ends a wait for clients: another thread, a hook, or a signal."""

from __future__ import annotations

import contextlib
import socket
from typing import Iterator

__all__ = ["Waker"]


class Waker:
    """A socket pair: a selector finds it readable once `wake` was called."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        """Give what a selector waits for."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """End the wait, or the next one; from any thread or signal handler."""
        try:
            self._sender.send(b"\0")
        except OSError:
            pass  # it is awake, or over

    def rest(self) -> None:
        """Forget who called, so that there is something to wait for."""
        try:
            self._receiver.recv(4096)
        except BlockingIOError:
            pass

    @contextlib.contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Have a signal wake as well, where this is the thread that handles them.

        Else the handler of one that comes just as the wait begins, or that the system gives to
        another thread, is called only when the wait ends for another reason: maybe never.
        """
        import signal  # its enumerations take a while, and who only imports us needs none

        try:
            before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        except ValueError:  # it is not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        """Be over; to wake does nothing then."""
        self._receiver.close()
        self._sender.close()
