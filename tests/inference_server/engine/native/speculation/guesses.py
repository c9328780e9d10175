"""Draft tokens for tests: the tokens of known replies, some of them replaced by wrong ones."""

from inference_server.engine.native.speculation import drafting as module
from inference_server.engine.native.speculation.drafting import Drafting
from tests.inference_server.engine.native.fake_runner import VOCAB_SIZE


class Guesses:
    """Replaces the lookup in earlier text. Every `wrong`-th token is wrong; 0: none."""

    def __init__(self, known, wrong=0):
        self._known = known
        self._wrong = wrong

    def find(self, token_ids, count):
        for tokens in self._known:
            if len(tokens) > len(token_ids) and tokens[: len(token_ids)] == token_ids:
                places = range(len(token_ids), min(len(tokens), len(token_ids) + count))
                return 0, [self._guess(tokens[place], place) for place in places]
        return 0, []

    def _guess(self, token_id, place):
        is_wrong = self._wrong and place % self._wrong == 0
        return (token_id + 1) % VOCAB_SIZE if is_wrong else token_id


def always_drafting(monkeypatch, known, wrong=0):
    """Return a function that makes a Drafting which uses all guesses, regardless of their cost."""
    monkeypatch.setattr(module, "PromptLookup", lambda: Guesses(known, wrong))
    monkeypatch.setattr(module, "_MARGIN", 0.0)
    # The first draft token is added although it may never have been accepted before.
    monkeypatch.setattr(module.StepCosts, "ratio", lambda self, num_rows: 1.0)
    monkeypatch.setattr(module.Acceptance, "share", lambda self, kind: 0.9)
    return Drafting
