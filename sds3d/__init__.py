"""sds3d: from a sentence to a 3D asset by score distillation.

The names below are imported when first used, so that `import sds3d` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cameras import Orbit
    from .core import Guidance, Guided
    from .engine import Recipe, Stage, fit, run
    from .priors.catalogue import open_prior
    from .prompts import Prompts
    from .terms import Guide

__version__ = "0.1.0"

_PLACES = {
    "Guidance": "core",
    "Guided": "core",
    "Guide": "terms",
    "Orbit": "cameras",
    "Prompts": "prompts",
    "Recipe": "engine",
    "Stage": "engine",
    "fit": "engine",
    "open_prior": "priors.catalogue",
    "run": "engine",
}
__all__ = [
    "Guidance",
    "Guide",
    "Guided",
    "Orbit",
    "Prompts",
    "Recipe",
    "Stage",
    "__version__",
    "fit",
    "open_prior",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sds3d' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
