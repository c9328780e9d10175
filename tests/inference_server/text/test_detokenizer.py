"""Token ids to text: complete characters, no lost spaces, stop strings across token borders."""

import random

import pytest

from inference_server.text.detokenizer import Detokenizer, ReplyText, StopStrings
from tests.support.fakes import default_prompts, llama_prompts

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PROMPTS = {"byte-level": default_prompts, "sentencepiece": llama_prompts}
TEXTS = [
    "where is the program in new york",
    "  two spaces   three, and at the end  ",
    "line\n\n\tindented\r\nline",
    "naïve façade — “quoted” …",
    "日本語の文章。中文也可以，한국어도.",
    "flags 🇩🇪🇯🇵, a family 👨‍👩‍👧‍👦, a thumb 👍🏽, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "e\u0301 and a\u0308 and n\u0303\u0323 combined; हिन्दी; ไทย",
    "\u200bzero\u200dwidth\ufeff",
    "a",
    " ",
    "\n",
]
ALPHABET = "  \n\tabe.the19éßłЖя日本語한🙂👍🏽🇩🇪\u0301\u0308\u200dहि𝔘\ue000"


def random_texts(count):
    generator = random.Random(20)
    return ["".join(generator.choices(ALPHABET, k=generator.randrange(1, 40))) for _ in range(count)]


@pytest.fixture(params=PROMPTS)
def prompts(request):
    return PROMPTS[request.param]()


def plain_ids(prompts, text):
    """Return a reply's token ids, without <s> before them."""
    ids = prompts.encode_text(text)
    return ids[1:] if prompts is llama_prompts() else ids


def pieces(prompts, ids, context=()):
    detokenizer = Detokenizer(prompts.decoder.decode, context)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_together_are_the_text_of_all_tokens(prompts, text):
    ids = plain_ids(prompts, text)
    assert "".join(pieces(prompts, ids)) == prompts.decoder.decode(ids) == text


def test_pieces_of_random_texts_are_complete(prompts):
    for text in random_texts(300):
        ids = plain_ids(prompts, text)
        deltas = pieces(prompts, ids)
        assert "".join(deltas) == prompts.decoder.decode(ids) == text
        assert not any(REPLACEMENT in delta for delta in deltas), (text, deltas)


def test_text_is_sent_with_its_own_token(prompts):
    ids = plain_ids(prompts, "where is the program")
    detokenizer = Detokenizer(prompts.decoder.decode)
    assert all(detokenizer.push(token_id) for token_id in ids[1:] if prompts.decoder.decode([token_id]).strip())


def test_decoding_token_by_token_would_lose_spaces():
    # Shows that the tests above can detect this fault.
    prompts = llama_prompts()
    ids = plain_ids(prompts, "where is the program")
    assert "".join(prompts.decoder.decode([token_id]) for token_id in ids) == "whereistheprogram"


def test_decoding_token_by_token_would_break_characters(prompts):
    ids = plain_ids(prompts, "ᚠ")
    assert len(ids) > 1
    assert REPLACEMENT in "".join(prompts.decoder.decode([token_id]) for token_id in ids)


@pytest.mark.parametrize("num_missing", [1, 2])
def test_an_incomplete_character_at_the_end_is_dropped(prompts, num_missing):
    ids = plain_ids(prompts, "the end ᚠ")[:-num_missing]
    assert "".join(pieces(prompts, ids)).rstrip() == "the end"


def test_nothing_is_sent_before_a_character_is_complete(prompts):
    *incomplete, last = plain_ids(prompts, "ᚠ")
    detokenizer = Detokenizer(prompts.decoder.decode)
    assert "".join(detokenizer.push(token_id) for token_id in incomplete).strip() == ""
    assert detokenizer.push(last) == "ᚠ"


def continuation_byte(prompts):
    """Return the id of a token that is not valid text in any place."""
    tokenizer = prompts.decoder.token_bytes._tokenizer
    return next(i for i in range(tokenizer.get_vocab_size()) if prompts.decoder.token_bytes(i) == b"\x80")


def test_invalid_bytes_are_not_held_back_forever(prompts):
    detokenizer = Detokenizer(prompts.decoder.decode)
    deltas = [detokenizer.push(continuation_byte(prompts)) for _ in range(40)]
    assert len("".join(deltas)) >= 32
    assert set("".join(deltas)) == {REPLACEMENT}


def test_text_after_invalid_bytes_is_unchanged(prompts):
    ids = [continuation_byte(prompts)] * 3 + plain_ids(prompts, " the program")
    assert "".join(pieces(prompts, ids)).lstrip(REPLACEMENT).endswith(" the program")


def test_a_reply_to_raw_text_keeps_its_first_space():
    prompts = llama_prompts()
    reply = plain_ids(prompts, "the program")
    assert "".join(pieces(prompts, reply, context=prompts.encode_text("where is"))) == " the program"
    assert "".join(pieces(prompts, reply)) == "the program"


@pytest.mark.parametrize("prompt", ["a", "where is", "the 日", "the 日本語", "the 🙂", "ends in spaces  "])
def test_a_reply_to_raw_text_is_the_difference_of_the_texts(prompts, prompt):
    before = prompts.encode_text(prompt)
    reply = plain_ids(prompts, "the program 日 🙂 is")
    expected = prompts.decoder.decode([*before, *reply]).removeprefix(prompts.decoder.decode(before))
    assert "".join(pieces(prompts, reply, context=before[-6:])) == expected


@pytest.mark.parametrize("prompt", ["the 🙂🙂", "ᚠ🙂", "the 🙂日"])
def test_a_context_cut_within_a_character_keeps_the_reply(prompt):
    prompts = llama_prompts()
    reply = plain_ids(prompts, "🙂 the program")[1:]
    assert "".join(pieces(prompts, reply, context=prompts.encode_text(prompt)[-6:])) == "🙂 the program"


def test_a_character_is_complete_after_many_tokens_without_text():
    prompts = llama_prompts()
    text = plain_ids(prompts, "the")
    assert "".join(pieces(prompts, [*text, *[1] * 20, *plain_ids(prompts, "🙂 end")[1:]])) == "the🙂 end"


def test_control_tokens_have_no_text():
    the, end = plain_ids(llama_prompts(), "the"), plain_ids(llama_prompts(), "end")
    assert "".join(pieces(llama_prompts(), [1, *the, 2, *end, 2])) == "the end"


# Stop strings.


def sent(stop_strings, texts):
    """Return the sent part of each of `texts`, then the text that was held back, and the stop string found."""
    stops = StopStrings(stop_strings)
    deltas = []
    for text in texts:
        deltas.append(stops.push(text))
        if stops.found is not None:
            return deltas, stops.found
    return [*deltas, stops.finish()], None


@pytest.mark.parametrize(
    ("stop_strings", "texts", "deltas", "found"),
    [
        pytest.param((), ["ab", "c"], ["ab", "c", ""], None, id="no stop strings: nothing is held"),
        pytest.param(["END"], ["a", "b"], ["a", "b", ""], None, id="nothing alike: nothing is held"),
        pytest.param(["END"], ["one END two"], ["one "], "END", id="in one piece"),
        pytest.param(["END"], ["one E", "N", "D two"], ["one ", "", ""], "END", id="across three pieces"),
        pytest.param(["END"], ["END"], [""], "END", id="nothing before it"),
        pytest.param(["END"], ["one E", "N", "X"], ["one ", "", "ENX", ""], None, id="held, then released"),
        pytest.param(["END"], ["one EN"], ["one ", "EN"], None, id="held at the end, then released"),
        pytest.param(["END"], ["EE", "N", "D"], ["E", "", ""], "END", id="begins anew within what is held"),
        pytest.param(["aab"], ["aa", "a", "b"], ["", "a", ""], "aab", id="overlaps with itself"),
        pytest.param(["abc", "bcd"], ["ab", "x"], ["", "abx", ""], None, id="two overlap, neither comes"),
        pytest.param(["abcx", "bcd"], ["ab", "c", "d"], ["", "", "a"], "bcd", id="two overlap, the later comes"),
        pytest.param(["two", "one"], ["a one two"], ["a "], "one", id="the earlier in the text wins"),
        pytest.param(["one", "on"], ["a one two"], ["a "], "on", id="what is complete first wins"),
        pytest.param(["a one", "on"], ["a one two"], ["a "], "on", id="also within a longer one"),
        pytest.param(["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], "\n\n", id="line ends"),
        pytest.param(["日本"], ["a日", "本"], ["a", ""], "日本", id="characters of several bytes"),
    ],
)
def test_stop_strings_end_the_text_where_they_begin(stop_strings, texts, deltas, found):
    assert sent(stop_strings, texts) == (deltas, found)


def test_no_part_of_a_match_is_sent_for_any_borders():
    generator = random.Random(5)
    for _ in range(500):
        text = "".join(generator.choices("ab", k=20))
        stop = "".join(generator.choices("ab", k=generator.randrange(1, 6)))
        cuts = sorted(generator.choices(range(21), k=6))
        texts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, 20], strict=True)]
        deltas, found = sent([stop], texts)
        assert "".join(deltas) == text.split(stop)[0]
        assert found == (stop if stop in text else None)


def test_the_matching_stop_string_does_not_depend_on_borders():
    generator = random.Random(6)
    for _ in range(500):
        text = "".join(generator.choices("ab", k=20))
        stops = ["".join(generator.choices("ab", k=generator.randrange(2, 6))) for _ in range(3)]
        whole, by_character = sent(stops, [text]), sent(stops, list(text))
        assert ("".join(whole[0]), whole[1]) == ("".join(by_character[0]), by_character[1])


def reply(prompts, ids, stop_strings):
    text = ReplyText(Detokenizer(prompts.decoder.decode), stop_strings)
    deltas = []
    for token_id in ids:
        deltas.append(text.push(token_id))
        if text.stop_string is not None:
            break
    return "".join([*deltas, text.finish()]), text.stop_string


def test_a_stop_string_across_three_tokens_is_never_sent(prompts):
    ids = plain_ids(prompts, "the program <#> where")
    parts = [i for i in ids if any(c in prompts.decoder.decode([i]) for c in "<#>")]
    assert len(parts) == 3
    assert reply(prompts, ids, ["<#>"]) == ("the program ", "<#>")


def test_a_stop_string_may_contain_characters_of_several_tokens(prompts):
    assert reply(prompts, plain_ids(prompts, "the 🙂ᚠ program"), ["🙂ᚠ"]) == ("the ", "🙂ᚠ")


def test_without_a_match_the_whole_text_is_sent(prompts):
    text = "the program <# where <"
    assert reply(prompts, plain_ids(prompts, text), ["<#>", "where is"]) == (text, None)


def bytes_decoder(*tokens):
    """Return a decoder of tokens that are bytes, for borders that real vocabularies might not have."""
    return lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace")


def test_a_stop_string_in_the_last_flushed_text_is_found():
    # The second token has the rest of the stop string and the first byte of an incomplete character.
    text = ReplyText(Detokenizer(bytes_decoder(b"one EN", b"D\xe6")), ["END"])
    assert [text.push(0), text.push(1)] == ["one ", ""]
    assert (text.finish(), text.stop_string) == ("", "END")


def test_text_before_a_stop_string_in_the_last_flushed_text_is_sent():
    text = ReplyText(Detokenizer(bytes_decoder(b"one ", b"two END three\xe6")), ["END"])
    assert [text.push(0), text.push(1)] == ["one ", ""]
    assert (text.finish(), text.stop_string) == ("two ", "END")


def test_text_held_back_without_a_match_is_sent_at_the_end():
    text = ReplyText(Detokenizer(bytes_decoder(b"one E", b"N\xe6")), ["END"])
    assert [text.push(0), text.push(1)] == ["one ", ""]
    assert (text.finish(), text.stop_string) == ("EN", None)


def test_nothing_is_sent_after_a_stop_string():
    text = ReplyText(Detokenizer(bytes_decoder(b"one END", b" two")), ["END"])
    assert [text.push(0), text.finish(), text.finish()] == ["one ", "", ""]
