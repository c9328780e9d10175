"""Compiles grammars that constrain a reply: any JSON object, a document that fits a JSON Schema, or a tool call.

llguidance matches the generated tokens and computes the tokens that may come next. Does not depend on torch or an engine.
"""

import json
import re
import threading
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_server.generation import Constraint, Grammar
from inference_server.text.tools.call_grammar import JSON_OPTIONS

_WORD_BITS = 32
# Limits for a client's schema, in addition to llguidance's own limits on the work for a mask (about 20 ms). A state
# takes up to 2 KB.
_MAX_STATES, _MAX_SYMBOLS = 20_000, 100_000
_UNIMPLEMENTED = re.compile(r"Unimplemented keys?: \[(?P<keys>[^\]]*)\]")
_QUOTED = re.compile(r'"([^"]+)"')


class GrammarError(ValueError):
    """A grammar that cannot be enforced. The message continues a sentence that begins with the request's field."""


class Grammars:
    """Factory for the constraints of one model's replies. Thread-safe."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Collection[int] = ()) -> None:
        """Create a factory.

        Args:
            tokenizer: The transformers tokenizer, with a `tokenizers` back end.
            vocab_size: Logits per position.
            end_ids: Tokens that end a reply, in addition to the tokenizer's own.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = [i for i in end_ids if i < vocab_size and i != tokenizer.eos_token_id]
        self._num_tokens = max(vocab_size, tokenizer.backend_tokenizer.get_vocab_size())
        self._lock = threading.Lock()
        self._llguidance: Any = None  # tokenizer of llguidance, created at its first use, which takes half a second

    def json_object(self) -> Constraint:
        """Return a constraint that accepts any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Constraint:
        """Return a constraint that accepts documents that fit a JSON Schema. Raises GrammarError."""
        from llguidance import LLMatcher

        text = json.dumps(schema)
        serialized = LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
        return self._matcher(serialized, Grammar("json_schema", text))

    def lark(self, grammar: str) -> Constraint:
        """Return the constraint of a grammar in llguidance's dialect of Lark. Raises GrammarError."""
        from llguidance import LLMatcher

        return self._matcher(LLMatcher.grammar_from_lark(grammar), Grammar("lark", grammar))

    def literal(self, text: str) -> str:
        """Return `text` as a term of a Lark grammar: the control token of that text, if the tokenizer has one."""
        token_id = self._tokenizer.get_added_vocab().get(text)
        return json.dumps(text) if token_id is None else f"<[{token_id}]>"

    def _matcher(self, serialized: str, grammar: Grammar) -> Constraint:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=_MAX_STATES, max_grammar_size=_MAX_SYMBOLS)
        matcher = LLMatcher(self._llguidance_tokenizer(), serialized, log_level=0, limits=limits)
        if error := matcher.get_error():
            raise GrammarError(_explained(error))
        constraint = GrammarMatcher(grammar, matcher, self._vocab_size, self._num_tokens)
        # A large grammar's first mask can take a second, which must not block the model's thread.
        constraint.allowed()
        return constraint

    def _llguidance_tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._llguidance is None:
                if self._tokenizer.eos_token_id is None:
                    raise GrammarError("is not possible: this model has no end token")
                backend = self._tokenizer.backend_tokenizer
                self._llguidance = LLTokenizer(
                    backend.to_str(),
                    n_vocab=self._num_tokens,
                    eos_token=[self._tokenizer.eos_token_id, *self._end_ids],
                )
            return self._llguidance


class GrammarMatcher:
    """Constraint of one reply (implements generation.Constraint)."""

    def __init__(self, grammar: Grammar, matcher: Any, vocab_size: int, num_tokens: int) -> None:
        """Create a matcher for a new reply.

        Args:
            grammar: Source of the grammar.
            matcher: llguidance's LLMatcher.
            vocab_size: Logits per position.
            num_tokens: Vocabulary size of the matcher; the model may have fewer logits.
        """
        self.grammar = grammar
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros(-(-num_tokens // _WORD_BITS), dtype=np.uint32)

    @property
    def is_complete(self) -> bool:
        """True if only an end token may follow the accepted tokens."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def allowed(self) -> NDArray[np.uint8]:
        """Return a mask of shape (vocab_size,): 1 for tokens that may come next, else 0. Raises GrammarError."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        # Token i is bit i % 32 of word i // 32; words are little-endian.
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little")

    def accept(self, token_id: int) -> None:
        """Advance by an allowed token. If a limit is exceeded, the next call of `allowed` raises GrammarError."""
        self._matcher.consume_token(token_id)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_explained(self._matcher.get_error()))


def parsed_schema(schema: str) -> dict[str, Any]:
    """Return a JSON Schema that is given as text. Raises GrammarError if it is not one, or allows no document."""
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError):
        raise GrammarError("is not JSON") from None
    if parsed is True:
        return {}
    if parsed is False:
        raise GrammarError("allows no document at all")
    if not isinstance(parsed, dict):
        raise GrammarError("is not a JSON Schema: an object, true or false")
    return parsed


def _explained(error: str) -> str:
    """Return the useful part of llguidance's message: the unsupported keywords, or its first line."""
    if found := _UNIMPLEMENTED.search(error):
        keywords = ", ".join(f"'{key}'" for key in _QUOTED.findall(found["keys"]))
        return f"holds keywords that are not supported: {keywords}"
    return f"cannot be enforced: {error.strip().splitlines()[0][:300]}"
