"""`atlas serve` as shipped, with the scripted serving process behind it. Arguments: SECTION.NAME=VALUE; CONFIG names a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from atlas.cli.main import Refused
from atlas.cli.serve import run_server
from atlas.errors import AtlasError
from atlas.settings import load_settings

CHILD = [sys.executable, str(Path(__file__).with_name("scripted_child.py"))]

overrides = dict(argument.split("=", 1) for argument in sys.argv[1:])
config = Path(os.environ["CONFIG"]) if "CONFIG" in os.environ else None
try:
    is_unsafe = os.environ.get("SERVE_UNSAFE") == "1"  # --unsafe-no-sandbox
    run_server(load_settings(config, os.environ, overrides), command=CHILD, config=config, is_unsafe=is_unsafe)
except AtlasError as error:
    Refused(error.message).show()
    sys.exit(1)
