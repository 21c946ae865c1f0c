"""Live pages, over a real socket."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import APIError

from atlas.dashboard import events
from atlas.dashboard.memory import STREAMS_MAX
from atlas.settings import AuthSettings, Settings
from tests.dashboard.site import Person, Site, open_site, wait_for


class Listener:
    """Reads one event stream in a thread; `latest` is the newest data of each event."""

    def __init__(self, person: Person, query: str) -> None:
        self.latest: dict[str, str] = {}
        self.times: dict[str, list[float]] = {}
        self.comments = 0
        self.status = 0
        self.is_over = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(person, query), daemon=True)
        self._thread.start()
        wait_for(lambda: self.status or self.is_over)

    def _read(self, person: Person, query: str) -> None:
        with person.http.stream("GET", f"/dash/events?{query}", follow_redirects=False) as reply:
            self.status = reply.status_code
            name, data = "", []
            for line in reply.iter_lines():
                if self._stop.is_set():
                    break
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data:"):
                    data.append(line[6:])
                elif line.startswith(":"):
                    self.comments += 1
                elif not line and name:
                    self.latest[name] = "\n".join(data)
                    self.times.setdefault(name, []).append(time.monotonic())
                    name, data = "", []
        self.is_over = True

    def close(self) -> None:
        self._stop.set()


@contextmanager
def listening(person: Person, query: str) -> Iterator[Listener]:
    listener = Listener(person, query)
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, replies=("one two three four five six seven eight nine ten",), delay_s=0.1) as site:
        yield site


def test_a_stream_begins_with_every_part_of_its_page(site: Site) -> None:
    owner = site.owner()
    for page in ("overview", "activity", "usage", "models", "logs", "keys"):
        parts = set(re.findall(r'data-panel="(\w+)"', owner.get("/" if page == "overview" else f"/{page}").text))
        with listening(owner, f"page={page}") as stream:
            wait_for(lambda stream=stream, parts=parts: parts <= set(stream.latest))
            assert set(stream.latest) == parts, page


def test_a_request_shows_while_it_runs_and_after(live: Site) -> None:
    owner = live.owner()
    key = live.key(name="laptop").key
    with listening(owner, "page=activity") as rows, listening(owner, "page=usage") as usage:
        wait_for(lambda: "No requests yet" in rows.latest.get("rows", ""))
        asking = threading.Thread(target=live.ask, args=(key,))
        asking.start()
        wait_for(lambda: "running" in rows.latest["rows"] and "laptop" in rows.latest["rows"])
        asking.join()
        wait_for(lambda: "completed" in rows.latest["rows"])
        wait_for(lambda: "laptop" in usage.latest.get("usage", ""))


def test_fragments_come_once_a_second_at_most_and_only_when_changed(live: Site) -> None:
    owner = live.owner()
    key = live.key(name="laptop").key
    with listening(owner, "page=activity") as stream:
        asking = [threading.Thread(target=live.ask, args=(key,)) for _ in range(3)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        wait_for(lambda: stream.latest["rows"].count("completed") >= 3)
        gaps = [after - before for before, after in zip(stream.times["rows"], stream.times["rows"][1:], strict=False)]
        assert min(gaps) > events.INTERVAL_S * 0.8
        assert len(stream.times["status"]) == 1


def test_a_member_hears_of_their_own_requests_only(live: Site) -> None:
    live.owner()
    grace, linus = live.user("grace"), live.person("linus")
    mine = next(user for user in live.store.accounts.users() if user.username == "linus")
    with listening(linus, "page=activity") as rows, listening(linus, "page=overview") as overview:
        live.ask(live.key(grace, "notebook").key)
        live.ask(live.key(mine, "laptop").key)
        wait_for(lambda: "laptop" in rows.latest.get("rows", "") and "completed" in overview.latest.get("latest", ""))
        for html in (*rows.latest.values(), *overview.latest.values()):
            assert "grace" not in html
            assert "notebook" not in html
        assert overview.latest["latest"].count("/activity/req_") == 1


def test_the_logs_are_for_admins(site: Site) -> None:
    site.owner()
    with listening(site.person("linus"), "page=logs") as stream:
        assert stream.status == 403


def test_a_session_has_a_bounded_number_of_streams(site: Site) -> None:
    owner = site.owner()
    streams = [Listener(owner, "page=keys") for _ in range(STREAMS_MAX + 1)]
    assert [stream.status for stream in streams] == [200] * STREAMS_MAX + [429]
    for stream in streams:
        stream.close()


def test_a_stream_ends_with_its_session(site: Site) -> None:
    here, there = site.owner(), site.owner()
    with listening(there, "page=keys") as stream:
        wait_for(lambda: "status" in stream.latest)
        here.send("/profile/sessions/others")
        wait_for(lambda: "gone" in stream.latest and stream.is_over)


def test_a_stream_ends_when_rights_change(site: Site) -> None:
    owner, admin = site.owner(), site.person("grace", "admin")
    user = next(user for user in site.store.accounts.users() if user.username == "grace")
    with listening(admin, "page=logs") as stream:
        wait_for(lambda: "lines" in stream.latest)
        owner.send(f"/users/{user.id}", role="member")
        wait_for(lambda: "gone" in stream.latest and stream.is_over)


def test_a_stream_does_not_keep_a_session_awake(tmp_path: Path) -> None:
    with open_site(tmp_path, settings=Settings(auth=AuthSettings(session_idle_s=2.0))) as site:
        owner = site.owner()
        with listening(owner, "page=overview") as stream:
            wait_for(lambda: "gone" in stream.latest and stream.is_over)


def test_streams_end_when_the_server_stops(site: Site) -> None:
    with listening(site.owner(), "page=overview") as stream:
        wait_for(lambda: "now" in stream.latest)
        site.drain()
        wait_for(lambda: stream.is_over)
        assert "Shutting down" in stream.latest["status"]


def test_a_quiet_stream_shows_that_it_lives(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_INTERVAL_S", 0.5)
    with listening(site.owner(), "page=keys") as stream:
        wait_for(lambda: stream.comments >= 1)


def test_an_owner_of_a_request_aborts_it_from_its_page(live: Site) -> None:
    live.owner()
    person = live.person("linus")
    user = next(user for user in live.store.accounts.users() if user.username == "linus")
    key = live.key(user).key
    asking = threading.Thread(target=lambda: ask_in_vain(live, key))
    asking.start()
    wait_for(lambda: live.gateway.traffic.open())
    request_id = live.gateway.traffic.open()[0].usage.request_id
    assert "Abort this request" in person.get(f"/activity/{request_id}").text
    person.send(f"/activity/{request_id}/abort")
    asking.join()
    wait_for(lambda: "aborted" in person.get(f"/activity/{request_id}").text)
    assert live.store.usage.recent(limit=1)[0].state == "aborted"


def ask_in_vain(site: Site, key: str) -> None:
    with pytest.raises(APIError):
        site.ask(key)
