"""A folder of recordings: one JSON file for each recording, and models.json with the models of the recording server.

Every file is written under another name and then renamed, so that a killed process leaves no incomplete recording.
"""

import contextlib
import json
import os
import re
import threading
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from inference_server.grpc_api.recordings.canonical import JsonObject, prompt_text
from inference_server.grpc_api.recordings.recording import Recording
from inference_server.grpc_api.recordings.reply_json import pretty
from inference_server.settings.models import RecordingsMode
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.config_errors import ConfigurationError

_MODELS = "models.json"
_MODELS_FORMAT = "tailrace_models"
_VERSION = 1
_UNFINISHED = ".tmp"
# Age in seconds after which an unfinished file must be from a killed process. Writing a file takes milliseconds.
_UNFINISHED_SECONDS = 60.0
_WORDS, _WORDS_LENGTH = 6, 40  # in a file's name: words of the prompt; characters of these words, and of the model
_HASH_LENGTH = 8


class RecordingsFolder:
    """The recordings of one folder.

    Attributes:
        path: The folder.
        models: Descriptions of the recorded models, by name, in the order of models.json.
    """

    def __init__(self, path: Path, mode: RecordingsMode) -> None:
        """Read the folder. The modes "record" and "auto" create it if it does not exist.

        Raises:
            ConfigurationError: The folder has no recordings to replay, or cannot be written, or one of its files is
                damaged or foreign, or two recordings have the same request.
        """
        self.path = path
        self._recordings: dict[str, Recording] = {}
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()  # of `save`, which several threads call
        if mode == "replay":
            self._require()
        else:
            self._prepare()
        self.models = self._read_models()
        for file in sorted(self.path.glob("*.json")):
            if file.name != _MODELS and not file.name.startswith("."):
                self._read(file)
        if mode == "replay" and not self._recordings:
            raise ConfigurationError(
                f"the folder {path} of TAILRACE_RECORDINGS has no recordings: {_how_to_record(path)}"
            )

    def __len__(self) -> int:
        return len(self._recordings)

    def find(self, key: str) -> Recording | None:
        """Return the recording of a request, or None. `key`: the hash of the request."""
        return self._recordings.get(key)

    def of_method(self, method: str) -> list[Recording]:
        """Return the recordings of one method."""
        return [each for each in list(self._recordings.values()) if each.method == method]

    def name_of(self, recording: Recording) -> str:
        """Return the name of a recording's file."""
        return self._files[recording.key].name

    def save(self, recording: Recording) -> str:
        """Write a recording, and return the name of its file. Replaces the recording of the same request.

        Raises:
            OSError: The file cannot be written. The folder is then unchanged.
        """
        key, text = recording.key, recording.to_text()
        with self._lock:
            file = self._files.get(key) or self.path / _file_name(recording, self._files.values())
            _write(file, text)
            self._recordings[key], self._files[key] = recording, file
        return file.name

    def add_models(self, models: Iterable[pb.Model]) -> None:
        """Add models to models.json. Replaces the descriptions of models that are already in the file.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        self.models |= {model.name: model for model in models}
        described = [MessageToDict(model, preserving_proto_field_name=True) for model in self.models.values()]
        try:
            _write(self.path / _MODELS, pretty({_MODELS_FORMAT: _VERSION, "models": described}) + "\n")
        except OSError as error:
            raise ConfigurationError(_not_writable(self.path, error)) from None

    def _require(self) -> None:
        if not self.path.is_dir():
            reason = "is not a folder" if self.path.exists() else "does not exist"
            raise ConfigurationError(
                f"the folder {self.path} of TAILRACE_RECORDINGS {reason}: {_how_to_record(self.path)}"
            )

    def _prepare(self) -> None:
        """Create the folder, remove the unfinished files of killed processes, and check that a file can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.path.glob(f".*{_UNFINISHED}"):
                with contextlib.suppress(FileNotFoundError):  # another server has just finished it
                    if time.time() - file.stat().st_mtime > _UNFINISHED_SECONDS:
                        file.unlink()
            probe = self.path / f".probe-{os.getpid()}{_UNFINISHED}"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(_not_writable(self.path, error)) from None

    def _read(self, file: Path) -> None:
        try:
            recording = Recording.of_text(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(_unreadable(file, error)) from None
        if (other := self._files.get(recording.key)) is not None:
            raise ConfigurationError(
                f"{file.name} and {other.name} in {self.path} are recordings of the same request: delete one of them"
            )
        self._recordings[recording.key], self._files[recording.key] = recording, file

    def _read_models(self) -> dict[str, pb.Model]:
        file = self.path / _MODELS
        try:
            document: JsonObject = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or document.get(_MODELS_FORMAT) != _VERSION:
                raise ValueError("is not a list of models")
            models = [ParseDict(each, pb.Model()) for each in document["models"]]
        except FileNotFoundError:
            if any(self.path.glob("*.json")):
                raise ConfigurationError(
                    f"the folder {self.path} of TAILRACE_RECORDINGS has JSON files but no {_MODELS}: name a folder that "
                    "contains nothing but recordings"
                ) from None
            return {}
        except (OSError, ValueError, ParseError, KeyError, TypeError) as error:
            raise ConfigurationError(_unreadable(file, error)) from None
        return {model.name: model for model in models}


def _how_to_record(path: Path) -> str:
    return f"record first, with tailrace serve --record {path}"


def _not_writable(path: Path, error: OSError) -> str:
    return f"cannot write to the folder {path} of TAILRACE_RECORDINGS ({error.strerror}): name a folder that can be written"


def _unreadable(file: Path, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        clause = "is not a text file"
    elif isinstance(error, OSError):
        clause = f"cannot be read ({error.strerror})"
    elif type(error) is ValueError:
        clause = str(error)
    else:
        clause = f"is damaged ({error})"
    return f"{file} {' '.join(clause.split())}: restore it, or delete it and record it again"


def _file_name(recording: Recording, taken: Iterable[Path]) -> str:
    """Return a new file's name: the last part of the model's name, the method if it is not Run, words and key.

    The words are the first ones of the prompt. Only the first digits of the key are used, unless that name is taken.
    """
    model = _slug(str(recording.request["model"]).rpartition("/")[2], "-.")
    words = _slug(" ".join(prompt_text(recording.request).split()[:_WORDS]), "-")
    method = "" if recording.method == "Run" else f".{recording.method.lower()}"
    short = f"{model}{method}.{words}.{recording.key[:_HASH_LENGTH]}.json"
    return f"{model}.{words}.{recording.key}.json" if short in {file.name for file in taken} else short


def _slug(text: str, kept: str) -> str:
    """Return the letters and digits of a text in lower case, with "-" between words.

    The result has at most _WORDS_LENGTH characters, and is "empty" if none remain. `kept`: other characters to keep.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    return re.sub(rf"[^\w{re.escape(kept)}]+", "-", text).strip("-.")[:_WORDS_LENGTH].strip("-.") or "empty"


def _write(file: Path, text: str) -> None:
    """Replace a file's content atomically, unless it is the same. Raises OSError."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if file.read_text(encoding="utf-8") == text:
            return
    unfinished = file.with_name(f".{file.name[-40:]}-{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as output:
            output.write(text)
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
