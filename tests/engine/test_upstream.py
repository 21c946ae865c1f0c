"""Breakers by themselves, and where an upstream's key and whereabouts come from. What they do: gateway/test_fallback."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atlas.engine import Upstreams
from atlas.engine.breaker import FAILURES, HOLD_LIMIT_S, OPEN_S, WINDOW_S, Breaker
from atlas.engine.http_pool import is_of_this_machine
from atlas.engine.remote_http import without_password
from atlas.errors import SettingsError
from atlas.settings import FallbackSettings, Settings, load_settings


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def open_one(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        breaker.failed()
    return breaker


def test_failures_that_are_far_apart_open_nothing() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(3 * FAILURES):
        breaker.failed()
        clock.now_s += WINDOW_S / (FAILURES - 1) + 0.1
    assert (breaker.state, breaker.wait_s) == ("closed", 0)


def test_an_open_breaker_lets_one_probe_through_and_waits_for_what_it_shows() -> None:
    clock = Clock()
    breaker = open_one(clock)
    breaker.succeeded()  # of a request that was on its way before
    assert (breaker.state, breaker.wait_s) == ("open", OPEN_S)
    clock.now_s += OPEN_S
    assert breaker.wait_s == 0
    breaker.enter()
    assert (breaker.state, breaker.wait_s) == ("probing", OPEN_S)
    breaker.succeeded()
    assert (breaker.state, breaker.wait_s) == ("closed", 0)
    breaker.failed()
    assert breaker.state == "closed"


@pytest.mark.parametrize("is_told", [True, False])
def test_a_probe_that_fails_or_is_never_heard_of_is_followed_by_another(is_told: bool) -> None:
    clock = Clock()
    breaker = open_one(clock)
    clock.now_s += OPEN_S
    breaker.enter()
    if is_told:
        breaker.failed()
        assert breaker.state == "open"
    clock.now_s += OPEN_S
    assert breaker.wait_s == 0


def test_a_server_may_ask_for_a_while_and_not_for_an_hour() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.hold(3600)
    assert (breaker.state, breaker.wait_s) == ("closed", HOLD_LIMIT_S)
    clock.now_s += HOLD_LIMIT_S
    assert breaker.wait_s == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://127.9.9.9", "http://[::1]:1", "https://localhost/v1"])
def test_loopback_is_this_machine(url: str) -> None:
    assert is_of_this_machine(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "http://127.1", "http://localhost.example", "http://gpu2/v1", "http://0.0.0.0"]
)
def test_whatever_a_resolver_would_be_asked_about_is_elsewhere(url: str) -> None:
    assert not is_of_this_machine(url)


def test_loopback_behind_a_proxy_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    assert not is_of_this_machine("http://127.0.0.1:1/v1")
    assert is_of_this_machine("http://localhost:1/v1")


def test_messages_show_no_password_of_an_address() -> None:
    assert without_password("http://me:secret@host:1/v1") == "http://host:1/v1"
    assert without_password("http://host/v1") == "http://host/v1"


def fallback(**upstream: str) -> FallbackSettings:
    table = {"upstreams": {"team": {"url": "http://127.0.0.1:1/v1", **upstream}}, "chains": {"a": ["team/m"]}}
    return msgspec.convert(table, FallbackSettings)


def test_a_key_is_found_where_the_settings_say_or_said_to_be_missing(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(SettingsError, match="the key of 'team' is in TEAM_KEY, which is not set; export it"):
        Upstreams(fallback(key_env="TEAM_KEY"), {})
    with pytest.raises(SettingsError, match="cannot be read from"):
        Upstreams(fallback(key_file=str(file)), {})
    file.write_text("\n")
    with pytest.raises(SettingsError, match="holds no key for 'team'"):
        Upstreams(fallback(key_file=str(file)), {})
    file.write_text("sk-1\n")
    assert list(Upstreams(fallback(key_file=str(file)), {}).engines) == ["team/m"]
    assert list(Upstreams(fallback(key_env="TEAM_KEY"), {"TEAM_KEY": "sk"}).engines) == ["team/m"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[fallback.chains]\n"a" = ["team/m"]', r"chain of 'a': 'team/m' names upstream 'team', .*\(none is\)"),
        ('[fallback.chains]\n"a" = []', "chain of 'a' is empty"),
        ('[fallback.chains]\n"a" = ["a"]', "does not lead to itself"),
        ('[fallback.chains]\n"atlas" = ["nano"]', "chain of 'atlas'"),
        ('[fallback.chains]\n"a" = ["b, c"]', "'b, c' is no model"),
        ('[fallback.upstreams.team]\nurl = "gpu2:8000"', "url 'gpu2:8000' is none"),
        ('[fallback.upstreams.team]\nurl = "http://me:pw@gpu2"', "carries a name or a password"),
        ('[fallback.upstreams.Team]\nurl = "http://gpu2"', "upstream 'Team'"),
        ('[fallback.upstreams.team]\nurl = "http://gpu2"\nkey_env = "A"\nkey_file = "b"', "name one"),
    ],
)
def test_settings_that_cannot_work_are_named_with_the_way_out(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "atlas.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        load_settings(file, {})


def test_chains_are_read_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "atlas.toml"
    file.write_text(
        '[fallback]\nchains = { nano = ["team/big/model:free", "other"] }\n[fallback.upstreams.team]\nurl = "http://gpu2"\n'
    )
    settings: Settings = load_settings(file, {})
    assert settings.fallback.chains == {"nano": ("team/big/model:free", "other")}
