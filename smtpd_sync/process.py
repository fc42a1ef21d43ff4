"""What a program does to be a service: its user, its files, when it ends. For the command line."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, Optional

from .durable import Path

if TYPE_CHECKING:
    from .server import SMTPServer

__all__ = ["become", "end_after", "raise_descriptors", "write_file"]

LOOK = 0.05  # seconds between two looks at the counts


def become(name: str) -> None:
    """Give up root for the user ``name``, with all its groups and no others, for good."""
    try:
        import grp
        import pwd
    except ImportError:
        raise ValueError("--user: this platform has no users to become") from None
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"--user: there is no user {name!r}") from None
    groups = [group.gr_gid for group in grp.getgrall() if name in group.gr_mem]
    try:
        os.setgroups([user.pw_gid, *groups])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError:
        raise ValueError(f"--user: only root may become {name!r}") from None
    os.environ.update(HOME=user.pw_dir, USER=name, LOGNAME=name)


def write_file(path: Path, text: str) -> None:
    """Write a small file that others wait for: it is there whole, or not yet."""
    temporary = f"{os.fspath(path)}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(temporary, path)


def end_after(server: SMTPServer, messages: Optional[int], seconds: Optional[float]) -> None:
    """Stop the server after so many messages, or so many seconds, what comes first."""
    end = monotonic() + seconds if seconds is not None else float("inf")

    def watch() -> None:
        while not server.stopping:
            left = end - monotonic()
            if left <= 0 or (messages is not None and server.stats()["messages"] >= messages):
                server.stop()
                return
            pause.wait(min(left, LOOK))

    pause = threading.Event()
    threading.Thread(target=watch, name="smtpd-end", daemon=True).start()


def raise_descriptors(connections: int) -> None:
    """Let the process open what its connections and their hooks need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 64
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
