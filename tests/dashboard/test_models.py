"""The page Models: downloaded, loaded and removed by admins; who stands in for whom, and which keys allow it."""

from __future__ import annotations

import time
from html import unescape
from pathlib import Path

from atlas.settings import FallbackSettings, Settings, UpstreamSettings
from tests import ggufs
from tests.dashboard.site import MODEL, Site, open_site
from tests.dashboard.test_forms import SHOWN_KEY, shown


def test_models_are_pulled_and_removed_by_admins(site: Site) -> None:
    owner, member = site.owner(), site.person("linus")
    assert "Get a model" not in member.get("/models").text
    assert member.send("/models/pull", name="qwen3-0.6b").status_code == 403
    assert member.send("/models/remove", name="nano").status_code == 403
    reply = owner.send("/models/pull", address="file:///etc/passwd")
    assert reply.status_code == 400
    assert "no model" in unescape(reply.text)
    assert owner.send("/models/remove", name="nano").status_code == 400


def test_models_are_loaded_and_unloaded_by_admins_and_chosen_side_by_side_in_the_playground(tmp_path: Path) -> None:
    with open_site(tmp_path, is_loading=True) as site:
        owner, member = site.owner(), site.person("linus")
        assert member.send("/models/load", name="nano").status_code == 403
        assert "No model is loaded" in owner.get("/models").text
        refused = owner.send("/models/load", name="none")
        assert (refused.status_code, "no model &#39;none&#39;" in refused.text) == (400, True)
        site.dashboard.registry.add(ggufs.tiny_calm(), name="calm")
        for name in ("nano", "calm"):
            assert owner.send("/models/load", name=name).status_code == 200
        page = owner.get("/models").text
        assert "Unload calm" in page
        assert "answers where no model is named" in page
        assert "<option>nano</option><option>calm</option>" in owner.get("/playground").text
        assert owner.send("/models/remove", name="calm").status_code == 409
        assert owner.send("/models/unload", name="calm").status_code == 200
        assert "Load calm" in owner.get("/models").text
        assert [entry.action for entry in site.store.audit.entries(3)] == ["model.unloaded", "model.loaded", "model.loaded"]


def test_a_pull_shows_its_progress_and_how_it_ended(site: Site) -> None:
    owner = site.owner()
    assert owner.send("/models/pull", address="http://127.0.0.1:9/none.gguf").status_code == 200
    for _ in range(200):
        html = owner.get("/models").text
        if "failed" in html:
            break
        time.sleep(0.05)
    assert "http://127.0.0.1:9/none.gguf" in html
    assert "failed" in html


def test_getting_and_removing_a_model_is_in_the_audit_log(site: Site, tmp_path: Path) -> None:
    owner = site.owner()
    owner.send("/models/pull", address="http://127.0.0.1:9/some.gguf?token=secret")
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    site.dashboard.registry.add(path)
    assert owner.send("/models/remove", name="mine").status_code == 200
    removed, pulled = site.store.audit.entries(2)
    assert (pulled.action, pulled.object, pulled.actor) == ("model.pulled", "some.gguf", site.store.accounts.owner().id)
    assert pulled.detail == {"from": "http://127.0.0.1:9/some.gguf"}
    assert (removed.action, removed.object, removed.detail) == ("model.removed", "mine", {})


def test_a_key_leaves_this_machine_only_after_a_tick_and_the_models_page_shows_where_to(tmp_path: Path) -> None:
    upstreams = {"team": UpstreamSettings(url="http://gpu2.example/v1")}
    fallback = FallbackSettings(upstreams=upstreams, chains={MODEL: ("team/big",)})
    with open_site(tmp_path, settings=Settings(fallback=fallback)) as site:
        owner = site.owner()
        shown(owner.send("/keys", name="home", scopes="chat"), SHOWN_KEY)
        [info] = site.store.keys.list()
        assert not info.allow_remote
        assert owner.send(f"/keys/{info.id}", name="away", scopes="chat", models="team/big", allow_remote="1").status_code == 200
        assert site.store.keys.get(info.id).allow_remote
        assert "here and elsewhere" in owner.get("/keys").text
        page = owner.get("/models").text
        assert "team/big" in page
        assert "elsewhere: keys need to allow it" in page
        assert "http://gpu2.example/v1" in page
