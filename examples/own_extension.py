"""A row of your own in the table of extensions: X-PRIORITY, with a parameter of MAIL.

    python3 examples/own_extension.py [PORT]

The server says ``X-PRIORITY 1 9`` in its EHLO reply, takes ``MAIL FROM:<a@b.example>
X-PRIORITY=3``, answers 501 to a value that is not 1 to 9, and prints the priority of each message.
"""

import argparse

from smtpd_sync import Extension, Parameter, SMTPServer

X_PRIORITY = Extension(
    "X-PRIORITY",
    "1 9",
    parameters=(Parameter("MAIL", "X-PRIORITY", "[1-9]", octets=13),),
)


def deliver_envelope(envelope):
    """Print what came, and how urgent it is."""
    priority = envelope.sender_parameters.get("X-PRIORITY", "5")
    print(f"priority {priority}: {envelope.sender} -> {', '.join(envelope.recipients)}", flush=True)


def main():
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="An SMTP server with an extension of its own.")
    parser.add_argument("port", nargs="?", type=int, default=8025, help="default: 8025")
    port = parser.parse_args().port
    server = SMTPServer(
        ("127.0.0.1", port), deliver_envelope=deliver_envelope, extensions=[X_PRIORITY]
    )
    print(f"listening on 127.0.0.1:{server.port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
