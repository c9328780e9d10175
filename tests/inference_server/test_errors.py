"""The errors that clients may see."""

import grpc
import pytest

from inference_server.errors import TailraceError


@pytest.mark.parametrize("error", TailraceError.__subclasses__(), ids=lambda error: error.__name__)
def test_every_error_has_a_reason_and_a_status_code(error):
    assert error.reason.isupper()
    assert error.grpc_code in grpc.StatusCode.__members__
