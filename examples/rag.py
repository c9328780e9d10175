"""Retrieval-augmented generation in one screen: `python -m examples.rag When is breakfast?`.

Embeds a few notes, keeps the vectors in memory, and retrieves the notes nearest to the question. A chat model then answers from
these notes. Needs the bridge and Python's standard library.
"""

import json
import math
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

BRIDGE = os.environ.get("TAILRACE_URL") or f"http://{os.environ.get('TAILRACE_HTTP_ADDRESS') or '127.0.0.1:8787'}"
TOKEN = os.environ.get("TAILRACE_TOKEN") or "any-token"
EMBEDDER = os.environ.get("EMBEDDER") or "@cf/baai/bge-small-en-v1.5"
MODEL = os.environ.get("MODEL") or "@cf/meta/llama-2-7b-chat-int8"
NUM_NOTES = 2  # notes that the chat model reads

NOTES = (
    "Breakfast at the Heron Lodge is served from seven to half past nine in the glass house.",
    "The key of the boat shed hangs behind the map in the hall of the Heron Lodge.",
    "Dogs are welcome on the ground floor of the Heron Lodge, but not in the library.",
    "The last bus from the Heron Lodge to the station leaves at a quarter to eleven.",
    "The wireless network of the Heron Lodge is called bittern, and its password is on the back of the room key.",
)


def main() -> int:
    """Answer the question of the command line. Returns the exit code: 0, or 1 after an error, printed in one sentence."""
    question = " ".join(sys.argv[1:]) or "When is breakfast?"
    try:
        vectors = embed(NOTES)
        found = nearest(embed([question])[0], vectors)
        for score, index in found:
            print(f"{score:.2f}  {NOTES[index]}")
        print(answer(question, [NOTES[index] for _, index in found]))
    except urllib.error.HTTPError as error:
        print(f"{BRIDGE}: {json.load(error)['errors'][0]['message']}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{BRIDGE} does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def embed(texts: Sequence[str]) -> list[list[float]]:
    """Return a vector of length 1 for each text."""
    vectors: list[list[float]] = run(EMBEDDER, {"text": list(texts)})["data"]
    return vectors


def nearest(vector: Sequence[float], vectors: Sequence[Sequence[float]]) -> list[tuple[float, int]]:
    """Return the NUM_NOTES largest scores with the indices of their vectors, largest first.

    A score is the cosine of the angle between two vectors.
    """
    scores = [
        sum(a * b for a, b in zip(vector, other, strict=True)) / (math.hypot(*vector) * math.hypot(*other))
        for other in vectors
    ]
    return sorted(((score, index) for index, score in enumerate(scores)), reverse=True)[:NUM_NOTES]


def answer(question: str, notes: Sequence[str]) -> str:
    """Return the chat model's answer to the question, from the notes."""
    system = "Answer in one sentence with the facts of these notes:\n" + "\n".join(notes)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return str(run(MODEL, {"messages": messages, "temperature": 0, "max_tokens": 60})["response"]).strip()


def run(model: str, body: dict[str, object]) -> dict[str, Any]:
    """Run a model through Workers AI's REST API, and return the result. Raises HTTPError if the bridge refuses."""
    url = f"{BRIDGE}/client/v4/accounts/local/ai/run/{model}"
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the user's own address
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        result: dict[str, Any] = json.load(response)["result"]
    return result


if __name__ == "__main__":
    sys.exit(main())
