"""The headers that tell browsers what not to do with our replies."""

from __future__ import annotations

RawHeaders = list[tuple[bytes, bytes]]

PAGE_POLICY = b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"


def guarded_headers(headers: RawHeaders, path: str) -> RawHeaders:
    """The reply's headers and ours. Pages load from this server only, and run no inline script or style; data may do nothing."""
    kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
    is_page = kind.startswith(b"text/html")
    added = [
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", PAGE_POLICY if is_page else DATA_POLICY),
        # With "no-referrer" browsers send `Origin: null` with the forms of our own pages, which looks like another site.
        (b"referrer-policy", b"same-origin" if is_page else b"no-referrer"),
    ]
    if is_page or path.startswith("/api/"):
        headers = [(name, value) for name, value in headers if name.lower() != b"cache-control"]
        added.append((b"cache-control", b"no-store"))
    return [*headers, *added]
