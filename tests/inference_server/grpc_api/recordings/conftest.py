from pathlib import Path

import pytest

from inference_server.grpc_api.recordings.folder import RecordingsFolder
from tailrace.v1 import inference_pb2 as pb
from tests.inference_server.grpc_api.recordings.messages import DEFAULTS, MODEL, recording


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder with one recording."""
    folder = RecordingsFolder(tmp_path / "recordings", "record")
    folder.add_models([pb.Model(name=MODEL, context_length=5, sampling_defaults=DEFAULTS)])
    folder.save(recording("Where is New York?"))
    return folder.path
