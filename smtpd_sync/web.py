"""A page that shows caught mail in a browser, and the JSON beside it.

::

    catch = Catch(max_messages=1000)
    Web(catch, "127.0.0.1", 8026).start()

Whoever may open the address may read the mail, so it is loopback unless told otherwise, and then
needs a token. What other sites have a browser ask is refused; see `webguard`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import pathlib
import re
import selectors
import socket
import socketserver
import threading
from http.server import ThreadingHTTPServer
from time import monotonic
from typing import Any, Dict, Optional, Tuple, Union

from .catch import Catch, Catching
from .handler import SMTPHandler
from .listening import listen
from .logs import log
from .waker import Waker
from .webelsewhere import Elsewhere
from .webguard import Guard, bracketed
from .webview import Rows, Viewer
from .webvisit import Visit
from .webwatch import Watchers

__all__ = ["MOST_MESSAGES", "MOST_OCTETS", "Page", "Web", "place_of"]

MOST_CONNECTIONS = 64
MOST_MESSAGES = 1_000
"""Messages that `Page` keeps; the oldest go when more come."""
MOST_OCTETS = 268_435_456
"""Octets of the messages that it keeps."""
BREATH = 0.1
"""Seconds after which a connection is taken that could not be, for want of descriptors."""

_PLACE = re.compile(r"(?:(?:\[([^]]+)\]|([^]:[]*)):)?([0-9]{1,5})")


def place_of(web: Union[bool, int, str]) -> Tuple[str, int]:
    """Read ``True``, a port or ``HOST:PORT``; ``ValueError`` for what is none.

    ``:PORT`` is every address; a port alone is loopback's, and ``True`` a free one there.
    """
    found = _PLACE.fullmatch("0" if web is True else str(web)) if web is not False else None
    if found is None or int(found[3]) > 65535:
        raise ValueError(f'web: True, a port or "HOST:PORT", not {web!r}')
    host = found[1] if found[1] is not None else found[2]
    return "127.0.0.1" if host is None else host, int(found[3])


def page() -> Tuple[bytes, str]:
    """Read the page; give it, and the policy under which its own script and style work alone."""
    octets = pathlib.Path(__file__).with_name("web.html").read_bytes()

    def hashes(element: bytes) -> str:
        found = re.findall(rb"<%b>(.*?)</%b>" % (element, element), octets, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(each).digest()).decode() for each in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return octets, (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')}; "
        "connect-src 'self'; frame-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


class Web(ThreadingHTTPServer):
    """The page's server. It listens when it is made, and answers when it is started.

    Raises ``OSError``, which names the address, where it cannot listen.
    """

    def __init__(self, catch: Catch, host: str = "127.0.0.1", port: int = 0) -> None:
        self.catch = catch
        self.elsewhere = Elsewhere()
        self.rows = Rows(self.elsewhere)
        self.viewer = Viewer(self.rows, self.elsewhere)
        self.page, self.page_policy = page()
        self.watchers = Watchers(catch, self.rows)
        self._threads_of: Dict[socket.socket, threading.Thread] = {}
        self._over = threading.Event()
        self._accepting: Optional[threading.Thread] = None
        try:
            self.socket = listen((host, port))[0].socket
        except OSError as error:
            where = f"web page at {bracketed(host)}:{port}"  # SMTP has a port, too
            raise OSError(error.errno, error.strerror or str(error), where) from None
        self.socket.setblocking(False)
        address = self.socket.getsockname()
        socketserver.BaseServer.__init__(self, address, Visit)
        self.server_port: int = address[1]
        self.guard = Guard(host, address[0], self.server_port)
        self._waker = Waker()

    @property
    def url(self) -> str:
        """Where it is, with the token if one is needed."""
        return self.guard.url

    # -- its life ----------------------------------------------------------------------------

    def start(self) -> Web:
        """Answer, in the background."""
        self._accepting = threading.Thread(target=self._accept, name="web", daemon=True)
        self._accepting.start()
        return self

    def stop(self, timeout: float = 1.0) -> None:
        """Free the port, and close what is open."""
        due = monotonic() + timeout
        self._over.set()
        self.watchers.end()
        self.elsewhere.close()
        self._waker.wake()
        if self._accepting is not None:
            self._accepting.join()
        self.socket.close()
        self._waker.close()
        threads = dict(self._threads_of)
        for connection in threads:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads.values():
            thread.join(max(0.0, due - monotonic()))

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._waker, selectors.EVENT_READ)
            while not self._over.is_set():
                selector.select()
                try:
                    self.process_request(*self.get_request())
                except BlockingIOError:
                    pass  # it has gone, or we are to stop
                except (OSError, RuntimeError):  # no descriptor, or no thread, is left
                    self._over.wait(BREATH)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, if there are not too many."""
        if len(self._threads_of) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="web visit",
            daemon=True,
        )
        self._threads_of[request] = thread
        try:
            thread.start()
        except RuntimeError:
            self.shutdown_request(request)
            raise

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        self._threads_of.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong."""
        log.exception("web: a request failed")


class Page(Catching):
    """The battery that shows mail: it keeps the last messages, and has a page for them."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(Catch(MOST_MESSAGES, MOST_OCTETS))
        self.web = Web(self._catch, host, port)

    def attach(self, handler: SMTPHandler) -> Page:
        """A session begins; it is kept when it brings mail."""
        return self

    def start(self) -> None:
        """Show it."""
        self.web.start()

    def stop(self, timeout: float) -> None:
        """Show it no more."""
        self.web.stop(min(timeout, 1.0))
