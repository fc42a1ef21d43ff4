"""Options: each as a keyword, as a class attribute of the handler and of the server."""

import os

import pytest

import smtpd_sync
from smtpd_sync import Limits, SMTPHandler, SMTPServer, discard, future_release
from smtpd_sync.options import OPTIONS

ADDRESS = ("127.0.0.1", 0)
# Option -> a value that is not the default, and what cannot be one.
VALUES = {
    "hostname": ("mail.example", ["a b", "a\r\nb", "-", 42, "\u00fc.example"]),
    "banner": ("at your service", ["a\r\n250 b", "\u00fc", 42, "\x00"]),
    "tls": ("TLS", [42, "cert.pem", ("one",)]),
    "implicit_tls": (True, ["yes", 1, None]),
    "require_tls": (True, ["yes", 1, None]),
    "users": ({"ann": "sesame"}, [{"ann": ""}, {"": "sesame"}, {"ann": 42}, "ann"]),
    "mechanisms": (("PLAIN",), ["PLAIN", ["NONE"], 42]),
    "require_auth": (True, ["yes", 1, None]),
    "auth_require_tls": (False, ["no", 0, None]),
    "extensions": (("DSN", future_release(60)), ["DSN", ["NONE"], [42]]),
    "ignore_parameters": (True, ["yes", 1, None]),
    "sni": ("NAMES", ["mail.example", {"mail.example": 42}, {"a b": ("c.pem", None)}]),
    "proxy_protocol": (("10.0.0.0/8", "2001:db8::/32"), ["10.0.0.0/8", ["ten"], ["10.0.0.1/8"]]),
    "xclient": (("192.0.2.0/24",), ["192.0.2.0/24", [42.5], ["192.0.2.0/33"]]),
    "lmtp": (True, ["yes", 1, None]),
    "strict": (True, ["yes", 1]),
    "strict_pipelining": (False, ["no", 0]),
    "bare_newline": ("reject", ["ignore", None, 1]),
    "local_domains": (("y.example",), ["y.example", ["a b"], [42]]),
    "spool_directory": (os.curdir, ["/no/such/directory", __file__, 42]),
    "workers": (2, [0, -1, "2", 1.5, True, None]),
    "cpu_affinity": ("adaptive", ["always", 1, True]),
    "transcript": (True, ["yes", 1, None]),
    "limits": (Limits(message_size=1234), [42, None, {"message_size": 1}]),
    "trace": (False, ["no", 0, None]),
}


def test_every_option_is_tried_here():
    assert set(VALUES) == set(OPTIONS)


def options_with(name, certificate):
    """Give keywords that set option ``name`` to its value, with what it needs beside it."""
    made = {"TLS": certificate, "NAMES": {"mail.example": certificate}}
    value = VALUES[name][0]
    values = {name: made[value] if isinstance(value, str) and value in made else value}
    if name in ("implicit_tls", "require_tls", "sni"):
        values["tls"] = certificate
    if name in ("users", "mechanisms", "require_auth"):
        values = {"users": {"bob": "sesame"}, "auth_require_tls": False, **values}
    return values


def on_server(name, options):
    return SMTPServer(ADDRESS, deliver=discard, **options)


def on_server_subclass(name, options):
    server = type("Server", (SMTPServer,), options)
    return server(ADDRESS, deliver=discard)


def on_handler_subclass(name, options):
    handler = type("Handler", (SMTPHandler,), {**options, "deliver": staticmethod(discard)})
    return SMTPServer(ADDRESS, handler)


WAYS = [on_server, on_server_subclass, on_handler_subclass]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("way", WAYS)
def test_option_is_set_in_every_way(no_leaks, certificate, way, name):
    options = options_with(name, certificate)
    server = way(name, options)
    try:
        kept = [str(each) for each in server.proxy_protocol or server.xclient]
        kept = kept or [each.keyword for each in server.extensions]
        if kept:
            assert kept == [getattr(each, "keyword", each) for each in options[name]]
        else:
            assert getattr(server, name) == options[name]
    finally:
        server.stop()


EFFECTS = {
    "hostname": ([], "220 mail.example "),
    "banner": ([], "220 mx.example at your service"),
    "tls": (["EHLO c.example"], "STARTTLS"),
    "require_tls": (["EHLO c.example", "MAIL FROM:<a@x.example>"], "530 5.7.0 "),
    "strict": (["EHLO c.example", "MAIL FROM: <a@x.example>"], "501 "),
    "strict_pipelining": (["HELO c.example\r\nNOOP"], "250 mx.example"),
    "bare_newline": (
        [
            "EHLO c.example",
            "MAIL FROM:<a@x.example>",
            "RCPT TO:<b@y.example>",
            "DATA",
            "a\nb\r\n.",
        ],
        "550 5.6.11 ",
    ),
    "local_domains": (
        ["EHLO c.example", "MAIL FROM:<a@x.example>", "RCPT TO:<postmaster@y.example>"],
        "250 2.1.5 ",
    ),
    "limits": (["EHLO c.example"], "SIZE 1234"),
    "users": (["EHLO c.example"], "AUTH SCRAM-SHA-256 PLAIN LOGIN"),
    "mechanisms": (["EHLO c.example"], "AUTH PLAIN"),
    "require_auth": (["EHLO c.example", "MAIL FROM:<a@x.example>"], "530 5.7.0 "),
    "extensions": (["EHLO c.example"], "250-DSN"),
    "ignore_parameters": (["EHLO c.example", "MAIL FROM:<a@x.example> X-A=1"], "250 2.1.0 "),
    "lmtp": (["LHLO c.example"], "250-mx.example"),
}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("changed", [True, False])
def test_option_has_its_effect(no_leaks, connect, certificate, way, name, changed):
    options = {"hostname": "mx.example", "validate_recipient": lambda mailbox: False}
    if name == "bare_newline":
        del options["validate_recipient"]
    if changed:
        options.update(options_with(name, certificate))
    hook = options.pop("validate_recipient", None)
    server = way(name, options)
    server.configure(validate_recipient=hook)
    server.start()
    try:
        client = connect(server)
        reply = client.reply()
        lines, expected = EFFECTS[name]
        for line in lines:
            reply = client.ask(line)
        assert (expected in reply) is changed, reply
    finally:
        client.close()
        server.stop()


@pytest.mark.parametrize(
    ("name", "value"), [(name, bad) for name, (_, wrong) in VALUES.items() for bad in wrong]
)
@pytest.mark.parametrize("way", WAYS)
def test_value_that_cannot_be_is_a_value_error_that_names_the_option(no_leaks, way, name, value):
    with pytest.raises(ValueError, match=name):
        way(name, {name: value})


def test_keyword_wins_over_class_attributes(no_leaks):
    class Handler(SMTPHandler):
        banner = "of the handler"
        deliver = staticmethod(discard)

    class Server(SMTPServer):
        banner = "of the server"

    server = Server(ADDRESS, Handler, banner="of the keyword")
    server.stop()
    assert server.banner == "of the keyword"


def test_unknown_option_is_a_value_error_that_names_the_valid_ones(no_leaks):
    with pytest.raises(ValueError, match="hostnam") as caught:
        SMTPServer(ADDRESS, deliver=discard, hostnam="mx.example")
    for name in (*OPTIONS, "validate_recipient", "deliver"):
        assert name in str(caught.value)


def test_default_hostname_is_a_legal_name(serve, connect):
    server = serve(hostname="")
    assert server.hostname
    assert connect(server).reply().startswith(f"220 {server.hostname} ")


def test_defaults_are_those_of_the_table(no_leaks):
    server = SMTPServer(ADDRESS, deliver=discard)
    server.stop()
    for name, option in OPTIONS.items():
        if name not in ("hostname", "limits"):
            assert getattr(server, name) == option.default == getattr(SMTPServer, name), name


@pytest.mark.parametrize(
    "limit",
    [
        {"message_size": 0},
        {"message_size": -1},
        {"recipients": 0},
        {"command_line": 511},
        {"text_line": 999},
        {"command_timeout": 0},
        {"command_timeout": None},
        {"data_rate": "fast"},
        {"errors": True},
        {"connections": float("nan")},
    ],
    ids=str,
)
def test_limit_that_cannot_be_is_a_value_error_that_names_it(no_leaks, limit):
    (name,) = limit
    with pytest.raises(ValueError, match=name):
        SMTPServer(ADDRESS, deliver=discard, limits=Limits(**limit))


def test_no_limit_of_size(serve, connect, inbox):
    client = connect(serve(limits=Limits(message_size=None)))
    assert "250-SIZE 0\n" in client.hello()


def test_public_names_are_all_there():
    for name in smtpd_sync.__all__:
        assert hasattr(smtpd_sync, name), name


def test_one_option_table_serves_two_servers(serve, connect):
    first, second = serve(banner="first"), serve(banner="second")
    assert connect(first).reply().endswith(" first")
    assert connect(second).reply().endswith(" second")
    assert SMTPServer.banner == "ESMTP"
