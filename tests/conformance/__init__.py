"""Suites that this project did not write, run against a real `atlas serve`: `make conformance`; see docs/conformance.md.

Their files are run as they were published. What we supply is fixtures (`fixtures/`): where the server is, its key, and a model
under the names that the tests ask for. Which tests are not expected to pass, and why, is written by hand in `listed.toml`.
"""
