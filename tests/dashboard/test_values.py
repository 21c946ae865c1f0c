"""The Settings page: complete, and silent about secrets."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atlas.dashboard.values import MASK, display, rows_of, without_password
from atlas.settings import LedgerSettings, RedisSettings, Section, Settings, load_settings, sources_of


def test_every_setting_has_a_row_and_its_meaning_from_the_file() -> None:
    rows = list(rows_of(Settings(), {}))
    expected = 0
    for field in msgspec.structs.fields(Settings):
        is_section = isinstance(field.type, type) and issubclass(field.type, Section)
        expected += len(msgspec.structs.fields(field.type)) if is_section else 1
    assert len(rows) == expected
    assert [row.name for row in rows if not row.about] == []
    assert {row.source for row in rows} == {"default"}


def test_sources_are_told_as_they_are_known() -> None:
    changed = Settings(ledger=LedgerSettings(usage_days=30))
    rows = {f"{row.section}.{row.name}": row for row in rows_of(changed, {"ledger.url": "env"}, frozenset({"ledger.usage_days"}))}
    assert (rows["ledger.usage_days"].value, rows["ledger.usage_days"].default) == ("30", "400")
    assert rows["ledger.usage_days"].source == "set"
    assert rows["ledger.usage_days"].is_hot
    assert rows["ledger.url"].source == "env"
    assert not rows["ledger.url"].is_hot


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:hunter2@host:6379/0", f"redis://:{MASK}@host:6379/0"),
        ("postgresql://ada:hunter2@host/db", f"postgresql://ada:{MASK}@host/db"),
        ("postgresql://ada@host/db?password=hunter2&sslmode=require", f"postgresql://ada@host/db?password={MASK}&sslmode={MASK}"),
        ("postgresql://ada:p@ss:hunter2@host/db", f"postgresql://ada:{MASK}@host/db"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("redis://:hunter2@host", f"redis://:{MASK}@host"),
        ("redis://host?password=hunter2", f"redis://host?password={MASK}"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_passwords_in_addresses_are_masked(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert "hunter2" not in shown


def test_no_secret_of_the_settings_reaches_a_row() -> None:
    current = Settings(
        redis=RedisSettings(url="redis://u:hunter2@h/0"), ledger=LedgerSettings(url="postgresql://u:hunter2@h/d?password=hunter2")
    )
    assert "hunter2" not in repr(list(rows_of(current, {})))


def test_a_value_named_as_a_secret_is_masked() -> None:
    assert display("admin_password", "hunter2") == MASK
    assert display("name", "") == '""'
    assert display("hosts", ("a", "b")) == "[a, b]"


def test_a_value_knows_whether_file_environment_or_flag_set_it(tmp_path: Path) -> None:
    path, environ = tmp_path / "atlas.toml", {"ATLAS_LOG_LEVEL": "debug", "ATLAS_QUEUE_MAX_WAITING": "8"}
    path.write_text('[server]\nport = 9000\nhost = "127.0.0.2"\n[log]\nlevel = "error"\n')
    current = load_settings(path, environ, {"server.port": 9001, "data_dir": "/somewhere"})
    sources = sources_of(current, path, environ)
    expected = {"server.host": "file", "server.port": "flag", "log.level": "env", "queue.max_waiting": "env", "data_dir": "flag"}
    assert sources == expected


def test_what_a_start_found_out_is_not_called_a_flag() -> None:
    current = load_settings(None, {"ATLAS_SERVER_PORT": "0"}, {"server.port": 43210, "server.tls_cert": "/data/tls/cert.pem"})
    assert sources_of(current, None, {"ATLAS_SERVER_PORT": "0"}) == {"server.port": "env"}
