"""The running stack, for every test of this folder that asks for it."""

from tests.e2e.stack import stack

__all__ = ["stack"]
