"""A catalog entry whose embedding model is loaded: its limits, its text encoder and the engine that it shares."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import ClassVar, Literal

from inference_server.embedding.encoder import PackedText
from inference_server.embedding.engine import EmbeddingEngine
from inference_server.embedding.job import EmbeddingRequest
from inference_server.embedding.model_files import VectorRules
from inference_server.embedding.pooling_names import Pooling
from inference_server.embedding.texts import TextEncoder
from inference_server.errors import FieldViolation, InvalidField, PromptTooLong
from inference_server.precision import Precision
from inference_server.serving.catalog import CatalogEntry


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Tokenised texts. `prompt_tokens`: total number of their tokens after truncation, including control tokens."""

    texts: list[PackedText]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class HostedEmbedder:
    """A loaded catalog entry with task = "embedding".

    Attributes:
        task: The model's purpose.
        entry: The entry.
        precision: The precision in use on the model's device.
        context_length: Longest text in tokens, control tokens included.
        texts: Converts texts to token ids.
        rules: The model's own pooling and normalisation.
        engine: Runs the requests; other entries with the same weights may use it too.
    """

    task: ClassVar[Literal["embedding"]] = "embedding"

    entry: CatalogEntry
    precision: Precision
    context_length: int
    texts: TextEncoder
    rules: VectorRules
    engine: EmbeddingEngine

    @property
    def dimensions(self) -> int:
        """Number of components of a vector."""
        return self.engine.encoder.dimensions

    def prepare(
        self, texts: Items[str], *, pooling: Pooling | None, dimensions: int | None, refuses_long_texts: bool
    ) -> PreparedTexts:
        """Tokenise texts. A megabyte of text takes a second, so this must not run on the event loop.

        Args:
            texts: The texts, at least one.
            pooling: Pooling of the request; None: the pooling of the catalog entry, or else the model's own.
            dimensions: Number of components of the vectors; None: all of the model's.
            refuses_long_texts: If False, texts that are longer than `context_length` are truncated.

        Raises:
            InvalidField: The model has fewer than `dimensions` dimensions, or a text has no tokens, or a token id
                outside the model's vocabulary.
            PromptTooLong: A text is longer than `context_length`, and `refuses_long_texts` is True.
        """
        if dimensions is not None and dimensions > self.dimensions:
            raise InvalidField(
                FieldViolation("dimensions", f"must be at most {self.dimensions}, the model's own length")
            )
        encoded = self.texts.encode(texts, self.context_length)
        longest = max(text.num_tokens for text in encoded)
        if refuses_long_texts and longest > self.context_length:
            raise PromptTooLong(longest, self.context_length)
        for place, text in enumerate(encoded):
            if not text.token_ids or max(text.token_ids) >= self.engine.encoder.vocab_size:
                raise InvalidField(
                    FieldViolation(f"texts[{place}]", "has no tokens, or a token that the model's vocabulary lacks")
                )
        used = pooling or self.entry.pooling or self.rules.pooling
        normalizes = self.rules.normalizes if self.entry.normalize is None else self.entry.normalize
        packed = [PackedText(text.token_ids, used, normalizes, dimensions) for text in encoded]
        return PreparedTexts(packed, sum(len(text.token_ids) for text in encoded))

    def check_capacity(self, account: str, deadline_seconds: float | None) -> None:
        """Check whether the engine would accept a request now. Raises the errors of EmbeddingEngine.check_capacity."""
        self.engine.check_capacity(account, deadline_seconds=deadline_seconds)

    def request(self, prepared: PreparedTexts, account: str, deadline_seconds: float | None) -> EmbeddingRequest:
        """Return the engine's request for prepared texts. `deadline_seconds`: time until the client's deadline."""
        return EmbeddingRequest(texts=prepared.texts, account=account, deadline_seconds=deadline_seconds)
