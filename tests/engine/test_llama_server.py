"""The contract suite before a real llama-server: LLAMA_SERVER, else built once from the sources of the binding (minutes)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from atlas.engine import RemoteEngine
from benchmarks.peers import KEY, Peer, llama_server
from tests import ggufs
from tests.engine.contract import CHECKS, Check, Needs
from tests.engine.test_contract import closing

pytestmark = pytest.mark.slow

# What it does otherwise, and why that is not the remote engine's to mend.
OTHERWISE = {
    "a_required_tool_is_called": "it takes a tool_choice that names a tool for auto",
    "embeddings_have_unit_length_and_their_order": "it embeds only if it was started for that",
}


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    if "LLAMA_SERVER" not in os.environ and shutil.which("cmake") is None:
        pytest.skip("no cmake to build llama-server with; install it, or name a llama-server in LLAMA_SERVER")
    with llama_server(ggufs.tiny_random(), threads=1, cells=8192, slots=16) as peer:
        yield peer


@pytest.mark.parametrize(("check", "needs"), CHECKS, ids=lambda value: getattr(value, "__name__", ""))
async def test_the_contract_is_kept_before_a_real_peer(check: Check, needs: Needs, peer: Peer) -> None:
    async with closing(RemoteEngine(f"{peer.url}/v1", model=peer.model, api_key=KEY)) as engine:
        if not needs(engine.capabilities):
            pytest.skip("a remote engine does not declare it")
        if check.__name__ in OTHERWISE:
            pytest.skip(OTHERWISE[check.__name__])
        await check(engine)
