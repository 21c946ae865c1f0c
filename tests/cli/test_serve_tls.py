"""`atlas serve` over TLS, as its clients see it."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpx
import pytest

from tests.cli.conftest import RunningServer

Launcher = Callable[..., RunningServer]


def test_a_local_authority_is_made_and_clients_that_trust_it_are_served(launch_server: Launcher) -> None:
    server = launch_server("server.tls=auto", "server.host=0.0.0.0")
    server.wait_ready()
    ca = server.data_dir / "tls" / "ca.pem"
    assert str(ca) in server.stderr.read_text()
    assert server.url.startswith("https://0.0.0.0:")
    url = server.url.replace("0.0.0.0", "localhost")
    trusting = ssl.create_default_context(cafile=str(ca))
    assert httpx.get(f"{url}/livez", verify=trusting).status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/livez")
    with pytest.raises(httpx.TransportError):
        httpx.get(url.replace("https", "http") + "/livez")
    asked = server.cli("ask", "hello")
    assert (asked.returncode, asked.stderr) == (0, "")


def test_bad_files_end_the_server_in_one_line(launch_server: Launcher) -> None:
    server = launch_server("server.tls_cert=/no/such.pem", "server.tls_key=/no/such.key")
    assert server.process.wait(30) == 1
    assert server.stderr.read_text().splitlines()[-1].endswith("/no/such.pem: No such file or directory")
