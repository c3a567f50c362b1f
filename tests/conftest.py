"""Settings shared by all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Before anything imports Triton: its own functions are interpreted only if it is imported so. Compiling ahead of time
# happens in processes of its own (tests/test_kernels_compile.py).
os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("roofplan", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("roofplan")
