"""Cuts prompts with an exact number of tokens from shuffled sentences of the corpus.

Every prompt begins with a random number. A prompt that begins like an earlier one would be served from a prefix cache,
which only the scenario `turns` measures.
"""

import random
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

CORPUS = Path(__file__).parents[2] / "tests" / "exact" / "corpus.txt"
SHORT_TOKENS = 30
LONG_TOKENS = 1500


class Workload:
    """A source of prompts. The same `seed` gives the same prompts in the same order."""

    def __init__(self, folder: Path, seed: str) -> None:
        """Create a source of prompts.

        Args:
            folder: The folder of the model that every peer serves. It contains tokenizer.json.
            seed: Seed of the random choices.
        """
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._random = random.Random(seed)

    def prompt(self, num_tokens: int) -> tuple[str, list[int]]:
        """Return a text of exactly `num_tokens` tokens, and their ids. Tokenizing the text gives the same ids."""
        for words in self._texts():
            ids = self._encode(words)[:num_tokens]
            text = self._tokenizer.decode(ids)
            # The text ends within a sentence: after a whole sentence, the reply may begin with an end token, which
            # has no text.
            if len(ids) == num_tokens and text[-1].isalpha() and self._encode(text) == ids:
                return text, ids
        raise AssertionError("unreachable")

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _texts(self) -> Iterator[str]:
        while True:
            number = self._random.randrange(10**6)
            yield f"Note {number}. " + " ".join(self._random.sample(self._sentences, len(self._sentences)))

    @cached_property
    def _sentences(self) -> list[str]:
        return re.findall(r"[A-Z][^.!?]+[.!?]", CORPUS.read_text(encoding="utf-8"))
