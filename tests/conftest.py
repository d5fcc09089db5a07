"""Shapes and types of public signatures are checked in every test, and nothing may reach the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from jaxtyping import install_import_hook

install_import_hook("sds3d", "typecheck.check")

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked() -> Iterator[None]:
    """What a user without the checker sees: for tests that hand over wrong types on purpose."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
