import json

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.blocks import BLOCK_KINDS, SEPARATOR, Block, Box, block_frame, block_schema, make_table, mean_confidence, text_of

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
MADE = st.tuples(st.sampled_from(BLOCK_KINDS), TEXT, st.integers(1, 3), st.floats(0, 1))
BLOCKS = st.lists(MADE.map(lambda made: Block(*made[:3], confidence=made[3])), max_size=6)


@given(BLOCKS)
def test_every_character_of_the_text_leads_back_to_its_block(blocks):
    frame = block_frame("doc_1", blocks)
    assert frame.schema == pl.Schema(block_schema())
    joined = text_of(frame)
    assert joined.text == SEPARATOR.join(block.text for block in blocks)
    for number, (block, start, end) in enumerate(zip(blocks, joined.starts, joined.ends, strict=True)):
        assert joined.text[start:end] == block.text
        for at in (start, end - 1):
            assert joined.blocks_in(at, at + 1) == (frame["id"][number],)
    assert joined.blocks_in(0, len(joined.text)) == joined.block_ids


@given(BLOCKS)
def test_the_order_of_rows_does_not_matter_and_ids_name_their_inputs(blocks):
    frame = block_frame("doc_1", blocks)
    assert text_of(frame.reverse()) == text_of(frame)
    assert frame["id"].is_unique().all()
    assert frame.equals(block_frame("doc_1", blocks))
    assert not set(frame["id"]) & set(block_frame("doc_2", blocks)["id"])


def test_a_separator_belongs_to_no_block():
    joined = text_of(block_frame("doc_1", [Block("paragraph", "ab"), Block("paragraph", "cd")]))
    assert joined.blocks_in(2, 4) == ()


def test_a_frame_keeps_boxes_levels_and_cells():
    frame = block_frame("doc_1", [Block("table", "a | b", 2, None, Box(1, 2, 3, 4), 0.5, (("a", "b"),)), Block("heading", "h", 1, 3)])
    rows = frame.to_dicts()
    assert [rows[0][name] for name in ("page", "position", "x0", "y0", "x1", "y1", "confidence")] == [2, 0, 1, 2, 3, 4, 0.5]
    assert json.loads(rows[0]["cells"]) == [["a", "b"]]
    assert (rows[1]["level"], rows[1]["x0"], rows[1]["cells"]) == (3, None, None)


def test_rows_become_a_table_or_keys_with_values():
    table = make_table([["a", "b", "c"], ["1"], ["", " "]])
    assert (table.kind, table.text, table.cells) == ("table", "a | b | c\n1 |  | ", (("a", "b", "c"), ("1", "", "")))
    keyed = make_table([["Name:", "Ann  Lee"], ["Town:", ""]])
    assert (keyed.kind, keyed.text) == ("key_value", "Name: Ann Lee\nTown:")
    assert make_table([["", " "], []]) is None


def test_confidence_of_a_document_is_weighted_by_length():
    assert mean_confidence([Block("paragraph", "aaa", confidence=1.0), Block("paragraph", "b", confidence=0.2)]) == (3 + 0.2) / 4
    assert mean_confidence([]) == 1.0
