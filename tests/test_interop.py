"""Mail programs of the system: swaks, curl and msmtp."""

import shutil
import subprocess

import pytest
from support import DEADLINE

pytestmark = pytest.mark.interop


def program(name):
    """Give a function that runs a mail program; skip where the program is missing."""

    def run(*arguments, status=0, data=b""):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        done = subprocess.run(
            [name, *arguments], input=data, capture_output=True, timeout=DEADLINE, check=False
        )
        text = (done.stdout + done.stderr).decode(errors="replace")
        assert (done.returncode == 0) is (status == 0), text
        return text

    return run


swaks = program("swaks")
curl = program("curl")
msmtp = program("msmtp")


@pytest.fixture(params=["plain", "starttls", "implicit"])
def secured(request, serve, certificate):
    """Serve in each of three ways: (how, server)."""
    options = {
        "plain": {},
        "starttls": {"tls": certificate, "require_tls": True},
        "implicit": {"tls": certificate, "implicit_tls": True},
    }
    return request.param, serve(**options[request.param])


def check(inbox, how, recipients):
    """Check the one message that came; give its data."""
    ((sender, to, data),) = inbox.wait()
    assert sender == "a@x.example"
    assert to == list(recipients)
    assert (b" with ESMTPS id " in data) is (how != "plain")
    assert data.count(b"\n") == data.count(b"\r\n") == data.count(b"\r")
    return data


# -- swaks -----------------------------------------------------------------------------------


def swaks_arguments(server, how, *more):
    flags = {"plain": [], "starttls": ["--tls"], "implicit": ["-tlsc"]}
    return [
        *("--server", "127.0.0.1", "--port", str(server.port), "--helo", "client.example"),
        *("--from", "a@x.example", *flags[how], *more),
    ]


def need_tls_in_swaks(how):
    if how == "plain" or shutil.which("swaks") is None:
        return
    done = subprocess.run(["swaks", "--support"], capture_output=True, timeout=DEADLINE)
    if b"*** TLS not available" in done.stdout or b"TLS supported" not in done.stdout:
        pytest.skip("swaks was installed without TLS")


def test_swaks(secured, inbox):
    how, server = secured
    need_tls_in_swaks(how)
    text = swaks(*swaks_arguments(server, how, "--to", "b@y.example", "--body", ".dot\n..\nend"))
    assert "250 2.0.0" in text
    assert b"\r\n.dot\r\n..\r\nend\r\n" in check(inbox, how, ["b@y.example"])


def test_swaks_with_several_recipients(secured, inbox):
    how, server = secured
    need_tls_in_swaks(how)
    swaks(*swaks_arguments(server, how, "--to", "b@y.example,c@y.example,postmaster@z.example"))
    check(inbox, how, ["b@y.example", "c@y.example", "postmaster@z.example"])


def test_swaks_with_pipelining(secured, inbox):
    how, server = secured
    need_tls_in_swaks(how)
    recipients = [f"b{number}@y.example" for number in range(20)]
    swaks(*swaks_arguments(server, how, "--pipeline", "--to", ",".join(recipients)))
    check(inbox, how, recipients)


def test_swaks_with_an_attachment(secured, inbox, tmp_path):
    how, server = secured
    need_tls_in_swaks(how)
    (tmp_path / "octets.bin").write_bytes(bytes(range(256)) * 1000)
    swaks(
        *swaks_arguments(server, how, "--to", "b@y.example"),
        *("--attach", f"@{tmp_path}/octets.bin"),
    )
    assert len(check(inbox, how, ["b@y.example"])) > 300_000


def test_swaks_hears_a_refusal(serve):
    server = serve(validate_recipient=lambda mailbox: False)
    text = swaks(*swaks_arguments(server, "plain", "--to", "b@y.example"), status=1)
    assert "550 5.1.1" in text


# -- curl ------------------------------------------------------------------------------------


def curl_arguments(server, how, certificate, recipients=("b@y.example",)):
    scheme = "smtps" if how == "implicit" else "smtp"
    return [
        *("--silent", "--show-error", f"{scheme}://127.0.0.1:{server.port}/client.example"),
        *(["--ssl-reqd"] if how == "starttls" else []),
        *("--cacert", certificate[0], "--mail-from", "a@x.example"),
        *(word for recipient in recipients for word in ("--mail-rcpt", recipient)),
    ]


UNIX_MESSAGE = b"Subject: unix\nTo: b@y.example\n\n.dot\n..two\n.\nend\n"


def test_curl_sends_a_unix_file(secured, inbox, certificate, tmp_path):
    how, server = secured
    (tmp_path / "mail").write_bytes(UNIX_MESSAGE)
    curl(*curl_arguments(server, how, certificate), "-T", str(tmp_path / "mail"))
    data = check(inbox, how, ["b@y.example"])
    # An old curl ends the file's last line, LF and all, once more: one empty line is its own.
    assert data.startswith(b"Received: ")
    assert data.rstrip(b"\r\n").endswith(UNIX_MESSAGE.rstrip().replace(b"\n", b"\r\n"))


def test_curl_sends_a_file_with_crlf(secured, inbox, certificate, tmp_path):
    how, server = secured
    message = UNIX_MESSAGE.replace(b"\n", b"\r\n")
    (tmp_path / "mail").write_bytes(message)
    curl(*curl_arguments(server, how, certificate), "-T", str(tmp_path / "mail"))
    assert check(inbox, how, ["b@y.example"]).endswith(message)


def test_curl_with_several_recipients(secured, inbox, certificate, tmp_path):
    how, server = secured
    recipients = [f"b{number}@y.example" for number in range(5)]
    (tmp_path / "mail").write_bytes(b"x" * 70 + b"\r\n")
    curl(*curl_arguments(server, how, certificate, recipients), "-T", str(tmp_path / "mail"))
    check(inbox, how, recipients)


def test_curl_sends_a_large_file(secured, inbox, certificate, tmp_path):
    how, server = secured
    message = b"".join(b".%070d\r\n" % number for number in range(50_000))
    (tmp_path / "mail").write_bytes(message)
    curl(*curl_arguments(server, how, certificate), "-T", str(tmp_path / "mail"))
    assert check(inbox, how, ["b@y.example"]).endswith(message)


def test_curl_hears_a_refusal(serve, certificate, tmp_path):
    server = serve(deliver=lambda sender, recipients, data: False)
    (tmp_path / "mail").write_bytes(b"x\r\n")
    arguments = curl_arguments(server, "plain", certificate)
    curl(*arguments, "-T", str(tmp_path / "mail"), status=1)


def test_curl_asks_vrfy(serve):
    server = serve(verify=lambda text: f"<{text}@y.example>")
    url = f"smtp://127.0.0.1:{server.port}/client.example"
    assert "<jo@y.example>" in curl("--silent", "--show-error", url, "--mail-rcpt", "jo")


# -- msmtp -----------------------------------------------------------------------------------


def msmtp_arguments(server, how, certificate):
    tls = {
        "plain": ["--tls=off"],
        "starttls": ["--tls=on", "--tls-starttls=on"],
        "implicit": ["--tls=on", "--tls-starttls=off"],
    }
    return [
        *("--file=/dev/null", "--host=localhost", f"--port={server.port}", "--auth=off"),
        *("--from=a@x.example", "--domain=client.example", *tls[how]),
        *([] if how == "plain" else [f"--tls-trust-file={certificate[0]}"]),
    ]


@pytest.mark.parametrize("recipients", [["b@y.example"], ["b@y.example", "c@y.example"]])
def test_msmtp(secured, inbox, certificate, recipients):
    how, server = secured
    msmtp(*msmtp_arguments(server, how, certificate), *recipients, data=UNIX_MESSAGE)
    data = check(inbox, how, recipients)
    assert data.endswith(b"\r\n\r\n.dot\r\n..two\r\n.\r\nend\r\n")


def test_msmtp_hears_a_refusal(serve, certificate):
    server = serve(validate_sender=lambda mailbox: False)
    arguments = msmtp_arguments(server, "plain", certificate)
    text = msmtp(*arguments, "b@y.example", data=UNIX_MESSAGE, status=1)
    assert "5.7.1" in text


def test_msmtp_asks_for_server_information(secured, certificate):
    how, server = secured
    text = msmtp(*msmtp_arguments(server, how, certificate), "--serverinfo")
    assert "PIPELINING" in text
