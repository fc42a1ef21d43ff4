"""The removed ``asynchat``: a dispatcher that reads up to terminators, and queues what it sends."""

from __future__ import annotations

import collections
from typing import Any, Deque, List, Optional, Union

from . import asyncore
from .polling import Map

__all__ = ["async_chat", "find_prefix_at_end", "simple_producer"]

Terminator = Union[bytes, int, None]


class async_chat(asyncore.dispatcher):
    """A conversation; override `collect_incoming_data` and `found_terminator`."""

    ac_in_buffer_size = 65536
    ac_out_buffer_size = 65536
    use_encoding = False
    encoding = "latin-1"
    terminator: Terminator = None

    def __init__(self, sock: Any = None, map: Optional[Map] = None) -> None:
        self.ac_in_buffer = b""
        self.incoming: List[bytes] = []
        self.producer_fifo: Deque[Any] = collections.deque()
        super().__init__(sock, map)

    # -- input -------------------------------------------------------------------------------

    def collect_incoming_data(self, data: bytes) -> None:
        """Override this to take what comes before the terminator, in pieces."""
        raise NotImplementedError("override collect_incoming_data")

    def found_terminator(self) -> None:
        """Override this to learn that the terminator has come."""
        raise NotImplementedError("override found_terminator")

    def _collect_incoming_data(self, data: bytes) -> None:
        self.incoming.append(data)

    def _get_data(self) -> bytes:
        data, self.incoming[:] = b"".join(self.incoming), []
        return data

    def set_terminator(self, term: Any) -> None:
        """Read up to this: octets, a number of them, or ``None`` for all that comes."""
        if isinstance(term, str) and self.use_encoding:
            term = term.encode(self.encoding)
        elif isinstance(term, int) and term < 0:
            raise ValueError("a number of octets is not negative")
        self.terminator = term

    def get_terminator(self) -> Terminator:
        """Give what it reads up to."""
        return self.terminator

    def handle_read(self) -> None:
        """Read what has come, and hand it on up to each terminator."""
        try:
            data = self.recv(self.ac_in_buffer_size)
        except BlockingIOError:
            return
        except OSError:
            self.handle_error()
            return
        self.ac_in_buffer += data
        while self.ac_in_buffer and self.hand_on():
            pass

    def hand_on(self) -> bool:
        """Hand on what can be; tell whether there may be more."""
        data, terminator = self.ac_in_buffer, self.get_terminator()
        if isinstance(terminator, int) and terminator:
            self.ac_in_buffer = data[terminator:]
            self.collect_incoming_data(data[:terminator])
            if len(data) < terminator:
                self.terminator = terminator - len(data)
            else:
                self.terminator = 0
                self.carry_out()
            return True
        if not terminator:
            self.ac_in_buffer = b""
            self.collect_incoming_data(data)
            return True
        assert isinstance(terminator, bytes), "a terminator is octets, a number, or None"
        end = data.find(terminator)
        if end >= 0:
            self.ac_in_buffer = data[end + len(terminator) :]
            if end:
                self.collect_incoming_data(data[:end])
            self.carry_out()
            return True
        held = find_prefix_at_end(data, terminator)
        if held < len(data):
            self.ac_in_buffer = data[len(data) - held :]
            self.collect_incoming_data(data[: len(data) - held])
        return False

    def carry_out(self) -> None:
        """Call `found_terminator`."""
        self.found_terminator()

    # -- output ------------------------------------------------------------------------------

    def push(self, data: Any) -> None:
        """Send octets, as soon as may be."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"octets can be pushed, not {type(data)!r}")
        size = self.ac_out_buffer_size
        self.producer_fifo.extend(data[start : start + size] for start in range(0, len(data), size))
        self.initiate_send()

    def push_with_producer(self, producer: Any) -> None:
        """Send what ``producer.more()`` gives, until it gives nothing."""
        self.producer_fifo.append(producer)
        self.initiate_send()

    def close_when_done(self) -> None:
        """Close once all is sent."""
        self.producer_fifo.append(None)

    def initiate_send(self) -> None:
        """Send what can be sent now."""
        queue, size = self.producer_fifo, self.ac_out_buffer_size
        while queue and self.connected:
            first = queue[0]
            if first is None:
                queue.popleft()
                self.handle_close()
                return
            if hasattr(first, "more"):
                data = first.more()
                if data:
                    queue.appendleft(data)
                else:
                    queue.popleft()
                continue
            if isinstance(first, str) and self.use_encoding:
                first = first.encode(self.encoding)
            if not first:
                queue.popleft()
                continue
            try:
                sent = self.send(first[:size])
            except OSError:
                self.handle_error()
                return
            if sent and queue:  # who closes empties it
                if sent < len(first):
                    queue[0] = first[sent:]
                else:
                    queue.popleft()
            return

    def readable(self) -> bool:
        """Tell whether to wait for something to read."""
        return True

    def writable(self) -> bool:
        """Tell whether there is something to send."""
        return bool(self.producer_fifo) or not self.connected

    def handle_write(self) -> None:
        """Send some more."""
        self.initiate_send()

    def handle_close(self) -> None:
        """The other end has closed, or all is sent."""
        self.close()

    def discard_buffers(self) -> None:
        """Forget what came and what was to be sent."""
        self.ac_in_buffer = b""
        self.incoming.clear()
        self.producer_fifo.clear()


class simple_producer:
    """A producer of octets that are there already."""

    def __init__(self, data: bytes, buffer_size: int = 512) -> None:
        self.data = data
        self.buffer_size = buffer_size

    def more(self) -> bytes:
        """Give the next piece; nothing at the end."""
        piece, self.data = self.data[: self.buffer_size], self.data[self.buffer_size :]
        return piece


def find_prefix_at_end(haystack: bytes, needle: bytes) -> int:
    """Give how much of ``needle`` may begin at the end of ``haystack``."""
    return next(
        (size for size in range(len(needle) - 1, 0, -1) if haystack.endswith(needle[:size])), 0
    )
