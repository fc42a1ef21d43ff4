"""Stores of one file a message: what they write, that nothing is half there, and nothing lost."""

import contextlib
import gc
import mailbox
import os
import pathlib
import re
import stat
import sys
import threading
import time
import unicodedata

import pytest
from storing import (
    LARGE,
    MAIL,
    UNIX,
    Faults,
    body,
    envelope_of,
    every_fault,
    files,
    flood,
    front,
    kinds,
    left,
    mounted,
    remount,
    send,
    token_of,
)
from support import until

from smtpd_sync import Limits, Peer, Reject, SMTPHandler, SMTPServer
from smtpd_sync.durable import Draft
from smtpd_sync.store import OLD, Files, Maildir, Memory, Message, unique_name

posix = pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
THREE = ("b@y.example", "c@y.example", "d@z.example")


def new(directory):
    """The messages of a Maildir, oldest first; fails if anything else is there."""
    found = files(directory)
    assert {os.path.dirname(path) for path in found} <= {"new"}, sorted(found)
    return [found[path] for path in sorted(found, key=place)]


def place(path):
    return [int(digits) for digits in re.findall("[0-9]+", path)[:4]]


def plain(directory):
    """The messages of a directory of files, in the order of their numbers; nothing is hidden."""
    found = files(directory)
    assert not [path for path in found if path.startswith(".")], sorted(found)
    return [found[path] for path in sorted(found, key=lambda path: int(path.rpartition(".")[2]))]


@pytest.fixture
def session(serve, connect):
    """Open a session with a server of a store: ``session(store)``."""

    def make(store, **options):
        client = connect(serve(deliver=store, trace=False, **options))
        client.hello()
        return client

    return make


# -- Maildir ---------------------------------------------------------------------------------


def test_maildir_holds_the_message_with_its_fields(session, tmp_path):
    client = session(Maildir(tmp_path / "mail"))
    assert send(client).startswith("250 2.0.0 OK ")
    assert new(tmp_path / "mail") == [front() + UNIX]


def test_maildir_is_read_by_the_library(session, tmp_path):
    client = session(Maildir(tmp_path / "mail"))
    for number in range(5):
        assert send(client, body(f"m-{number}")).startswith("250 ")
    box = mailbox.Maildir(tmp_path / "mail", create=False)
    assert len(box) == 5
    found = {box.get_bytes(key) for key in box.keys()}  # noqa: SIM118
    sent = {front() + body(f"m-{number}").replace(b"\r\n", b"\n") for number in range(5)}
    assert found == sent
    assert {message["Return-Path"] for message in box} == {"<a@x.example>"}


def test_trace_field_is_behind_those_of_the_store(serve, connect, tmp_path):
    server = serve(deliver=Maildir(tmp_path))
    assert connect(server).mail().startswith("250 ")
    (octets,) = new(tmp_path)
    assert octets.startswith(front() + b"Received: from client.example ")
    assert b"\r" not in octets


def test_first_line_cannot_fold_into_the_fields(session, tmp_path):
    client = session(Maildir(tmp_path))
    assert send(client, b" Bcc: evil\r\n\r\nx\r\n").startswith("250 ")
    assert new(tmp_path) == [front() + b"\n Bcc: evil\n\nx\n"]


def test_null_sender_and_each_recipient_once(session, tmp_path):
    client = session(Maildir(tmp_path))
    recipients = ["c@y.example", "b@y.example", "c@Y.example", "b@y.example"]
    assert send(client, sender="", recipients=recipients).startswith("250 ")
    assert new(tmp_path) == [front("", ["c@y.example", "b@y.example"]) + UNIX]


def test_internationalized_addresses_are_utf8(session, tmp_path):
    client = session(Maildir(tmp_path))
    sender, recipient = "j\u00fc@x.example", "b\u00e4@y.example"
    assert client.ask(f"MAIL FROM:<{sender}> SMTPUTF8").startswith("250 ")
    assert client.ask(f"RCPT TO:<{recipient}>").startswith("250 ")
    client.ask("DATA")
    client.send(MAIL.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    assert client.reply().startswith("250 ")
    assert new(tmp_path) == [front(sender, [recipient]) + UNIX]


def test_binary_mail_is_kept_octet_by_octet(session, tmp_path):
    octets = b"X: y\r\n\r\n\0\r\r\n\n\r"
    client = session(Maildir(tmp_path))
    assert client.ask("MAIL FROM:<a@x.example> BODY=BINARYMIME").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    client.send(b"BDAT %d LAST\r\n" % len(octets) + octets)
    assert client.reply().startswith("250 ")
    assert new(tmp_path) == [front(end="\r\n") + octets]


def test_chunks_may_split_a_line_end(session, tmp_path):
    client = session(Maildir(tmp_path))
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    for part in (b"X: y\r", b"\n\r", b"\n", b"a\r\nb\r"):
        client.send(b"BDAT %d\r\n" % len(part) + part)
        assert client.reply().startswith("250 ")
    client.send(b"BDAT 1 LAST\r\n\n")
    assert client.reply().startswith("250 ")
    assert new(tmp_path) == [front() + b"X: y\n\na\nb\n"]


def test_bare_carriage_return_at_the_very_end_is_kept(session, tmp_path):
    client = session(Maildir(tmp_path), bare_newline="keep")
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    client.send(b"BDAT 6 LAST\r\na\r\nb\rc"[:-1])
    client.send(b"\r")
    assert client.reply().startswith("250 ")
    assert new(tmp_path) == [front() + b"a\nb\r\r"]


def test_empty_message_is_one(session, tmp_path):
    client = session(Maildir(tmp_path))
    client.ask("MAIL FROM:<a@x.example>")
    client.ask("RCPT TO:<b@y.example>")
    assert client.ask("BDAT 0 LAST").startswith("250 ")
    assert new(tmp_path) == [front()]


@posix
def test_maildir_is_its_owners_alone(session, tmp_path):
    path = tmp_path / "above" / "mail"
    mask = os.umask(0)
    try:
        client = session(Maildir(path))
        assert send(client).startswith("250 ")
    finally:
        os.umask(mask)
    modes = {
        os.path.relpath(each, tmp_path): stat.S_IMODE(each.stat().st_mode)
        for each in (path.parent, path, *path.iterdir(), *(path / "new").iterdir())
    }
    assert sorted(modes.values()) == [0o600, *[0o700] * 5], modes


def test_maildir_that_is_there_is_used_as_it_is(session, tmp_path):
    box = mailbox.Maildir(tmp_path / "mail")
    key = box.add(b"Subject: old\n\nx\n")
    client = session(Maildir(str(tmp_path / "mail")))
    assert send(client).startswith("250 ")
    assert sorted(message["Subject"] for message in box) == ["hi", "old"]
    assert box.get_bytes(key) == b"Subject: old\n\nx\n"


def test_path_holds_wherever_the_process_goes(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Maildir("mail")
    client = session(store)
    monkeypatch.chdir("/")
    assert send(client).startswith("250 ")
    assert len(new(tmp_path / "mail")) == 1
    assert repr(store) == f"Maildir({str(tmp_path / 'mail')!r})"


def test_names_are_those_of_the_maildir_description(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a/b:c.example")
    names = [unique_name() for _ in range(1_000)]
    assert len(set(names)) == 1_000
    pattern = rf"[0-9]+\.M[0-9]{{6}}P{os.getpid()}Q[0-9]+\.a\\057b\\072c\.example"
    assert all(re.fullmatch(pattern, name) for name in names)


def test_large_mail_streams_to_the_file(serve, connect, tmp_path):
    server = serve(deliver=Maildir(tmp_path), trace=False, limits=Limits(memory=1, spool=1))
    client = connect(server)
    client.to_data()
    client.send(LARGE)
    written = tmp_path / "tmp"
    until(lambda: sum(map(len, files(written).values())) > len(LARGE) // 2, "mail data in tmp")
    assert server.stats()["memory"] == server.stats()["spool"] == 0
    assert list((tmp_path / "new").iterdir()) == []
    client.send(b".\r\n")
    assert client.reply().startswith("250 ")
    assert new(tmp_path) == [front() + LARGE.replace(b"\r\n", b"\n")]


def end_rset(client):
    client.send(b"BDAT 5\r\nhello")
    assert client.reply().startswith("250 ")
    assert client.ask("RSET").startswith("250 ")


def end_quit(client):
    client.send(b"BDAT 5\r\nhello")
    assert client.reply().startswith("250 ")
    assert client.ask("QUIT").startswith("221 ")


def end_close(client):
    client.ask("DATA")
    client.send(LARGE)
    client.close()


def end_too_big(client):
    client.ask("DATA")
    client.send(LARGE * 2 + b".\r\n")
    assert client.reply().startswith("552 ")


@pytest.mark.parametrize("end", [end_rset, end_quit, end_close, end_too_big])
@pytest.mark.parametrize("kind", [Maildir, Files])
def test_message_that_never_ends_leaves_nothing(session, tmp_path, kind, end):
    client = session(kind(tmp_path), limits=Limits(message_size=len(LARGE) + 1_000))
    assert client.ask("MAIL FROM:<a@x.example>").startswith("250 ")
    assert client.ask("RCPT TO:<b@y.example>").startswith("250 ")
    end(client)
    until(lambda: not files(tmp_path), "the end of the file")


def age(path, seconds):
    path.write_bytes(b"half a mess")
    os.utime(path, (time.time() - seconds,) * 2)


def test_old_temporary_files_are_removed_and_young_ones_stay(tmp_path):
    Maildir(tmp_path)
    for name, seconds in (("old", OLD + 60), ("young", OLD - 60), ("now", 0)):
        age(tmp_path / "tmp" / name, seconds)
    age(tmp_path / "new" / "mail", OLD * 2)
    age(tmp_path / "cur" / "mail", OLD * 2)
    Maildir(tmp_path)
    assert sorted(files(tmp_path)) == ["cur/mail", "new/mail", "tmp/now", "tmp/young"]


def test_file_that_is_read_or_written_now_and_then_is_not_old(tmp_path):
    Maildir(tmp_path)
    for name, times in (("read", (0, -OLD * 2)), ("written", (-OLD * 2, 0))):
        path = tmp_path / "tmp" / name
        path.touch()
        os.utime(path, tuple(time.time() + each for each in times))
    Maildir(tmp_path)
    assert sorted(files(tmp_path)) == ["tmp/read", "tmp/written"]


STORES = {"Maildir": Maildir, "Files": Files}


@pytest.mark.parametrize("kind", STORES.values(), ids=STORES)
@pytest.mark.parametrize(
    "path", ["", b"mail", None, 7, "a\0b", ["mail"], pathlib.Path(__file__) / "below"], ids=repr
)
def test_path_that_is_none_says_so(kind, path):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}"):
        kind(path)


@pytest.mark.parametrize("kind", STORES.values(), ids=STORES)
def test_path_that_is_a_file_says_so(kind, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*file.*cannot be made"):
        kind(tmp_path / "file")


# -- Files -----------------------------------------------------------------------------------


def test_file_for_each_recipient_with_the_octets_as_they_came(session, tmp_path):
    client = session(Files(tmp_path))
    assert send(client, recipients=THREE).startswith("250 2.0.0 OK ")
    assert files(tmp_path) == {
        f"{each}.1": front(recipients=[each], end="\r\n") + MAIL for each in THREE
    }


def test_files_count_up_for_each_recipient(session, tmp_path):
    client = session(Files(tmp_path))
    for recipients in (["b@y.example"], ["c@y.example"], ["b@y.example", "c@y.example"]):
        assert send(client, recipients=recipients).startswith("250 ")
    names = ["b@y.example.1", "b@y.example.2", "c@y.example.1", "c@y.example.2"]
    assert sorted(files(tmp_path)) == names


def test_recipient_who_is_named_twice_has_one_file(session, tmp_path):
    client = session(Files(tmp_path))
    assert send(client, recipients=["b@y.example", "b@Y.EXAMPLE"]).startswith("250 ")
    assert files(tmp_path) == {"b@y.example.1": front(end="\r\n") + MAIL}


def test_one_file_for_all_where_the_name_has_no_recipient(session, tmp_path):
    client = session(Files(tmp_path, "{sender}-{n:03}.eml"))
    assert send(client, recipients=THREE).startswith("250 ")
    assert files(tmp_path) == {
        "a@x.example-001.eml": front(recipients=THREE, end="\r\n") + MAIL,
    }


def test_name_may_have_id_and_time(session, tmp_path):
    client = session(Files(tmp_path, "{time}-{id}"))
    reply = send(client)
    (name,) = files(tmp_path)
    assert re.fullmatch(rf"[0-9]{{8}}T[0-9]{{6}}Z-{reply.split()[-1]}", name)


def test_files_are_never_overwritten_after_a_restart(session, tmp_path):
    for round in range(1, 4):
        store = Files(tmp_path)
        client = session(store)
        for number in range(5):
            assert send(client, body(f"m-{round}-{number}")).startswith("250 ")
        assert len(files(tmp_path)) == 5 * round
    tokens = [token_of(octets) for octets in plain(tmp_path)]
    assert tokens == [f"m-{round}-{number}" for round in range(1, 4) for number in range(5)]


def test_files_of_other_processes_are_passed_over(session, tmp_path):
    client = session(Files(tmp_path))
    assert send(client).startswith("250 ")
    for number in range(2, 8):
        (tmp_path / f"b@y.example.{number}").write_bytes(b"theirs")
    (tmp_path / "b@y.example.8").mkdir()
    for _ in range(3):
        assert send(client).startswith("250 ")
    ours = front(end="\r\n") + MAIL
    found = files(tmp_path)
    assert [n for n in range(1, 20) if found.get(f"b@y.example.{n}") == ours] == [1, 9, 10, 11]
    assert [found[f"b@y.example.{n}"] for n in range(2, 8)] == [b"theirs"] * 6


def test_two_stores_at_one_path_lose_nothing(serve, tmp_path):
    servers = [serve(deliver=Files(tmp_path), trace=False) for _ in range(2)]
    tokens = []
    threads = [
        threading.Thread(
            target=lambda server=server, at=at: tokens.extend(
                flood(server.address, 3, 10, prefix=f"s{at}")
            )
        )
        for at, server in enumerate(servers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 60
    assert sorted(files(tmp_path), key=lambda name: int(name.rpartition(".")[2])) == [
        f"b@y.example.{number}" for number in range(1, 61)
    ]
    assert sorted(token_of(octets) for octets in plain(tmp_path)) == sorted(tokens)


def test_id_that_is_there_already_is_tried_again_with_another(tmp_path):
    store = Files(tmp_path, "{id}")
    (tmp_path / "id4711").write_bytes(b"theirs")
    with pytest.raises(Reject) as caught:
        store.deliver_envelope(envelope_of())
    assert caught.value.reply.code == 451
    assert files(tmp_path) == {"id4711": b"theirs"}


def test_file_of_one_recipient_streams_and_those_of_several_are_copied(session, tmp_path):
    client = session(Files(tmp_path))
    for recipients, hidden in ((THREE[:1], 1), (THREE, 0)):
        client.ask("MAIL FROM:<a@x.example>")
        for each in recipients:
            client.ask(f"RCPT TO:<{each}>")
        client.send(b"BDAT %d\r\n" % len(LARGE) + LARGE)
        assert client.reply().startswith("250 ")
        found = files(tmp_path)
        assert [path.startswith(".") for path in found].count(True) == hidden
        assert client.ask("BDAT 0 LAST").startswith("250 ")
    ours = {
        f"{each}.{number}": front(recipients=[each], end="\r\n") + LARGE
        for each, number in zip((*THREE, THREE[0]), (1, 1, 1, 2))
    }
    assert files(tmp_path) == ours


def test_old_hidden_files_are_removed_and_those_of_others_stay(tmp_path):
    Files(tmp_path)
    young, old = (tmp_path / f".smtpd_sync-{unique_name()}" for _ in range(2))
    age(young, OLD - 60)
    age(old, OLD + 60)
    age(tmp_path / ".others", OLD + 60)
    age(tmp_path / "b@y.example.1", OLD + 60)
    Files(tmp_path)
    assert sorted(files(tmp_path)) == [".others", young.name, "b@y.example.1"]


def test_name_that_cannot_be_says_why(tmp_path):
    for name in ("mail", "../{n}", "{who}{n}", None):
        with pytest.raises(ValueError, match=r"^Files: "):
            Files(tmp_path / "mail", name)
    assert not (tmp_path / "mail").exists()


HOSTILE = [
    '"../../etc/passwd"@x.example',
    '"../../../../../../../../tmp/evil"@x.example',
    '"/etc/passwd"@x.example',
    '"a/b"@x.example',
    '"a\\\\b"@x.example',
    '".hidden"@x.example',
    '"..."@x.example',
    '" "@x.example',
    '"a\\"b"@x.example',
    "-rf@x.example",
    "con@x.example",
    "aux.b@x.example",
    "Jo@x.example",
    "jo@x.example",
    "JO@x.example",
    f"{'l' * 64}@{'.'.join(['d' * 63] * 3)}.{'d' * 60}",
    f"{'l' * 63}m@{'.'.join(['d' * 63] * 3)}.{'d' * 60}",
    "$(touch${IFS}evil)@x.example",
    "`id`@x.example",
    "a@[IPv6:2001:db8::1]",
    "a@[192.0.2.1]",
]
HOSTILE_UTF8 = [
    unicodedata.normalize("NFC", "\u00fc@x.example"),
    unicodedata.normalize("NFD", "\u00fc@x.example"),
    "\u00fc" * 32 + "@x.example",
    "\u202egpj@x.example",
    "\uff0fetc@x.example",
]


@pytest.mark.parametrize("name", ["{recipient}.{n}", "{sender}-{recipient}.{n}"])
def test_hostile_addresses_stay_inside_and_apart(session, tmp_path, name):
    inside = tmp_path / "inside"
    client = session(Files(inside, name), limits=Limits(junk_commands=1_000))
    accepted = []
    for address in [*HOSTILE, *HOSTILE_UTF8]:
        utf8 = "" if address.isascii() else " SMTPUTF8"
        for line in (f"MAIL FROM:<{address}>{utf8}", f"RCPT TO:<{address}>"):
            reply = client.ask(line)
            if not reply.startswith("250 "):
                break
        else:
            accepted.append(address)
            assert client.ask("DATA").startswith("354 ")
            client.send(b"\r\n.\r\n")
            assert client.reply().startswith("250 "), address
            continue
        client.ask("RSET")
    assert len(accepted) >= len([*HOSTILE, *HOSTILE_UTF8]) - 2
    assert os.listdir(tmp_path) == ["inside"]
    found = os.listdir(inside)
    assert len(found) == len(accepted)
    assert len({unicodedata.normalize("NFKC", path).casefold() for path in found}) == len(found)
    for path in found:
        assert path.endswith(".1")
        assert re.fullmatch(r"[A-Za-z0-9_@][A-Za-z0-9@._+=,-]*", path)
        assert len(path) <= 255


# -- what both share -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Maildir, Files])
def test_handler_of_the_user_may_call_a_store(serve, connect, tmp_path, kind):
    store = kind(tmp_path)

    class Handler(SMTPHandler):
        def deliver_envelope(self, envelope):
            if envelope.sender.local == "a":
                return store.deliver_envelope(envelope)
            return "dropped"

    client = connect(serve(Handler, trace=False))
    client.hello()
    assert send(client).startswith("250 2.0.0 OK ")
    assert send(client, sender="b@x.example") == "250 2.0.0 dropped"
    (octets,) = files(tmp_path).values()
    assert octets.replace(b"\r\n", b"\n") == front() + UNIX


def test_several_stores_have_each_message(session, tmp_path):
    stores = [Maildir(tmp_path / "mail"), Files(tmp_path / "files"), Memory()]
    client = session(stores)
    assert send(client, recipients=THREE).startswith("250 ")
    assert new(tmp_path / "mail") == [front(recipients=THREE) + UNIX]
    assert len(plain(tmp_path / "files")) == 3
    assert [message.data for message in stores[2].messages] == [MAIL]


def test_sink_of_another_store_is_not_taken_for_ones_own(tmp_path):
    one, other = Maildir(tmp_path / "one"), Maildir(tmp_path / "other")
    envelope = envelope_of()
    with one.open_sink(envelope) as sink:
        sink.write(MAIL)
        sink.flush()
        envelope.sink = sink
        other.deliver_envelope(envelope)
        one.deliver_envelope(envelope)
    assert new(tmp_path / "one") == [front() + UNIX]
    assert len(new(tmp_path / "other")) == 1


@pytest.mark.parametrize("make", [Maildir, Files], ids=STORES)
@pytest.mark.parametrize("recipients", [THREE[:1], THREE], ids=["one", "three"])
def test_many_clients_at_a_time(serve, tmp_path, make, recipients):
    server = serve(deliver=make(tmp_path), trace=False)
    tokens = flood(server.address, 6, 10, recipients)
    found = files(tmp_path)
    if make is Maildir:
        assert len(new(tmp_path)) == 60
        expected = {
            front(recipients=recipients) + body(token).replace(b"\r\n", b"\n") for token in tokens
        }
    else:
        assert len(plain(tmp_path)) == 60 * len(recipients)
        expected = {
            front(recipients=[each], end="\r\n") + body(token)
            for token in tokens
            for each in recipients
        }
    assert set(found.values()) == expected
    assert len(found) == len(expected)


# -- faults ----------------------------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@kinds
def test_every_fault_of_a_maildir_is_45x_and_leaves_nothing(faults, session, tmp_path, fault):
    client = session(Maildir(tmp_path))
    failed = every_fault(faults, fault, client, lambda: new(tmp_path))
    writes = failed.pop("write")  # how many there are depends on the network
    assert writes >= 1
    assert failed == {"open": 2, "fsync": 2, "replace": 1}
    assert set(new(tmp_path)) == {front() + LARGE.replace(b"\r\n", b"\n")}


@kinds
@pytest.mark.parametrize("recipients", [THREE[:1], THREE], ids=["one", "three"])
def test_every_fault_of_files_is_45x_and_leaves_nothing(
    faults, session, tmp_path, fault, recipients
):
    client = session(Files(tmp_path))

    def look():
        """Messages that all recipients have."""
        found, each = plain(tmp_path), [[] for _ in recipients]
        for octets in found:
            to = re.search(rb"Delivered-To: (\S+)", octets)[1].decode()
            assert octets == front(recipients=[to], end="\r\n") + LARGE
            each[recipients.index(to)].append(octets)
        assert {len(one) for one in each} == {len(each[0])}
        return each[0]

    failed = every_fault(faults, fault, client, look, recipients=recipients)
    count = len(recipients)
    assert failed.pop("write") >= count
    assert failed == {"open": 2 * count, "fsync": 2 * count, "link": count, "unlink": count}


def test_failed_rename_is_never_250(session, tmp_path, monkeypatch):
    store = Maildir(tmp_path)
    client = session(store)
    (tmp_path / "new").rmdir()
    assert send(client).startswith("451 4.3.0 ")
    assert files(tmp_path) == {}
    (tmp_path / "new").mkdir()
    assert send(client).startswith("250 ")


def test_fault_is_logged_and_not_told(session, tmp_path, caplog):
    client = session(Maildir(tmp_path))
    (tmp_path / "tmp").rmdir()
    assert send(client) == "451 4.3.0 Local error, please try again later"
    assert "mail could not be stored" in caplog.text
    assert "No such file or directory" in caplog.text


def test_other_exception_leaves_nothing_either(serve, connect, tmp_path, monkeypatch):
    client = connect(serve(deliver=Files(tmp_path), trace=False))
    client.hello()
    committed = []
    commit = Draft.commit

    def third_fails(self, target, replace=True):
        committed.append(target)
        if len(committed) == 3:
            raise KeyError("not an OSError")
        commit(self, target, replace)

    monkeypatch.setattr(Draft, "commit", third_fails)
    assert send(client, recipients=THREE).startswith("451 4.3.0 ")
    assert len(committed) == 3
    assert files(tmp_path) == {}


def test_draft_that_is_forgotten_leaves_nothing(tmp_path):
    Maildir(tmp_path).open_sink(envelope_of())
    gc.collect()
    assert files(tmp_path) == {}


SMALL_AND_MORE = LARGE + LARGE


@contextlib.contextmanager
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        yield disk


@pytest.mark.parametrize("make", [Maildir, Files], ids=STORES)
def test_disk_that_fills_is_452_and_leaves_nothing(session, tmp_path, make):
    with small_disk(tmp_path) as disk:
        client = session(make(disk))
        assert send(client).startswith("250 ")
        before, room = files(disk), left(disk)
        assert send(client, LARGE * 8).startswith("452 4.3.1 ")
        assert files(disk) == before
        assert left(disk) == room
        assert send(client, LARGE).startswith("250 ")
        assert len(files(disk)) == 2


@pytest.mark.parametrize("make", [Maildir, Files], ids=STORES)
def test_disk_that_is_full_at_the_last_flush_is_452(session, tmp_path, make):
    with small_disk(tmp_path) as disk:
        client = session(make(disk))
        filler = disk / "filler"
        filler.write_bytes(bytes(left(disk)))
        assert send(client).startswith("452 4.3.1 ")
        assert list(files(disk)) == ["filler"]
        filler.unlink()
        assert send(client).startswith("250 ")
        assert len(files(disk)) == 1


def test_disk_that_fills_at_the_third_recipient_leaves_no_file(session, tmp_path):
    with small_disk(tmp_path) as disk:
        client = session(Files(disk))
        room = left(disk)
        large = LARGE * 2
        assert 2 * len(large) < room < 3 * len(large)
        assert send(client, large, recipients=THREE).startswith("452 4.3.1 ")
        assert files(disk) == {}
        assert left(disk) == room
        assert send(client, large, recipients=THREE[:2]).startswith("250 ")
        assert len(plain(disk)) == 2


@pytest.mark.parametrize("make", [Maildir, Files], ids=STORES)
def test_disk_that_is_read_only_is_451_and_leaves_nothing(session, tmp_path, make):
    with small_disk(tmp_path) as disk:
        client = session(make(disk))
        remount(disk, "ro")
        assert send(client).startswith("451 4.3.0 ")
        assert send(client, recipients=THREE).startswith("451 4.3.0 ")
        assert files(disk) == {}
        remount(disk, "rw")
        assert send(client).startswith("250 ")


@posix
@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="modes are nothing to root"
)
@pytest.mark.parametrize("make", [Maildir, Files], ids=STORES)
def test_directory_that_may_not_be_written_is_451_and_leaves_nothing(session, tmp_path, make):
    client = session(make(tmp_path))
    closed = tmp_path / "tmp" if make is Maildir else tmp_path
    closed.chmod(0o500)
    try:
        assert send(client).startswith("451 4.3.0 ")
        assert files(tmp_path) == {}
    finally:
        closed.chmod(0o700)
    assert send(client).startswith("250 ")


# -- Memory ----------------------------------------------------------------------------------


def test_memory_keeps_what_is_known_of_a_message(serve, connect):
    store = Memory()
    client = connect(serve(deliver=store, trace=False))
    client.hello()
    assert client.ask("MAIL FROM:<a@x.example> SIZE=10").startswith("250 ")
    assert client.ask("RCPT TO:<b@Y.example>").startswith("250 ")
    assert client.ask("RCPT TO:<c@y.example>").startswith("250 ")
    client.ask("DATA")
    client.send(b"X: y\r\n\r\n.\r\n")
    reply = client.reply()
    (message,) = store.messages
    assert isinstance(message, Message)
    assert message == Message(
        reply.split()[-1],
        Peer("127.0.0.1", client.socket.getsockname()[1]),
        "client.example",
        None,
        None,
        "a@x.example",
        ("b@y.example", "c@y.example"),
        {"SIZE": "10"},
        ({}, {}),
        b"X: y\r\n\r\n",
    )
    assert message.recipients[0].original == "b@Y.example"
    store.clear()
    assert store.messages == []


def test_memory_keeps_large_mail_whole(serve, connect):
    store = Memory()
    client = connect(serve(deliver=store, trace=False, limits=Limits(message_memory=1)))
    client.hello()
    assert send(client, LARGE).startswith("250 ")
    assert store.messages[0].data == LARGE


def test_memory_takes_many_clients_at_a_time(serve):
    store = Memory()
    tokens = flood(serve(deliver=store, trace=False).address, 6, 10)
    assert {message.data for message in store.messages} == {body(token) for token in tokens}
    assert len(store.messages) == len(tokens)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_memory_is_for_one_process(no_leaks):
    with pytest.raises(ValueError, match="workers: "):
        SMTPServer(("127.0.0.1", 0), deliver=Memory(), workers=2)


def opened():
    """The paths of all files that the process has open; none where the system does not tell."""
    found = []
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def test_stores_leak_no_descriptor(session, tmp_path):
    for store in (Maildir(tmp_path / "mail"), Files(tmp_path / "files"), Memory()):
        assert send(session(store)).startswith("250 ")
        assert not [path for path in opened() if path.startswith(str(tmp_path))]
