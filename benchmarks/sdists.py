"""Source distributions that are measured against or tested with, fetched once from the index that pip is set up to use."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"


def unpacked(project: str, version: str) -> Path:
    """The folder of the unpacked source distribution."""
    folder = CACHE / f"{project.replace('-', '_')}-{version}"
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        fetch = ["download", "-q", "--no-deps", "--no-binary", project, "-d", str(CACHE), f"{project}=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        with tarfile.open(CACHE / f"{folder.name}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder
