"""A browser's part for tests of the page that shows mail: requests, as raw as a test wants them."""

import contextlib
import http.client
import json
import socket
import urllib.parse

from support import DEADLINE, Client


class Answer:
    """What came back."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


def ask(url, path="/", method="GET", headers=(), host=None, body=b""):
    """Make a request as it is: ``host`` instead of the right one, headers twice if they are."""
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in [("Host", where.netloc if host is None else host), *headers]:
            if value != "":
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def get(url, path, **options):
    """Ask for what must be there; give the value of its JSON."""
    answer = ask(url, path, **options)
    assert answer.status == 200, (path, answer.status, answer.body)
    return answer.json


def connected(url):
    where = urllib.parse.urlsplit(url)
    return socket.create_connection((where.hostname, where.port), DEADLINE)


def said(url, octets):
    """Send octets; give all that comes back."""
    with connected(url) as client:
        client.sendall(octets)
        return rest(client)


def rest(client):
    """Read to the end, be it a reset."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            data += more
    return data


class Events:
    """The stream of events, open until left."""

    def __init__(self, url):
        self._socket = connected(url)
        host = urllib.parse.urlsplit(url).netloc
        self._socket.sendall(f"GET /api/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers = http.client.parse_headers(self._file)
        assert self._block() == [b"retry: 1000"]

    def _block(self):
        lines = []
        while line := self._file.readline().rstrip(b"\n"):
            lines.append(line)
        return lines

    def next(self):
        """Give the next event, ``(name, value)``; ``None`` at the end."""
        lines = self._block()
        if not lines:
            return None
        fields = dict(line.decode().split(": ", 1) for line in lines)
        return fields["event"], json.loads(fields["data"])

    def close(self):
        self._file.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def send(mail, *messages, **envelope):
    """Have messages caught; give the last."""
    for data in messages:
        with Client((mail.host, mail.port)) as client:
            data = data if isinstance(data, bytes) else data.encode()
            assert client.mail(data, **envelope).startswith("250 ")
    return mail.messages[-1]
