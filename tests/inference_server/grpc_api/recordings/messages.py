"""Requests and replies for the tests of recordings."""

from inference_server.grpc_api.recordings.canonical import canonical
from inference_server.grpc_api.recordings.recording import Recording
from tailrace.v1 import inference_pb2 as pb

DEFAULTS = pb.Sampling(top_p=0.9)
MODEL = "@cf/test/tiny"


def run(text: str = "where is new york", **fields: object) -> pb.RunRequest:
    return pb.RunRequest(model=MODEL, chat=pb.Chat(turns=[pb.ChatTurn(role="user", content=text)]), **fields)


def reply(*deltas: pb.Delta, reason: int = pb.FINISH_REASON_STOP) -> list[pb.RunResponse]:
    usage = pb.Usage(prompt_tokens=7, completion_tokens=len(deltas), reasoning_tokens=1)
    return [
        pb.RunResponse(started=pb.Started(prompt_tokens=7, seed=2**64 - 1)),
        *(pb.RunResponse(delta=delta) for delta in deltas),
        pb.RunResponse(completed=pb.Completed(finish_reason=reason, stop_string="\n", usage=usage)),
    ]


def candidate(text: bytes, logprob: float) -> pb.Candidate:
    return pb.Candidate(text=text, logprob=logprob)


def recording(text: str, word: str = "a") -> Recording:
    """Return a recording of a reply of one word, by a model with the sampling parameters DEFAULTS."""
    return Recording("Run", canonical(run(text), DEFAULTS), reply(pb.Delta(text=word, tokens=1)))
