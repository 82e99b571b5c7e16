"""The byte tokenizer, and that it leaves case alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_data.tokenizer import ByteTokenizer


def test_ids_of_bases() -> None:
    ids = ByteTokenizer().encode("ACGTNacgt")
    assert ids.dtype == np.uint8
    assert ids.tolist() == [65, 67, 71, 84, 78, 97, 99, 103, 116]


def test_special_ids() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.pad_id) == (512, 0, 1)
    assert tokenizer.eod == tokenizer.eos == 0


def test_text_and_bytes_agree_and_utf8_is_used() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("|é").tolist() == [0x7C, 0xC3, 0xA9]
    assert tokenizer.encode("|é".encode()).tolist() == [0x7C, 0xC3, 0xA9]
    assert tokenizer.encode("").shape == (0,)


def test_the_ids_can_be_changed_without_touching_the_text() -> None:
    text = b"ACGT"
    ids = ByteTokenizer().encode(text)
    ids[0] = 84
    assert text == b"ACGT"


@pytest.mark.parametrize(("token", "character"), [(0, " "), (1, " "), (31, " "), (32, " ")])
def test_control_ids_decode_to_blanks(token: int, character: str) -> None:
    assert ByteTokenizer().decode([token]) == character


def test_ids_behind_the_bytes_are_clamped() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(np.array([65, 256, 512, 600])) == "A" + chr(256) + chr(512) + chr(512)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_printable_ascii_round_trips(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
