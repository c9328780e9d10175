"""Defines the amount of work of a full run and of a quick run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The amount of work of a run: numbers of rounds, streams and requests, and lengths of replies in tokens."""

    rounds: int
    streams: tuple[int, ...] = (1, 8, 32, 64)
    long_streams: tuple[int, ...] = (1, 8, 32, 64)
    short_reply: int = 128
    long_reply: int = 32
    turn_reply: int = 64
    constraint_streams: tuple[int, ...] = (1, 8, 32)
    burst_prompts: tuple[int, ...] = (1, 8)
    burst_repeats: int = 7
    burst_reply: int = 8
    neighbour_streams: tuple[int, ...] = (1, 8)
    neighbour_reply: int = 64
    arrival_streams: int = 16
    arrival_reply: int = 200
    waiting_requests: int = 800
    running_reply: int = 1500  # reply length of the request that the others wait for
    share_requests: int = 30
    instant_tokens: int = 1500
    timeout_s: float = 300.0


FULL = Size(rounds=3)
QUICK = Size(
    rounds=1,
    streams=(1, 8),
    long_streams=(1,),
    short_reply=24,
    long_reply=8,
    turn_reply=16,
    constraint_streams=(1, 8),
    burst_repeats=2,
    neighbour_reply=16,
    arrival_streams=4,
    arrival_reply=48,
    waiting_requests=100,
    running_reply=800,
    share_requests=5,
    instant_tokens=200,
    timeout_s=120.0,
)
