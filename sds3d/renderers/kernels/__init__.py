"""The CPU kernels: plain C, its loader, and its place behind the renderers' interfaces."""

from .loader import Backend, backend, backend_for

__all__ = ["Backend", "backend", "backend_for"]
