"""What is said after something was done; the address carries a word, never the sentence, so that nobody can put one there."""

from __future__ import annotations

from atlas.dashboard.view import View

DONE = {
    "saved": "Saved.",
    "pause": "Paused: requests with this key are refused until you resume it.",
    "resume": "Resumed: the key works again.",
    "revoke": "Revoked: the next request with this key is refused.",
    "disabled": "Disabled: signed out everywhere, all keys refused.",
    "enabled": "Enabled: may sign in, and keys work again.",
    "withdrawn": "Invitation withdrawn: its link no longer works.",
    "removed": "Removed from this machine.",
    "password": "Password changed. Everyone else who was signed in as you has been signed out.",
    "session": "Signed out there.",
    "sessions": "Signed out everywhere else.",
    "reset": "Password set. Sign in with it now.",
    "signed-out": "You are signed out.",
}


def done(view: View) -> str:
    return DONE.get(view.query.get("done", ""), "")
