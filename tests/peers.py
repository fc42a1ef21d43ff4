"""Real peers: a private HAProxy and a private Postfix, each in a directory of its own."""

import contextlib
import grp
import os
import pathlib
import pwd
import shutil
import signal
import smtplib
import socket
import subprocess

import pytest
from support import DEADLINE, until

HERE = pathlib.Path(__file__).resolve().parent
SBIN = "/usr/sbin:/usr/lib/postfix/sbin:/usr/libexec/postfix"


def free_port():
    """Give a port that was free a moment ago, for programs that cannot be told to take any."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def find(program):
    """Give the path of a program; skip the test where there is none."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def answers(port):
    """Tell whether something listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), DEADLINE).close()
    except ConnectionRefusedError:
        return False
    return True


class PortTaken(Exception):
    """Somebody was quicker to take the port that was free."""


def start(peer, directory, *arguments, **options):
    """Start a peer; again, at another port, where its own was taken meanwhile."""
    for attempt in range(3):
        place = directory / f"{peer.__name__.lower()}{attempt}"
        place.mkdir()
        try:
            return peer(place, *arguments, **options)
        except PortTaken as error:
            failure = error
    raise failure


class Peer:
    """A program that runs in the foreground until it is told to end."""

    def __init__(self, command, directory, **options):
        self.directory = directory
        self.output = directory / "output"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options
            )

    def wait_for(self, port):
        """Wait until it listens; `PortTaken` if it ends instead, as it does where it cannot."""

        def listening():
            if self.process.poll() is not None:
                raise PortTaken(self.log())
            return answers(port)

        try:
            until(listening, "the peer listens")
        except BaseException:
            self.stop()
            raise

    def log(self):
        """What it has said."""
        return self.output.read_text(errors="replace")

    def stop(self):
        """End it, in order."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class HAProxy(Peer):
    """HAProxy with two servers behind it."""

    def __init__(self, directory, one, two, send_proxy):
        program = find("haproxy")
        self.port = free_port()
        config = (HERE / "haproxy.cfg").read_text()
        for name, value in {
            "listen": f"127.0.0.1:{self.port}",
            "one": f"127.0.0.1:{one.port}",
            "two": f"127.0.0.1:{two.port}",
            "send_proxy": send_proxy,
        }.items():
            config = config.replace(f"{{{name}}}", value)
        path = directory / "haproxy.cfg"
        path.write_text(config)
        super().__init__([program, "-db", "-f", str(path)], directory)
        self.wait_for(self.port)


MAIN = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/mail.log
maillog_file_prefixes = {directory}
myhostname = postfix.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_host_lookup = native
lmtp_host_lookup = native
smtp_dns_support_level = disabled
smtpd_peername_lookup = no
smtputf8_enable = yes
strict_smtputf8 = no
alias_maps =
alias_database =
local_recipient_maps =
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_authorized_xforward_hosts = 127.0.0.0/8
default_transport = {transport}
relay_transport = {transport}
minimal_backoff_time = 300s
notify_classes =
smtp_tls_loglevel = 1
"""
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup   unix n - n 60 1 pickup
cleanup  unix n - n - 0 cleanup
qmgr     unix n - n 300 1 qmgr
tlsmgr   unix - - n 1000? 1 tlsmgr
rewrite  unix - - n - - trivial-rewrite
bounce   unix - - n - 0 bounce
defer    unix - - n - 0 bounce
trace    unix - - n - 0 bounce
verify   unix - - n - 1 verify
flush    unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp     unix - - n - - smtp
lmtp     unix - - n - - lmtp
error    unix - - n - - error
retry    unix - - n - - error
discard  unix - - n - - discard
anvil    unix - - n - 1 anvil
scache   unix - - n - 1 scache
postlog  unix-dgram n - n - 1 postlogd
"""
QUEUES = "active bounce corrupt defer deferred flush hold incoming private saved trace"


class Postfix(Peer):
    """Postfix that takes mail at ``port`` and sends it all by ``transport``.

    It needs root: its parts run as the user ``postfix``. ``options`` go into its main.cf.
    """

    def __init__(self, directory, transport, **options):
        find("postfix")
        if os.geteuid() != 0:
            pytest.skip("Postfix needs root to start")
        program = find("master")
        self.port = free_port()
        user, group = pwd.getpwnam("postfix"), grp.getgrnam("postdrop")
        for name in ("", "queue", "data", *(f"queue/{queue}" for queue in QUEUES.split())):
            (directory / name).mkdir(exist_ok=True)
        for name in ("queue/maildrop", "queue/public", "queue/pid"):
            (directory / name).mkdir()
        for path in [directory / "data", *(directory / "queue").iterdir()]:
            os.chown(path, user.pw_uid, user.pw_gid)
            path.chmod(0o700)
        for name, mode in (("maildrop", 0o1730), ("public", 0o2710)):
            os.chown(directory / "queue" / name, user.pw_uid, group.gr_gid)
            (directory / "queue" / name).chmod(mode)
        os.chown(directory / "queue/pid", 0, 0)
        (directory / "queue/pid").chmod(0o755)
        for path in (directory, *directory.parents):  # its parts must come to their queue
            if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        main = MAIN.format(directory=directory, transport=transport)
        main += "".join(f"{name} = {value}\n" for name, value in options.items())
        (directory / "main.cf").write_text(main)
        (directory / "master.cf").write_text(MASTER.format(port=self.port))
        command = [program, "-c", str(directory), "-d"]
        # In a session of its own: at its end it ends its process group.
        super().__init__(command, directory, start_new_session=True)
        self.wait_for(self.port)

    def log(self):
        """What it has logged."""
        with contextlib.suppress(OSError):
            return super().log() + (self.directory / "mail.log").read_text(errors="replace")
        return super().log()

    def send(self, data, recipients=("b@y.example",), mail=(), rcpt=(), helo="client.example"):
        """Hand it a message; it is taken when this returns."""
        with smtplib.SMTP("127.0.0.1", self.port, helo, timeout=DEADLINE) as client:
            client.sendmail("a@x.example", list(recipients), data, list(mail), list(rcpt))

    def logged(self, words):
        """Wait until it has logged ``words``."""
        return until(lambda: words in self.log() and self.log(), f"{words} in Postfix's log")
