"""Grammars that hold a reply to a form: a JSON document, one that fits a schema, or a tool call.

llguidance follows what was generated and says which tokens may come next. Knows token ids and grammars; knows nothing of
sequences.
"""

import json
import re
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_server.generation import Constraint, Grammar

# Between the parts of a document a model may write one line end and some spaces, or nothing; without a bound, a small
# model may write nothing else until max_tokens.
JSON_OPTIONS = {"whitespace_pattern": r"\n?[ ]{0,8}"}
_WORD_BITS = 32
# What a caller's schema may cost, beside llguidance's own limits on the work for a mask (some 20 ms). A state takes up to
# 2 KB.
_MAX_STATES, _MAX_SYMBOLS = 20_000, 100_000
_UNIMPLEMENTED = re.compile(r"Unimplemented keys?: \[(?P<keys>[^\]]*)\]")
_QUOTED = re.compile(r'"([^"]+)"')


class GrammarError(ValueError):
    """A form that cannot be enforced; the message is the rest of a sentence about the field that asked for it."""


class Grammars:
    """Makes the grammars of one model's replies. Thread-safe."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """`tokenizer`: of transformers, with a `tokenizers` back end. vocab_size: how many logits a token has."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._num_followed = max(vocab_size, tokenizer.backend_tokenizer.get_vocab_size())
        self._lock = threading.Lock()
        self._followed: Any = (
            None  # the tokenizer as llguidance has it, made when first needed: that takes half a second
        )

    def json_object(self) -> Constraint:
        return self.json_schema('{"type": "object"}')

    def json_schema(self, schema: str) -> Constraint:
        """A document that fits `schema`, JSON text. Raises GrammarError."""
        from llguidance import LLMatcher

        parsed = _parsed(schema)
        serialized = LLMatcher.grammar_from_json_schema(parsed, overrides=JSON_OPTIONS)
        return self._follow(serialized, Grammar("json_schema", json.dumps(parsed)))

    def lark(self, grammar: str) -> Constraint:
        """A text of a grammar in llguidance's dialect of Lark. Raises GrammarError."""
        from llguidance import LLMatcher

        return self._follow(LLMatcher.grammar_from_lark(grammar), Grammar("lark", grammar))

    def literal(self, text: str) -> str:
        """`text` as a term of a Lark grammar; where the tokenizer has a token of its own for it, that token."""
        token_id = self._tokenizer.get_added_vocab().get(text)
        return json.dumps(text) if token_id is None else f"<[{token_id}]>"

    def _follow(self, serialized: str, grammar: Grammar) -> Constraint:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=_MAX_STATES, max_grammar_size=_MAX_SYMBOLS)
        matcher = LLMatcher(self._llguidance_tokenizer(), serialized, log_level=0, limits=limits)
        if error := matcher.get_error():
            raise GrammarError(_explained(error))
        followed = _Followed(grammar, matcher, self._vocab_size, self._num_followed)
        # A large grammar's first mask can take a second, which must not be the model's thread's.
        followed.allowed()
        return followed

    def _llguidance_tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._followed is None:
                if self._tokenizer.eos_token_id is None:
                    raise GrammarError("is not possible: this model has no end token")
                backend = self._tokenizer.backend_tokenizer
                self._followed = LLTokenizer(
                    backend.to_str(),
                    n_vocab=self._num_followed,
                    eos_token=self._tokenizer.eos_token_id,
                )
            return self._followed


class _Followed:
    def __init__(self, grammar: Grammar, matcher: Any, vocab_size: int, num_followed: int) -> None:
        """num_followed: how many tokens the matcher knows; the model may have logits for fewer."""
        self.grammar = grammar
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros(-(-num_followed // _WORD_BITS), dtype=np.uint32)

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def allowed(self) -> NDArray[np.uint8]:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        # Token i is bit i % 32 of word i // 32; words are little-endian.
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little")

    def accept(self, token_id: int) -> None:
        # What it costs shows itself when it is asked for the next tokens.
        self._matcher.consume_token(token_id)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_explained(self._matcher.get_error()))


def _parsed(schema: str) -> dict[str, Any]:
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
    """llguidance's message without its own context: the keywords it does not support, or its first line."""
    if found := _UNIMPLEMENTED.search(error):
        keywords = ", ".join(f"'{key}'" for key in _QUOTED.findall(found["keys"]))
        return f"holds keywords that are not supported: {keywords}"
    return f"cannot be enforced: {error.strip().splitlines()[0][:300]}"
