"""Results as text and as CSV."""

import csv
import math

from spatialflow.evaluation import format_comparison, format_results, write_csv


def test_tables():
    pq = {"PQ": 40.125, "SQ": 78, "RQ": 50, "PQ_th": 45, "SQ_th": 80, "RQ_th": 55}
    pq |= {"PQ_st": math.nan, "SQ_st": math.nan, "RQ_st": math.nan, "PQ-cat": 3}
    text = format_results(
        {"panoptic_seg": pq, "bbox": {"AP": 30, "AP50": 50.5}, "sem_seg": {"mIoU": 61}}
    )
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert cells[0] == ["", "PQ", "SQ", "RQ"]
    assert cells[2:5] == [
        ["All", "40.12", "78.00", "50.00"],
        ["Things", "45.00", "80.00", "55.00"],
        ["Stuff", "-", "-", "-"],
    ]
    assert cells[6] == ["box AP", "box AP50", "mIoU"]
    assert cells[8] == ["30.00", "50.50", "61.00"]


def test_tables_of_a_model_without_segmentation():
    text = format_results({"bbox": {"AP": 30.0}})
    assert "box AP" in text and "PQ" not in text
    assert format_results({}) == "Nothing was evaluated."


def test_intervals_stand_behind_the_values():
    pq = {k + s: 50.0 for k in ("PQ", "SQ", "RQ") for s in ("", "_th", "_st")}
    text = format_results({"panoptic_seg": pq}, {"PQ": (48.1, 52.345)})
    assert "50.00 (48.10 to 52.34)" in text.replace("52.35", "52.34")
    assert text.count("(") == 1


def test_comparison_has_a_row_a_dataset_and_the_columns_that_any_has():
    pq = {"PQ": 40.0, "PQ_th": math.nan, "PQ_st": 41.0, "SQ": 80.0, "RQ": 50.0}
    text = format_comparison({"a": {"panoptic_seg": pq}, "b": {"bbox": {"AP": 7.0, "AP50": 9.0}}})
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["dataset", "PQ", "PQ things", "PQ stuff", "SQ", "RQ", "box AP"]
    assert rows[2:] == [
        ["a", "40.00", "-", "41.00", "80.00", "50.00", "-"],
        ["b", "-", "-", "-", "-", "-", "7.00"],
    ]


def test_csv_has_a_row_a_number(tmp_path):
    path = str(tmp_path / "results.csv")
    by_name = {"x": {"panoptic_seg": {"PQ": 1 / 3, "PQ-a, b": math.nan}}, "y": {"bbox": {"AP": 2}}}
    write_csv(path, by_name)
    with open(path, newline="") as f:
        rows = list(csv.reader(f))
    assert rows[0] == ["dataset", "task", "metric", "value"]
    assert rows[1:] == [
        ["x", "panoptic_seg", "PQ", repr(1 / 3)],
        ["x", "panoptic_seg", "PQ-a, b", ""],
        ["y", "bbox", "AP", "2"],
    ]
    write_csv(path, by_name, {"PQ": (0.25, math.nan)})
    with open(path, newline="") as f:
        rows = [row[3:] for row in csv.reader(f)]
    assert rows == [["value", "low", "high"], [repr(1 / 3), "0.25", ""], [""] * 3, ["2", "", ""]]
