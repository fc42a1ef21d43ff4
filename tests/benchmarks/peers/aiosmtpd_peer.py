"""aiosmtpd, accepting and discarding: ``aiosmtpd_peer.py PORT [slow=1] [cert=FILE key=FILE]``."""

import asyncio
import sys
import time

from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP


class Slow:
    """Blocks, as a hook of old does that was written for a thread or a process of its own."""

    async def handle_DATA(self, server, session, envelope):
        time.sleep(0.02)
        return "250 OK"


def tls(options):
    if "cert" not in options:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options["cert"], options["key"])
    return context


async def serve(port, **options):
    handler = Slow() if "slow" in options else Sink()
    context = tls(options)
    loop = asyncio.get_running_loop()
    how = {"hostname": "mx.example", "data_size_limit": None, "tls_context": context}
    # It would make an event loop for each connection if it were not given this one.
    how["loop"] = loop
    # By host and port: on a socket of another's making asyncio does not set TCP_NODELAY, and each
    # reply would wait 40 ms.
    server = await loop.create_server(
        lambda: SMTP(handler, **how),
        "127.0.0.1",
        port,
        backlog=4096,
    )
    await server.serve_forever()


asyncio.run(serve(int(sys.argv[1]), **dict(word.split("=", 1) for word in sys.argv[2:])))
