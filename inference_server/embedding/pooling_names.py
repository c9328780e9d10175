"""Names the poolings, without importing torch, so that the catalog can be read without it."""

from typing import Literal

Pooling = Literal["mean", "cls", "last"]
