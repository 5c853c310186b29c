from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.store.schemas import TextColumn, text_columns


def test_every_column_that_may_hold_text_is_told(tmp_path: Path) -> None:
    table = pa.table(
        {
            "number": [1, 2],
            "text": ["a", None],
            "large": pa.array(["b", "c"], pa.large_string()),
            "named": pa.array(["d", "d"]).dictionary_encode(),
            "many": [["e"], ["g", "h"]],
            "within": [{"key": "i"}, None],
            "flag": [True, False],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert list(text_columns(tmp_path / "t.parquet")) == [
        TextColumn(1, "text", ["a", ""]),
        TextColumn(1, "large", ["b", "c"]),
        TextColumn(1, "named", ["d", "d"]),
        TextColumn(1, "many", ['["e"]', '["g", "h"]']),
        TextColumn(1, "within", ['{"key": "i"}', ""]),
    ]


def test_rows_are_counted_over_pieces(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {row}" for row in range(1, 20_001)]}), tmp_path / "t.parquet")
    pieces = list(text_columns(tmp_path / "t.parquet"))
    assert len(pieces) > 1
    assert all(each.texts[0] == f"row {each.first_row}" for each in pieces)
    assert [text for each in pieces for text in each.texts] == [f"row {row}" for row in range(1, 20_001)]
