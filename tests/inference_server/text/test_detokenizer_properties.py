"""Any text in any pieces: the detokenizer's output is the text of all tokens, and stop strings end it at the same place."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inference_server.text.detokenizer import Detokenizer, ReplyText, StopStrings
from tests.support.fakes import default_prompts, llama_prompts

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
QUICK = settings(max_examples=80, deadline=None, derandomize=True)
PROMPTS = {"byte-level": default_prompts, "sentencepiece": llama_prompts}
texts = st.text(max_size=60)
few_letters = st.text("ab\n", max_size=40)


@pytest.fixture(params=PROMPTS, scope="module")
def prompts(request):
    return PROMPTS[request.param]()


@given(text=texts)
@QUICK
def test_the_pieces_joined_are_the_text_of_all_tokens(prompts, text):
    ids = prompts.encode_text(text or "a")
    # A vocabulary may lack bytes that occur only in unused characters.
    assume(REPLACEMENT not in prompts.decoder.decode(ids))
    detokenizer = Detokenizer(prompts.decoder.decode)
    pieces = [*map(detokenizer.push, ids), detokenizer.finish()]
    assert "".join(pieces) == prompts.decoder.decode(ids)
    assert not any(REPLACEMENT in piece for piece in pieces)


@given(text=few_letters, stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), data=st.data())
@QUICK
def test_the_place_of_a_stop_does_not_depend_on_the_pieces(text, stops, data):
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    cut = StopStrings(stops)
    whole = StopStrings(stops)
    given_out = ""
    for start, end in zip([0, *borders], [*borders, len(text)], strict=True):
        if cut.found is None:
            given_out += cut.push(text[start:end])
    expected = whole.push(text)
    assert cut.found == whole.found
    if cut.found is None:
        assert given_out + cut.finish() == expected + whole.finish() == text
    else:
        assert given_out == expected
        assert given_out + cut.found == text[: min(text.find(stop) + len(stop) for stop in stops if stop in text)]


@given(text=few_letters, stops=st.lists(st.text("ab\n", min_size=1, max_size=3), min_size=1, max_size=2))
@QUICK
def test_no_part_of_a_stop_string_is_sent(prompts, text, stops):
    ids = prompts.encode_text(text or "a")
    reply = ReplyText(Detokenizer(prompts.decoder.decode), stops)
    given_out = ""
    for token_id in ids:
        given_out += reply.push(token_id)
        assert not any(stop in given_out for stop in stops)
        if reply.stop_string is not None:
            break
    assert not any(stop in given_out + reply.finish() for stop in stops)
