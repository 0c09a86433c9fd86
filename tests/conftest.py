"""Shared by all tests."""

import pytest

pytest.register_assert_rewrite("support.sampler_contract", "support.compare")
