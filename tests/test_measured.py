"""The measured numbers of README.md, MODEL_ZOO.md and docs/ are those of measured.json."""

from __future__ import annotations

from pathlib import Path

import fill_results
import pytest

from spatialflow.tools.zoo import measured

ROOT = Path(__file__).resolve().parents[1]
TEXT = """\
# A heading, with words

| a | b |
| --- | ---: |
| one | 1.25 |

Words.

<!-- results: known -->
| a | b |
| --- | ---: |
| two | 2 |
<!-- end -->
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """measured.json in a folder of its own, with one table."""
    file = tmp_path / "measured.json"
    file.write_text(
        '{"configs": {"mine.yaml": ["known::two::b", 3]}, "tables": {"known": {"columns": '
        '["a", "b"], "align": ["---", "---:"], "rows": [["two", "2"], ["\\u00b1", "3.456"]]}}}'
    )
    monkeypatch.setattr(measured, "FILE", file)
    measured._content.cache_clear()
    yield file
    measured._content.cache_clear()


@pytest.mark.parametrize("name", fill_results.FILLED)
def test_file_shows_what_was_measured(name):
    text = (ROOT / name).read_text()
    assert measured.fill(text) == text, "run `make results`"


@pytest.mark.parametrize("name", fill_results.ADOPTED)
def test_all_tables_are_in_measured_json(name):
    text = (ROOT / name).read_text()
    assert fill_results.with_markers(text) == text, "run `make results`"


def test_all_tables_of_measured_json_are_shown_once():
    text = "".join((ROOT / name).read_text() for name in fill_results.FILLED)
    shown = [match[1] for match in measured.BLOCK.finditer(text)]
    assert sorted(shown) == sorted(set(measured.tables()) - {"shipped"})


def test_fill_tables_and_cells(home):
    cell = "PQ <!-- =known::two::b::.1f -->old<!-- /= --> and <!-- =known::two::b --><!-- /= -->"
    block = "<!-- results: known -->\nold\n<!-- end -->"
    filled = measured.fill(f"{cell}\n{block}\n")
    assert "PQ <!-- =known::two::b::.1f -->2.0<!-- /= -->" in filled
    assert "<!-- =known::two::b -->2<!-- /= -->" in filled
    assert "| a | b |\n| --- | ---: |\n| two | 2 |\n| ± | 3.456 |\n<!-- end -->" in filled
    assert measured.fill(filled) == filled


@pytest.mark.parametrize("reference", ["no::two::b", "known::three::b", "known::two::c"])
def test_cell_that_is_not_there_is_named(home, reference):
    with pytest.raises(KeyError, match=f"measured.json has no cell '{reference}'"):
        measured.fill(f"<!-- ={reference} -->1<!-- /= -->")


def test_numbers_of_a_config_may_be_cells(home):
    assert measured.of_config("mine.yaml") == (2.0, 3)
    assert measured.of_config("other.yaml") is None


def test_a_new_table_is_adopted_and_changes_nothing_but_markers(home):
    text = fill_results.with_markers(TEXT)
    marked = "<!-- results: a_heading_with_words -->\n| a | b |"
    assert marked in text and text.count("<!-- results: ") == 2
    fill_results.adopt(text)
    assert measured.tables()["a_heading_with_words"]["rows"] == [["one", "1.25"]]
    assert '   ["one", "1.25"]' in home.read_text()
    assert measured.tables()["known"]["rows"][0] == ["two", "2"]
    assert fill_results.with_markers(text) == text


def test_tables_of_the_files_count_where_that_is_wanted(home):
    text = TEXT[TEXT.index("<!-- results") :]
    fill_results.adopt(text.replace("| two | 2 |", "| two | 5 |"))
    assert measured.lookup("known::two::b") == "2"
    fill_results.adopt(text.replace("| two | 2 |", "| two | 5 |"), known_too=True)
    assert measured.lookup("known::two::b") == "5"


def test_names_of_further_tables_below_a_heading_are_counted():
    table = "| a |\n| --- |\n| 1 |\n"
    text = fill_results.with_markers(f"## Known\n\n{table}\n{table}")
    assert "results: known -->" in text and "results: known_2 -->" in text


def test_markdown_and_back():
    table = {"columns": ["", "PQ"], "align": ["---", "---:"], "rows": [["x, y", "1.0 ± 0.2"]]}
    assert measured.parse_markdown(measured.markdown(table)) == table
