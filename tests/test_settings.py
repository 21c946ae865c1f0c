from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from atlas.errors import SettingsError
from atlas.settings import Section, Settings, data_dir, load_settings, packaged

ROOT = Path(__file__).parents[1]


def fields() -> Iterator[tuple[str, str]]:
    """(section, name) of every setting; the section of a top-level one is ""."""
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from ((field.name, inner.name) for inner in msgspec.structs.fields(field.type))
        else:
            yield "", field.name


def test_atlas_toml_equals_the_defaults_in_code() -> None:
    written = tomllib.loads(packaged("atlas.toml").read_text())
    assert written == msgspec.json.decode(msgspec.json.encode(Settings()))
    assert load_settings(packaged("atlas.toml"), {}) == Settings()


def test_every_setting_in_atlas_toml_has_a_comment() -> None:
    lines = [line for line in packaged("atlas.toml").read_text().splitlines() if re.match(r"[a-z_]+ = ", line)]
    assert len(lines) == len(list(fields()))
    assert [line for line in lines if " # " not in line] == []


@pytest.mark.parametrize(("section", "name"), list(fields()))
def test_every_setting_is_in_the_documentation(section: str, name: str) -> None:
    """One table per section, one row per setting, with its default."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    part = text.split(f"\n## `[{section}]`\n" if section else "\n## Top level\n")[1].split("\n## ")[0]
    owner = getattr(Settings(), section) if section else Settings()
    default = msgspec.json.encode(getattr(owner, name)).decode()
    assert f"\n| `{name}` | `{default}` |" in part


@pytest.mark.parametrize(("section", "name"), list(fields()))
def test_every_setting_is_read_by_some_code(section: str, name: str) -> None:
    sources = [path for path in (ROOT / "atlas").rglob("*.py") if path.name != "settings.py"]
    if (section, name) == ("", "data_dir"):
        sources = [ROOT / "atlas" / "settings.py"]
    pattern = re.compile(rf"\b(?:{section or 'settings'}|settings|server|remote|auth|self\._settings|self\._auth)\.{name}\b")
    assert any(pattern.search(path.read_text()) for path in sources), f"[{section}] {name} is read nowhere"


def test_the_environment_overrides_the_file_and_flags_override_both(tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text('[engine]\nthreads = 2\nmodel = "nano"\n[server]\nport = 1\n')
    environ = {"ATLAS_ENGINE_THREADS": "4", "ATLAS_SERVER_PORT": "2", "ATLAS_SERVER_CORS_ORIGINS": "http://a,http://b"}
    settings = load_settings(path, environ, {"server.port": 3, "engine.offline": None})
    assert (settings.engine.model, settings.engine.threads, settings.server.port) == ("nano", 4, 3)
    assert settings.server.cors_origins == ("http://a", "http://b")
    assert settings.engine.offline is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[engine]\nslotz = 1", r"unknown field `slotz` - at `\$\.engine`"),
        ("[engine]\nthreads = -1", r"threads"),
        ("[engine]\nthreads = 'many'", r"threads"),
        ("engine = 1", r"engine"),
        ("[engine", r"atlas\.toml"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        load_settings(path, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings(tmp_path / "none.toml", {})


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(SettingsError, match="port"):
        load_settings(None, {"ATLAS_SERVER_PORT": "http"})


def test_the_data_directory_is_the_setting_then_the_variable_then_xdg(tmp_path: Path) -> None:
    home = {"ATLAS_HOME": "/a/home", "XDG_DATA_HOME": "/a/xdg"}
    assert data_dir(Settings(data_dir="/set"), home) == Path("/set")
    assert data_dir(Settings(), home) == Path("/a/home")
    assert data_dir(Settings(), {"XDG_DATA_HOME": "/a/xdg"}) == Path("/a/xdg/atlas")
    assert data_dir(Settings(), {}) == Path.home() / ".local/share/atlas"


def test_a_flag_that_is_not_given_leaves_the_environment_alone() -> None:
    settings = load_settings(None, {"ATLAS_SERVER_PORT": "8333"}, {"server.port": None, "server.host": "::1"})
    assert (settings.server.port, settings.server.host) == (8333, "::1")
