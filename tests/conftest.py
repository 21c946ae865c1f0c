"""For all tests."""

from hypothesis import settings

settings.register_profile("suite", deadline=None)  # an example that takes long says something of the machine, not of the code
settings.load_profile("suite")
