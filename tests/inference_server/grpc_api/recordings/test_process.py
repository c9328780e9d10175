"""`python -m inference_server` with recordings, as a process: it replays without torch, and a kill leaves no broken folder."""

import os
import signal

import grpc

from inference_server.grpc_api.recordings.folder import RecordingsFolder
from tailrace.v1 import inference_pb2_grpc
from tests.support.processes import free_address, process
from tests.support.servers import chat

# Replaces torch by a module whose import fails, as where it is not installed.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from inference_server.__main__ import main
sys.exit(main())
"""

# Writes recordings until it is killed.
WRITING = """
import itertools, os, pathlib
from inference_server.grpc_api.recordings.folder import RecordingsFolder
from tests.inference_server.grpc_api.recordings.messages import recording
folder = RecordingsFolder(pathlib.Path(os.environ["TAILRACE_RECORDINGS"]), "record")
for place in itertools.count():
    print(place, "are written")
    folder.save(recording(f"prompt {place}", "word " * 200))
"""


async def test_replaying_needs_no_torch(path, tmp_path, monkeypatch):
    (tmp_path / "without_torch.py").write_text(WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    address = free_address()
    async with process("without_torch", recordings=str(path), grpc_address=address) as server:
        await server.line_with("ready without a model")
        async with grpc.aio.insecure_channel(address) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Run(chat("Where is New York?"))
            text = "".join([message.delta.text async for message in call])
    assert text == "a"


async def test_a_folder_that_cannot_be_used_ends_the_process_with_one_sentence(path):
    (path / "models.json").unlink()
    async with process("inference_server", recordings=str(path), grpc_address=free_address()) as server:
        await server.line_with("has JSON files but no models.json: name a folder")
        assert await server.exit_code() == 1
    assert "Traceback" not in "".join(server.lines)


async def test_a_kill_while_files_are_written_leaves_whole_recordings(path, tmp_path, monkeypatch):
    (tmp_path / "writing.py").write_text(WRITING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    async with process("writing", recordings=str(path)) as writing:
        await writing.line_with("40 are written")
        writing.send(signal.SIGKILL)
        await writing.exit_code()
    assert len(RecordingsFolder(path, "replay")) >= 41
