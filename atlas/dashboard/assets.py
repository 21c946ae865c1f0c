"""Style sheets and scripts, served from the installation: nothing on these pages comes from another host."""

from __future__ import annotations

from functools import cache

from litestar import Response, get
from litestar.params import FromPath

from atlas.dashboard.view import HTTPRequest
from atlas.errors import NotFound
from atlas.settings import packaged

MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@get("/dash/assets/{name:str}", opt={"access": "public"})
async def asset(request: HTTPRequest, name: FromPath[str]) -> Response[bytes]:
    """For good in the browser's cache, because its address holds a hash of what it says."""
    content = contents().get(name)
    if content is None:
        raise NotFound(f"no asset {name[:80]!r}")
    lasting = "public, max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
    return Response(content, media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers={"cache-control": lasting})


@cache
def contents() -> dict[str, bytes]:
    """All of them; a few dozen kilobytes. Only these names are answered, so that no path leads elsewhere."""
    folder = packaged("templates") / "assets"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix[1:] in MEDIA_TYPES}
