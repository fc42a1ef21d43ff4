"""A server for tests, in a thread of its own, as many test suites have one."""

import asyncore
import smtpd
import smtplib
import threading
from email import message_from_string
from email.utils import parseaddr


class FakeServer(smtpd.SMTPServer, threading.Thread):
    def __init__(self, address):
        threading.Thread.__init__(self, name="fake server")
        smtpd.SMTPServer.__init__(self, address, None, decode_data=True)
        self.port = self.socket.getsockname()[1]
        self.active = False
        self.box = []

    def process_message(self, peer, mailfrom, rcpttos, data):
        message = message_from_string(data)
        if parseaddr(message["From"])[1] != mailfrom:
            return f"553 {mailfrom} is not who wrote this"
        self.box.append((mailfrom, rcpttos, message))
        return None

    def run(self):
        self.active = True
        while self.active and asyncore.socket_map:
            asyncore.loop(timeout=0.1, count=1)
        asyncore.close_all()

    def stop(self):
        self.active = False
        self.join()


def main():
    server = FakeServer(("127.0.0.1", 0))
    server.start()
    client = smtplib.SMTP("127.0.0.1", server.port, timeout=20)
    client.ehlo("client.example")
    print(sorted(client.esmtp_features.items()))
    for sender in ("ann@example.com", "eve@example.com"):
        text = "From: Ann <ann@example.com>\nTo: bob@example.com\nSubject: hi\n\n.dot\n\nbye\n"
        try:
            print(client.sendmail(sender, ["bob@example.com", "carol@example.com"], text))
        except smtplib.SMTPDataError as error:
            print(error)
    for command in ("noop", "expn all", "vrfy bob", "help", "rset", "starttls", "mail", "data"):
        print(command, client.docmd(command))
    print(client.quit())
    server.stop()
    for sender, recipients, message in server.box:
        print(sender, recipients, message.items(), repr(message.get_payload()))
    print(server.is_alive(), asyncore.socket_map)


if __name__ == "__main__":
    main()
