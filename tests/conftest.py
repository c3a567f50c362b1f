"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("roofplan", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("roofplan")
