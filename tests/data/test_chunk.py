import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.blocks import Block, block_frame, make_table, text_of
from tunesmith.data.chunk import CHUNK_SCHEMA, chunk
from tunesmith.data.settings import ChunkSection

PROSE = st.text(st.sampled_from("abc dé. \n?!\u3002日"), min_size=1, max_size=200)
BLOCKS = st.lists(
    st.one_of(
        st.builds(lambda text: Block("paragraph", text), PROSE),
        st.builds(lambda text, level: Block("heading", text, level=level), st.text("ab ", min_size=1, max_size=20), st.integers(1, 3)),
        st.builds(lambda text: Block("list", text), st.text("- a\n", min_size=1, max_size=60)),
        st.builds(lambda n: make_table([["cell", "other"]] * n), st.integers(1, 12)),
    ),
    max_size=8,
)


def count_bytes(text):
    """A tokenizer of bytes: the worst case for a budget."""
    return len(text.encode())


def count_words(text):
    return len(text.split())


def embed_by_letter(texts):
    """Texts that share letters are alike."""
    vectors = np.array([[text.count(letter) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cut(blocks, count_tokens=count_words, embed=None, **keys):
    return chunk(block_frame("doc_1", blocks), count_tokens, ChunkSection(**keys), embed)


@given(BLOCKS, st.integers(16, 80), st.integers(0, 30), st.booleans())
@settings(deadline=None, max_examples=150)
def test_joined_chunks_are_the_text_and_each_fits_the_budget(blocks, most, least, with_meaning):
    frame = block_frame("doc_1", blocks)
    made = chunk(frame, count_bytes, ChunkSection(max_tokens=most, min_tokens=least, boundary_sharpness=0.5), embed_by_letter if with_meaning else None)
    text = text_of(frame).text
    assert made.schema == pl.Schema(CHUNK_SCHEMA)
    assert "".join(made["text"]) == text
    assert made["position"].to_list() == list(range(len(made)))
    at = 0
    for row in made.iter_rows(named=True):
        assert (row["start"], row["end"]) == (at, at + len(row["text"]))
        assert text[row["start"] : row["end"]] == row["text"]
        assert row["n_tokens"] == count_bytes(row["text"]) <= most
        at = row["end"]
    assert at == len(text)


@given(BLOCKS, st.integers(16, 80))
@settings(deadline=None, max_examples=80)
def test_every_chunk_knows_its_blocks_and_every_block_its_chunks(blocks, most):
    frame = block_frame("doc_1", blocks)
    joined = text_of(frame)
    made = chunk(frame, count_bytes, ChunkSection(max_tokens=most, min_tokens=0))
    for start, end, block_ids in made.select("start", "end", "block_ids").iter_rows():
        assert block_ids == [
            block_id
            for block_id, first, last in zip(joined.block_ids, joined.starts, joined.ends, strict=True)
            if first < end and last > start and first < last
        ]
    assert set(made["block_ids"].explode().drop_nulls()) == set(frame["id"])


@given(BLOCKS)
@settings(deadline=None, max_examples=30)
def test_the_same_blocks_give_the_same_chunks_in_any_order(blocks):
    frame = block_frame("doc_1", blocks)
    section = ChunkSection(max_tokens=32, min_tokens=4)
    assert chunk(frame, count_bytes, section, embed_by_letter).equals(chunk(frame.reverse(), count_bytes, section, embed_by_letter))


def test_a_heading_opens_a_chunk_and_stays_with_what_follows():
    body = "word " * 30 + "end."
    made = cut([Block("heading", "One", level=1), Block("paragraph", body), Block("heading", "Two", level=1), Block("heading", "Sub", level=2),
                Block("paragraph", body)], max_tokens=60, min_tokens=10)  # fmt: skip
    assert [text.split("\n")[0] for text in made["text"]] == ["One", "Two"]


def test_a_heading_is_never_the_end_of_a_chunk_where_the_next_block_can_be_cut():
    made = cut([Block("paragraph", "word " * 39 + "end."), Block("heading", "Head", level=1), Block("paragraph", ("word " * 9 + "end. ") * 6)],
               max_tokens=42, min_tokens=0)  # fmt: skip
    assert not any(text.strip().endswith("Head") for text in made["text"])


def test_a_table_stays_whole_where_it_fits_and_is_cut_between_rows_where_not():
    table = make_table([["name", f"value {number}"] for number in range(8)])
    sentence = "Some words that fill a line. "
    made = cut([Block("paragraph", sentence * 6), table, Block("paragraph", sentence * 6)], max_tokens=40, min_tokens=0)
    assert any(table.text in text for text in made["text"])
    small = cut([table], max_tokens=16, min_tokens=0)
    assert all(line in table.text.split("\n") for text in small["text"] for line in text.strip("\n").split("\n"))


def test_small_sections_are_joined_until_the_least_size():
    sections = [block for number in range(6) for block in (Block("heading", f"H{number}", level=1), Block("paragraph", "five words are in here"))]
    assert len(cut(sections, max_tokens=100, min_tokens=0)) == 6
    joined = cut(sections, max_tokens=100, min_tokens=12)
    assert joined["n_tokens"].to_list() == [12, 12, 12]


def test_text_is_cut_where_the_meaning_turns():
    cats, dogs = "cat cats catty at act. ", "dog dogs doggo good god. "
    text = (cats * 6).strip() + " " + (dogs * 6).strip()
    text = ". ".join(part.capitalize() for part in text.split(". "))
    without = cut([Block("paragraph", text)], max_tokens=100, min_tokens=5)
    assert len(without) == 1
    made = cut([Block("paragraph", text)], embed=embed_by_letter, max_tokens=100, min_tokens=5, boundary_sharpness=1.0)
    assert len(made) == 2
    assert "og" not in made["text"][0]
    assert "at" not in made["text"][1]


def test_what_is_too_long_is_cut_between_sentences_and_blocks_before_words():
    sentence = "One two three four five six seven eight. "
    made = cut([Block("paragraph", (sentence * 9).strip())], max_tokens=24, min_tokens=0)
    assert all(text.strip().endswith("eight.") for text in made["text"])
    blocks = cut([Block("paragraph", (sentence * 2).strip())] * 4, max_tokens=40, min_tokens=0)
    assert all(text.count("\n\n") >= 1 or text.endswith("eight.") for text in blocks["text"])


def test_a_chunk_has_the_confidence_and_first_page_of_its_blocks():
    made = cut([Block("paragraph", "aaaa", page=2, confidence=1.0), Block("paragraph", "bb", page=3, confidence=0.4)])
    assert made.select("page", "confidence").row(0) == (2, pytest.approx((4 * 1.0 + 2 * 0.4) / 6))


def test_documents_are_cut_one_by_one():
    frames = [block_frame(f"doc_{name}", [Block("paragraph", name)]) for name in "ab"]
    made = chunk(pl.concat(frames), count_words, ChunkSection())
    assert made.select("document_id", "position", "text").rows() == [("doc_a", 0, "a"), ("doc_b", 0, "b")]
    assert made["id"].n_unique() == 2


def test_no_blocks_no_chunks():
    assert cut([]).schema == pl.Schema(CHUNK_SCHEMA)


def test_a_long_text_without_spaces_takes_little_time():
    made = cut([Block("paragraph", "x" * 100_000)], count_tokens=len, max_tokens=100, min_tokens=10)
    assert "".join(made["text"]) == "x" * 100_000
    assert made["n_tokens"].max() <= 100
