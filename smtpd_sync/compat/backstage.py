"""What stands behind the channels of a server: threads, limits and deadlines, as in `SMTPServer`.

A thread for each client waits for it, bounded as every session is, and hands over what came. What
it says is the channel's, in the thread that is inside ``asyncore.loop()``: a *turn*.
"""

from __future__ import annotations

import functools
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Optional

from .. import reply as replies
from ..connection import LINGER, NEVER, Connection
from ..crew import Crew
from ..crowd import Crowd, reaper_period
from ..handler import SMTPHandler
from ..limits import Limits
from ..listening import peer_of, within_descriptors
from ..logs import log
from ..options import OPTIONS, check_options
from ..reply import Reject, Reply
from ..session import Session
from ..settings import Settings
from ..stats import Counters
from . import polling
from .desk import open_desk

if TYPE_CHECKING:
    from .channel import Channel

__all__ = ["Backstage", "Line"]


class Backstage:
    """The pieces of our server, without the part that accepts and the part that speaks."""

    stopping = False
    send_at_once = None  # it is the channel that sends

    def __init__(self, limits: Limits) -> None:
        options = {name: option.default for name, option in OPTIONS.items()}
        options.update(hostname="localhost", limits=within_descriptors(limits, False))
        self.settings = Settings(check_options(options), {}, SMTPHandler, (), b"")
        self.limits = self.settings.limits
        self.counters = Counters()
        self.crew = Crew(self._serve)
        self.crowd = Crowd(self.crew)
        self._lock = threading.Lock()
        self._lines = 0
        self._reaping = False
        self._retired = False
        self._over = threading.Event()

    def seat(self, channel: Channel, concurrent: bool) -> Line:
        """Give a channel its line; ``Reject`` if nobody else may come."""
        with self._lock:
            if self._lines >= self.limits.connections:
                raise Reject(*_words(replies.TOO_BUSY))
            most = self.limits.connections_per_address
            address = peer_of(channel.addr).address
            if not self.crowd.census.enter(address, most):
                raise Reject(*_words(replies.TOO_MANY_OF_YOU))
            self._lines += 1
        return Line(channel, self, address, concurrent)

    def start(self, line: Line) -> None:
        """Have a thread wait for a client; ``RuntimeError`` if none can be had."""
        with self._lock:
            if not self._reaping:
                self._reaping = True
                threading.Thread(target=self._reap, name="smtpd-reaper", daemon=True).start()
        self.crew.hand_over(line)

    def _serve(self, line: Line) -> None:
        try:
            Wire(line, self)
        except Exception:
            log.exception("a session failed")
        finally:
            line.end()

    def leave(self, line: Line) -> None:
        """A line is over."""
        self.crowd.census.leave(line.address)
        with self._lock:
            self._lines -= 1
        self._end_if_done()

    def retire(self) -> None:
        """Let the threads go, once the clients that are here have gone."""
        self._retired = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        with self._lock:
            done = self._retired and self._lines == 0 and not self._over.is_set()
            if done:
                self._over.set()
        if done:
            self.crew.close()

    def _reap(self) -> None:
        while not self._over.wait(reaper_period(self.limits)):
            self.crowd.reap(self.limits)


def _words(reply: Reply) -> Any:
    return reply.code, reply.text


class Line:
    """Between a channel, in the loop, and the thread that waits for its client."""

    def __init__(
        self, channel: Channel, backstage: Backstage, address: str, concurrent: bool
    ) -> None:
        self.channel = channel
        self.address = address
        self.concurrent = concurrent
        """Whether turns are taken in the thread of the client."""
        self.over = False
        self.replied = False
        """Whether something was sent since the thread looked here."""
        self.accepted = 0
        """How many messages were accepted."""
        self._backstage = backstage
        self._desk = open_desk(channel._map)
        self._claimed = threading.Lock()
        self._done = threading.Event()
        self._octets: Optional[bytes] = None

    # -- in the loop -------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin once the constructor of the channel is through."""
        self._desk.leave(self._begin)

    def _begin(self) -> None:
        if not self._claimed.acquire(blocking=False):
            return  # it was closed first
        try:
            self._backstage.start(self)
        except RuntimeError:
            self._claimed.release()
            self.concurrent = False  # there is only the loop to send it
            self.channel.turn_away(replies.TOO_BUSY)

    def take(self) -> bytes:
        """Give what came; ``BlockingIOError`` if that was given already."""
        octets, self._octets = self._octets, None
        if octets is None:
            raise BlockingIOError("nothing has come")
        return octets

    def release(self) -> None:
        """The channel is closed: have the thread hang up. From any thread."""
        if self.over:
            return
        self.over = True
        if self._claimed.acquire(blocking=False):
            self.end()
            return
        try:
            self.channel.socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # the client has gone
        self._done.set()

    def end(self) -> None:
        """Hang up."""
        self.over = True
        self.channel.socket.close()
        self._desk.close()
        self._backstage.leave(self)

    # -- in the thread of the client -----------------------------------------------------------

    def hand_over(self, octets: bytes) -> None:
        """Have the channel read what came; ``b""`` is the end of input."""
        self._octets = octets
        self.turn(polling.read)

    def turn(self, act: Callable[[Channel], None]) -> None:
        """Have the channel do something, and wait until it is done."""
        if self.concurrent:
            self._act(act)
            return
        self._done.clear()
        if not self.over:
            self._desk.leave(lambda: self._act(act))
            self._done.wait()

    def _act(self, act: Callable[[Channel], None]) -> None:
        try:
            if not self.over:
                act(self.channel)
        except polling.FATAL as error:
            if not self.concurrent:
                raise
            self._desk.leave(functools.partial(_throw, error))
        finally:
            self._done.set()

    def recv(self, size: int) -> bytes:
        """Wait for octets, as a socket that blocks."""
        while True:
            sock = self.channel.socket  # another, where TLS was put on it
            try:
                data: bytes = sock.recv(size)
                return data
            except BlockingIOError:
                pass
            except OSError as error:
                if not _wants_more(error):
                    raise
            wait_for(sock, polling.READ)

    def close_notify(self) -> None:
        """Say nothing: TLS that a channel put on is its own."""


def _throw(error: BaseException) -> None:
    raise error


def _wants_more(error: OSError) -> bool:
    """Tell whether TLS has to read or write before it can give octets."""
    return type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def wait_for(sock: Any, flag: int) -> None:
    """Wait until a socket is ready, or over."""
    descriptor = sock.fileno()
    if descriptor >= 0:
        polling.wait({descriptor: flag}, None)


def lose(channel: Channel) -> None:
    """Tell a channel that its client has gone."""
    channel.handle_close()


def close(channel: Channel) -> None:
    """Close a channel."""
    channel.close()


class Led(Session):
    """Stands for the conversation that a channel leads, where a connection asks about it."""

    line: Line

    @property
    def in_transaction(self) -> bool:
        """Whether mail is on its way."""
        return bool(self.line.channel.mailfrom)

    @property
    def receiving_mail(self) -> bool:
        """Whether what comes next is mail data."""
        return bool(self.line.channel.smtp_state == self.line.channel.DATA)


class Wire(Connection):
    """The client of a channel: waits for it, and hangs up in order."""

    def __init__(self, line: Line, backstage: Backstage) -> None:
        self.line = line
        server: Any = backstage  # all that a connection asks of a server
        super().__init__(line.channel.socket, line.channel.addr, server)

    def setup(self) -> None:
        """Take the client over from the loop."""
        super().setup()
        session = Led(self.session.rules, self.session.peer)
        session.line, session.id = self.line, self.session.id
        self.session = session
        self._followed = False  # who debugs has DEBUGSTREAM
        stream: Any = self.line
        self._stream = stream

    def handle(self) -> None:
        """Hand over what comes, until the channel is closed."""
        line = self.line
        self._see_to_replies()
        while not line.over:
            octets = self._receive()
            if self._last_words is None:
                line.hand_over(octets)
            self.request = line.channel.socket
            self._see_to_replies()
            if not octets:
                line.turn(close)  # also where handle_close was overridden, and does not
                return

    def _see_to_replies(self) -> None:
        """Wait until the client has taken what was said; then it has its full time again."""
        line = self.line
        if line.replied:
            line.replied = False
            self._command_due = None
        channel = line.channel
        if channel.producer_fifo and not line.over:
            limits = self.settings.limits
            patience = limits.command_timeout if self._last_words is None else LINGER
            self._deadline = monotonic() + patience
            while channel.producer_fifo and not line.over:
                wait_for(channel.socket, polling.WRITE)
                line.turn(polling.write if channel.connected else lose)
            self._deadline = NEVER

    def _part(self, reply: Reply) -> None:
        """Say why the wait was ended."""
        self._reason = reply.text
        self.line.turn(lambda channel: channel.turn_away(reply))

    def finish(self) -> None:
        """Close the connection so that the last reply arrives."""
        self._accepted = self.line.accepted
        self.session.helo = str(self.line.channel.seen_greeting)
        super().finish()
