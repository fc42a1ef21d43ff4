"""The manual is true: its code runs, its commands are accepted, its tables are those of the code.

A comment ``.. test: KIND [NAME]`` stands before a code block that needs more than to be read, and
``.. table-name: NAME`` before a table that is compared.
"""

import contextlib
import email.parser
import inspect
import json
import logging
import pathlib
import re
import shlex
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
import textwrap

import pytest
from peers import free_port
from support import DEADLINE, ROOT, Program, until

from smtpd_sync import (
    BATTERIES,
    Limits,
    SMTPHandler,
    SMTPServer,
    __all__,
    discard,
    envelope,
    hooks,
    queuecli,
    reply,
    session,
    webvisit,
)
from smtpd_sync.cli import parser
from smtpd_sync.command import VERBS
from smtpd_sync.compat import __main__ as codemod
from smtpd_sync.compat import adapter, handlers, smtpd, smtpdcli
from smtpd_sync.compat.codemod import convert
from smtpd_sync.extensions import EXTENSIONS, future_release
from smtpd_sync.faultkinds import COMMANDS, KINDS
from smtpd_sync.faults import Faults
from smtpd_sync.flags import DELIVERIES
from smtpd_sync.options import OPTIONS
from smtpd_sync.rules import rules
from smtpd_sync.sasl import MECHANISMS
from smtpd_sync.stats import COUNTERS
from smtpd_sync.testing import MailCatcher

README = (ROOT / "README.rst").read_text(encoding="utf-8")
MESSAGE = "Subject: hi\r\n\r\nHello\r\n"
SENDER, RECIPIENT = "ann@example.com", "bob@example.com"

BLOCK = re.compile(
    r"(?:^\.\. test: (?P<test>.+)\n\n)?"
    r"^\.\. code-block:: (?P<language>\S+)\n\n"
    r"(?P<code>(?:(?: {4}.*)?\n)+)",
    re.MULTILINE,
)
TABLE = re.compile(
    r"^\.\. table-name: (?P<name>\S+)\n\n(?P<ruler>=[= ]+)\n(?P<head>.+)\n(?P=ruler)\n"
    r"(?P<rows>(?:.+\n)+?)(?P=ruler)\n",
    re.MULTILINE,
)

# The blocks listen on a free port instead of theirs, and tell which.
PREAMBLE = """\
import smtpd_sync
begin = smtpd_sync.SMTPServer.__init__
def telling(self, address, *arguments, **options):
    begin(self, (address[0], 0), *arguments, **options)
    print(f"listening on 127.0.0.1:{self.port}", flush=True)
smtpd_sync.SMTPServer.__init__ = telling
"""

# What the blocks that serve must answer at RCPT, beside taking mail for RECIPIENT.
REFUSED = {
    "quick": {"bogus-bob@example.com": (550, b"5.1.1 no such mailbox")},
    "class": {"eve@example.com": (550, b"5.1.1 No such mailbox")},
}
GREETING = {"module": "my mail"}


def blocks():
    """Give (name of the test, its parts, language, code) of each code block."""
    for match in BLOCK.finditer(README):
        line = README.count("\n", 0, match.start("code")) + 1
        parts = (match["test"] or "").split()
        code = textwrap.dedent(match["code"]).strip("\n") + "\n"
        yield f"line {line}", parts, match["language"], code


BLOCKS = list(blocks())


def of_kind(*kinds):
    return [
        pytest.param(parts[1:], code, id=" ".join([place, *parts]))
        for place, parts, _, code in BLOCKS
        if parts and parts[0] in kinds
    ]


def lone(kind):
    """Give the code of the only block of a kind."""
    ((_, code),) = (parameters.values for parameters in of_kind(kind))
    return code


def table(name):
    """Give the rows of a table, each a list of cells; what is cut over lines is joined."""
    (match,) = (m for m in TABLE.finditer(README) if m["name"] == name)
    columns = [(m.start(), m.end()) for m in re.finditer("=+", match["ruler"])]
    columns[-1] = (columns[-1][0], None)
    rows = []
    for line in match["rows"].splitlines():
        cells = [line[start:end].strip() for start, end in columns]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells)]
    return rows


def literals(cell):
    return re.findall(r"``(.+?)``", cell)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A directory of its own, with nothing but what the blocks say."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def certified(directory):
    """The certificate that the manual makes, the way it makes it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(lone("certificate"), shell=True, check=True, capture_output=True)
    return directory


# -- code ----------------------------------------------------------------------------------------


def test_every_python_block_is_run_by_some_test():
    kinds = {
        parts[0] if parts else None for _, parts, language, _ in BLOCKS if language == "python"
    }
    assert kinds == {"run", "serve", "tls-client", "moving", "pytest"}
    assert len(BLOCKS) == README.count(".. code-block::") >= 18
    assert README.count(".. test: ") == sum(bool(parts) for _, parts, _, _ in BLOCKS)


@pytest.mark.parametrize(("name", "code"), of_kind("run"))
def test_block_runs(name, code, directory):
    (directory / "block.py").write_text(code, encoding="utf-8")
    with Program("-W", "error", "block.py", cwd=directory) as program:
        assert (program.finish(), program.errors) == (0, "")


@pytest.mark.parametrize(("name", "code"), of_kind("pytest"))
def test_block_tests(name, code, directory):
    (directory / "test_block.py").write_text(code, encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = ("-m", "pytest", "-q", "-W", "error", "-p", "smtpd_sync.pytest_plugin")
    with Program(*command, cwd=directory) as program:
        status, output = program.finish(), program.remaining().decode()
        assert status == 0, output
        assert f"{code.count('def test_')} passed" in output


@pytest.mark.parametrize(("name", "code"), of_kind("serve"))
def test_block_serves(name, code, directory, request):
    name = name[0]
    if name == "starttls":
        request.getfixturevalue("certified")
    (directory / "block.py").write_text(PREAMBLE + code, encoding="utf-8")
    with Program("-u", "block.py", cwd=directory) as program:
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=DEADLINE) as client:
            if name in GREETING:
                assert program.line() == GREETING[name]
            client.ehlo()
            assert client.has_extn("starttls") == (name == "starttls")
            for recipient, answer in REFUSED.get(name, {}).items():
                client.mail(SENDER)
                assert client.rcpt(recipient) == answer
                client.rset()
            assert client.sendmail(SENDER, [RECIPIENT], MESSAGE) == {}
        program.signal(signal.SIGTERM)
        status = program.finish()
        assert status == (0 if name == "stop" else -signal.SIGTERM), program.errors
        if "print(" in code:
            assert f"{SENDER} ['{RECIPIENT}']" in program.remaining().decode()


def test_client_of_the_manual_talks_tls(certified, serve, inbox):
    server = serve(tls=("cert.pem", "key.pem"), require_tls=True, trace=False)
    exec(lone("tls-client").replace("8025", str(server.port)), {})
    assert inbox.wait() == [(SENDER, [RECIPIENT], MESSAGE.encode())]


def test_implicit_tls_of_the_manual(certified, serve, inbox):
    server = serve(tls=("cert.pem", "key.pem"), implicit_tls=True)
    context = ssl.create_default_context(cafile="cert.pem")
    with smtplib.SMTP_SSL("127.0.0.1", server.port, context=context) as client:
        client.sendmail(SENDER, [RECIPIENT], MESSAGE)
    assert inbox.wait()


def test_dict_get_is_the_trap_that_the_manual_says(serve, connect):
    users = {"bob@example.com": "Bob"}
    client = connect(serve(validate_recipient=users.get))
    client.hello()
    client.ask("MAIL FROM:<a@x.example>")
    assert client.ask("RCPT TO:<eve@example.com>").startswith("250 ")
    assert client.ask("RCPT TO:<bob@example.com>").startswith("451 4.3.0 ")


# -- coming from elsewhere -----------------------------------------------------------------------


def moving(*what):
    """Give the code of a block ``.. test: moving ...``."""
    ((_, code),) = (p.values for p in of_kind("moving") if p.values[0] == list(what))
    return code


OURS_FOR_THEIRS = """\
import sys
from smtpd_sync.compat import asyncore, smtpd
sys.modules.update(asyncore=asyncore, smtpd=smtpd)
"""


def moved(name, when, head=""):
    """Run a block, and send it mail; give the replies that differ, and what it prints."""
    port = free_port()
    code = head + moving(name, when).replace("8025", str(port))
    with Program("-W", "error", "-u", "-c", code) as program:

        def connected():
            assert program.process.poll() is None, (program.finish(), program.errors)
            with contextlib.suppress(OSError):
                return smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE)

        with until(connected, "a server") as client:
            assert client.sendmail(SENDER, [RECIPIENT], MESSAGE) == {}
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail(SENDER, [RECIPIENT], "spam\r\n")
            client.helo()
            client.mail(SENDER)
            code, _ = client.rcpt("eve@elsewhere.example")
        program.signal(signal.SIGTERM)
        program.finish()
        return refused.value.smtp_code, code, program.remaining().decode().split()


PRINTED = [SENDER, f"['{RECIPIENT}']"]
PRINTED = [*PRINTED, "Subject:", "hi", "Hello", *PRINTED, "spam"]


@pytest.mark.parametrize("when", ["before", "after", "own"])
def test_move_from_smtpd(when, directory):
    head = OURS_FOR_THEIRS if when == "before" else ""
    assert moved("smtpd", when, head) == (554, 250, PRINTED)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="smtpd is no more")
def test_move_from_smtpd_begins_with_what_was_true(directory):
    old = "import warnings\nwarnings.simplefilter('ignore')\n"
    assert moved("smtpd", "before", old) == (554, 250, PRINTED)


def test_move_from_smtpd_is_what_the_codemod_does():
    assert convert(moving("smtpd", "before")) == (moving("smtpd", "after"), [])


@pytest.mark.parametrize("when", ["after", "own"])
def test_move_from_aiosmtpd(when, directory):
    assert moved("aiosmtpd", when) == (554, 550, PRINTED)


@pytest.mark.interop
def test_move_from_aiosmtpd_begins_with_what_is_true(directory):
    pytest.importorskip("aiosmtpd", reason="aiosmtpd is not installed")
    assert moved("aiosmtpd", "before") == (554, 550, PRINTED)


def test_move_from_aiosmtpd_takes_async_away():
    before, after = moving("aiosmtpd", "before"), moving("aiosmtpd", "after")
    (old,), (new,) = (re.findall("^class .+?^(?=[A-Z])", c, re.M | re.S) for c in (before, after))
    assert old.replace("async def", "def") == new


def test_commands_of_the_compat_package_are_accepted(monkeypatch):
    *codemods, last = (shlex.split(line)[1:] for line in lone("compat-commands").splitlines())
    for dash, module, *arguments in codemods:
        assert (dash, module) == ("-m", "smtpd_sync.compat")
        assert codemod.parser().parse_args(arguments).paths == ["src", "tests"]
    assert last[:2] == ["-m", "smtpd_sync.compat.smtpd"]
    monkeypatch.setattr(sys, "argv", last[1:])
    options = smtpdcli.parseargs()
    assert (options.setuid, options.classname) == (False, "DebuggingServer")
    assert (options.localhost, options.localport) == ("localhost", 1025)


def test_names_that_one_comes_from_are_those_of_the_code():
    left = "".join(row[0] for row in table("from-smtpd"))
    assert {name for name in smtpd.__all__ if name not in left} == {"SMTPChannel"}
    left = "".join(row[0] for row in table("from-aiosmtpd"))
    about = {f"session.{name}" for name in ("peer", "host_name", "extended_smtp", "ssl")}
    about |= {f"envelope.{name}" for name in vars(adapter.Envelope())}
    assert {name for name in {*handlers.HOOKS, *handlers.INSTEAD, *about} if name not in left} == (
        set()
    )


PLAIN = ("None", '""', "bytes", "with", "return False", "python3 -m smtpd_sync")


@pytest.mark.parametrize("name", ["from-smtpd", "from-aiosmtpd"])
def test_names_that_one_comes_to_are_those_of_the_code(name):
    """Of a dotted name the last is looked up, of a call what is called."""
    arguments = ", ".join(hooks.HOOKS.values()).split(", ")
    known = {*__all__, *OPTIONS, *hooks.HOOKS, *arguments, *Limits._fields, "handler"}
    for each in (SMTPServer, SMTPHandler, session.Session(), envelope.Envelope):
        known.update(dir(each))
    for _, cell in table(name):
        for literal in literals(cell):
            if literal in PLAIN or literal.endswith(".decode()"):
                continue
            found = re.match(r"(?:raise |self\.|limits=|deliver=)*([\w.]+)", literal)
            assert found[1].rpartition(".")[2] in known, literal


# -- commands ------------------------------------------------------------------------------------


def command_lines():
    """Give the arguments of every ``python3 -m smtpd_sync`` of the manual."""
    for place, _, language, code in BLOCKS:
        for line in code.splitlines():
            words = shlex.split(line, comments=True) if language == "sh" else []
            if "smtpd_sync" in words:
                start = words.index("smtpd_sync")
                assert words[start - 1] == "-m"
                yield pytest.param(words[start + 1 :], id=f"{place} {' '.join(words[start:])}")


@pytest.mark.parametrize("arguments", list(command_lines()))
def test_command_line_is_accepted(arguments, directory, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mymail", raising=False)
    for parameters in of_kind("serve"):
        parts, code = parameters.values
        for name in parts[1:]:  # the block is that file
            pathlib.Path(name).write_text(code, encoding="utf-8")
    pathlib.Path("faults.json").write_text("[]", encoding="utf-8")
    if arguments[:1] == ["queue"]:
        queuecli.parser().parse_args(arguments[1:])
    else:
        parser().parse_args(arguments)
    sys.modules.pop("mymail", None)


def test_handler_of_the_manual_serves_from_the_command_line(directory):
    (code,) = (p.values[1] for p in of_kind("serve") if p.values[0][1:] == ["mymail.py"])
    (directory / "mymail.py").write_text(code, encoding="utf-8")
    command = ("-m", "smtpd_sync", "--handler", "mymail:Handler", "127.0.0.1:0")
    with Program(*command, cwd=directory) as program:
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=DEADLINE) as client:
            client.sendmail(SENDER, [RECIPIENT], MESSAGE)
        program.signal(signal.SIGINT)
        assert program.finish() == 0


def test_the_two_commands_are_one_line_each():
    for kind in ("start-command", "test-command"):
        assert lone(kind).count("\n") == 1


@pytest.mark.interop
@pytest.mark.parametrize("line", lone("clients").splitlines(), ids=lambda line: line[:40])
def test_client_line_sends(line, serve, inbox, directory):
    for tool in ("swaks", "curl"):
        if tool in line and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    line = line.replace("8025", str(serve().port)).replace("python3", shlex.quote(sys.executable))
    done = subprocess.run(line, shell=True, capture_output=True, timeout=DEADLINE)
    assert done.returncode == 0, done
    ((sender, recipients, data),) = inbox.wait()
    assert (sender, recipients) == (SENDER, [RECIPIENT])
    assert email.parser.BytesParser().parsebytes(data)["Subject"]


def test_every_flag_is_in_the_manual():
    flags = {flag for action in parser()._actions for flag in action.option_strings}
    flags -= {"-h", "-v", "-q"}
    assert {flag for flag in flags if f"``{flag}``" not in README} <= {"--handler", "--max-size"}
    assert "--handler" in README
    assert "--max-size" in README


# -- tables --------------------------------------------------------------------------------------


def test_hooks_are_those_of_the_code():
    rows = [
        (literals(hook)[0], "".join(literals(arguments))) for hook, arguments, *_ in table("hooks")
    ]
    assert rows == list(hooks.HOOKS.items())


def test_hooks_refuse_as_the_manual_says():
    replies = {
        "validate_host": reply.HOST_REFUSED,
        "validate_helo": reply.NAME_REFUSED,
        "authenticate": reply.AUTH_FAILED,
        "secret": reply.AUTH_FAILED,
        "validate_sender": reply.SENDER_REFUSED,
        "validate_recipient": reply.RECIPIENT_REFUSED,
        "validate_data": reply.DATA_REFUSED,
        **dict.fromkeys(hooks.DELIVERIES, reply.MESSAGE_REFUSED),
        "open_sink": reply.NO_STORAGE,
        "verify": reply.NO_VERIFY,
        "expand": reply.NOT_IMPLEMENTED,
    }
    said = {literals(row[0])[0]: row[-1] for row in table("hooks")}
    assert said.pop("worker_started") == said.pop("session_ended") == "nothing"
    assert said == {name: f"{each.code} {each.status}" for name, each in replies.items()}


def test_options_are_those_of_the_code():
    rows = {literals(name)[0]: literals(default)[0] for name, default, *_ in table("options")}
    assert list(rows) == list(OPTIONS)
    for name, default in rows.items():
        assert eval(default, {"Limits": Limits}) == OPTIONS[name].default
        assert eval(default, {"Limits": Limits}) == getattr(SMTPServer, name)


def test_options_have_the_flags_that_the_manual_says():
    flags = {action.dest: action.option_strings for action in parser()._actions}
    flags.update(
        tls=flags["tls_cert"] + flags["tls_key"], limits=flags["max_size"], users=flags["auth"]
    )
    for name, _, said, _ in table("options"):
        assert literals(said) == flags[literals(name)[0]]


def test_choices_are_in_the_manual():
    for name, _, _, text in table("options"):
        option = OPTIONS[literals(name)[0]]
        for choice in option.choices:
            assert choice == option.default or f'``"{choice}"``' in text


def test_limits_are_those_of_the_code():
    said = {}
    for name, default, _ in table("limits"):
        number = re.match(r"[0-9,]+", default)
        said[literals(name)[0]] = int(number[0].replace(",", "")) if number else eval(default[2:-2])
    assert said == Limits()._asdict()
    assert list(said) == list(Limits._fields)


def test_stats_are_those_of_the_code():
    said = {literals(name)[0]: text for name, text in table("stats")}
    with SMTPServer(("127.0.0.1", 0), deliver=discard) as server:
        assert list(said) == list(server.stats())
    assert {name: said[name] for name in COUNTERS} == COUNTERS


def test_log_lines_are_as_the_manual_shows(caplog):
    caplog.set_level(logging.INFO)
    server = SMTPServer(("127.0.0.1", 0), deliver=discard).start()
    with server, smtplib.SMTP(*server.address) as client:
        client.sendmail(SENDER, [RECIPIENT, "carol@example.com"], MESSAGE)
    logged = [record.getMessage() for record in caplog.records if record.name == "smtpd_sync"]
    shown = lone("log-lines").splitlines()
    assert len(shown) == len(logged) == 2
    for one, other in zip(shown, logged):
        assert re.findall(r"(\w+)=", one) == re.findall(r"(\w+)=", other)
    assert "recipients=bob@example.com,carol@example.com " in logged[0]


def test_promises_are_held_by_tests_that_are_there():
    rows = table("promises")
    assert len(rows) >= 20
    for *_, held in rows:
        module, name = re.fullmatch(r"``(\w+)``: (.+)", held).groups()
        source = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
        assert f"def test_{name.replace(' ', '_')}(" in source


def test_limits_are_answered_as_the_manual_says():
    said = {literals(name)[0]: text for name, _, text in table("limits")}
    for name, *replies in (
        ("message_size", reply.MESSAGE_TOO_BIG, reply.FAR_TOO_BIG),
        ("recipients", reply.TOO_MANY_RECIPIENTS),
        ("command_line", reply.LINE_TOO_LONG),
        ("auth_line", reply.AUTH_LINE_TOO_LONG),
        ("text_line", reply.TEXT_LINE_TOO_LONG),
        ("command_timeout", reply.TIMED_OUT),
        ("data_rate", reply.TIMED_OUT),
        ("errors", reply.TOO_MANY_ERRORS),
        ("junk_commands", reply.TOO_MANY_COMMANDS),
        ("auth_failures", reply.TOO_MANY_FAILURES),
    ):
        for each in replies:
            assert f"{each.code} {each.status}" in said[name]


def test_extensions_are_those_of_the_code():
    rows = {literals(keyword)[0]: rfc for keyword, rfc, _ in table("extensions")}
    assert rows.pop("AUTH") == "RFC 4954"
    assert rows == {each.keyword: each.rfc for each in rules(starttls=True).extensions}


def test_more_extensions_are_those_of_the_code():
    known = {**EXTENSIONS, "FUTURERELEASE": future_release(1)}
    rows = {literals(row[0])[0]: row for row in table("more-extensions")}
    assert {name: row[1] for name, row in rows.items()} == {
        name: extension.rfc for name, extension in known.items()
    }
    for name, row in rows.items():
        told = {word for word in literals(row[3]) if word not in ("MAIL", "RCPT")}
        assert told == {parameter.keyword for parameter in known[name].parameters}


def test_mechanisms_are_those_of_the_code():
    (rows,) = re.findall(r"^EXTERNAL .+?(?=^=)", README, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^([A-Z][A-Z0-9-]+) ", rows, re.MULTILINE) == list(MECHANISMS)


def test_configuration_of_the_proxy_is_the_one_that_was_tested():
    template = (ROOT / "tests" / "haproxy.cfg").read_text(encoding="utf-8")
    here = {"one": "10.0.0.1:10025", "two": "10.0.0.2:10025"}
    text = template.format(listen=":25", send_proxy="send-proxy-v2", **here)
    assert textwrap.indent(text.rstrip("\n"), "    ") in README


def test_commands_are_those_of_the_code():
    (text,) = re.findall(r"^Commands: (.+?)\.\n\n", README, re.MULTILINE | re.DOTALL)
    assert re.split(r",\s+", text) == list(VERBS)


def test_public_names_are_in_the_manual():
    untold = {name for name in __all__ if not re.search(rf"\b{name}\b", README)}
    assert untold <= {"Envelope", "Peer", "Session", "TLS", "__version__"}


def test_no_line_of_the_manual_is_wider_than_a_screen():
    wide = [line for line in README.splitlines() if len(line) > 110 and line[:4].strip()]
    assert wide == []


def test_batteries_are_those_of_the_code():
    rows = table("batteries")
    names = {re.match(r"``(\w+)", battery)[1] for battery, *_ in rows}
    assert names == {*BATTERIES, "discard"}
    flags = {literal for _, flag, _ in rows for literal in literals(flag)}
    known = {flag for names, _ in DELIVERIES for flag in names}
    known |= {"--spool", "--web"}
    assert flags == known


def test_requests_of_the_page_are_those_of_the_code():
    told = {literals(request)[0] for request, *_ in table("web")}
    known = {f"{method} {path.pattern}" for path, methods in webvisit.ROUTES for method in methods}
    shown = {"ID": webvisit.ONE.rpartition("/")[2], "NUMBER": "([0-9]{1,6})"}
    for name, pattern in shown.items():
        known = {request.replace(pattern, name) for request in known}
    assert told == known


def test_faults_are_those_of_the_code():
    rows = table("faults")
    methods = [re.match(r"``(\w+)\((.*)\)``", method) for method, *_ in rows]
    assert [match[1] for match in methods] == list(KINDS)
    for match, (_, data, _) in zip(methods, rows):
        entry = json.loads(literals(data)[0])
        assert match[1] in entry
        Faults([entry])
        arguments = str(inspect.signature(getattr(Faults, match[1])))
        for name in re.findall(r"\*?\w+(?=[,=)])", f"{match[2]})"):
            assert name in arguments
    (said,) = re.findall(r"^- The commands are (.+?)\. A fault", README, re.MULTILINE | re.DOTALL)
    assert re.findall(r"[A-Z]+", re.sub(r"\(.*?\)", "", said, flags=re.DOTALL)) == list(COMMANDS)


def test_catcher_has_what_the_manual_says_and_nothing_else():
    told = {re.match(r"\w+", word)[0] for cell, *_ in table("catcher") for word in literals(cell)}
    faults = {name for name in dir(Faults) if not name.startswith("_")}
    with MailCatcher() as mail:
        there = {name for name in dir(mail) if name[0] != "_"}
        assert told - faults == there - faults - {"began", "keep"}  # for the server to call
        assert told & faults == {"fail", "drop"}
    keywords = inspect.signature(MailCatcher).parameters
    told = {literals(cell)[0] for cell, _ in table("catcher-options") if literals(cell)}
    assert told == set(keywords) - {"port", "host", "seed", "options"}


def test_message_has_what_the_manual_says_and_nothing_else():
    (text,) = re.findall(r"^A message has the envelope, (.+?):\n", README, re.MULTILINE | re.DOTALL)
    told = {*literals(text), *(re.match(r"``(\w+)", row[0])[1] for row in table("caught"))}
    with MailCatcher() as mail:
        with smtplib.SMTP(mail.host, mail.port, timeout=DEADLINE) as client:
            client.sendmail(SENDER, [RECIPIENT], MESSAGE)
        assert told == {name for name in dir(mail.messages[0]) if name[0] != "_"}
