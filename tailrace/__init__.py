"""A client of Tailrace over REST and gRPC: `Client`, `AsyncClient`, their errors and the types of their results.

`import tailrace` loads no other module. Each name is loaded at its first use, so that neither gRPC nor an HTTP library is
imported before a client needs it.
"""

from importlib import import_module

TYPE_CHECKING = False  # typing takes longer to import than everything else here; type checkers read the name alone
if TYPE_CHECKING:
    from tailrace.async_client import AsyncClient as AsyncClient
    from tailrace.async_client import AsyncStream as AsyncStream
    from tailrace.client import Client as Client
    from tailrace.client import Stream as Stream
    from tailrace.errors import AuthenticationError as AuthenticationError
    from tailrace.errors import ConnectionFailedError as ConnectionFailedError
    from tailrace.errors import DeadlineError as DeadlineError
    from tailrace.errors import ForbiddenError as ForbiddenError
    from tailrace.errors import GenerationError as GenerationError
    from tailrace.errors import InvalidRequestError as InvalidRequestError
    from tailrace.errors import NotRecordedError as NotRecordedError
    from tailrace.errors import OverloadedError as OverloadedError
    from tailrace.errors import PromptTooLongError as PromptTooLongError
    from tailrace.errors import RateLimitError as RateLimitError
    from tailrace.errors import TailraceError as TailraceError
    from tailrace.errors import UnavailableError as UnavailableError
    from tailrace.errors import UnknownModelError as UnknownModelError
    from tailrace.types import Candidate as Candidate
    from tailrace.types import Embeddings as Embeddings
    from tailrace.types import Event as Event
    from tailrace.types import Finished as Finished
    from tailrace.types import Message as Message
    from tailrace.types import Model as Model
    from tailrace.types import ReasoningDelta as ReasoningDelta
    from tailrace.types import Reply as Reply
    from tailrace.types import Started as Started
    from tailrace.types import TextDelta as TextDelta
    from tailrace.types import TokenLogprob as TokenLogprob
    from tailrace.types import Tool as Tool
    from tailrace.types import ToolCall as ToolCall
    from tailrace.types import ToolCalled as ToolCalled
    from tailrace.types import Usage as Usage

_ERRORS = """AuthenticationError ConnectionFailedError DeadlineError ForbiddenError GenerationError InvalidRequestError
NotRecordedError OverloadedError PromptTooLongError RateLimitError TailraceError UnavailableError UnknownModelError"""
_TYPES = """Candidate Embeddings Event Finished Message Model ReasoningDelta Reply Started TextDelta TokenLogprob Tool ToolCall
ToolCalled Usage"""
_HOMES = {
    **dict.fromkeys(("AsyncClient", "AsyncStream"), "tailrace.async_client"),
    **dict.fromkeys(("Client", "Stream"), "tailrace.client"),
    **dict.fromkeys(_ERRORS.split(), "tailrace.errors"),
    **dict.fromkeys(_TYPES.split(), "tailrace.types"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tailrace' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
