"""Certificates as a TLS client sees them."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from atlas import tls
from atlas.cli.serve import with_certificates
from atlas.directory import DataDirectory
from atlas.errors import OperatorError
from atlas.settings import ServerSettings, Settings
from atlas.tls import Certificates, ensure_certificates

AUTO = ServerSettings(tls="auto", host="0.0.0.0", allowed_hosts=("gpu.lan",))


def made(directory: Path, server: ServerSettings = AUTO) -> Certificates:
    return ensure_certificates(directory, server)


def shake_hands(files: Certificates, ca: Path, name: str) -> None:
    """One TLS handshake over a socket pair, verified as a client that trusts `ca` does."""
    ours, theirs = socket.socketpair()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*files)

    def answer() -> None:
        with server.wrap_socket(ours, server_side=True) as connection:
            connection.sendall(b"hello")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client = ssl.create_default_context(cafile=str(ca))
        with client.wrap_socket(theirs, server_hostname=name) as connection:
            assert connection.recv(5) == b"hello"
    finally:
        thread.join()


def test_without_tls_there_are_no_files(tmp_path: Path) -> None:
    assert with_certificates(Settings(), DataDirectory(tmp_path)) == Settings()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "gpu.lan", socket.gethostname().lower()])
def test_a_client_that_trusts_the_authority_trusts_every_name_of_this_server(tmp_path: Path, name: str) -> None:
    shake_hands(made(tmp_path), tmp_path / "tls" / "ca.pem", name)


def test_keys_are_readable_for_their_owner_only(tmp_path: Path) -> None:
    made(tmp_path)
    folder = tmp_path / "tls"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "ca.pem", "server.key", "server.pem"]


def test_the_authority_is_announced_once_and_leaves_are_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(tmp_path).cert.read_bytes()
    assert str(tmp_path / "tls" / "ca.pem") in capsys.readouterr().err
    assert made(tmp_path).cert.read_bytes() == first
    assert capsys.readouterr().err == ""


def test_a_new_name_makes_a_new_leaf_under_the_same_authority(tmp_path: Path) -> None:
    first, ca = made(tmp_path).cert.read_bytes(), (tmp_path / "tls" / "ca.pem").read_bytes()
    files = made(tmp_path, ServerSettings(tls="auto", allowed_hosts=("other.lan",)))
    assert files.cert.read_bytes() != first
    assert (tmp_path / "tls" / "ca.pem").read_bytes() == ca
    shake_hands(files, tmp_path / "tls" / "ca.pem", "other.lan")


@pytest.mark.parametrize(("days_left", "is_renewed"), [(29, True), (31, False)])
def test_a_leaf_is_renewed_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days_left: int, is_renewed: bool
) -> None:
    monkeypatch.setattr(tls, "LEAF_LIFE", datetime.timedelta(days=days_left, hours=1))
    first = made(tmp_path).cert.read_bytes()
    assert (made(tmp_path).cert.read_bytes() != first) is is_renewed


def test_a_leaf_lives_no_longer_than_browsers_accept(tmp_path: Path) -> None:
    leaf = x509.load_pem_x509_certificate(made(tmp_path).cert.read_bytes())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= datetime.timedelta(days=397)


def test_a_pair_torn_by_a_crash_is_made_again(tmp_path: Path) -> None:
    files = made(tmp_path)
    made(tmp_path / "tls")  # another authority and leaf, in a folder of its own
    files.key.write_bytes((tmp_path / "tls" / "tls" / "server.key").read_bytes())
    shake_hands(made(tmp_path), tmp_path / "tls" / "ca.pem", "localhost")


def test_given_files_are_used_as_they_are(tmp_path: Path) -> None:
    files = made(tmp_path)
    assert made(tmp_path, ServerSettings(tls_cert=str(files.cert), tls_key=str(files.key))) == files


def broken(tmp_path: Path, fault: str) -> tuple[str, str]:
    """Paths of a certificate and a key with one fault."""
    files, other = made(tmp_path), made(tmp_path / "tls")
    bad = tmp_path / "bad.pem"
    bad.write_bytes(b"no PEM at all")
    if fault == "encrypted":
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        lock = serialization.BestAvailableEncryption(b"secret")
        bad.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    cert, key_file, missing = str(files.cert), str(files.key), str(tmp_path / "missing.pem")
    return {
        "no key": (cert, ""),
        "no cert": ("", key_file),
        "missing": (missing, key_file),
        "mismatch": (cert, str(other.key)),
        "bad cert": (str(bad), key_file),
        "bad key": (cert, str(bad)),
        "encrypted": (cert, str(bad)),
    }[fault]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no key", "server.tls_key is missing"),
        ("no cert", "server.tls_cert is missing"),
        ("missing", "missing.pem: No such file"),
        ("mismatch", "server.key is not the key of"),
        ("bad cert", "bad.pem is not a certificate"),
        ("bad key", "bad.pem is not a private key"),
        ("encrypted", "bad.pem is encrypted"),
    ],
)
def test_bad_files_are_named_with_their_fault(tmp_path: Path, fault: str, words: str) -> None:
    cert, key = broken(tmp_path, fault)
    with pytest.raises(OperatorError, match=words):
        ensure_certificates(tmp_path, ServerSettings(tls_cert=cert, tls_key=key))


def test_a_damaged_authority_is_an_error_and_not_silently_replaced(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "tls" / "ca.key").write_bytes(b"damaged")
    with pytest.raises(OperatorError, match=r"ca\.key is damaged"):
        made(tmp_path)
