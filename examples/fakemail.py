"""A dummy mail server for tests of programs that send mail: it takes all and keeps it as files.

    python3 examples/fakemail.py [--host HOST] [--port PORT] [--path DIRECTORY]
                                 [--log FILE] [--onlylog] [--background]

The first message for bob@example.com is the file ``bob@example.com.1`` in DIRECTORY, the second
``bob@example.com.2``, and so on; each recipient gets a file. It is there when the client hears 250.
No file is ever written over, and no name leads out of DIRECTORY. Where a message cannot be saved
the client hears 451, or 452 if the disk is full.

With ``--background`` it goes to the background once it listens, and the process id is all that it
prints on standard output, so that a test can end it::

    pid=$(python3 examples/fakemail.py --path mail --log fakemail.log --background)
    ...
    kill $pid

Ctrl-C and SIGTERM end it.
"""

import argparse
import logging
import os
import signal
import sys
import threading

from smtpd_sync import Files, SMTPServer

log = logging.getLogger("fakemail")


def log_received(envelope):
    """Log what came, for each recipient; as the whole delivery, it keeps nothing."""
    for recipient in dict.fromkeys(envelope.recipients):
        log.info("received for %r from %r", str(recipient), str(envelope.sender))


class LoggedFiles(Files):
    """Files that tell what they are called."""

    thread = threading.local()

    def draft(self, envelope, recipients):
        """Begin a file; while a message is delivered, remember it."""
        draft = super().draft(envelope, recipients)
        getattr(self.thread, "drafts", []).append(draft)
        return draft

    def deliver_envelope(self, envelope):
        """Store a message, and log where."""
        log_received(envelope)
        # The file of a single recipient was begun before the mail data came.
        self.thread.drafts = [envelope.sink] if hasattr(envelope.sink, "path") else []
        try:
            super().deliver_envelope(envelope)
            for draft in self.thread.drafts:
                log.info("saved as %r", draft.path)
        finally:
            del self.thread.drafts


def go_to_background():
    """Go on in a process of its own, with no terminal; the one that was started ends."""
    sys.stdout.flush()
    between = os.fork()
    if between:
        os._exit(os.waitpid(between, 0)[1] != 0)
    os.setsid()
    # The leader of a session could get a terminal; its child cannot.
    pid = os.fork()
    if pid:
        os.write(1, b"%d\n" % pid)
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


def main():
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="An SMTP server that keeps mail for tests.")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", default=8025, type=int, help="default: 8025; 0: a free one")
    parser.add_argument("--path", default=".", help="directory of the files; default: this one")
    parser.add_argument("--log", metavar="FILE", help="append log lines to it, not to stdout")
    parser.add_argument("--onlylog", action="store_true", help="log what comes, and save nothing")
    parser.add_argument("--background", action="store_true", help="go to the background")
    arguments = parser.parse_args()
    if arguments.background and not hasattr(os, "fork"):
        parser.error("--background: this system cannot fork")
    where = {"filename": arguments.log, "encoding": "utf-8"} if arguments.log else {}
    try:
        logging.basicConfig(
            **(where or {"stream": sys.stdout}), format="%(asctime)s %(message)s", level="INFO"
        )
        logging.getLogger("smtpd_sync").setLevel(logging.WARNING)
        files = None if arguments.onlylog else LoggedFiles(arguments.path)
        server = SMTPServer(
            (arguments.host, arguments.port),
            **({"deliver": files} if files else {"deliver_envelope": log_received}),
        )
    except (OSError, OverflowError, ValueError) as error:
        parser.error(str(error))
    host, port = server.address
    place = f"{f'[{host}]' if ':' in host else host}:{port}"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    # In the background, standard output is for the process id.
    print(
        f"listening on {place}", file=sys.stderr if arguments.background else sys.stdout, flush=True
    )
    if arguments.background:
        go_to_background()
    log.info("fakemail started at %s, process %d", place, os.getpid())
    server.serve_forever()
    log.info("fakemail stopped")


if __name__ == "__main__":
    main()
