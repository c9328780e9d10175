"""Constrains a reply after its thoughts: any text up to the end marker, then the grammar.

Markers are found in the bytes of the tokens, because a tokenizer may split a marker into several tokens. Does not
depend on torch or an engine.
"""

import threading
from collections.abc import Callable, Set

import numpy as np
from numpy.typing import NDArray

from inference_server.generation import Constraint, Grammar
from inference_server.text.detokenizer import overlap
from inference_server.text.reasoning.formats import ReasoningFormat

# Tokens of white space that models put between thoughts and reply, and the largest number of these tokens.
_GAPS = (b" ", b"\n", b"\n\n")
_MAX_GAPS = 3
_Mask = NDArray[np.uint8]


class ThoughtTokens:
    """Tables of the tokens of one model that may occur at the markers of its thoughts. Thread-safe."""

    def __init__(
        self, reasoning: ReasoningFormat, token_text: Callable[[int], bytes], vocab_size: int, end_ids: Set[int]
    ) -> None:
        """Store the arguments; `prepare` creates the tables.

        Args:
            reasoning: Format of the thoughts.
            token_text: Function from a token's id to its bytes, including those of control tokens that are markers.
            vocab_size: Logits per position.
            end_ids: Tokens that end a reply. They are not allowed within thoughts, because the constrained text must
                still follow.
        """
        self.start, self.end = reasoning.start.encode(), reasoning.end.encode()
        self.token_text = token_text
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._lock = threading.Lock()
        self._is_ready = False

    def prepare(self) -> None:
        """Create the tables if they do not exist yet."""
        with self._lock:
            if self._is_ready:
                return
            parts = {self.start[i:j] for i in range(len(self.start)) for j in range(i + 1, len(self.start) + 1)}
            self._start_parts: list[tuple[bytes, int]] = []
            self._crossing: list[tuple[bytes, int]] = []  # tokens that may end the marker and continue after it
            self._gap_ids: list[int] = []
            self._free = np.ones(self._vocab_size, dtype=np.uint8)
            last = self.end[-1:]
            for token_id in range(self._vocab_size):
                text = self.token_text(token_id)
                if text in parts:
                    self._start_parts.append((text, token_id))
                if text in _GAPS:
                    self._gap_ids.append(token_id)
                at = text.find(last)
                if 0 <= at < len(text) - 1:
                    self._crossing.append((text, token_id))
            self._free[[token_id for token_id in self._end_ids if token_id < self._vocab_size]] = 0
            self._forbid_crossing(self._free, self.end)
            self._is_ready = True

    def free(self, tail: bytes) -> _Mask:
        """Return the mask of the tokens that may follow `tail` within thoughts. The caller must not change it."""
        length = _overlap(tail, self.end)
        if not length:
            return self._free
        mask = self._free.copy()
        while length:  # a shorter beginning of the marker may continue as well
            self._forbid_crossing(mask, self.end[length:])
            length = _overlap(self.end[1:length], self.end)
        return mask

    def add_starts(self, mask: _Mask, begun: bytes) -> None:
        """Allow the tokens that continue the start marker after `begun`, its beginning."""
        rest = self.start[len(begun) :]
        mask[[token_id for text, token_id in self._start_parts if rest.startswith(text)]] = 1

    def add_gaps(self, mask: _Mask) -> None:
        """Allow the white space that models put between thoughts and reply."""
        mask[self._gap_ids] = 1

    def none(self) -> _Mask:
        """Return a new mask that allows no token."""
        return np.zeros(self._vocab_size, dtype=np.uint8)

    def _forbid_crossing(self, mask: _Mask, rest: bytes) -> None:
        """Forbid tokens in which text follows the end marker's `rest`: this text would be unconstrained.

        White space may follow.
        """
        for text, token_id in self._crossing:
            at = text.find(rest) if rest == self.end else (0 if text.startswith(rest) else -1)
            if at >= 0 and text[at + len(rest) :].strip():
                mask[token_id] = 0


class ConstraintAfterThoughts:
    """Constraint of one reply with thoughts (implements generation.Constraint)."""

    def __init__(self, inner: Constraint, tokens: ThoughtTokens, *, is_open: bool, before: str) -> None:
        """Create a constraint for a new reply.

        Args:
            inner: Constraint of the text after the thoughts.
            tokens: Tokens of the model.
            is_open: True if the prompt has begun the thoughts. Otherwise the reply may begin with them.
            before: Lark rules of the thoughts, for an engine that enforces the grammar in another process.
        """
        tokens.prepare()
        self._inner = inner
        self._tokens = tokens
        self._tail: bytes | None = b"" if is_open else None  # end of the thoughts so far; None: outside of thoughts
        self._begun: bytes | None = None if is_open else b""  # part of the start marker so far; None: decided
        self._num_gaps = 0  # white space tokens that may still follow
        self._before = before
        self._inner_mask: _Mask | None = None  # mask of the inner constraint for the next token, if it was computed

    @property
    def grammar(self) -> Grammar:
        """Source text of the inner grammar, with the rules of the thoughts before it."""
        inner = self._inner.grammar
        return Grammar(inner.kind, inner.text, self._before)

    @property
    def is_complete(self) -> bool:
        """True if only an end token may follow the accepted tokens."""
        return self._tail is None and self._inner.is_complete

    def allowed(self) -> _Mask:
        """Return a mask of shape (vocab_size,): 1 for tokens that may come next, else 0. Raises GrammarError."""
        if self._tail is not None:
            return self._tokens.free(self._tail)
        if self._begun:
            mask = self._tokens.none()
        else:
            mask = self._inner.allowed()
            if self._begun is not None or self._num_gaps:
                self._inner_mask, mask = mask, mask.copy()
        if self._begun is not None:
            self._tokens.add_starts(mask, self._begun)
        elif self._num_gaps:
            self._tokens.add_gaps(mask)
        return mask

    def accept(self, token_id: int) -> None:
        """Advance by an allowed token."""
        if self._tail is not None:
            self._accept_thought(token_id)
        elif self._begun is not None:
            self._accept_beginning(token_id)
        elif self._num_gaps and self._tokens.token_text(token_id) in _GAPS and not self._is_inner(token_id):
            self._num_gaps -= 1
        else:
            self._num_gaps = 0
            self._inner.accept(token_id)
        self._inner_mask = None

    def _is_inner(self, token_id: int) -> bool:
        """Return True if the inner constraint allows a token.

        If an engine enforces the grammar in another process, it never calls `allowed`, and the mask is computed here.
        """
        mask = self._inner.allowed() if self._inner_mask is None else self._inner_mask
        return bool(mask[token_id])

    def _accept_thought(self, token_id: int) -> None:
        end = self._tokens.end
        tail = (self._tail or b"") + self._tokens.token_text(token_id)
        if end in tail:
            self._tail, self._num_gaps = None, _MAX_GAPS
        else:
            self._tail = tail[-len(end) :]

    def _accept_beginning(self, token_id: int) -> None:
        """Treat a token as constrained text if the grammar allows it, else as a part of the start marker."""
        if not self._begun and self._is_inner(token_id):
            self._begun = None
            self._inner.accept(token_id)
            return
        begun = (self._begun or b"") + self._tokens.token_text(token_id)
        self._begun = None if begun == self._tokens.start else begun
        if self._begun is None:
            self._tail = b""


def _overlap(text: bytes, marker: bytes) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `marker` and not all of it."""
    return overlap(text.decode("latin-1"), marker.decode("latin-1"))
