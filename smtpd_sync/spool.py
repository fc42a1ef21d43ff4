"""Accept now, deliver later: for hooks that are slow, or whose next hop is away.

A 250 means that the message is on the disk, in a directory that a crash does not hurt. Threads take
it from there to the delivery hook, again and again until all its recipients are served or the time
is up; then its sender gets a report (RFC 3464).
"""

from __future__ import annotations

import contextlib
import heapq
import shutil
import threading
import time
from typing import IO, Any, Dict, List, Optional, Set, Tuple

from .attempts import Attempts
from .durable import Path, refusal
from .envelope import Envelope
from .logs import log
from .spooled import Message, Unreadable
from .spoolfiles import ONE_PROCESS, Claim, Data, Directory, Held

__all__ = ["Spool"]

GIVE_UP = 5 * 24 * 3600.0
"""RFC 5321 4.5.4.1: at least 4 to 5 days."""
WATCH = 2.0
"""Seconds after which a change in the directory that another process made is seen."""


class Spool:
    """A battery: ``SMTPServer(address, deliver=Spool("/var/spool/x", deliver))``.

    It keeps its messages in the directory ``path`` and gives them to ``deliver``, a callable or a
    battery, in ``threads`` threads. A hook is asked as in LMTP: it may give a list of receipts, one
    for each recipient. What it refuses with a 4yz reply, or fails at, it is asked for again, after
    ``first_pause`` seconds and then twice as many each time, up to ``longest_pause``. Recipients
    that it refused with 5yz, and all that are left ``give_up`` seconds after the message came, are
    reported to the sender in the name of ``hostname``, by default the server's, by the same hook
    and with the null sender.

    Each message is handed over at least once, and twice only if we crash in between.
    """

    one_process = ONE_PROCESS

    def __init__(
        self,
        path: Path,
        deliver: Any,
        *,
        first_pause: float = 60,
        longest_pause: float = 3600,
        give_up: float = GIVE_UP,
        threads: int = 2,
        hostname: Optional[str] = None,
    ) -> None:
        if not (isinstance(threads, int) and threads > 0):
            raise ValueError("spool: threads is a number from 1")
        self._attempts = Attempts(deliver, first_pause, longest_pause, give_up, hostname)
        self._pause, self._longest_pause = first_pause, longest_pause
        self._count = threads
        self._directory = Directory(path)
        self._directory.make()
        self._news = threading.Condition()
        self._threads: List[threading.Thread] = []
        self._over = threading.Event()
        self._forget()

    def _forget(self) -> None:
        self._due: Dict[str, float] = {}
        """Name of each message that waits here -> when it is tried. A hint: the file decides."""
        self._order: List[Tuple[float, str]] = []
        """The same as a heap. What `_due` does not say any more is passed over."""
        self._busy: Set[str] = set()
        self._seen: Dict[str, Tuple[int, int]] = {}
        self._told: Set[str] = set()
        self._unsettled: Dict[str, Claim] = {}
        """What was tried, but could not be written down. Nobody else gets it meanwhile."""

    # -- accepting ---------------------------------------------------------------------------

    def open_sink(self, envelope: Envelope) -> IO[bytes]:
        """Open a file of the spool; it is gone when it is closed, unless it was delivered to."""
        try:
            return self._directory.new(envelope.id, self._try_now)
        except OSError as error:
            raise refusal(error) from None

    def deliver_envelope(self, envelope: Envelope) -> None:
        """Accept the message. Once this has returned, no crash loses it."""
        data = envelope.sink
        try:
            if isinstance(data, Data):
                self._directory.commit(data, Message.of(envelope, data.message))
                return
            with contextlib.closing(self._directory.new(envelope.id, self._try_now)) as copy:
                shutil.copyfileobj(envelope.open(), copy)
                self._directory.commit(copy, Message.of(envelope, copy.message))
        except OSError as error:
            raise refusal(error) from None

    def _try_now(self, name: str) -> None:
        with self._news:
            if self._threads:
                self._schedule(name, time.time())

    def _schedule(self, name: str, when: float) -> None:
        # Too early does no harm; and a clock that was wrong may have said anything.
        when = min(when, time.time() + self._longest_pause)
        if when < self._due.get(name, float("inf")):
            self._due[name] = when
            heapq.heappush(self._order, (when, name))
            self._news.notify_all()

    # -- the threads -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver: what is in the directory, and what comes."""
        if self._threads:
            return
        if hasattr(self._attempts.taker, "start"):
            self._attempts.taker.start()
        works = {f"spool-{n}": self._run for n in range(self._count)}
        works["spool-watch"] = self._watch
        over = threading.Event()  # those of the last time may not have ended yet
        threads = [
            threading.Thread(target=work, args=(over,), name=name, daemon=True)
            for name, work in works.items()
        ]
        with self._news:
            self._forget()
            self._over, self._threads = over, threads
        for thread in threads:
            thread.start()

    def stop(self, timeout: float = 10) -> None:
        """Let the deliveries in course end, for so long. What does not is tried again one day."""
        deadline = time.monotonic() + timeout
        with self._news:
            threads, self._threads = self._threads, []
            self._over.set()
            self._news.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        late = sum(thread.is_alive() for thread in threads)
        if late:
            log.warning("spool: %d deliveries do not end; they will be tried again", late)
        while self._unsettled:
            _, claim = self._unsettled.popitem()
            try:
                self._attempts.settle(claim, self._send)
            except Exception:
                log.exception("spool: %s may be delivered twice", claim.message.name)
            claim.close()
        if threads and hasattr(self._attempts.taker, "stop"):
            self._attempts.taker.stop(max(0.0, deadline - time.monotonic()))

    def _watch(self, over: threading.Event) -> None:
        """Look for what other processes have left or changed, now and then."""
        trouble, first = "", True
        while True:
            try:
                if first:
                    for name in self._directory.clean():
                        log.info("spool: %s was never accepted: removed", name)
                    first = False
                self._scan()
                trouble = ""
            except Exception as error:
                if trouble != str(error):
                    trouble = str(error)
                    log.exception("spool: %s cannot be read", self._directory.path)
            if over.wait(WATCH):
                return

    def _scan(self) -> None:
        seen = {}
        for name, change in self._directory.names():
            if change is None:
                self._tell(name, "it is not of the spool")
                continue
            seen[name] = self._seen.get(name)
            if seen[name] == change:
                continue
            try:
                when = self._directory.read(name).next
            except FileNotFoundError:
                continue
            except OSError as error:
                self._tell(name, error)
                continue
            except Unreadable as error:
                self._tell(name, error)
                seen[name] = change
                continue
            seen[name] = change
            with self._news:
                if name not in self._busy:
                    self._schedule(name, when)
        self._seen = {name: change for name, change in seen.items() if change}

    def _tell(self, name: str, trouble: object) -> None:
        """Log what is wrong with a file, once."""
        if name not in self._told:
            self._told.add(name)
            log.error("spool: %s is left alone: %s", ascii(name), ascii(str(trouble)))

    def _run(self, over: threading.Event) -> None:
        """Deliver what is due, one message after the other."""
        while True:
            name = self._next(over)
            if name is None:
                return
            again: Optional[float] = time.time() + self._pause
            try:
                again = self._serve(name)
            except Exception:
                log.exception("spool: %s could not be served", name)
            finally:
                with self._news:
                    self._busy.discard(name)
                    if again is not None:
                        self._schedule(name, again)

    def _next(self, over: threading.Event) -> Optional[str]:
        """Wait for a message that is due; ``None`` is the end."""
        with self._news:
            while not over.is_set():
                pause = None
                while self._order:
                    when, name = self._order[0]
                    if self._due.get(name) != when:
                        heapq.heappop(self._order)
                        continue
                    pause = when - time.time()
                    if pause > 0:
                        break
                    heapq.heappop(self._order)
                    del self._due[name]
                    self._busy.add(name)
                    return name
                self._news.wait(None if pause is None else min(pause, WATCH))
            return None

    def _serve(self, name: str) -> Optional[float]:
        """Try a message that may be due; give when to look at it again, if that has to be."""
        claim = self._unsettled.pop(name, None)
        if claim is None:
            try:
                claim = self._directory.claim(name)
            except Held:
                return time.time() + WATCH
            except FileNotFoundError:
                return None
            except Unreadable as error:
                self._tell(name, error)
                return None
            if not self._attempts.is_due(claim.message):
                claim.close()
                return claim.message.next
            try:
                self._attempts.make(claim)
            except BaseException:
                claim.close()
                raise
        try:
            self._attempts.settle(claim, self._send)
        except Exception:
            # Its recipients would get it again, so we go on with this until it is done.
            log.exception("spool: %s was tried, which cannot be written down", name)
            self._unsettled[name] = claim
            return time.time() + self._pause
        claim.close()
        return claim.message.next if claim.message.recipients else None

    # -- reports -----------------------------------------------------------------------------

    def _send(self, envelope: Envelope, octets: bytes) -> None:
        """Spool a message of ours."""
        with contextlib.closing(self._directory.new(envelope.id, self._try_now)) as data:
            data.write(octets)
            self._directory.commit(data, Message.of(envelope, data.message))
