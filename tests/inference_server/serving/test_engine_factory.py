"""The registry of engines."""

import subprocess
import sys
from typing import get_args

import grimp

from inference_server.serving.engine_factory import BUILDERS, EngineName


def test_every_engine_of_the_catalog_has_a_builder():
    assert set(BUILDERS) == set(get_args(EngineName))
    for make in BUILDERS.values():
        assert callable(make().load) and callable(make().build)


def test_reading_a_catalog_imports_no_engine_and_no_torch():
    code = "import sys, inference_server.serving.catalog; print([m for m in sys.modules if m == 'torch' or '.engine.' in m])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_engines_do_not_import_each_other():
    graph = grimp.build_graph("inference_server")
    parent = "inference_server.engine"
    engines = {name for name in graph.find_children(parent) if f"{name}.build" in graph.modules}
    assert len(engines) >= 2
    for engine in engines:
        for other in engines - {engine}:
            assert not graph.find_shortest_chains(engine, other)
