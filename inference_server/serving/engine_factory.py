"""Lists the builders of all engines by the name that the catalog uses."""

from collections.abc import Mapping
from typing import Any

from inference_server.engine.native import build as native
from inference_server.engine.spec import EngineBuilder
from inference_server.engine.vllm import build as vllm
from inference_server.serving.catalog import EngineName

BUILDERS: Mapping[EngineName, EngineBuilder[Any]] = {"tailrace": native, "vllm": vllm}
