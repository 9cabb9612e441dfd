"""How long the Python fuzzers go on: some seconds by default, as many examples as SCOW_FUZZ_EXAMPLES says."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SCOW_FUZZ_EXAMPLES", "0"))
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))  # fmt: skip
settings.register_profile("long", max_examples=EXAMPLES or 1, deadline=None, suppress_health_check=list(HealthCheck))  # fmt: skip
settings.load_profile("long" if EXAMPLES else "short")
