"""What holds for all tests: the same examples in every run, and no method forced from outside."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from cnnfast import dispatch

# "ci" draws the same examples in every run; "explore" looks for new ones, without end in sight:
# HYPOTHESIS_PROFILE=explore python -m pytest tests/test_geometry.py
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, max_examples=60, **_COMMON)
settings.register_profile("explore", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _no_method_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNFAST_METHOD", raising=False)
    dispatch.forget()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
