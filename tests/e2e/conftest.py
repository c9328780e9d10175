"""Fixture of the running stack for the tests of this folder."""

from tests.e2e.stack import stack

__all__ = ["stack"]
