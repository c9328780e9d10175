"""Compiles grammars that constrain a reply: any JSON object, a document that fits a JSON Schema, or a tool call.

llguidance matches the generated tokens, and computes the tokens that may come next. Does not depend on torch or an
engine.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from time import thread_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_server.generation import Constraint, Grammar
from inference_server.text.grammar_check import TOO_SLOW, WORKER_ENDED, GrammarCheck, is_cheap
from inference_server.text.schema_faults import explained
from inference_server.text.tools.call_grammar import JSON_OPTIONS

_WORD_BITS = 32
_LARGE_VOCABULARY = 65_536  # tokens
# Limits for a client's schema, in addition to llguidance's own limits on the work for a mask (about 20 ms). A lexer
# state takes up to 2 KB. Without verbose errors, messages do not include the schema.
_LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False}
# Maximum CPU time for one mask. A reply that exceeds it fails, because all other sequences wait for the step.
_MAX_STEP_SECONDS = 0.15
# Compiled grammars that are kept for later requests: their number, and the most memory that one of them may take.
_MAX_KEPT = 32
_MAX_KEPT_BYTES = 16 * 2**20
# Longest time for which a costly grammar waits while others are compiled in this process.
_MAX_WAIT_SECONDS = 0.5


class GrammarError(ValueError):
    """A grammar that cannot be enforced. The message continues a sentence that begins with the request's field.

    Attributes:
        cause: The compiler's message; empty if the error is not the compiler's.
        is_transient: True if the same grammar may compile later, because the machine was busy or a process ended.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause
        self.is_transient = cause in (TOO_SLOW, WORKER_ENDED)


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
        self._end_ids = [
            tokenizer.eos_token_id,
            *(i for i in end_ids if i < vocab_size and i != tokenizer.eos_token_id),
        ]
        self._num_tokens = max(vocab_size, tokenizer.backend_tokenizer.get_vocab_size())
        self._added_tokens: Mapping[str, int] = tokenizer.get_added_vocab()
        self._lock = threading.Lock()
        self._llguidance: Any = None  # tokenizer of llguidance, created at its first use, which takes half a second
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()  # unused matchers, least recently used first
        self._pending: dict[Grammar, Future[Any]] = {}  # grammars that are compiled now
        self._compiling = threading.Lock()  # held while a costly grammar is compiled
        setup = {"num_tokens": self._num_tokens, "end_ids": self._end_ids, "limits": _LIMITS}
        self._check = GrammarCheck(tokenizer.backend_tokenizer.to_str, setup)

    def prepare(self) -> None:
        """Create llguidance's tokenizer now if its vocabulary is large.

        Creating it later would stall running replies, because the creation holds the GIL (global interpreter lock).
        """
        if self._num_tokens > _LARGE_VOCABULARY and self._tokenizer.eos_token_id is not None:
            self._llguidance_tokenizer()

    def json_object(self) -> Constraint:
        """Return a constraint that accepts any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Constraint:
        """Return a constraint that accepts documents that fit a JSON Schema. Raises GrammarError."""
        from llguidance import LLMatcher

        text = json.dumps(schema)
        try:
            serialized = LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
        except ValueError as error:
            raise GrammarError("has a number or a character that JSON cannot represent", str(error)) from None
        try:
            return self._constraint(serialized, Grammar("json_schema", text))
        except GrammarError as error:
            if error.cause:
                raise GrammarError(explained(error.cause, schema), error.cause) from None
            raise

    def lark(self, grammar: str) -> Constraint:
        """Return the constraint of a grammar in llguidance's dialect of Lark. Raises GrammarError."""
        from llguidance import LLMatcher

        try:
            grammar.encode()
        except UnicodeEncodeError:
            raise GrammarError("has a character that Unicode does not have: half of a surrogate pair") from None
        return self._constraint(LLMatcher.grammar_from_lark(grammar), Grammar("lark", grammar))

    def literal(self, text: str) -> str:
        """Return `text` as a term of a Lark grammar: the added token with this text if there is one, else a string."""
        token_id = self._added_tokens.get(text)
        return json.dumps(text) if token_id is None else f"<[{token_id}]>"

    def _constraint(self, serialized: str, grammar: Grammar) -> Constraint:
        if self._tokenizer.eos_token_id is None:
            raise GrammarError("is not possible: this model has no end token")
        return GrammarMatcher(grammar, self._matcher(serialized, grammar), self._vocab_size, self._num_tokens)

    def _matcher(self, serialized: str, grammar: Grammar) -> Any:
        """Return a new matcher: a copy of a kept one, or one that is compiled now.

        If several threads request equal grammars at the same time, only one of them compiles.
        """
        with self._lock:
            if (kept := self._kept.get(grammar)) is not None:
                self._kept.move_to_end(grammar)
                return kept.deep_copy()
            if (pending := self._pending.get(grammar)) is None:
                own = self._pending[grammar] = Future[Any]()
        if pending is not None:
            try:
                return pending.result().deep_copy()
            except GrammarError as error:  # each thread must raise a separate exception object
                raise GrammarError(str(error), error.cause) from None
        try:
            matcher = self._new(serialized, grammar)
            own.set_result(matcher.deep_copy())
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._pending[grammar]
        return matcher

    def _new(self, serialized: str, grammar: Grammar) -> Any:
        """Compile a grammar, and keep it for later requests if it is not too large."""
        if is_cheap(grammar.text):
            num_bytes, matcher = 0, self._compiled(serialized)
        else:
            num_bytes, matcher = self._checked(serialized)
        if num_bytes <= _MAX_KEPT_BYTES and len(grammar.text) <= _MAX_KEPT_BYTES // _MAX_KEPT:
            with self._lock:
                self._kept[grammar] = matcher.deep_copy()
                if len(self._kept) > _MAX_KEPT:
                    self._kept.popitem(last=False)
        return matcher

    def _checked(self, serialized: str) -> tuple[int, Any]:
        """Compile a costly grammar in the worker, then in this process. Returns its size in bytes, and the matcher."""
        try:
            num_bytes = self._check.run(serialized)
        except ValueError as error:
            raise GrammarError(explained(str(error)), str(error)) from None
        if not self._compiling.acquire(timeout=_MAX_WAIT_SECONDS):
            raise GrammarError(explained(TOO_SLOW), TOO_SLOW)
        try:
            return num_bytes, self._compiled(serialized)
        finally:
            self._compiling.release()

    def _compiled(self, serialized: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(self._llguidance_tokenizer(), serialized, log_level=0, limits=LLParserLimits(**_LIMITS))
        if not matcher.is_error():
            # A large grammar's first mask can take a second, which must not block the model's thread.
            matcher.compute_bitmask()
        if error := matcher.get_error():
            raise GrammarError(explained(error), error)
        return matcher

    def _llguidance_tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._llguidance is None:
                backend = self._tokenizer.backend_tokenizer
                self._llguidance = LLTokenizer(backend.to_str(), n_vocab=self._num_tokens, eos_token=self._end_ids)
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
        started = thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise GrammarError(explained(error := self._matcher.get_error()), error)
        if thread_time() - started > _MAX_STEP_SECONDS:
            raise GrammarError(explained(TOO_SLOW), TOO_SLOW)
        # Token i is bit i % 32 of word i // 32; words are little-endian.
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little")

    def accept(self, token_id: int) -> None:
        """Advance by an allowed token. If a limit is exceeded, the next call of `allowed` raises GrammarError."""
        self._matcher.consume_token(token_id)


def parsed_schema(schema: str) -> dict[str, Any]:
    """Parse the text of a JSON Schema. Raises GrammarError if it is not a schema, or allows no document at all."""
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
