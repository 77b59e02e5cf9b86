"""Every part of tools/measure.py runs on a CPU, and its report has what the parts found."""

import json

import measure
import pytest

from spatialflow.tools.benchmark.measure import computes_bfloat16

ONE_OF_EACH_KIND = [
    name
    for name in measure.PARTS
    if name not in ("parity", "speed-600", "speed-400", "camvid-panoptic-fpn")
]
EXPECTED_KEYS = {
    "environment": {"device", "PyTorch", "date"},
    "tests": {"tests", "failures", "skipped"},
    "speed-800": {"frame_rate_ratio", "median"},
    "batches": {"throughput_ratio"},
    "steps": {"compute_bound", "memory_bound"},
    "merges": {"instances", "speed_ratio", "peak_memory"},
    "launches": {"operators", "kernel_launches", "host_synchronisations"},
    "training": {"autocast", "time_ratio", "memory_ratio", "peak_memory"},
    "systems": {"parameters", "peak_memory"},
    "tta": {"peak_memory", "within_the_limit"},
    "camvid-spatialflow": {"PQ", "time_median", "data_time_median"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    arguments = ["--out", str(folder), "--quick", "--device", "cpu", "--part", *ONE_OF_EACH_KIND]
    assert measure.main(arguments) == 0
    return folder


def test_every_part_has_rows_with_what_it_measures(folder):
    results = {r["part"]: r for r in json.loads((folder / "measurements.json").read_text())}
    assert list(results) == ONE_OF_EACH_KIND == list(EXPECTED_KEYS)
    for name, result in results.items():
        assert result["device"] == "cpu" and result["quick"]
        assert result == json.loads((folder / f"{name}.json").read_text())
        for row in result["rows"]:
            assert EXPECTED_KEYS[name] <= set(row), name
    assert {row["instances"] for row in results["merges"]["rows"]} == {10, 100, 300}
    precisions = {"None", *["bfloat16"] * computes_bfloat16("cpu")}
    assert {row["autocast"] for row in results["training"]["rows"]} == precisions
    assert results["tests"]["rows"][0]["failures"] == "0"


def test_the_report_has_a_table_for_each_part(folder):
    text = (folder / "measurements.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ONE_OF_EACH_KIND
    assert "Failed" not in text


def test_a_part_that_fails_is_reported_and_can_be_run_again(tmp_path, monkeypatch):
    results = iter([RuntimeError("out of memory"), [{"value": 0.123456}]])

    def part(options):
        found = next(results)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(measure, "PARTS", {"first": part, "last": lambda options: [{"value": 1}]})
    arguments = ["--out", str(tmp_path), "--device", "cpu"]
    assert measure.main(arguments) == 1
    text = (tmp_path / "measurements.md").read_text()
    assert "Failed: RuntimeError: out of memory" in text and "## last" in text
    assert measure.main([*arguments, "--part", "first"]) == 0
    text = (tmp_path / "measurements.md").read_text()
    assert "Failed" not in text and "0.1235" in text and "## last" in text


def test_camvid_without_its_folder_says_what_to_do(tmp_path):
    assert measure.main(["--out", str(tmp_path), "--device", "cpu", "--part", "camvid-spatialflow"])
    assert "name its folder with --camvid FOLDER" in (tmp_path / "measurements.md").read_text()
