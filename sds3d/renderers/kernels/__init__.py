"""The CPU kernels: plain C, its loader, and its place behind the splat backends' interface."""

from .loader import Backend, backend

__all__ = ["Backend", "backend"]
