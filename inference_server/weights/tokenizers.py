"""Reads tokenizers that transformers has saved. Engines of the same model share one tokenizer."""

import hashlib
import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerFast

_lock = threading.Lock()
_in_use: WeakValueDictionary[bytes, Any] = WeakValueDictionary()


def read_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer in a folder. Folders with equal files share one tokenizer while it is in use."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix != ".safetensors" and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    with _lock:
        tokenizer = _in_use.get(digest.digest())
        if tokenizer is None:
            tokenizer = _in_use[digest.digest()] = PreTrainedTokenizerFast.from_pretrained(folder)
        return tokenizer
