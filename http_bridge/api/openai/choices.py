"""Handles several replies to one request: a message to the inference server for each, and one reply with all choices."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from http_bridge.api.openai.replies import OpenAiWriter
from http_bridge.api.reply_writer import CompleteReply
from tailrace.v1.inference_pb2 import Completed, RunRequest, RunResponse, Usage
from tailrace_shared.request_fields import DETERMINISTIC_SEED


@dataclass(frozen=True, slots=True)
class OpenAiChoices:
    """The choices of one reply, in OpenAI's format. Implements Choices.

    Attributes:
        requests: One message to the inference server for each choice.
        writers: Writer of each choice. They have the same id and different indices.
        num_prompts: Number of prompts. Each has the same number of choices, which are adjacent.
    """

    requests: tuple[RunRequest, ...]
    writers: tuple[OpenAiWriter, ...]
    num_prompts: int = 1

    def event(self, index: int, event: RunResponse) -> bytes:
        """Return the chunks for an event of choice `index`; may be empty."""
        writer = self.writers[index]
        if event.HasField("delta"):
            return writer.delta(event.delta)
        if event.HasField("started"):
            return writer.start(event.started)
        return writer.end_choice(event.completed, has_usage=False) if event.HasField("completed") else b""

    def finish(self, completed: Completed) -> bytes:
        """Return the end of the stream. `completed` has the usage of all choices."""
        return self.writers[0].end_choices(completed)

    def complete(self, replies: Sequence[CompleteReply]) -> bytes:
        """Return the complete reply with all choices in order."""
        choices = [writer.choice(reply) for writer, reply in zip(self.writers, replies, strict=True)]
        return self.writers[0].answer(choices, self.total([reply.completed for reply in replies]))

    def total(self, completed: Sequence[Completed]) -> Completed:
        """Return the first choice's `completed` with the usage of all choices. Each prompt counts once."""
        return total(completed, self.num_prompts)


def copies(request: RunRequest, num_choices: int, *, has_fixed_seeds: bool = False) -> tuple[RunRequest, ...]:
    """Return a message for each choice. The first one is `request`. The others differ from it only in the seed.

    If the request has a seed, it determines the seeds of the other choices. Without one, the other choices have fixed
    seeds with `has_fixed_seeds`; otherwise the server draws a seed for each.
    """
    requests = [request]
    for index in range(1, num_choices):
        copy = RunRequest()
        copy.CopyFrom(request)
        if request.sampling.HasField("seed") or has_fixed_seeds:
            first = request.sampling.seed if request.sampling.HasField("seed") else DETERMINISTIC_SEED
            copy.sampling.seed = _seed(first, index)
        requests.append(copy)
    return tuple(requests)


def total(completed: Sequence[Completed], num_prompts: int = 1) -> Completed:
    """Return the first choice's `completed` with the usage of all choices. Each prompt counts once."""
    first = Completed()
    first.CopyFrom(completed[0])
    once = completed[:: len(completed) // num_prompts]
    first.usage.CopyFrom(
        Usage(
            prompt_tokens=sum(each.usage.prompt_tokens for each in once),
            cached_tokens=sum(each.usage.cached_tokens for each in once),
            completion_tokens=sum(each.usage.completion_tokens for each in completed),
            reasoning_tokens=sum(each.usage.reasoning_tokens for each in completed),
        )
    )
    return first


def _seed(seed: int, index: int) -> int:
    """Return the seed of choice `index`. A hash keeps requests with consecutive seeds from having choices in common."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
