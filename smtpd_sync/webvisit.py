"""One request to the page that shows mail: the routes, and what each answers.

Every answer has headers that keep a browser from making more of it than it is.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Pattern, Tuple
from urllib.parse import parse_qs

from .caught import CaughtMail
from .logs import log
from .webguard import Refusal
from .webview import file_name_of

if TYPE_CHECKING:
    from .web import Web

__all__ = ["Visit"]

MOST_HEAD = 16_384
"""Octets of a request: no route takes a body."""
MOST_ROWS = 1_000
PATIENCE = 15.0
"""Seconds for a client to send its request, and to take each piece of the answer."""
PIECE = 262_144
LAST_WORDS = 1.0
"""Seconds for a client that sent too much to send the rest, before it is read no more."""
TOO_LARGE = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE}

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}
"""Of every answer, unless it says otherwise."""

FRAME_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)

Headers = Mapping[str, str]


class Visit(BaseHTTPRequestHandler):
    """One request: each connection has one."""

    server: Web
    default_request_version = "HTTP/1.0"  # 0.9 would have no headers to guard the answer
    timeout = PATIENCE

    def handle(self) -> None:
        """Read a request within bounds of size and time, and answer it."""
        self.requestline, self.request_version, self.command = "", self.protocol_version, ""
        self.close_connection = True
        self.unread = False
        with contextlib.suppress(OSError):  # the client has gone, or is too slow
            head = self._head()
            self.rfile.close()
            self.rfile = BytesIO(head)
            if len(head) > MOST_HEAD:
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            else:
                self.handle_one_request()
            if self.unread:
                self._let_it_read()

    def _head(self) -> bytes:
        head, due = b"", monotonic() + PATIENCE
        while b"\r\n\r\n" not in head and len(head) <= MOST_HEAD:
            self.connection.settimeout(max(0.001, due - monotonic()))
            octets = self.connection.recv(MOST_HEAD)
            if not octets:
                break
            head += octets
        self.connection.settimeout(PATIENCE)
        return head

    def _let_it_read(self) -> None:
        """Take what the client still sends: to close before that would destroy the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(LAST_WORDS)
        due = monotonic() + LAST_WORDS
        while self.connection.recv(PIECE) and monotonic() < due:
            pass

    def do_GET(self) -> None:
        """Answer."""
        try:
            self._route()
        except Refusal as refusal:
            self.refuse(refusal)
        except OSError:
            raise  # the client has gone
        except Exception:
            log.exception("web: cannot show %s", self._asked())
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "This cannot be shown.")

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        path, _, query = self.path.partition("?")
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        token = self.query.get("token", "")
        self.cookie = self.server.guard.check(self.headers, token, to_page=path == "/")
        asked = "GET" if self.command == "HEAD" else self.command
        for pattern, methods in ROUTES:
            found = pattern.fullmatch(path)
            if found is not None:
                method = methods.get(asked)
                if method is None:
                    allowed = ", ".join(methods)
                    raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"It is {allowed}.", Allow=allowed)
                return method(self, *found.groups())
        raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing here.")

    # -- the routes --------------------------------------------------------------------------

    def page(self) -> None:
        """Give the page itself."""
        headers = {
            "Content-Security-Policy": self.server.page_policy,
            "Cross-Origin-Opener-Policy": "same-origin",
            **({"Set-Cookie": self.cookie} if self.cookie else {}),
        }
        self.give(self.server.page, "text/html; charset=utf-8", headers)

    def messages(self) -> None:
        """Give what the list shows, newest first."""
        most = self.query.get("limit", "")
        self.give_json(
            self.server.rows.page(
                self.server.catch,
                self.query.get("q", ""),
                self.query.get("before", ""),
                min(int(most), MOST_ROWS) if re.fullmatch("[0-9]{1,6}", most) else 200,
            )
        )

    def clear(self) -> None:
        """Forget all."""
        self.server.catch.clear()
        self.give_json({})

    def message(self, name: str) -> None:
        """Give all of a message but its attachments."""
        self.give_json(self.server.viewer.view(self._mail(name)).value())

    def raw(self, name: str) -> None:
        """Give the mail data, or its first ``most`` octets."""
        mail, most = self._mail(name), self.query.get("most", "")
        octets = mail.raw[: int(most)] if re.fullmatch("[0-9]{1,12}", most) else mail.raw
        self.give_file(octets, f"{mail.id}.eml", "message")

    def html(self, name: str) -> None:
        """Give the HTML, for the frame."""
        document = self.server.viewer.view(self._mail(name)).document
        headers = {"Content-Security-Policy": FRAME_POLICY}
        self.give(document, "text/html; charset=utf-8", headers)

    def attachment(self, name: str, number: str) -> None:
        """Give an attachment, to save."""
        viewed = self.server.viewer.view(self._mail(name))
        try:
            called, content = viewed.attachment(int(number))
        except IndexError:
            raise Refusal(HTTPStatus.NOT_FOUND, "There is no such attachment.") from None
        self.give_file(content, called, f"attachment-{int(number) + 1}")

    def events(self) -> None:
        """Tell what happens, as it happens."""
        with self.server.watchers.watching() as watch:
            self._begin(HTTPStatus.OK, "text/event-stream", {})
            for octets in () if self.command == "HEAD" else watch:
                self.wfile.write(octets)

    def _mail(self, name: str) -> CaughtMail:
        for mail in reversed(list(self.server.catch.messages)):
            if mail.id == name:
                return mail
        raise Refusal(HTTPStatus.NOT_FOUND, "There is no such message, or it is gone.")

    # -- answers -----------------------------------------------------------------------------

    def give(self, octets: bytes, kind: str, headers: Headers, status: int = HTTPStatus.OK) -> None:
        """Answer."""
        self._begin(status, kind, {"Content-Length": str(len(octets)), **headers})
        for start in range(0, len(octets) if self.command != "HEAD" else 0, PIECE):
            self.wfile.write(octets[start : start + PIECE])

    def give_json(self, value: Any) -> None:
        """Answer with a value."""
        self.give(json.dumps(value).encode(), "application/json", {})

    def give_file(self, octets: bytes, name: str, otherwise: str) -> None:
        """Answer with what no browser may show as a page of ours."""
        disposition = f"attachment; {file_name_of(name, otherwise)}"
        self.give(octets, "application/octet-stream", {"Content-Disposition": disposition})

    def refuse(self, refusal: Refusal) -> None:
        """Answer that it cannot be."""
        self.unread = refusal.status in TOO_LARGE
        text = json.dumps({"error": refusal.text}).encode()
        self.give(text, "application/json", refusal.headers, refusal.status)

    def send_error(
        self, code: int, message: Optional[str] = None, explain: Optional[str] = None
    ) -> None:
        """Refuse what `http.server` cannot read."""
        self.refuse(Refusal(code, message or HTTPStatus(code).phrase))

    def _begin(self, status: int, kind: str, headers: Headers) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        """Give the field Server, without the version of anything."""
        return "smtpd_sync"

    def log_message(self, format: str, *values: Any) -> None:
        """Log for those who look for faults."""
        log.debug("web: %s", self._asked())

    def _asked(self) -> str:
        """Say what was asked, without the query, where a token may be, and on one line."""
        path = getattr(self, "path", "").partition("?")[0]
        return f"{self.command or '-'} {path}"[:200].encode("unicode_escape").decode("ascii")


Method = Callable[..., None]
ONE = "/api/messages/([0-9A-Za-z_.-]{1,100})"
ROUTES: Tuple[Tuple[Pattern[str], Mapping[str, Method]], ...] = tuple(
    (re.compile(pattern), methods)
    for pattern, methods in (
        ("/", {"GET": Visit.page}),
        ("/api/messages", {"GET": Visit.messages, "DELETE": Visit.clear}),
        (ONE, {"GET": Visit.message}),
        (f"{ONE}/raw", {"GET": Visit.raw}),
        (f"{ONE}/html", {"GET": Visit.html}),
        (f"{ONE}/attachments/([0-9]{{1,6}})", {"GET": Visit.attachment}),
        ("/api/events", {"GET": Visit.events}),
    )
)
