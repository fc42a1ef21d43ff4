"""Who may ask the page for mail: no page of another site; and from elsewhere, who has the token.

A browser lends its user's network to every page it shows. ``Host`` tells a name that was rebound to
our address; ``Origin`` and ``Sec-Fetch-Site`` tell whose page asks. Knows headers only: no socket.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from http import HTTPStatus
from typing import List, Mapping, Optional, Protocol

__all__ = ["Guard", "Refusal", "bracketed"]

OURS = (None, "same-origin", "none")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Refusal(Exception):
    """A request that gets no more than a status, a text and some headers."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


class RequestHeaders(Protocol):
    """What a request has of headers."""

    def get(self, name: str, otherwise: None = None) -> Optional[str]:
        """Give the first of that name."""

    def get_all(self, name: str) -> Optional[List[str]]:
        """Give all of that name."""


class Guard:
    """Checks each request for the page at one address.

    ``name`` is what the user called the address, ``host`` and ``port`` what it is.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        address = ipaddress.ip_address(host.partition("%")[0])
        self._anywhere = address.is_unspecified
        self._cookie = f"smtpd_sync_{port}"
        self.token = "" if address.is_loopback else secrets.token_urlsafe(18)
        """What has to be shown; ``""`` at loopback, where nobody else is."""
        hosts = {bracketed(host), bracketed(name).lower()}
        if address.is_loopback:
            hosts.update(LOCAL_NAMES)
        self._hosts = {f"{each}:{port}" for each in hosts} | (hosts if port == 80 else set())
        named = "localhost" if self._anywhere else bracketed(name)
        self.url = f"http://{named}:{port}/" + (self.token and f"?token={self.token}")
        """Where the page is."""

    def check(self, headers: RequestHeaders, token: str, to_page: bool = False) -> str:
        """Let a request pass, or raise `Refusal`; give the cookie to set, ``""`` for none.

        ``to_page``: it is for the page itself, in which there is no mail yet. So any site may have
        a link to it.
        """
        hosts = headers.get_all("Host") or []
        if len(hosts) != 1 or not self._is_ours(hosts[0].lower()):
            raise Refusal(HTTPStatus.FORBIDDEN, "The page has another address.")
        origin = headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{hosts[0].lower()}":
            raise Refusal(HTTPStatus.FORBIDDEN, "Another site asks for it.")
        if headers.get("Sec-Fetch-Site") not in OURS and not (to_page and is_link(headers)):
            raise Refusal(HTTPStatus.FORBIDDEN, "Another site asks for it.")
        if headers.get("Transfer-Encoding") or headers.get("Content-Length") not in (None, "0"):
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "No request here has a body.")
        if not self.token:
            return ""
        if self._is_token(token):
            return f"{self._cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        if not self._is_token(cookies(headers.get("Cookie") or "").get(self._cookie, "")):
            raise Refusal(HTTPStatus.FORBIDDEN, "The token is missing: see where it was started.")
        return ""

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    def _is_ours(self, host: str) -> bool:
        """Tell whether a request meant us; where we are at every address, no name will do."""
        if not self._anywhere:
            return host in self._hosts
        named = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::[0-9]{1,5})?", host)
        if named is None:
            return False
        if named[1] == "localhost":
            return True
        try:
            ipaddress.ip_address(named[1].strip("[]"))
        except ValueError:
            return False
        return True


def is_link(headers: RequestHeaders) -> bool:
    """Tell whether somebody follows a link, and no page asks for a part of itself."""
    return (headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")) == (
        "navigate",
        "document",
    )


def bracketed(host: str) -> str:
    """Write a host as URLs do."""
    return f"[{host}]" if ":" in host else host


def cookies(header: str) -> Mapping[str, str]:
    """Read the field Cookie."""
    pairs = (each.strip().partition("=") for each in header.split(";"))
    return {name: value for name, _, value in pairs}
