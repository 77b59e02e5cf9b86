"""Lists and tables as text."""

from spatialflow.utils.text import name_some, table


def test_name_some():
    assert name_some([]) == ""
    assert name_some(["a", 2]) == "a, 2"
    assert name_some("abcde") == "a, b, c, d, e"
    assert name_some("abcdef", 2) == "a, b and 4 more"


def test_table_is_markdown():
    text = table([["x", "1.50", "10"], ["yy", "2", "n"]], ["name", "a", "b"], left=1)
    assert text.splitlines() == [
        "| name   |    a |   b |",
        "|:-------|-----:|----:|",
        "| x      | 1.50 |  10 |",
        "| yy     |    2 |   n |",
    ]
