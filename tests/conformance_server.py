"""A server for black-box conformance suites: ``python conformance_server.py DIRECTORY [PORT]``.

It is ``mx.test``, takes mail for every address of example.com, offers STARTTLS with a throw-away
certificate, limits messages to 1 MiB, and drops each message as a file into DIRECTORY, with its
envelope beside it as JSON.
"""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

from smtpd_sync import Limits, SMTPHandler, SMTPServer


class Drop(SMTPHandler):
    """Drops each message as a file."""

    directory = pathlib.Path()
    numbers = itertools.count(1)

    def validate_recipient(self, mailbox):
        return mailbox.domain == "example.com"

    def deliver(self, sender, recipients, data):
        path = self.directory / f"{next(self.numbers):06}.eml"
        envelope = {"mail_from": sender, "rcpt_tos": recipients}
        path.with_name(path.name + ".env").write_text(json.dumps(envelope))
        hidden = path.with_name("." + path.name)
        hidden.write_bytes(data)
        hidden.rename(path)


def certificate(directory):
    """Make a self-signed certificate for mx.test with the openssl command."""
    key, cert = f"{directory}/key.pem", f"{directory}/cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subprocess.run(
        [*command.split(), "-subj", "/CN=mx.test", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


def main():
    Drop.directory = pathlib.Path(sys.argv[1])
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with (
        tempfile.TemporaryDirectory() as directory,
        SMTPServer(
            ("127.0.0.1", port),
            Drop,
            hostname="mx.test",
            tls=certificate(directory),
            limits=Limits(message_size=1_048_576),
            trace=False,
            users={"test": "secret"},
            mechanisms=("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5"),
            extensions=("DSN",),
        ) as server,
    ):
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
