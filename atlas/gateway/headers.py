"""The headers that tell browsers what not to do with our replies."""

from __future__ import annotations

RawHeaders = list[tuple[bytes, bytes]]

PAGE_POLICY = b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"
FOR_DATA = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", DATA_POLICY),
    (b"referrer-policy", b"no-referrer"),
)
FOR_PAGES = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", PAGE_POLICY),
    # With "no-referrer" browsers send `Origin: null` with the forms of our own pages, which looks like another site.
    (b"referrer-policy", b"same-origin"),
)
NOT_STORED = (b"cache-control", b"no-store")


def guarded_headers(headers: RawHeaders, path: str) -> RawHeaders:
    """The reply's headers and ours. Pages load from this server only, and run no inline script or style; data may do nothing."""
    is_page = dict(headers).get(b"content-type", b"").startswith(b"text/html")
    added = FOR_PAGES if is_page else FOR_DATA
    if not is_page and not path.startswith("/api/"):
        return [*headers, *added]
    return [*[header for header in headers if header[0] != b"cache-control"], *added, NOT_STORED]
