"""`docker compose up --scale inference_server=3`: servers join, are killed and are stopped.

A new server gets work, a killed server loses its own streams, and a stopped server loses none.

The tests run in this order, after those of test_compose.py.
"""

import pytest

from tests.compose.clients import load, streams, wait_until
from tests.compose.stack import BRIDGE, SERVER, START_SECONDS

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

REPLICAS = 3

# With this many tokens, a reply that started first is still running when the container of its server is killed.
LONG_REPLY = 600


@pytest.fixture(scope="module")
def replicas(stack):
    stack.overrides = []
    stack.compose("up", "--wait", seconds=START_SECONDS)  # if this file runs alone
    return stack


def test_new_servers_get_work_within_10_seconds(replicas, http):
    with load(http, clients=3, pause_seconds=0.3) as replies:
        replicas.scale(REPLICAS)
        containers = replicas.containers(SERVER)
        assert len(containers) == REPLICAS
        seconds = wait_until(
            lambda: all(replicas.metric(container, "tailrace_requests_accepted_total") for container in containers),
            seconds=10,
        )
    print(f"work for all {REPLICAS} servers {seconds:.1f} s after the last was healthy")
    assert all(reply.is_whole for reply in replies)


def test_the_name_that_prometheus_scrapes_resolves_to_each_server(replicas):
    code = f"import socket; print(len(socket.getaddrinfo({SERVER!r}, 9464, socket.AF_INET, socket.SOCK_STREAM)))"
    assert replicas.python(BRIDGE, code) == str(REPLICAS)


def test_a_killed_server_loses_only_its_own_streams(replicas, http):
    victim, *others = replicas.containers(SERVER)

    def accepted_by_others() -> float:
        return sum(replicas.metric(container, "tailrace_requests_accepted_total") for container in others)

    accepted_before = accepted_by_others()
    with streams(http, 3 * REPLICAS, max_tokens=LONG_REPLY) as futures:
        replicas.docker("kill", "--signal=KILL", victim)
        replies = [future.result() for future in futures]
    whole, lost = ([reply for reply in replies if reply.is_whole is kind] for kind in (True, False))
    assert lost and len(whole) == accepted_by_others() - accepted_before
    assert all(reply.failed_with_an_event for reply in lost)
    assert all(reply.num_tokens == LONG_REPLY for reply in whole)


def test_the_other_servers_continue_and_a_new_one_replaces_it(replicas, http):
    with load(http, clients=3, pause_seconds=0.3) as replies:
        replicas.scale(REPLICAS)
    assert all(reply.is_whole for reply in replies)


def test_replacing_one_server_after_the_other_loses_no_stream(replicas, http):
    with load(http, clients=3, max_tokens=60) as replies:
        for container in replicas.containers(SERVER):
            replicas.docker("stop", container, seconds=120)
            assert replicas.docker("inspect", "--format={{.State.ExitCode}}", container) == "0"
            replicas.docker("rm", container)
            replicas.scale(REPLICAS)
    print(f"{len(replies)} streams while {REPLICAS} servers were replaced")
    assert all(reply.is_whole and reply.num_tokens == 60 for reply in replies)
