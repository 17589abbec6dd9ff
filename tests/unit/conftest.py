"""How many examples the property tests try; ``HYPOTHESIS_PROFILE=full`` tries more."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("quick-unit", max_examples=100, deadline=None)
settings.register_profile("full-unit", max_examples=3000, deadline=None)
settings.load_profile(f"{os.environ.get('HYPOTHESIS_PROFILE', 'quick')}-unit")
