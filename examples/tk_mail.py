"""Raise a dialog for each message, once for each of its recipients, and turn some mail away.

    python3 examples/tk_mail.py [HOST [PORT]]

It needs a display and Python's ``tkinter`` (on Debian: ``apt-get install python3-tk``). It listens
on 127.0.0.1, port 8025, unless told otherwise. It refuses hosts ``192.168.1.*`` with 554, the
sender ``denied`` of any domain, and recipients whose local part begins with ``bogus``. OK, Return
and Escape close a dialog. Ctrl-C ends the program.

Tk may be used by one thread alone, and a hook must not wait for a user: his client would time out.
So the hooks put messages in a queue, and Tk's thread looks into it now and then.
"""

import argparse
import queue
import signal
import time
import tkinter
from tkinter import ttk

from smtpd_sync import Reject, SMTPServer

WAITING = 1000  # messages; who sends more before the user has looked is told to try again
SHOWN = 4000  # octets of a message
PERIOD = 50  # milliseconds

arrived = queue.Queue(WAITING)


def validate_host(address):
    """Accept everyone except those spammers on 192.168.1.*."""
    if address.startswith("192.168.1."):
        raise Reject(554, "your domain is not allowed to post, spammers!", "5.7.1")


def validate_sender(mailbox):
    """Accept mail from anyone except the user 'denied'; the null sender has no local part."""
    if mailbox.local == "denied":
        raise Reject(550, f"mailbox {mailbox.local} denied", "5.7.1")


def validate_recipient(mailbox):
    """Refuse recipients that begin with 'bogus'."""
    if mailbox.local.startswith("bogus"):
        raise Reject(550, f"mailbox {mailbox.local} denied", "5.1.1")


def printable(text):
    """Show control characters, and those that turn the direction of text, as U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def deliver(sender, recipients, data):
    """Hand a message over to Tk's thread, in the client's thread."""
    text = data[:SHOWN].decode("utf-8", "replace").replace("\r\n", "\n")
    rest = f"\n[{len(data) - SHOWN} more octets]" if len(data) > SHOWN else ""
    head = printable(f"From {sender or '<>'}  {time.ctime()}")
    titles = [printable(f"To: {recipient}") for recipient in dict.fromkeys(recipients)]
    try:
        arrived.put_nowait((titles, head, printable(text) + rest))
    except queue.Full:
        raise Reject(452, "too many messages wait to be looked at", "4.3.1") from None


class Dialogs:
    """One dialog after the other; used by Tk's thread alone."""

    def __init__(self, root):
        self.root = root
        self.titles, self.head, self.text = [], "", ""
        self.dialog = None
        self.waiting = tkinter.StringVar(root)
        self.stopping = False

    def look(self):
        """See what has come; called again and again, which lets Python handle signals, too."""
        self.root.after(PERIOD, self.look)
        if self.stopping:
            self.root.quit()
            return
        if self.dialog is None and not self.titles:
            try:
                self.titles, self.head, self.text = arrived.get_nowait()
            except queue.Empty:
                return
        if self.dialog is None:
            self.show(self.titles.pop(0))
        more = arrived.qsize() + len(self.titles)
        self.waiting.set(f"{more} more" if more else "")

    def show(self, title):
        """Raise a dialog for one recipient."""
        self.dialog = dialog = tkinter.Toplevel(self.root, padx=12, pady=12)
        dialog.title(title)
        dialog.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("<Return>", "<Escape>"):
            dialog.bind(key, self.close)
        ttk.Label(dialog, text=title, font="TkHeadingFont", wraplength=600).grid(sticky="w")
        ttk.Label(dialog, text=self.head, wraplength=600).grid(sticky="w", pady=(2, 8))
        text = tkinter.Text(dialog, width=72, height=16, wrap="char", relief="flat", padx=8, pady=8)
        text.insert("1.0", self.text)
        text.configure(state="disabled")
        text.grid(sticky="nsew")
        scroll = ttk.Scrollbar(dialog, command=text.yview)
        scroll.grid(row=2, column=1, sticky="ns")
        text.configure(yscrollcommand=scroll.set)
        ttk.Label(dialog, textvariable=self.waiting).grid(row=3, sticky="w", pady=(12, 0))
        ok = ttk.Button(dialog, text="OK", command=self.close, default="active")
        ok.grid(row=3, columnspan=2, pady=(12, 0))
        dialog.columnconfigure(0, weight=1)
        dialog.rowconfigure(2, weight=1)
        ok.focus_set()

    def close(self, event=None):
        """Forget the dialog; the next comes when it is looked for."""
        self.dialog.destroy()
        self.dialog = None

    def stop(self, number, frame):
        """Ask for the end, in a signal handler; a dialog that is open does not hinder it."""
        self.stopping = True


def main():
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="An SMTP server that shows what it gets.")
    parser.add_argument("host", nargs="?", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("port", nargs="?", default=8025, type=int, help="default: 8025")
    arguments = parser.parse_args()
    try:
        root = tkinter.Tk(className="tk_mail")
    except tkinter.TclError as error:
        parser.error(str(error))
    root.withdraw()
    dialogs = Dialogs(root)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, dialogs.stop)
    try:
        server = SMTPServer(
            (arguments.host, arguments.port),
            validate_host=validate_host,
            validate_sender=validate_sender,
            validate_recipient=validate_recipient,
            deliver=deliver,
            trace=False,  # a field less to read
        )
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen on {arguments.host}, port {arguments.port}: {error}")
    host, port = server.address
    with server.start():
        print(f"listening on {f'[{host}]' if ':' in host else host}:{port}", flush=True)
        dialogs.look()
        root.mainloop()


if __name__ == "__main__":
    main()
