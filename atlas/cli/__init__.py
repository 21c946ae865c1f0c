"""The command line. stdout is the answer, stderr is everything else; exit status 0 done, 1 failed, 2 misused."""

from atlas.cli.main import main

__all__ = ["main"]
