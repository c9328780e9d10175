"""The registry of engines."""

from typing import get_args

from inference_server.serving.catalog import EngineName
from inference_server.serving.engine_factory import BUILDERS


def test_every_engine_of_the_catalog_has_a_builder():
    assert set(BUILDERS) == set(get_args(EngineName))
