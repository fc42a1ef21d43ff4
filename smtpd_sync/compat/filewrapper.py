"""A file that looks like a socket, for `asyncore`."""

from __future__ import annotations

import os
import socket
from typing import Optional

__all__ = ["file_wrapper"]


class file_wrapper:
    """A descriptor that looks like a socket; it is a copy of the one given."""

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)

    def recv(self, size: int) -> bytes:
        """Read."""
        return os.read(self.fd, size)

    def send(self, data: bytes) -> int:
        """Write."""
        return os.write(self.fd, data)

    read, write = recv, send

    def getsockopt(self, level: int, optname: int, buflen: Optional[int] = None) -> int:
        """Tell that there is no error."""
        if (level, optname) != (socket.SOL_SOCKET, socket.SO_ERROR) or buflen:
            raise NotImplementedError("a file has no options")
        return 0

    def fileno(self) -> int:
        """Give the descriptor."""
        return self.fd

    def close(self) -> None:
        """Close it, once."""
        descriptor, self.fd = self.fd, -1
        if descriptor >= 0:
            os.close(descriptor)
