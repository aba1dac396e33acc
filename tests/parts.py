"""What to do where a part that tests need is not on this machine."""

import os

import pytest


def need(missing: str | None) -> None:
    """Skip with the sentence that says what is missing; fail where VAULTML_REQUIRE_REAL=1 says that nothing may be."""
    if missing is None:
        return
    if os.environ.get("VAULTML_REQUIRE_REAL") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
