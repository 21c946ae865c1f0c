from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.engine import ModelRegistry
from atlas.engine.hardware import Gpu, Hardware, find_hardware, parse_gpus
from atlas.engine.registry import CATALOG
from atlas.errors import DownloadError, ModelFileError
from atlas.settings import EngineSettings
from tests.engine.file_server import FileServer, serving

BODY = b"GGUF" + bytes(50_000)
GIB = 1024**3
NO_GPU = Hardware(gpu=None, backend=None, nvcc=None)


class OnMachine(ModelRegistry):
    """A registry on a machine of our choosing."""

    machine = NO_GPU

    def hardware(self) -> Hardware:  # type: ignore[override]  # the shipped one needs no instance
        return self.machine


def on_gpu(free_bytes: int, backend: str | None = "cuda") -> Hardware:
    return Hardware(gpu=Gpu(name="RTX X", free_bytes=free_bytes, total_bytes=24 * GIB), backend=backend, nvcc=None)


def refuse(what: str, size_bytes: int) -> bool:
    return False


def accept(what: str, size_bytes: int) -> bool:
    return True


def never(what: str, size_bytes: int) -> bool:
    raise AssertionError(f"asked about {what}")


@pytest.fixture
def source() -> Iterator[FileServer]:
    with serving(BODY) as server:
        yield server


@pytest.fixture
def registry(tmp_path: Path, source: FileServer) -> OnMachine:
    bundled = tmp_path / "nano.gguf"
    bundled.write_bytes(BODY)
    return OnMachine(tmp_path / "models", endpoint=source.url, token="hf_secret", bundled=bundled)


def test_a_pulled_model_is_recorded_with_its_hash(registry: OnMachine, tmp_path: Path, source: FileServer) -> None:
    model = registry.pull("qwen3-0.6b")
    record = json.loads((tmp_path / "models" / "registry.json").read_text())["qwen3-0.6b"]
    assert record["sha256"] == hashlib.sha256(BODY).hexdigest() == model.sha256
    assert record["is_verified"] is True
    assert record["size_bytes"] == len(BODY)
    assert source.requests[0][1] == "/Qwen/Qwen3-0.6B-GGUF/resolve/main/Qwen3-0.6B-Q8_0.gguf"
    assert registry.find("qwen3-0.6b").path == str(tmp_path / "models" / "Qwen3-0.6B-Q8_0.gguf")


def test_the_token_goes_to_the_endpoint_only(registry: OnMachine, source: FileServer) -> None:
    with serving(BODY) as elsewhere:
        registry.pull(f"{elsewhere.url}/files/Some_Model.Q4.gguf")
        assert elsewhere.requests[0][4] is None
    registry.pull("qwen3-0.6b")
    assert source.requests[0][4] == "Bearer hf_secret"
    assert registry.find("some_model.q4").id == "some_model.q4"


def test_an_added_file_stays_where_it_is_also_when_removed(registry: OnMachine, tmp_path: Path) -> None:
    path = tmp_path / "My Model (v2).gguf"
    path.write_bytes(BODY)
    model = registry.add(path)
    assert model.id == "my-model-v2"
    assert model.sha256 == hashlib.sha256(BODY).hexdigest()
    registry.remove("my-model-v2")
    assert path.exists()
    assert "my-model-v2" not in registry.installed()


def test_a_pulled_file_goes_when_removed(registry: OnMachine) -> None:
    path = Path(registry.pull("qwen3-4b").path)
    registry.remove("qwen3-4b")
    assert not path.exists()
    with pytest.raises(ModelFileError, match="atlas models pull qwen3-4b"):
        registry.find("qwen3-4b")


@pytest.mark.parametrize("name", ["auto", "nano", "atlas", "qwen3-14b", "Bad Name", "../x", ""])
def test_some_names_cannot_be_given(registry: OnMachine, tmp_path: Path, name: str) -> None:
    path = tmp_path / "QWEN3-14B.gguf"
    path.write_bytes(BODY)
    with pytest.raises(ModelFileError, match="choose another with --name"):
        registry.add(path, name=name or None)


def test_a_name_in_use_is_not_taken_over(registry: OnMachine, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.gguf").write_bytes(BODY)
    registry.add(tmp_path / "a" / "m.gguf")
    with pytest.raises(ModelFileError, match="'m' already names"):
        registry.add(tmp_path / "b" / "m.gguf")


def test_a_file_that_is_no_gguf_is_refused(registry: OnMachine, tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        registry.add(path)
    with pytest.raises(ModelFileError, match="No such file"):
        registry.find(str(tmp_path / "none.gguf"))


def test_a_file_that_was_deleted_is_named(registry: OnMachine, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(BODY)
    registry.add(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"m\.gguf: No such file"):
        registry.find("m")


def test_an_unknown_name_lists_those_there_are(registry: OnMachine) -> None:
    with pytest.raises(ModelFileError, match=r"no model 'gpt-9'; known are .*qwen3-14b.*named by its path"):
        registry.find("gpt-9")


def test_a_damaged_registry_is_named(registry: OnMachine, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "registry.json").write_text('{"a": 3}')
    with pytest.raises(ModelFileError, match=r"registry\.json"):
        registry.installed()


def test_a_path_is_served_without_being_registered(registry: OnMachine, tmp_path: Path) -> None:
    (tmp_path / "Tiny.gguf").write_bytes(BODY)
    choice = registry.choose(EngineSettings(model=str(tmp_path / "Tiny.gguf")), confirm=never)
    assert (choice.id, choice.path, choice.notices) == ("tiny", str(tmp_path / "Tiny.gguf"), ())


def test_a_named_model_is_downloaded_unasked(registry: OnMachine) -> None:
    assert registry.choose(EngineSettings(model="qwen3-4b"), confirm=never).id == "qwen3-4b"


def test_offline_downloads_nothing(registry: OnMachine, source: FileServer) -> None:
    with pytest.raises(ModelFileError, match="atlas models pull qwen3-4b"):
        registry.choose(EngineSettings(model="qwen3-4b", offline=True), confirm=never)
    assert source.requests == []


def test_a_named_model_that_cannot_be_fetched_is_an_error_and_not_another_model(registry: OnMachine, source: FileServer) -> None:
    source.status = 404
    with pytest.raises(DownloadError, match="no such file"):
        registry.choose(EngineSettings(model="qwen3-4b"), confirm=never)


def test_auto_without_a_gpu_is_nano_and_says_so(registry: OnMachine) -> None:
    choice = registry.choose(EngineSettings(), confirm=never)
    assert choice.id == "nano"
    assert "no GPU" in choice.notices[0]


def test_auto_on_a_gpu_without_a_gpu_build_is_nano_and_says_how_to_mend_it(registry: OnMachine) -> None:
    registry.machine = on_gpu(20 * GIB, backend=None)
    choice = registry.choose(EngineSettings(), confirm=never)
    assert choice.id == "nano"
    assert "nvcc" in choice.notices[0]
    assert "A GPU without nvcc" in choice.notices[0]


def test_a_build_without_its_bundled_model_says_so(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", bundled=tmp_path / "none.gguf")
    assert registry.installed() == {}
    with pytest.raises(ModelFileError, match="the bundled model is missing"):
        registry.choose(EngineSettings(model="nano"), confirm=never)


def test_auto_on_a_gpu_asks_and_downloads_the_best_that_fits(registry: OnMachine) -> None:
    registry.machine = on_gpu(20 * GIB)
    choice = registry.choose(EngineSettings(), confirm=accept)
    assert (choice.id, choice.notices) == ("qwen3-14b", ())


def test_auto_counts_the_cells_as_well_as_the_file(registry: OnMachine) -> None:
    """8,192 cells of the 14B take 1.25 GiB, of the 8B 1.125 GiB; 1.2 GiB are kept free beside them."""
    registry.machine = on_gpu(int(2.4 * GIB))
    assert registry.choose(EngineSettings(), confirm=accept).id == "qwen3-8b"
    assert registry.choose(EngineSettings(context_tokens=4096), confirm=accept).id == "qwen3-8b"


def test_auto_falls_back_to_nano_when_nothing_fits(registry: OnMachine) -> None:
    registry.machine = on_gpu(2 * GIB)
    choice = registry.choose(EngineSettings(), confirm=never)
    assert choice.id == "nano"
    assert "qwen3-14b needs 2.6 GB" in choice.notices[0]


def test_auto_falls_back_to_nano_when_the_download_is_declined(registry: OnMachine) -> None:
    registry.machine = on_gpu(20 * GIB)
    asked: list[str] = []

    def decline(what: str, size_bytes: int) -> bool:
        asked.append(what)
        return False

    choice = registry.choose(EngineSettings(), confirm=decline)
    assert choice.id == "nano"
    assert asked == ["qwen3-14b from Qwen/Qwen3-14B-GGUF"]
    assert "atlas models pull qwen3-14b" in choice.notices[0]


def test_auto_prefers_a_smaller_model_that_is_here_to_one_that_is_declined(registry: OnMachine) -> None:
    registry.machine = on_gpu(20 * GIB)
    registry.pull("qwen3-8b")
    assert registry.choose(EngineSettings(), confirm=refuse).id == "qwen3-8b"


def test_auto_offline_takes_what_is_here_without_a_request(registry: OnMachine, source: FileServer) -> None:
    registry.machine = on_gpu(20 * GIB)
    registry.pull("qwen3-4b")
    source.requests.clear()
    assert registry.choose(EngineSettings(offline=True), confirm=never).id == "qwen3-4b"
    assert source.requests == []


def test_auto_without_a_network_is_nano_with_the_reason(registry: OnMachine, source: FileServer) -> None:
    registry.machine = on_gpu(20 * GIB)
    source.status = 503
    choice = registry.choose(EngineSettings(), confirm=never)
    assert choice.id == "nano"
    assert "HTTP 503" in choice.notices[0]
    assert len(source.requests) == 1


def test_auto_whose_download_breaks_takes_what_is_here(registry: OnMachine, source: FileServer) -> None:
    registry.machine = on_gpu(20 * GIB)
    registry.pull("qwen3-4b")
    source.body = b"<html>"
    assert registry.choose(EngineSettings(), confirm=accept).id == "qwen3-4b"


def test_a_gpu_that_lies_idle_is_said_for_a_named_model_too(registry: OnMachine) -> None:
    registry.machine = on_gpu(20 * GIB, backend=None)
    assert registry.choose(EngineSettings(model="qwen3-4b"), confirm=never).notices
    assert not registry.choose(EngineSettings(model="qwen3-4b", gpu_layers=0), confirm=never).notices


def test_the_driver_listing_is_read() -> None:
    gpu = parse_gpus("NVIDIA RTX 3090, 20480, 24576\nNVIDIA H200, big, one, 1024, 2048\nrubbish\n")
    assert gpu == Gpu(name="NVIDIA RTX 3090", free_bytes=20 * GIB, total_bytes=24 * GIB)
    assert parse_gpus("No devices were found") is None


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_hardware().gpu is None
    tool.write_text("#!/bin/sh\necho 'RTX X, 1024, 2048'\n")
    assert find_hardware().gpu == Gpu(name="RTX X", free_bytes=GIB, total_bytes=2 * GIB)


def test_every_catalogue_name_has_an_address(registry: OnMachine) -> None:
    for name, model in CATALOG.items():
        assert registry.url(name).endswith(f"/{model.repository}/resolve/main/{model.file}")
