"""An embedding request, and its state while its vectors are computed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from inference_server.embedding.encoder import PackedText, Vectors
from inference_server.engine.admission import AdmissionTicket
from inference_server.errors import TailraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A request for vectors: tokenised and checked. `deadline_seconds`: time until the client's deadline, if any."""

    texts: list[PackedText]
    account: str = ""
    deadline_seconds: float | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.token_ids) for text in self.texts)


class EmbeddingJob:
    """An accepted request. Leaving its `async with` block before its vectors are complete cancels it.

    Attributes:
        started: Time at which the computation of its first text began, in seconds of time.monotonic(); None before.
    """

    def __init__(
        self, request: EmbeddingRequest, ticket: AdmissionTicket, cancel: Callable[["EmbeddingJob"], None]
    ) -> None:
        """Create a job of an accepted request.

        Args:
            request: The request.
            ticket: The request's admission ticket.
            cancel: Called at the end of the `async with` block. Must have no effect on a complete job.
        """
        self.request = request
        self.ticket = ticket
        self.started: float | None = None
        self._cancel = cancel
        self._found: dict[int, NDArray[np.float32]] = {}
        self._done: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "EmbeddingJob":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel(self)

    async def vectors(self) -> Vectors:
        """Return one vector for each text. Raises GenerationFailed or ServerStopping if they cannot be computed."""
        return await self._done

    def add(self, place: int, vector: NDArray[np.float32]) -> bool:
        """Add the vector of the text at `place`, and return True if the vectors of all texts are complete."""
        self._found[place] = vector
        if len(self._found) < len(self.request.texts):
            return False
        if not self._done.done():
            self._done.set_result([self._found[index] for index in range(len(self._found))])
        return True

    def fail(self, error: TailraceError) -> None:
        """End the job with an error. Has no effect on a job that has ended."""
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # marks it as retrieved: asyncio would log it if the reader has left
