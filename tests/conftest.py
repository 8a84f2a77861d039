"""Settings for all tests."""

from hypothesis import settings

# The tests run on busy and on emulated machines: how long an example takes says nothing about the code.
settings.register_profile("kcompat", deadline=None)
settings.load_profile("kcompat")
