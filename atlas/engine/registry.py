"""Models by name: those known to the world, those on this machine, and which of them `auto` means.

No size and no hash is written here: both are taken from what was downloaded, and recorded in registry.json.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec

from atlas.engine.hardware import Gpu, Hardware, find_hardware
from atlas.engine.pull import MAGIC, Progress, download, remote_size
from atlas.errors import DownloadError, ModelFileError
from atlas.launch import ModelChoice
from atlas.settings import EngineSettings, packaged

DEFAULT_ENDPOINT = "https://huggingface.co"
NANO = "nano"
RESERVE_BYTES = int(1.2 * 1024**3)  # beside weights and KV cells on a GPU: CUDA context and compute buffers (contracts.md 9)
CELLS_MIN = 8192
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class CatalogModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be downloaded by name.

    Attributes:
        repository: owner and name on Hugging Face.
        kv_bytes: of one token, f16: layers x key-value heads x head size x 2 (keys, values) x 2 bytes, from its config.json.
    """

    id: str
    repository: str
    file: str
    kv_bytes: int
    about: str


CATALOG = {
    model.id: model
    for model in (
        CatalogModel(
            id="qwen3-14b",
            repository="Qwen/Qwen3-14B-GGUF",
            file="Qwen3-14B-Q4_K_M.gguf",
            kv_bytes=40 * 8 * 128 * 4,
            about="Qwen3 14B, Q4_K_M: the default on a GPU",
        ),
        CatalogModel(
            id="qwen3-8b",
            repository="Qwen/Qwen3-8B-GGUF",
            file="Qwen3-8B-Q4_K_M.gguf",
            kv_bytes=36 * 8 * 128 * 4,
            about="Qwen3 8B, Q4_K_M: for GPUs with less memory",
        ),
        CatalogModel(
            id="qwen3-4b",
            repository="Qwen/Qwen3-4B-GGUF",
            file="Qwen3-4B-Q4_K_M.gguf",
            kv_bytes=36 * 8 * 128 * 4,
            about="Qwen3 4B, Q4_K_M: for small GPUs",
        ),
        CatalogModel(
            id="qwen3-0.6b",
            repository="Qwen/Qwen3-0.6B-GGUF",
            file="Qwen3-0.6B-Q8_0.gguf",
            kv_bytes=28 * 8 * 128 * 4,
            about="Qwen3 0.6B, Q8_0: a draft for the larger ones",
        ),
    )
}
AUTO = ("qwen3-14b", "qwen3-8b", "qwen3-4b")  # best first


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model file on this machine.

    Attributes:
        sha256: of the file when it was pulled or added; None for the bundled model.
        is_verified: the server it came from named the same hash.
        url: where it was pulled from; None for a file that was added, and that `remove` therefore leaves in place.
        added_at: Unix seconds.
    """

    id: str
    path: str
    size_bytes: int = 0
    sha256: str | None = None
    is_verified: bool = False
    url: str | None = None
    added_at: float = 0.0


Confirm = Callable[[str, int], bool]  # (what would be downloaded, bytes) -> go ahead?


class ModelRegistry:
    """Models of one data directory. Several processes may use it: each change is one atomic replacement under a lock.

    Args:
        folder: where downloaded files and registry.json lie.
        endpoint: HF_ENDPOINT; None for Hugging Face itself.
        token: HF_TOKEN; sent to the endpoint only.
        bundled: the nano model; None for the one ATLAS ships.
    """

    catalog = CATALOG

    def __init__(
        self, folder: Path, *, endpoint: str | None = None, token: str | None = None, bundled: Path | None = None
    ) -> None:
        self._folder = folder
        self._endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
        self._token = token or None
        self._bundled = bundled or packaged("models/nano/nano-q8_0.gguf")

    @staticmethod
    def hardware() -> Hardware:
        """What this machine can run a model on."""
        return find_hardware()

    def installed(self) -> dict[str, InstalledModel]:
        """Every model on this machine by id, the bundled one first."""
        found = self._read()
        if self._bundled.exists():
            found = {NANO: InstalledModel(id=NANO, path=str(self._bundled), size_bytes=self._bundled.stat().st_size), **found}
        return found

    def find(self, name: str) -> ModelChoice:
        """The file a name or a path means.

        Raises:
            ModelFileError: no such model here; the message says how to get it. Or its file is missing or no GGUF file.
        """
        if is_path(name):
            path = Path(name).expanduser().absolute()
            check_gguf(path)
            return ModelChoice(id=_id_of(path), path=str(path))
        model = self.installed().get(name)
        if model is None:
            raise ModelFileError(self._missing(name))
        check_gguf(Path(model.path))
        return ModelChoice(id=model.id, path=model.path)

    def choose(self, settings: EngineSettings, *, confirm: Confirm, progress: Progress | None = None) -> ModelChoice:
        """The model to serve, downloaded if it has to be and may be.

        Args:
            settings: `model`, `offline`, `context_tokens` and `gpu_layers` are read.
            confirm: asked before `auto` downloads anything; a model that was named is downloaded unasked.
            progress: told how a download goes.

        Raises:
            ModelFileError: the model is not here, not to be had, or no GGUF file.
            DownloadError: a model that was named could not be fetched.
        """
        hardware = self.hardware()
        if settings.model == "auto":
            return self._choose_auto(settings, hardware, confirm, progress)
        if settings.model in CATALOG and settings.model not in self.installed() and not settings.offline:
            self.pull(settings.model, progress=progress)
        choice = self.find(settings.model)
        notices = [hardware.notice] if hardware.notice and settings.gpu_layers else []
        return msgspec.structs.replace(choice, notices=tuple(notices))

    def pull(self, name: str, *, progress: Progress | None = None) -> InstalledModel:
        """Download a model of the catalogue, or a GGUF file by its http(s) address, and record its hash.

        Raises:
            ModelFileError: the catalogue has no such name.
            DownloadError: it could not be fetched.
        """
        url = self.url(name)
        target = self._folder / url.rsplit("/", 1)[-1]
        token = self._token if url.startswith(self._endpoint + "/") else None
        done = download(url, target, token=token, progress=progress)
        model = InstalledModel(
            id=name if name in CATALOG else _id_of(target),
            path=str(target),
            size_bytes=done.size_bytes,
            sha256=done.sha256,
            is_verified=done.is_verified,
            url=url,
            added_at=time.time(),
        )
        self._record(model)
        return model

    def add(self, path: Path, *, name: str | None = None) -> InstalledModel:
        """Register a GGUF file where it lies.

        Raises:
            ModelFileError: it is missing or no GGUF file, or the name is taken or cannot be one.
        """
        path = path.expanduser().absolute()
        check_gguf(path)
        model_id = name or _id_of(path)
        if not _NAME.fullmatch(model_id) or model_id in {"auto", NANO, "atlas", *CATALOG}:
            raise ModelFileError(
                f"'{model_id}' cannot name a model of yours; choose another with --name (a-z, 0-9, '.', '_', '-')"
            )
        known = self.installed().get(model_id)
        if known is not None and known.path != str(path):
            raise ModelFileError(f"'{model_id}' already names {known.path}; choose another with --name, or remove that one first")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        model = InstalledModel(id=model_id, path=str(path), size_bytes=path.stat().st_size, sha256=sha256, added_at=time.time())
        self._record(model)
        return model

    def remove(self, name: str) -> InstalledModel:
        """Forget a model; a downloaded file is deleted, an added one stays where it is.

        Raises:
            ModelFileError: no such model, or it is the bundled one.
        """
        if name == NANO:
            raise ModelFileError("nano is part of ATLAS and cannot be removed")
        with self._locked():
            models = self._read()
            model = models.pop(name, None)
            if model is None:
                raise ModelFileError(f"no model '{name}' to remove; `atlas models list` shows what is here")
            self._write(models)
        if model.url is not None:
            Path(model.path).unlink(missing_ok=True)
        return model

    def url(self, name: str) -> str:
        """Where a name of the catalogue, or an http(s) address itself, is downloaded from."""
        if name in CATALOG:
            model = CATALOG[name]
            return f"{self._endpoint}/{model.repository}/resolve/main/{model.file}"
        try:
            address = httpx.URL(name)
        except httpx.InvalidURL:
            raise ModelFileError(self._missing(name)) from None
        if address.scheme in ("http", "https") and address.path.endswith(".gguf"):
            return name.partition("?")[0]
        raise ModelFileError(self._missing(name))

    def _choose_auto(
        self, settings: EngineSettings, hardware: Hardware, confirm: Confirm, progress: Progress | None
    ) -> ModelChoice:
        if hardware.gpu is None or hardware.backend is None or settings.gpu_layers == 0:
            return self._nano(hardware.notice or "no GPU is used: serving nano, the small bundled model; see `atlas models list`")
        reasons = []
        confirm_once = _once(confirm)
        for name in AUTO:
            try:
                tried = self._try(CATALOG[name], settings, hardware.gpu, confirm_once, progress)
            except DownloadError as error:
                tried = error.message
                settings = msgspec.structs.replace(settings, offline=True)  # one wait for a network that is not there is enough
            if isinstance(tried, ModelChoice):
                return tried
            reasons.append(tried)
        return self._nano(f"{'; '.join(reasons)}; serving nano, the small bundled model, instead")

    def _try(
        self, model: CatalogModel, settings: EngineSettings, gpu: Gpu, confirm: Confirm, progress: Progress | None
    ) -> ModelChoice | str:
        """This model, if it is here or may be fetched, and fits; else the reason why not."""
        size_bytes = self._size(model, settings)
        if size_bytes is None:
            return f"{model.id} is not downloaded"
        need_bytes = size_bytes + max(CELLS_MIN, settings.context_tokens) * model.kv_bytes + RESERVE_BYTES
        if need_bytes > gpu.free_bytes:
            return f"{model.id} needs {need_bytes / 1e9:.1f} GB, {gpu.free_bytes / 1e9:.1f} GB of {gpu.name} are free"
        if model.id not in self.installed():
            if not confirm(f"{model.id} from {model.repository}", size_bytes):
                return f"{model.id} is not downloaded (`atlas models pull {model.id}`, {size_bytes / 1e9:.1f} GB)"
            self.pull(model.id, progress=progress)
        return self.find(model.id)

    def _size(self, model: CatalogModel, settings: EngineSettings) -> int | None:
        """Bytes of the file, here or at its source; None when it is not here and not to be asked for."""
        if here := self.installed().get(model.id):
            return here.size_bytes
        return None if settings.offline else remote_size(self.url(model.id), token=self._token)

    def _nano(self, notice: str) -> ModelChoice:
        return msgspec.structs.replace(self.find(NANO), notices=(notice,))

    def _missing(self, name: str) -> str:
        if name in CATALOG:
            return f"model '{name}' is not on this machine; `atlas models pull {name}` downloads it"
        if name == NANO:
            return f"the bundled model is missing ({self._bundled}); install ATLAS again, or name another model"
        known = ", ".join(dict.fromkeys((*self.installed(), *CATALOG)))
        return f"no model '{name}'; known are {known}; any other GGUF file is named by its path"

    def _record(self, model: InstalledModel) -> None:
        with self._locked():
            self._write({**self._read(), model.id: model})

    def _read(self) -> dict[str, InstalledModel]:
        path = self._folder / "registry.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, InstalledModel])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise ModelFileError(f"{path}: {error}; mend it, or delete it and add your models again") from None

    def _write(self, models: dict[str, InstalledModel]) -> None:
        partial = self._folder / "registry.json.new"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(models), indent=2) + b"\n")
        partial.replace(self._folder / "registry.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "registry.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def is_path(name: str) -> bool:
    """Whether a model is named by its file."""
    return "://" not in name and ("/" in name or name.lower().endswith(".gguf"))


def check_gguf(path: Path) -> None:
    """Raises ModelFileError unless `path` begins as a GGUF file does."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise ModelFileError(f"model file {path}: {error.strerror}") from None
    if magic != MAGIC:
        raise ModelFileError(f"model file {path} is not a GGUF file (it begins with {magic!r})")


def _once(confirm: Confirm) -> Confirm:
    """Asks the first time only: who declines the best model is not asked about each lesser one."""
    answers: list[bool] = []

    def ask(what: str, size_bytes: int) -> bool:
        if answers:
            return False
        answers.append(confirm(what, size_bytes))
        return answers[0]

    return ask


def _id_of(path: Path) -> str:
    """A model id made of a file name: lower case, with nothing a URL would have to escape."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:63] or "model"
