"""Means over seeds, and differences to the first row, seed by seed and image by image."""

import json
import shutil

import ablation_tables
import numpy as np
import pytest
from saved_run import NAME, save_evaluation

from spatialflow.data.targets import rgb_of_ids
from spatialflow.saved.predictions import ImagePair
from spatialflow.utils.files import write_image


def result(pq):
    return {
        "panoptic_seg": {"PQ": pq, "PQ_th": 45.0, "PQ_st": 30.0},
        "bbox": {"AP": 35.0},
        "sem_seg": {"mIoU": 50.0},
    }


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_means_and_sample_deviations_and_paired_differences():
    # The second is 1 and 2 behind; were the seeds not paired, the deviation would be 8.
    rows = cells(
        ablation_tables.as_table(
            {"a": [result(40), result(50)], "b": [result(39), result(48)], "c": [result(41)] * 2}
        )
    )
    assert rows[0] == ["config", "PQ", "PQ Th", "PQ St", "box AP", "mIoU", "PQ, to the first"]
    assert rows[2][:3] == ["a", "45.0 ± 7.1", "45.0 ± 0.0"] and rows[2][-1] == ""
    assert rows[3][1] == "43.5 ± 6.4" and rows[3][-1] == "-1.5 ± 0.7"
    assert rows[4][-1] == "-4.0 ± 7.1"


def test_one_run_has_no_deviation_and_nothing_to_compare_with():
    rows = cells(ablation_tables.as_table({"a": [result(40)]}))
    assert rows[0][-1] == "mIoU" and rows[2][:2] == ["a", "40.0"]


def test_intervals_of_the_difference_are_of_the_same_draws():
    draws = np.linspace(30, 50, 201)
    results = {"a": [result(40)], "b": [result(42)]}
    replicates = {
        "a": ablation_tables.Replicates(draws, draws + 20),
        "b": ablation_tables.Replicates(draws + 2, draws + 19),
    }
    rows = cells(ablation_tables.as_table(results, replicates))
    assert rows[0][-4:] == [
        "PQ, 95 % over images",
        "PQ, to the first, 95 % over images",
        "mIoU of the map, 95 % over images",
        "mIoU of the map, to the first, 95 % over images",
    ]
    assert rows[2][-4:] == ["30.5 to 49.5", "", "50.5 to 69.5", ""]
    assert rows[3][-4:] == ["32.5 to 51.5", "+2.0 to +2.0", "49.5 to 68.5", "-1.0 to -1.0"]


def test_miou_counts_what_is_void_on_the_map_as_missed_and_leaves_out_what_is_void_in_truth():
    #                        0  1  2  none, of two classes that occur and one that does not
    confusion = np.array([[6, 2, 0, 1], [0, 3, 0, 0], [0, 0, 0, 0], [9, 9, 9, 9]])
    assert ablation_tables.miou(confusion) == pytest.approx(100 * (6 / 9 + 3 / 5) / 2)


def test_confusion_of_an_image_is_that_of_its_classes(tmp_path):
    segments = [{"id": 7, "category_id": 20}, {"id": 300, "category_id": 10}]
    truth, predicted = tmp_path / "true.png", tmp_path / "predicted.png"
    for path, ids in ((truth, [[7, 7, 300, 0]]), (predicted, [[300, 7, 7, 7]])):
        write_image(str(path), rgb_of_ids(np.array(ids))[..., ::-1])
    pair = ImagePair(
        {"segments_info": segments}, str(truth), {"segments_info": segments}, str(predicted)
    )
    counts = ablation_tables._confusion(pair, {10: 0, 20: 1})
    assert counts.tolist() == [[0, 1, 0], [1, 1, 0], [0, 1, 0]]
    missing = ablation_tables._confusion(ImagePair(pair.truth, pair.truth_png), {10: 0, 20: 1})
    assert missing.tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 1]]


def test_predictions_of_runs_are_resampled(tmp_path):
    run = save_evaluation(tmp_path)
    drawn = ablation_tables.resample([run, run], 200)
    assert drawn.pq.shape == drawn.miou.shape == (200,) and drawn.pq.std() > 0
    pq = json.loads((run / "results.json").read_text())[NAME]["panoptic_seg"]["PQ"]
    # Of two images a quarter of the draws has the one twice, a half both.
    assert np.isclose(drawn.pq, pq).mean() == pytest.approx(0.5, abs=0.15)
    for one, both in zip(ablation_tables.resample([run], 200), drawn, strict=True):
        assert one == pytest.approx(both)


def test_run_without_predictions_is_named(tmp_path):
    run = save_evaluation(tmp_path)
    shutil.rmtree(run / "inference")
    with pytest.raises(SystemExit, match="output/inference has the predictions of 0 datasets"):
        ablation_tables.resample([run], 10)
