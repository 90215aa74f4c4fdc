"""Settings of all tests."""

from hypothesis import settings

# The machine may be slow and busy; a failure has to be the same one the next time.
settings.register_profile("mtl", deadline=None, derandomize=True)
settings.load_profile("mtl")
