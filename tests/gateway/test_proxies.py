"""Who the client is behind proxies; spoofed addresses come from `gateway.proxies`'s own callers only."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest
from litestar.types import HTTPScope

from atlas.gateway.proxies import Client, client_of
from atlas.settings import ServerSettings
from atlas.store import Store
from tests.gateway.conftest import deps_of, serving
from tests.gateway.people import PASSWORD, settle

TRUSTED = ("10.0.0.0/8", "127.0.0.1", "fd00::/8")


def client(peer: str | None, *, trusted: tuple[str, ...] = TRUSTED, scheme: str = "http", **headers: str) -> Client:
    scope: dict[str, Any] = {"client": (peer, 1) if peer else None, "scheme": scheme}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client_of(cast("HTTPScope", scope), named, trusted)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),  # not a proxy of ours: it may say what it likes
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.9", "203.0.113.9"),  # the client forged the first
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),  # two proxies of ours
        ("10.0.0.1", "1.2.3.4, 203.0.113.9, 10.9.9.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # a client inside our own network
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, garbage, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("fd00::1", "2001:db8::2", "2001:db8::2"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
    ],
)
def test_the_client_is_the_right_most_hop_that_is_not_ours(peer: str, forwarded: str, address: str) -> None:
    assert client(peer, x_forwarded_for=forwarded).address == address


def test_tls_is_believed_of_ourselves_and_of_our_proxies_only() -> None:
    assert client("192.0.2.1", scheme="https").is_secure
    assert client("10.0.0.1", x_forwarded_proto="https").is_secure
    assert not client("192.0.2.1", x_forwarded_proto="https").is_secure
    assert not client("10.0.0.1", x_forwarded_proto="https, http").is_secure
    assert client("10.0.0.1", x_forwarded_proto="https").cookie == "__Host-atlas"
    assert client("10.0.0.1").cookie == "atlas"


def test_local_is_who_calls_from_this_machine_through_no_proxy() -> None:
    assert client("127.0.0.1", trusted=()).is_local
    assert client("::1", trusted=()).is_local
    assert not client("127.0.0.1", trusted=(), x_forwarded_for="203.0.113.9").is_local
    assert not client("127.0.0.1", trusted=(), via="1.1 proxy").is_local
    assert not client("127.0.0.1", trusted=("127.0.0.1",)).is_local
    assert not client("127.0.0.1", trusted=("127.0.0.1",), x_forwarded_for="127.0.0.1").is_local
    assert not client("192.0.2.1", trusted=()).is_local


def test_a_unix_socket_has_no_address() -> None:
    assert client(None) == Client()


def test_a_forged_address_does_not_get_around_the_login_throttle(store: Store) -> None:
    settle(store)
    with serving(deps_of(None, store=store)) as server:
        statuses = [
            httpx.post(
                f"{server.url}/api/auth/login",
                json={"username": "mara", "password": "a wrong password"},
                headers={"x-forwarded-for": f"203.0.113.{number}"},
            ).status_code
            for number in range(11)
        ]
    assert statuses[-1] == 429


def test_behind_a_trusted_proxy_each_client_is_throttled_apart(store: Store) -> None:
    settle(store)
    settings = ServerSettings(trusted_proxies=("127.0.0.1",))
    with serving(deps_of(None, store=store, server=settings)) as server:

        def status(address: str, password: str) -> int:
            body = {"username": "mara", "password": password}
            headers = {"x-forwarded-for": address}
            return httpx.post(f"{server.url}/api/auth/login", json=body, headers=headers).status_code

        assert [status("203.0.113.1", "a wrong password") for _ in range(11)][-1] == 429
        assert status("203.0.113.2", PASSWORD) == 200


def test_metrics_are_for_this_machine_and_for_keys_that_may_read(store: Store) -> None:
    key = store.keys.mint("scraper", scopes=("read",)).key
    blind = store.keys.mint("chat only", scopes=("chat",)).key
    proxied = {"x-forwarded-for": "203.0.113.9"}
    with serving(deps_of(None, store=store)) as server:
        url = f"{server.url}/metrics"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers=proxied).status_code == 401
        assert httpx.get(url, headers=proxied | {"x-api-key": key}).status_code == 200
        assert httpx.get(url, headers=proxied | {"x-api-key": blind}).status_code == 403
