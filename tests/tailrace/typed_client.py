"""A user's program with the typed client. A test checks its types, and another one runs it."""

import asyncio
import sys

import tailrace


def conversation(client: tailrace.Client) -> str:
    """Ask two questions, with everything that a program may read from a reply."""
    messages: list[tailrace.Message] = [tailrace.Message("user", "What is the capital of Japan?")]
    reply = client.run(messages=messages, temperature=0, max_tokens=12, logprobs=1, timeout=60)
    probable: list[str] = [token.top[0].text for token in reply.logprobs]
    messages += [reply.message, tailrace.Message("user", "And of France?")]
    client.run(messages=messages, temperature=0, max_tokens=12)
    return f"{reply.text} {reply.finish_reason} {reply.usage.total_tokens} {len(probable)}"


def streamed(client: tailrace.Client) -> list[str]:
    """Read the events of a stream by their types."""
    seen: list[str] = []
    with client.stream("Count to ten.", seed=3, max_tokens=8) as stream:
        for event in stream:
            match event:
                case tailrace.TextDelta(text):
                    seen.append(text)
                case tailrace.Finished(reason, usage):
                    seen.append(f"{reason} {usage.completion_tokens}")
                case tailrace.Started() | tailrace.ReasoningDelta() | tailrace.ToolCalled():
                    pass
    return seen


async def concurrently(url: str) -> list[int]:
    """Send two requests at once."""
    async with tailrace.AsyncClient(url, retries=1) as client:
        first, second = await asyncio.gather(client.embed("a"), client.embed(["b", "c"]))
        text = "".join([piece async for piece in client.stream("Hi", max_tokens=4).texts()])
        return [len(first.vectors), len(second.vectors), len(text)]


def main() -> None:
    """Run everything against the service at the address of the command line."""
    with tailrace.Client(sys.argv[1]) as client:
        print(conversation(client))
        print(streamed(client))
        try:
            client.run("hi", model="nothing")
        except tailrace.UnknownModelError as error:
            print(error.reason, error.request_id is not None)
    print(asyncio.run(concurrently(sys.argv[1])))


if __name__ == "__main__":
    main()
