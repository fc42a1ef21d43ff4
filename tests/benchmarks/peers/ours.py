"""This package, accepting and discarding: ``ours.py PORT [OPTION=VALUE ...]``.

No argparse and nothing else that costs time at start: that is measured, too.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))))

from smtpd_sync import Limits, SMTPServer, discard


def slow(sender, recipients, data):
    """Block, as a hook does that asks a database."""
    import time

    time.sleep(0.02)


options = dict(word.split("=", 1) for word in sys.argv[2:])
SMTPServer(
    ("127.0.0.1", int(sys.argv[1])),
    hostname="mx.example",
    deliver=slow if "slow" in options else discard,
    # Loads of 10,000 connections and messages of 50 MiB are not what the defaults are for.
    limits=Limits(connections=10_000, message_size=None),
    workers=int(options.get("workers", 1)),
    cpu_affinity=options.get("cpu_affinity"),
    tls=(options["cert"], options["key"]) if "cert" in options else None,
).serve_forever()
