"""A server with AUTH LOGIN, that ends with the session: handle_accept and found_terminator."""

import asyncore
import base64
import smtpd
import sys


class LoginChannel(smtpd.SMTPChannel):
    USER, PASSWORD = 10, 11

    def __init__(self, server, conn, addr):
        smtpd.SMTPChannel.__init__(self, server, conn, addr, decode_data=True)
        self.user = None

    def smtp_EHLO(self, arg):
        if not arg:
            self.push("501 Syntax: EHLO hostname")
            return
        self.seen_greeting = arg
        self.extended_smtp = True
        self.push("250-login.example")
        self.push("250 AUTH LOGIN")

    def smtp_AUTH(self, arg):
        if arg.upper() != "LOGIN":
            self.push("504 LOGIN is all there is")
            return
        self.smtp_state = self.USER
        self.push("334 " + base64.b64encode(b"Username:").decode())

    def smtp_MAIL(self, arg):
        if self.user is None:
            self.push("530 who are you?")
        else:
            smtpd.SMTPChannel.smtp_MAIL(self, arg)

    def smtp_QUIT(self, arg):
        smtpd.SMTPChannel.smtp_QUIT(self, arg)
        raise asyncore.ExitNow

    def found_terminator(self):
        if self.smtp_state not in (self.USER, self.PASSWORD):
            smtpd.SMTPChannel.found_terminator(self)
            return
        text = base64.b64decode("".join(self.received_lines)).decode()
        self.received_lines = []
        if self.smtp_state == self.USER:
            self.name = text
            self.smtp_state = self.PASSWORD
            self.push("334 " + base64.b64encode(b"Password:").decode())
            return
        self.smtp_state = self.COMMAND
        if text == "secret":
            self.user = self.name
            self.push("235 hello " + self.name)
        else:
            self.push("535 no")


class LoginServer(smtpd.SMTPServer):
    def handle_accept(self):
        conn, addr = self.accept()
        LoginChannel(self, conn, addr)

    def process_message(self, peer, mailfrom, rcpttos, data):
        print(mailfrom, rcpttos)
        for line in data.splitlines():
            print("|", line)


def main():
    server = LoginServer(("127.0.0.1", int(sys.argv[1])), None)
    host, port = server.socket.getsockname()
    print(f"listening on {host}:{port}", flush=True)
    try:
        asyncore.loop(timeout=30.0)
    except asyncore.ExitNow:
        print("end", len(asyncore.socket_map) > 0)
    asyncore.close_all()


if __name__ == "__main__":
    main()
