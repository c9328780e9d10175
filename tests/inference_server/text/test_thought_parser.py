"""Thoughts are split from the reply's text, for every division of that text into deltas."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_server.generation import Completed, Delta, FinishReason, Timings, Usage
from inference_server.text.detokenizer import Detokenizer
from inference_server.text.reasoning.formats import FORMATS, detect_reasoning_format
from inference_server.text.reasoning.parser import thought_parser
from inference_server.text.reasoning.reply import ThoughtfulReplyText, with_thoughts
from tests.support.models.thinking_models import chat_template

THINK = FORMATS["think"]
HARMONY = (
    "<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|> More.<|end|><|start|>assistant<|channel|>final<|message|>Hello!"
)


def split(text, *, name="think", is_open=False, is_continued=False, cuts=()):
    """Return thoughts and content of a reply that arrives in the parts between `cuts`."""
    parser = thought_parser(FORMATS[name], is_open=is_open, is_continued=is_continued)
    edges = [0, *sorted(cuts), len(text)]
    pieces = [piece for start, end in zip(edges, edges[1:], strict=False) for piece in parser.push(text[start:end])]
    pieces += parser.finish()
    return tuple("".join(text for is_thought, text in pieces if is_thought is kind) for kind in (True, False))


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        pytest.param("<think>\nOkay.\n</think>\n\nHello", False, ("Okay.", "Hello"), id="Qwen3"),
        pytest.param("Okay.\n</think>\n\nHello", True, ("Okay.", "Hello"), id="R1 after an opened thought"),
        pytest.param("<think>\nOkay.\n</think>Hello", True, ("Okay.", "Hello"), id="a repeated marker"),
        pytest.param("<think>\n\n</think>\n\nHello", False, ("", "Hello"), id="/no_think"),
        pytest.param("Hello", False, ("", "Hello"), id="no thoughts"),
        pytest.param("  Hello <think> x", False, ("", "  Hello <think> x"), id="a marker within the text"),
        pytest.param("<think>a</think>b</think>c<think>d", False, ("a", "b</think>c<think>d"), id="markers afterwards"),
        pytest.param("a < b and </ c\n\nd</think>e", True, ("a < b and </ c\n\nd", "e"), id="nearly markers"),
        pytest.param("Okay, the user", True, ("Okay, the user", ""), id="cut within the thoughts"),
        pytest.param("<think>Okay, the user", False, ("Okay, the user", ""), id="cut within its own thoughts"),
        pytest.param("<thi", False, ("", ""), id="cut within the marker"),
        pytest.param("Okay.\n</thi", True, ("Okay.", ""), id="cut within the end marker"),
        pytest.param("<", False, ("", "<"), id="a reply of one character"),
        pytest.param("", True, ("", ""), id="nothing"),
    ],
)
def test_thoughts_are_split_from_content(text, is_open, expected):
    assert split(text, is_open=is_open) == expected
    assert split(text, is_open=is_open, cuts=range(1, len(text))) == expected


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "harmony"])
def test_every_format_has_its_markers(name):
    text = f"{FORMATS[name].start}\nOkay.{FORMATS[name].end}\nHello"
    assert split(text, name=name) == ("Okay.", "Hello")


def test_continued_thoughts_keep_their_leading_space():
    assert split(" thinks of</think>x", is_open=True, is_continued=True) == (" thinks of", "x")


@pytest.mark.parametrize("cuts", [(), range(1, len(HARMONY))], ids=["whole", "by character"])
def test_the_channels_of_harmony_are_thoughts_and_content(cuts):
    assert split(HARMONY, name="harmony", cuts=cuts) == ("They greet. More.", "One moment.Hello!")


def test_a_call_of_harmony_becomes_a_call_in_hermes_format():
    text = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert split(text, name="harmony") == split(text[: -len("<|call|>")], name="harmony") == ("", call)
    assert not split(text[:-10], name="harmony")[1].endswith("</tool_call>")


@pytest.mark.parametrize(
    ("text", "is_continued", "expected"),
    [
        pytest.param("Plain <b>text</b>", False, ("", "Plain <b>text</b>"), id="no message"),
        pytest.param("<|channel|>anal", False, ("", ""), id="half a header"),
        pytest.param(" to=functions.f", False, ("", ""), id="half a header of a call"),
        pytest.param(
            " of an analysis.<|end|><|start|>assistant<|channel|>final<|message|>Hello",
            True,
            (" of an analysis.", "Hello"),
            id="continued thoughts",
        ),
    ],
)
def test_harmony_loses_no_text_outside_of_messages(text, is_continued, expected):
    assert split(text, name="harmony", is_open=is_continued, is_continued=is_continued) == expected


_TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", "\n", " ", "a", "word", "</thin", "🙂"]), max_size=12
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=_TEXTS, is_open=st.booleans(), data=st.data())
def test_any_division_of_a_reply_gives_the_same_result(text, is_open, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    whole = split(text, is_open=is_open)
    assert split(text, is_open=is_open, cuts=cuts) == whole


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qwen3", "think"), ("r1_distill", "think"), ("magistral", "mistral"), ("gemma_2", None), ("chatml", None)],
)
def test_a_template_shows_the_format(name, expected):
    assert detect_reasoning_format(chat_template(name)) == (FORMATS[expected] if expected else None)


# The text stream and the events.


def stream(*, stop=(), is_open=False, reasoning=THINK):
    """Return a stream whose tokens are characters."""
    decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
    return ThoughtfulReplyText(Detokenizer(decode), stop, thought_parser(reasoning, is_open=is_open))


async def replied(text, stream, sizes):
    """Return thoughts and content of the events of a reply whose deltas have these numbers of tokens, joined late."""
    pushed = []
    for character in text:
        pushed.append(stream.push(ord(character)))
        if stream.stop_string is not None:
            break
    pushed.append(stream.finish())

    async def events():
        start = 0
        for size in [*sizes, len(pushed)]:
            yield Delta("".join(pushed[start : start + size]), size)
            start += size
        yield Completed(FinishReason.STOP, None, Usage(1, 1), Timings(0, 0, 0))

    found = [event async for event in with_thoughts(events(), stream)]
    assert isinstance(found[-1], Completed)
    order = [kind for delta in found[:-1] for kind in ("reasoning", "text") if getattr(delta, kind)]
    thoughts, content = ("".join(getattr(delta, kind) for delta in found[:-1]) for kind in ("reasoning", "text"))
    assert sum(delta.num_tokens for delta in found[:-1]) == sum(sizes) + len(pushed)
    return thoughts, content, order


@settings(max_examples=200, deadline=None)
@given(text=_TEXTS, is_open=st.booleans(), sizes=st.lists(st.integers(0, 9), max_size=6))
async def test_any_division_into_events_gives_the_same_result(text, is_open, sizes):
    thoughts, content, _ = await replied(text, stream(is_open=is_open), sizes)
    assert (thoughts, content) == split(text, is_open=is_open)


@pytest.mark.parametrize("size", [1, 7, len(HARMONY)])
async def test_thoughts_may_follow_content_in_harmony(size):
    sizes = [size] * (len(HARMONY) // size)
    thoughts, content, order = await replied(HARMONY, stream(reasoning=FORMATS["harmony"]), sizes)
    assert (thoughts, content) == ("They greet. More.", "One moment.Hello!")
    kinds = [kind for kind, before in zip(order, [None, *order], strict=False) if kind != before]
    assert kinds == ["reasoning", "text", "reasoning", "text"]


async def test_stop_strings_do_not_match_within_thoughts():
    text = stream(stop=("END",))
    thoughts, content, _ = await replied("<think>not END yet</think>done END never", text, [3, 3])
    assert (thoughts, content, text.stop_string) == ("not END yet", "done ", "END")


async def test_content_that_begins_like_a_stop_string_is_no_thought():
    thoughts, content, _ = await replied("<think>a</think>\n\nUse this", stream(stop=("User:",)), [1] * 20)
    assert (thoughts, content) == ("a", "Use this")
    thoughts, content, _ = await replied("<think>a</think>Us", stream(stop=("User:",)), [1] * 10)
    assert (thoughts, content) == ("a", "Us")


def test_tokens_of_thoughts_are_counted_with_their_markers():
    text = stream()
    for character in "<think>ab</think>\n\nHello":
        text.push(ord(character))
    assert text.num_reasoning_tokens == len("<think>ab</think>")
    text = stream()
    for character in "  Hello":
        text.push(ord(character))
    assert text.num_reasoning_tokens == 0
