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
from http.server import HTTPServer
from typing import Any, Dict, Optional, Tuple, Union

from .catch import Catch
from .logs import log
from .waker import Waker
from .webguard import Guard
from .webview import Rows, Viewer
from .webvisit import Visit
from .webwatch import Watchers

__all__ = ["Web", "place_of"]

MOST_CONNECTIONS = 64


def place_of(web: Union[bool, int, str]) -> Tuple[str, int]:
    """Read ``True``, a port or ``HOST:PORT``; ``ValueError`` for what is none."""
    if web is True:
        return "127.0.0.1", 0
    if isinstance(web, int) and 0 <= web <= 65535 and web is not False:
        return "127.0.0.1", web
    named = (
        re.fullmatch(r"(?:\[([^]]+)\]|([^:]*)):([0-9]{1,5})", web) if isinstance(web, str) else None
    )
    if named is None or int(named[3]) > 65535:
        raise ValueError(f'web: True, a port or "HOST:PORT", not {web!r}')
    return named[1] or named[2], int(named[3])


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


class Web(socketserver.ThreadingMixIn, HTTPServer):
    """The page's server. It listens when it is made, and answers when it is started."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, catch: Catch, host: str = "127.0.0.1", port: int = 0) -> None:
        self.catch = catch
        self.rows = Rows()
        self.viewer = Viewer(self.rows)
        self.page, self.page_policy = page()
        self._threads_of: Dict[socket.socket, threading.Thread] = {}
        self.watchers = Watchers(catch, self.rows)
        self._over = False
        self._accepting: Optional[threading.Thread] = None
        if ":" in host:
            self.address_family = socket.AF_INET6
        HTTPServer.__init__(self, (host, port), Visit)
        self._waker = Waker()
        self.guard = Guard(host, str(self.server_address[0]), self.server_port)

    def server_bind(self) -> None:
        """Bind, and ask nobody for our name."""
        socketserver.TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

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
        self._over = True
        self.watchers.end()
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
            thread.join(timeout)

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._waker, selectors.EVENT_READ)
            while not self._over:
                if any(key.fileobj is self.socket for key, _ in selector.select()):
                    self.handle_request()

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
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        self._threads_of.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong."""
        log.exception("web: a request failed")
