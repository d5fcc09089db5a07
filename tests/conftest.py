"""Shapes and types of public signatures are checked in every test, and nothing may reach the network."""

import os
from collections.abc import Iterator

import pytest
from jaxtyping import config, install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
install_import_hook("sds3d", "typecheck.check")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """What a user without the checker sees: for tests that hand over wrong types on purpose."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
