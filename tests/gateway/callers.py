"""Everybody who may knock at a route, for the policy matrix: each makes the headers of one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import jwt

from atlas.store import KeyInfo, Store
from atlas.types import User
from tests.gateway.people import People, bearer, token_of

Headers = dict[str, str]


@dataclass(frozen=True)
class Callers:
    """Credentials of the people of one store. Sessions and tokens are fresh for each request: some requests end them."""

    store: Store
    people: People
    url: str
    signing_key: bytes

    def headers(self, caller: str) -> Headers:
        make: Callable[[], Headers] = getattr(self, caller)
        # Not a program on this machine that calls us directly: that one may read /metrics.
        return make() | {"via": "1.1 test"}

    def nobody(self) -> Headers:
        return {}

    def malformed(self) -> Headers:
        return bearer("sk-llm-not-even-close")

    def unknown(self) -> Headers:
        return bearer("sk-llm-" + "A" * 43 + "0ejmBf")  # the checksum is right

    def expired(self) -> Headers:
        return bearer(self.store.keys.mint("expired", owner=self.people.member.id, expires_at=time.time() - 1).key)

    def revoked(self) -> Headers:
        made = self.store.keys.mint("revoked", owner=self.people.member.id)
        self.store.keys.revoke(made.info.id)
        return bearer(made.key)

    def narrow(self) -> Headers:
        """A valid key whose only scope no route of today asks for."""
        return bearer(self.store.keys.mint("narrow", owner=self.people.member.id, scopes=("projects",)).key)

    def key(self) -> Headers:
        return bearer(self.store.keys.mint("key", owner=self.people.member.id).key)

    def admin_key(self) -> Headers:
        scopes = ("chat", "embeddings", "tasks", "projects", "read", "admin")
        return {"x-api-key": self.store.keys.mint("admin key", owner=self.people.admin.id, scopes=scopes).key}

    def stale(self) -> Headers:
        """An owner's access token, rightly signed, whose time is over."""
        claims = jwt.decode(token_of(self.store, self.people.owner), options={"verify_signature": False})
        return bearer(jwt.encode(claims | {"exp": int(time.time()) - 1}, self.signing_key, algorithm="HS256"))

    def member(self) -> Headers:
        return bearer(token_of(self.store, self.people.member))

    def admin(self) -> Headers:
        return bearer(token_of(self.store, self.people.admin))

    def owner(self) -> Headers:
        return bearer(token_of(self.store, self.people.owner))

    def session(self) -> Headers:
        return self._session(self.people.member)

    def forged(self) -> Headers:
        """The member's browser, made to send something by another site."""
        cookie = self._session(self.people.member)["cookie"]
        return {"cookie": cookie, "origin": "http://evil.example", "sec-fetch-site": "cross-site"}

    def other(self) -> Headers:
        """Another member, signed in, who asks for the first one's things."""
        return self._session(self.people.other)

    def admin_session(self) -> Headers:
        return self._session(self.people.admin)

    def _session(self, user: User) -> Headers:
        opened = self.store.sessions.open(user, source="", user_agent="")
        return {"cookie": f"atlas={opened.token}", "origin": self.url, "x-csrf-token": opened.session.csrf}

    # -- things of the member's, for the parameters of paths --

    def thing(self, name: str) -> str:
        member = self.people.member
        if name == "key_id":
            made: KeyInfo = self.store.keys.mint("thing", owner=member.id).info
            return made.id
        if name == "session_id":
            return self.store.sessions.open(member, source="", user_agent="").session.id
        if name == "task_id":
            return self._made("/v1/tasks", task="Write f(x).", tests="assert f(1) == 2")
        if name == "response_id":
            return self._made("/v1/responses", model="scripted", input="hi")
        if name == "invitation_id":
            return self.store.accounts.invite(actor=self.people.owner.id).id
        return member.id if name == "user_id" else FIXED[name]

    def _made(self, path: str, **body: str) -> str:
        """The id of what such a request of the member's makes."""
        made: str = httpx.post(self.url + path, json=body, headers=self.member(), timeout=20).json()["id"]
        return made


FIXED = {
    "action": "pause",
    "form": "csv",
    "model_id": "scripted",
    "name": "dash.js",
    "path": "x",
    "request_id": "req_unknown",
    "rest": "x",
}
