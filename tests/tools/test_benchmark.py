"""The benchmark runs, and its tables say what it found; no times are asserted."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from builders import STUFF_LABELS, THINGS, tiny_model
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs

from spatialflow.cli import run_command
from spatialflow.model_zoo import config_names
from spatialflow.modeling.panoptic import merge_panoptic
from spatialflow.tools.benchmark import measure, subjects
from spatialflow.tools.benchmark.floors import Rates, Work, count
from spatialflow.tools.benchmark.measure import training
from spatialflow.tools.benchmark.subjects import BenchmarkModel, make_instances
from spatialflow.tools.benchmark.systems import dense_multiply_adds, systems_of
from spatialflow.tools.benchmark.timing import Summary, alternate, median_ratio, peak_memory

main = partial(run_command, "benchmark")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "DETECTIONS", 35)  # masks of 100 would take most of the time
        _run(folder)
    return json.loads((folder / "r.json").read_text()), (folder / "r.md").read_text()


def _run(folder):
    files = ["--json-out", str(folder / "r.json"), "--markdown", str(folder / "r.md")]
    main(
        [
            "--device",
            "cpu",
            "--quick",
            "--heights",
            "64",
            "--runs",
            "2",
            "--training-runs",
            "0",
            *files,
        ]
    )


def computed(*names):
    """Of these rows those that this processor computes."""
    has_it = measure.computes_bfloat16("cpu")
    return {name for name in names if has_it or "bf16" not in name}


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_is_left_out_where_it_would_be_emulated(monkeypatch, has_it):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it)
    monkeypatch.setattr(measure, "optimize", lambda model, **kwargs: model)
    names = measure.fast_paths("A", SimpleNamespace(panoptic_model=None), "cpu")
    assert set(names) == {"A, optimized", *["A, optimized, bf16"] * has_it}


def test_both_models_do_the_same_work(results):
    rows = {row["name"]: row for row in results[0]["end_to_end"]}
    assert set(rows) == computed(
        "SpatialFlow",
        "SpatialFlow, bf16 autocast",
        "SpatialFlow, optimized",
        "SpatialFlow, optimized, bf16",
        "Panoptic FPN",
        "Panoptic FPN, bf16 autocast",
    )
    for row in rows.values():
        assert row["detections"] == 35
        assert 15 <= row["confident"] <= 30
        assert row["runs"] == 2
        assert row["low"] <= row["median"] <= row["high"]
    for name in computed("Panoptic FPN", "Panoptic FPN, bf16 autocast"):
        assert rows[name]["frame_rate_ratio"] == 1


def test_batches_are_timed_on_both_paths(results):
    rows = {row["name"]: row for row in results[0]["batches"]}
    assert set(rows) == computed(
        "SpatialFlow", "SpatialFlow, optimized", "SpatialFlow, optimized, bf16"
    )
    for row in rows.values():
        assert row["batch_size"] == 8 and row["height"] == 64
        assert min(row["alone"], row["in_batch"], row["throughput_ratio"]) > 0


def test_steps_have_their_work_and_roofline_bounds(results):
    rows = {(row["name"], row["step"]): row for row in results[0]["steps"]}
    rates = results[0]["rates"]
    for row in rows.values():
        assert row["compute_bound"] == row["multiply_adds"] / rates["multiply_adds"]
        assert row["memory_bound"] == row["bytes"] / rates["bytes"]
        # Panoptic FPN selects within its candidates; scores of this size are cut out as a view.
        nothing = ("selection, NMS", "stuff at its size")
        assert row["bytes"] > 0 or row["step"] in nothing
    # P3 to P7 of 64 x 128 padded pixels have 128, 32, 8, 2 and 1 cells. P3 to P5 have 4
    # convolutions in reg, 4 and 4 flows in cls and stuff, 1 and 2 flows in thing; P6 and P7 have
    # reg and cls.
    subnets = rows["SpatialFlow", "subnets"]["multiply_adds"]
    convolutions = 168 * (4 + 8 + 8 + 3) + 3 * (4 + 8)
    assert subnets == convolutions * 256 * 256 * 9


def test_views_are_those_of_the_papers(results):
    rows = results[0]["views"]
    sides = [(row["longer"], row["shorter"]) for row in rows]
    assert sides == [(120, 80), (144, 96), (168, 112)]  # 64 / 800 of the papers'
    assert all(row["alone"] > 0 and row["with_mirror_image"] > 0 for row in rows)


def test_tables_show_all_rows(results):
    content, text = results
    assert "| (120, 80) " in text
    for row in content["end_to_end"] + content["batches"] + content["steps"] + content["merges"]:
        assert f"| {row['name']}" in text
    assert content["versions"]["PyTorch"] in text


def test_merges_are_those_of_both_projects(results):
    rows = results[0]["merges"]
    assert [row["name"] for row in rows] == [
        "Detectron2",
        "SpatialFlow, no box fill",
        "SpatialFlow, box fill",
    ]
    assert rows[0]["speed_ratio"] == 1


def test_the_merges_that_are_compared_give_one_map():
    instances, labels = make_instances(20, (60, 90)), torch.arange(90).expand(60, 90) // 10
    expected, segments = combine_semantic_and_instance_outputs(instances, labels, 0.5, 200, 0.5)
    found, described = merge_panoptic(
        instances.pred_masks,
        instances.pred_boxes.tensor,
        instances.scores,
        instances.pred_classes,
        labels,
        num_stuff_labels=9,
        thing_labels=(0,),
        score_thresh=0.5,
        overlap_thresh=0.5,
        stuff_area_limit=200,
        box_fill_min_free=None,
    )
    assert torch.equal(found, expected)
    assert [s["isthing"] for s in described] == [s["isthing"] for s in segments]
    assert {s["isthing"] for s in segments} == {True, False}


def test_training_changes_no_weight(monkeypatch):
    monkeypatch.setattr(subjects, "THINGS", THINGS)
    monkeypatch.setattr(subjects, "STUFF_LABELS", STUFF_LABELS)
    model = tiny_model()
    models = {
        "SpatialFlow": BenchmarkModel(model, model, cfg=None),
        "Panoptic FPN": BenchmarkModel(*2 * [tiny_model()], cfg=None),
    }
    before = [p.clone() for p in model.parameters()]
    rows = training(models, "Panoptic FPN", height=64, device="cpu", runs=2, batch_size=2)
    assert [row["name"] for row in rows] == list(models)
    assert rows[1]["time_ratio"] == rows[1]["memory_ratio"] == 1
    parameters = list(model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    assert all(p.grad is not None for p in parameters)


def test_work_of_a_product_with_a_view_and_an_operator_in_place():
    a, b = torch.ones(2, 3), torch.ones(4, 3)
    work = count(lambda: (a @ b.t()).add_(1))
    # The product reads 6 and 12 numbers and writes 8; the sum takes and gives the same 8.
    assert work == Work(multiply_adds=24, bytes=4 * (6 + 12 + 8 + 8))
    assert work.roofline(Rates(multiply_adds=12.0, bytes=68.0)) == (2.0, 2.0)


def test_calls_alternate_and_warm_up_is_dropped():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = alternate(functions, "cpu", runs=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(x) for name, x in times.items()} == {"a": 2, "b": 2}


def test_summary_and_ratio():
    assert Summary.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Summary(3.0, 2.0, 4.0, 5)
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_peak_is_what_lives_together():
    def function():
        a = torch.zeros(1000, 1000)
        b = a + 1
        del a
        return b * 2 + b

    assert peak_memory(function, "cpu") == 3 * 4_000_000


def test_quartiles_need_two_runs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--runs", "1"])
    assert stop.value.code == 2
    assert "at least 2" in capsys.readouterr().err


def test_systems_are_compared_in_one_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subjects, "DETECTIONS", 35)
    configs = ["toy/panoptic_fpn_toy.yaml", "toy/htc_toy.yaml"]
    file = tmp_path / "systems.json"
    options = ["--device", "cpu", "--heights", "96", "--runs", "2", "--json-out", str(file)]
    main(["--systems", *configs, *options])
    text, rows = capsys.readouterr().out, json.loads(file.read_text())["systems"]
    assert [row["name"] for row in rows] == ["panoptic_fpn_toy", "htc_toy"]
    for row, config in zip(rows, configs, strict=True):
        model = subjects.build(config, "cpu").panoptic_model
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert 0 < row["dense_multiply_adds"] < row["multiply_adds"]
        assert row["detections"] == 35 and row["peak_memory"] > 0
        assert f"| {row['name']} " in text


def test_dense_multiply_adds_are_those_of_the_convolutions():
    model = tiny_model()
    image = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}
    images = model.preprocess_image([image]).tensor
    convolutions = count(lambda: model.dense(images)).multiply_adds
    # fvcore counts norms and upsampling as well.
    assert convolutions < dense_multiply_adds(model, image) < 1.1 * convolutions


def test_the_papers_systems_are_those_that_have_a_config():
    names = systems_of([])
    assert {"SpatialFlow", "Panoptic FPN", "HTC"} <= names.keys()
    assert set(names.values()) <= set(config_names())
    assert systems_of(["a/b.yaml"]) == {"b": "a/b.yaml"}
