"""A reply's events with the tool calls taken out of its text. Knows events; knows nothing of models or gRPC."""

import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from inference_server.generation import Completed, Delta, Event, FinishReason
from inference_server.serving.catalog import ToolFormat
from inference_server.text.tool_formats import CallParser


async def with_tool_calls(
    events: AsyncIterator[Event], form: ToolFormat, names: Iterable[str], seed: int
) -> AsyncIterator[Event]:
    """The same events, with calls of the tools `names` in place of their text. The calls' ids follow from `seed`."""
    parser = CallParser(form, names, random.Random(seed))  # noqa: S311 (repeatable, and no secret)
    async for event in events:
        match event:
            case Delta():
                text, calls = parser.push(event.text)
                if text or calls or event.logprobs or event.num_tokens:
                    yield replace(event, text=text, tool_calls=calls)
            case Completed():
                text, calls = parser.finish()
                if text or calls:
                    yield Delta(text, 0, tool_calls=calls)
                is_stopped = event.finish_reason is FinishReason.STOP and event.stop_string is None
                if parser.num_calls and is_stopped:
                    event = replace(event, finish_reason=FinishReason.TOOL_CALLS)
                yield event
            case _:
                yield event
