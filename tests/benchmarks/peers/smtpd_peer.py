"""The standard library's smtpd of Python 3.11 and before: ``smtpd_peer.py PORT [slow=1]``.

Start it with ``-W ignore``: its modules warn that they are going to go.
"""

import asyncore
import smtpd
import sys
import time


class Server(smtpd.SMTPServer):
    def process_message(self, peer, mailfrom, rcpttos, data, **kwargs):
        if "slow=1" in sys.argv:
            time.sleep(0.02)


server = Server(("127.0.0.1", int(sys.argv[1])), None, data_size_limit=0, decode_data=False)
server.socket.listen(4096)  # with its own 5, twenty clients wait for seconds
asyncore.loop(use_poll=True)
