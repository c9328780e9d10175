"""The name under which modules of this package import cpu.large_pages."""

from inference_server.cpu.large_pages import Arena, aligned_bytes, moved

__all__ = ["Arena", "aligned_bytes", "moved"]
