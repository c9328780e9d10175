"""Lists the engines by the name that the catalog uses.

The module of an engine, and with it torch, is imported only when its builder is requested.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from inference_server.engine.spec import EngineBuilder

EngineName = Literal["tailrace", "vllm"]
GetBuilder = Callable[[], "EngineBuilder[Any]"]


def _native() -> "EngineBuilder[Any]":
    from inference_server.engine.native import build

    return build


def _vllm() -> "EngineBuilder[Any]":
    from inference_server.engine.vllm import build

    return build


BUILDERS: Mapping[EngineName, GetBuilder] = {"tailrace": _native, "vllm": _vllm}
