"""Defines the names of the poolings. Does not import torch, so that the catalog can be read without it."""

from typing import Literal

Pooling = Literal["mean", "cls", "last"]
