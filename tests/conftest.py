"""Shapes and types of public signatures are checked in every test, and nothing may reach the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from jaxtyping import install_import_hook

install_import_hook("sds3d", "typecheck.check")
