"""Where a server listens: Unix sockets, ready-made sockets, several addresses, systemd's."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest
from support import DEADLINE, ROOT, Client, until

from smtpd_sync import SMTPServer, UnixSocket, discard, systemd_sockets

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="the platform has no Unix sockets"
)
LOOPBACK = ("127.0.0.1", 0)


class UnixClient(Client):
    """The line client, at the path of a Unix socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self._buffer = b""
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "smtp")


def mail(path):
    with UnixClient(path) as client:
        return client.mail()


def make(address, **options):
    return SMTPServer(address, deliver=discard, hostname="mx.example", **options)


# -- Unix sockets ----------------------------------------------------------------------------


def test_mail_over_a_unix_socket(serve, path, inbox):
    peers = []
    server = serve(address=path, validate_host=peers.append)
    assert server.address == (path,)
    assert server.addresses == [(path,)]
    with pytest.raises(ValueError, match="Unix"):
        server.port  # noqa: B018 - it is the attribute that raises
    assert mail(path).startswith("250 ")
    assert inbox.data.startswith(b"Received: from client.example (local)\r\n\tby mx.example with ")
    assert peers == [""]


def test_several_clients_at_once(serve, path):
    serve(address=path)
    clients = [UnixClient(path) for _ in range(30)]
    for client in clients:
        assert client.mail().startswith("250 ")
        client.close()


@pytest.mark.parametrize(("address", "mode"), [(None, 0o600), (0o660, 0o660), (0o666, 0o666)])
def test_mode(path, no_leaks, address, mode):
    with make(path if address is None else UnixSocket(path, address)):
        found = os.stat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == mode


def test_path_may_be_path_like(tmp_path, no_leaks):
    with make(UnixSocket(tmp_path / "smtp")) as server:
        assert server.address == (str(tmp_path / "smtp"),)


def test_it_is_unlinked_at_the_end(path, no_leaks):
    server = make(path).start()
    assert mail(path).startswith("250 ")
    server.stop(2)
    assert not os.path.exists(path)
    make(path).stop()  # never started
    assert not os.path.exists(path)


def test_stale_socket_is_removed(path, no_leaks):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
        dead.listen()
    assert os.path.exists(path)  # of a server that was killed
    with make(path).start():
        assert mail(path).startswith("250 ")


def test_socket_of_a_live_server_is_left(serve, path):
    serve(address=path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"(?i)in use"):
            make(path)
        assert mail(path).startswith("250 ")


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left(path, tmp_path, no_leaks, kind):
    if kind == "directory":
        os.mkdir(path)
    else:
        (tmp_path / "precious").write_text("precious")
        (os.symlink if kind == "link" else os.rename)(str(tmp_path / "precious"), path)
    with pytest.raises(OSError, match=r"(?i)in use"):
        make(path)
    assert os.path.exists(path)
    if kind != "directory":
        with open(path, encoding="ascii") as file:
            assert file.read() == "precious"


def test_directory_that_is_not_there(tmp_path, no_leaks):
    with pytest.raises(FileNotFoundError):
        make(str(tmp_path / "missing" / "smtp"))


def test_path_that_another_server_has_taken_is_left(path, no_leaks):
    first = make(path).start()
    os.unlink(path)
    with make(path).start():
        first.stop(2)
        assert mail(path).startswith("250 ")
    assert not os.path.exists(path)


def test_path_is_let_go_once(path, no_leaks):
    # While the first drains, the second takes the path; its file may even get the same inode,
    # which the link makes sure of.
    first = make(path).start()
    os.link(path, path + ".link")
    with UnixClient(path) as busy:
        busy.to_data()
        stopper = threading.Thread(target=first.stop)
        stopper.start()
        until(lambda: not os.path.exists(path), "the first lets go")
        os.rename(path + ".link", path)
        busy.send(b"x\r\n.\r\n")
        assert busy.reply().startswith("250 ")
        stopper.join(DEADLINE)
    assert os.path.exists(path)


def test_starttls_over_a_unix_socket(serve, path, certificate, inbox):
    serve(address=path, tls=certificate)
    with UnixClient(path) as client:
        client.hello()
        client.starttls(certificate)
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<a@x.example>")
        client.ask("RCPT TO:<b@y.example>")
        client.ask("DATA")
        assert client.ask("x\r\n.").startswith("250 ")
    assert b"(local)" in inbox.data


def test_stop_says_421_at_a_unix_socket(path, no_leaks):
    server = make(path).start()
    with UnixClient(path) as client:
        client.hello()
        server.stop(2)
        assert client.reply().startswith("421 4.3.2 ")
        assert client.ended()


# -- ready-made sockets ----------------------------------------------------------------------


def test_ready_made_socket(serve, connect, no_leaks):
    ready = socket.create_server(LOOPBACK)
    server = serve(address=ready)
    assert server.address == ready.getsockname()
    assert connect(server).mail().startswith("250 ")
    server.stop(2)
    assert ready.fileno() == -1  # it is the server's now


def test_ready_made_unix_socket_is_not_unlinked(path, no_leaks):
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ready.bind(path)
    ready.listen()
    with make(ready).start() as server:
        assert server.address == (path,)
        assert mail(path).startswith("250 ")
    assert os.path.exists(path)  # who made it keeps it


# -- several ---------------------------------------------------------------------------------


def test_several_addresses_and_one_stop(serve, path, inbox):
    ready = socket.create_server(LOOPBACK)
    server = serve(address=[LOOPBACK, path, ready, LOOPBACK])
    first, unix, third, fourth = server.addresses
    assert server.address == first
    assert server.port == first[1] > 0
    assert unix == (path,)
    assert third == ready.getsockname()
    assert len({first, third, fourth}) == 3
    idle = [UnixClient(path), *(Client(each) for each in (first, third, fourth))]
    for client in idle:
        client.hello()
    assert mail(path).startswith("250 ")
    for each in (first, third, fourth):
        with Client(each) as client:
            assert client.mail().startswith("250 ")
    assert len(inbox.messages) == 4
    server.stop(5)
    for client in idle:
        assert client.reply().startswith("421 4.3.2 ")
        client.close()
    assert not os.path.exists(path)
    for each in (first, third, fourth):
        with pytest.raises(ConnectionRefusedError):
            Client(each)


def test_all_or_none(path, no_leaks):
    with socket.create_server(LOOPBACK) as taken:
        with pytest.raises(OSError, match=r"(?i)in use"):
            make([path, taken.getsockname()])
        assert not os.path.exists(path)
        with socket.create_server(LOOPBACK) as probe:
            free = probe.getsockname()
        with pytest.raises(OSError, match=r"(?i)in use"):
            make([free, taken.getsockname()])
        with make(free):
            pass


@pytest.mark.parametrize("address", [[], None, 25, (), ("127.0.0.1",), [None], b"path"], ids=repr)
def test_no_address(no_leaks, address):
    with pytest.raises(ValueError, match="address"):
        make(address)


def test_addresses_are_known_after_the_end(no_leaks):
    server = make(LOOPBACK)
    addresses = server.addresses
    server.stop()
    assert server.addresses == addresses == [server.address]


# -- systemd ---------------------------------------------------------------------------------

PROGRAM = """
import os, sys
count = int(sys.argv[1])
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(count)
from smtpd_sync import cli
cli.main(["--systemd", "-q", "--hostname", "mx.example"])
"""


def activated(*listeners):
    """Run the command line as systemd would, with ``listeners`` as descriptors 3, 4, ..."""
    numbers = [listener.fileno() for listener in listeners]
    high = [os.dup(number) for number in numbers]

    def place():
        for index, number in enumerate(high):
            os.dup2(number, 100 + index)
        for index in range(len(high)):
            os.dup2(100 + index, 3 + index)

    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(len(listeners))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=place,
        close_fds=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    for number in high:
        os.close(number)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is of Linux")
def test_systemd_activation(no_leaks, path):
    tcp = socket.create_server(LOOPBACK)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(path)
    unix.listen()
    where = tcp.getsockname()
    with Client(where) as early, activated(tcp, unix) as process:  # it waits in the backlog
        tcp.close()
        unix.close()
        try:
            lines = [process.stdout.readline().decode().strip() for _ in range(2)]
            assert lines == [f"listening on 127.0.0.1:{where[1]}", f"listening on {path}"]
            assert early.mail().startswith("250 ")
            assert mail(path).startswith("250 ")
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert errors == b""
    assert os.path.exists(path)  # it is systemd's


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": "me"}],
    ids=repr,
)
def test_sockets_of_another_process_are_not_ours(monkeypatch, environment):
    for name in ("LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("me", str(os.getpid())))
    with pytest.raises(ValueError, match="systemd"):
        systemd_sockets()


@pytest.mark.parametrize("count", ["", "0", "-1", "x"])
def test_no_sockets_of_systemd(monkeypatch, count):
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(ValueError, match="systemd"):
        systemd_sockets()


def test_ready_made_socket_that_does_not_listen_is_refused():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="does not listen"):
            SMTPServer(sock, deliver=discard)


@pytest.mark.parametrize("port", [-1, 65_536, 70_000, "8025", None])
def test_port_that_cannot_be_is_refused(port):
    with pytest.raises(ValueError, match="a port is a number from 0 to 65535"):
        SMTPServer(("127.0.0.1", port), deliver=discard)
