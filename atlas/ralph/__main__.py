"""A worker beside its server: `python -m atlas.ralph OPTIONS`."""

from atlas.ralph.process import main

main()
