from __future__ import annotations

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from atlas.engine.text import TextStream


def run(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    stream = TextStream(stop)
    text = "".join(stream.feed(piece) for piece in pieces) + stream.finish()
    return text, stream.stopped


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_a_code_point_is_sent_only_when_it_is_whole() -> None:
    stream = TextStream()
    sent = [stream.feed(bytes([byte])) for byte in "né🙂".encode()]
    assert sent == ["n", "", "é", "", "", "", "🙂"]
    assert stream.finish() == ""


def test_a_cut_code_point_ends_as_a_replacement_character() -> None:
    assert run([b"ab", "🙂".encode()[:2]]) == ("ab\ufffd", False)
    assert run([b"a\xffb"]) == ("a\ufffdb", False)


def test_a_stop_string_across_pieces_is_dropped_with_all_that_follows() -> None:
    stream = TextStream(["\n\nEND"])
    assert [stream.feed(piece) for piece in (b"x\n", b"\nEN", b"Dmore", b"again")] == ["x", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_what_only_looked_like_a_stop_string_is_released() -> None:
    stream = TextStream(["STOP"])
    assert stream.feed(b"ST") == ""
    assert stream.feed(b"SSTO") == "STS"
    assert stream.finish() == "STO"
    assert not stream.stopped


def test_hold_back_is_at_most_one_byte_less_than_the_longest_stop() -> None:
    stream = TextStream(["abcd", "xy"])
    sent = sum(len(stream.feed(b"a")) for _ in range(100))
    assert sent >= 97
    assert len(stream.feed(b"bc")) + sent >= 99


def test_the_stop_string_complete_first_wins() -> None:
    assert run([b"1abc2"], ("abc", "b")) == ("1a", True)
    assert run([b"1abc2"], ("abc", "bc")) == ("1", True)
    stream = TextStream(("abc", "bc"))
    stream.feed(b"ab")
    assert stream.matched_stop is None
    stream.feed(b"c2")
    assert stream.matched_stop == "abc"


def test_a_stop_string_of_several_bytes_per_character_is_found() -> None:
    assert run([bytes([byte]) for byte in "vor ende🛑nach".encode()], ("🛑",)) == ("vor ende", True)


def test_a_code_point_cut_by_a_stop_string_is_replaced() -> None:
    assert run([b"a\xf0\x9f", b"STOP"], ("STOP",)) == ("a\ufffd", True)


def test_an_empty_stop_string_never_matches() -> None:
    assert run([b"abc"], ("",)) == ("abc", False)


@given(st.binary(max_size=40), st.lists(st.integers(0, 1000), max_size=10))
def test_without_stops_any_cut_decodes_as_the_whole(data: bytes, cuts: list[int]) -> None:
    assert run(cut(data, cuts)) == (data.decode("utf-8", "replace"), False)


@given(
    st.text(alphabet="abcé", max_size=30),
    st.lists(st.text(alphabet="abcé", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_any_cut_gives_the_same_text_and_stop(text: str, stop: list[str], cuts: list[int]) -> None:
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert run(cut(text.encode(), cuts), tuple(stop)) == expected


def test_a_token_costs_microseconds() -> None:
    for stop, bound_s in (((), 2e-6), (("\n\n", "```", "<|im_end|>", "STOP"), 20e-6)):
        stream = TextStream(stop)
        best = min(_seconds_per_token(stream) for _ in range(5))
        assert best < bound_s * 5  # five times slack for a busy machine


def _seconds_per_token(stream: TextStream) -> float:
    started = time.perf_counter()
    for _ in range(2000):
        stream.feed(b" token")
    return (time.perf_counter() - started) / 2000
