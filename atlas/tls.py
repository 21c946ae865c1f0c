"""Certificates for HTTPS: the operator's own, or (`server.tls = "auto"`) leaves of the data directory's own authority.

The authority lives ten years in DIR/tls, so that clients have to be told about it once; its leaf is renewed at start when less
than 30 days are left, or when the names have changed. Clients need DIR/tls/ca.pem, which is no secret; whoever has ca.key could
pose as any site before these clients.

Not covered: renewing while a server runs, revocation, certificates of public authorities (a reverse proxy is better at those).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atlas.errors import OperatorError
from atlas.settings import ServerSettings

CA_LIFE = datetime.timedelta(days=3650)
LEAF_LIFE = datetime.timedelta(days=397)  # what browsers accept at most (CA/Browser Forum ballot SC31)
RENEW_BEFORE = datetime.timedelta(days=30)
CLOCK_SKEW = datetime.timedelta(hours=1)  # of clients whose clock is behind; chosen, unmeasured
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Certificates(NamedTuple):
    """PEM files: the chain and its private key."""

    cert: Path
    key: Path


class _Pair(NamedTuple):
    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure_certificates(directory: Path, server: ServerSettings) -> Certificates:
    """The files to serve HTTPS with: those that are named, or our own, made under `directory` if need be.

    Raises:
        OperatorError: a file is missing, unreadable or no PEM, the key is encrypted or another certificate's.
    """
    if server.tls_cert or server.tls_key:
        return _given(server)
    return _own(directory / "tls", _names(server))


def _given(server: ServerSettings) -> Certificates:
    for name, path in (("tls_cert", server.tls_cert), ("tls_key", server.tls_key)):
        if not path:
            raise OperatorError(f"server.{name} is missing: tls_cert and tls_key go together")
    files = Certificates(Path(server.tls_cert).expanduser(), Path(server.tls_key).expanduser())
    _check(files)
    return files


def _check(files: Certificates) -> None:
    """Load both as the server will, and say which one is at fault."""
    for path in files:
        try:
            path.read_bytes()
        except OSError as error:
            raise OperatorError(f"{path}: {error.strerror}") from None
    if "ENCRYPTED" in files.key.read_text("latin-1"):
        raise OperatorError(f"{files.key} is encrypted; a server starts unattended, so it needs the key without a passphrase")
    try:
        x509.load_pem_x509_certificates(files.cert.read_bytes())
    except ValueError:
        raise OperatorError(f"{files.cert} is not a certificate in PEM form") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.cert, files.key)
    except ssl.SSLError as error:
        cause = f"not the key of {files.cert}" if "MISMATCH" in (error.reason or "") else "not a private key in PEM form"
        raise OperatorError(f"{files.key} is {cause}") from None


def _own(folder: Path, names: list[str]) -> Certificates:
    """The data directory's own authority and leaf, both made or renewed as needed."""
    files = Certificates(folder / "server.pem", folder / "server.key")
    now = datetime.datetime.now(datetime.UTC)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        ca = _load(folder / "ca.pem", folder / "ca.key")
        if ca is None or ca.cert.not_valid_after_utc - now < LEAF_LIFE:  # a leaf must not outlive its authority
            ca = _make_ca(now)
            _save(ca, folder / "ca.pem", folder / "ca.key")
            print(f"TLS: made a certificate authority; clients have to trust {folder / 'ca.pem'}", file=sys.stderr, flush=True)  # noqa: T201
        leaf = _load(*files)
        if leaf is None or not _is_good(leaf.cert, ca.cert, names, now):
            _save(_make_leaf(ca, names, now), *files)
    except OSError as error:
        raise OperatorError(f"{error.filename or folder}: {error.strerror}") from None
    return files


def _names(server: ServerSettings) -> list[str]:
    """Everything this server may be called: what it listens on, loopback, the machine, and what the operator added."""
    host = [] if server.host in ("0.0.0.0", "::") else [server.host]  # noqa: S104 - compared, not bound
    return list(dict.fromkeys((*host, *LOOPBACK_NAMES, socket.gethostname().lower(), *server.allowed_hosts)))


def _is_good(cert: x509.Certificate, ca: x509.Certificate, names: list[str], now: datetime.datetime) -> bool:
    """Whether a leaf may be used again: long enough valid, of this authority, for these names."""
    found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    try:
        cert.verify_directly_issued_by(ca)
    except Exception:  # any of three: whatever speaks against the old leaf, a new one mends it
        return False
    return cert.not_valid_after_utc - now > RENEW_BEFORE and set(found) == set(_alternatives(names))


def _make_ca(now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ATLAS of {socket.gethostname()}"[:64])])
    builder = (
        _builder(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
    )
    return _Pair(builder.sign(key, hashes.SHA256()), key)


def _make_leaf(ca: _Pair, names: list[str], now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    builder = (
        _builder(name, ca.cert.subject, key, now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .add_extension(authority, critical=False)
    )
    return _Pair(builder.sign(ca.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now - CLOCK_SKEW + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: list[str]) -> list[x509.GeneralName]:
    return [_alternative(name) for name in names]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load(cert: Path, key: Path) -> _Pair | None:
    """What an earlier start has saved; None if there is no whole pair."""
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise OperatorError(f"{cert} or {key} is damaged; move both away, and new ones are made") from None
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    if certificate.public_key() != loaded.public_key():
        return None  # the process ended between the two writes; both are made again
    return _Pair(certificate, loaded)


def _save(pair: _Pair, cert: Path, key: Path) -> None:
    """Certificate and private key; the key's file is ours alone from its first byte."""
    text = pair.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    partial = key.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(text)
    partial.replace(key)
    cert.write_bytes(pair.cert.public_bytes(serialization.Encoding.PEM))
