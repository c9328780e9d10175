import pytest

from inference_server.kernels.isa import choice


@pytest.fixture(params=[each.name for each in choice.available()])
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force each instruction set of this CPU in turn. Returns its name."""
    monkeypatch.setenv(choice.VARIABLE, request.param)
    return request.param
