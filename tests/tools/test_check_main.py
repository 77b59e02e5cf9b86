"""The checker's command line: exit status, text and JSON."""

import json
import subprocess
import sys
from functools import partial

import pytest
from detectron2.data import MetadataCatalog
from panoptic_folder import CAR

from spatialflow.cli import run_command

main = partial(run_command, "check")


def arguments(folder):
    images, panoptic, panoptic_json = folder.paths
    return ["--images", images, "--panoptic", panoptic, "--json", panoptic_json, "--workers", "1"]


def test_sound_data_exits_with_0(folder, capsys):
    assert main(arguments(folder)) == 0
    out = capsys.readouterr().out
    assert "2 images, 2 annotations, 3.3% of the pixels void" in out
    assert out.endswith("The dataset can be trained on: 0 errors, 0 warnings.\n")


def test_errors_exit_with_1_and_are_named(folder, capsys):
    (folder.root / "panoptic" / "001.png").unlink()
    assert main(arguments(folder)) == 1
    captured = capsys.readouterr()
    assert "ERROR png_missing (1)" in captured.out
    assert "  001.png: not in" in captured.out
    assert "cannot be trained on as it is: 1 error, 0 warnings" in captured.out
    assert "2/2" in captured.err  # the progress bar


def test_warnings_exit_with_0(folder, capsys):
    folder.content["annotations"][0]["segments_info"][2]["area"] = 640
    folder.save()
    assert main(arguments(folder)) == 0
    assert "000.png, segment 70000: 640, counted 64" in capsys.readouterr().out


def test_json_out(folder):
    folder.content["annotations"][0]["segments_info"][2]["area"] = 640
    folder.save()
    out = folder.root / "report.json"
    main([*arguments(folder), "--json-out", str(out)])
    report = json.loads(out.read_text())
    assert report["trainable"] is True
    assert (report["errors"], report["warnings"], report["images"]) == (0, 1, 2)
    assert report["void_share"] == pytest.approx(1 / 30)
    assert report["problems"] == [
        {
            "kind": "wrong_area",
            "file": "000.png",
            "message": "640, counted 64",
            "segment": 70000,
            "severity": "warning",
        }
    ]
    (car,) = (c for c in report["classes"] if c["id"] == CAR)
    expected = {"name": "car", "isthing": True, "images": 2, "segments": 2, "pixels": 128}
    assert car == {"id": CAR, **expected}


def test_the_summary_is_short_and_verbose_has_all(folder, capsys):
    for i in range(40):
        folder.content["images"].append({"id": 100 + i, "file_name": f"gone{i}.png"})
    folder.save()
    main(arguments(folder))
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 50
    assert "... and 37 more" in short
    main([*arguments(folder), "--verbose"])
    assert "gone39.png: not in" in capsys.readouterr().out


def test_names_that_a_terminal_cannot_show(folder, capsys):
    folder.content["images"].append({"id": 1, "file_name": "\ud800.png", "width": 1, "height": 1})
    folder.save()
    out = folder.root / "report.json"
    assert main([*arguments(folder), "--json-out", str(out)]) == 1
    assert "\\ud800.png" in capsys.readouterr().out
    assert "\ud800.png" in {p["file"] for p in json.loads(out.read_text())["problems"]}


def test_toy_scenes_by_name(toy_datasets, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_datasets))
    assert main(["toy_panoptic_train", "--workers", "2"]) == 0
    assert "12 images" in capsys.readouterr().out


def test_separated_names_need_their_other_files(coco_sample, tmp_path, monkeypatch, capsys):
    name = "coco_2017_val_panoptic_separated"
    root = coco_sample / "coco"
    metadata = MetadataCatalog.get(name)
    paths = {
        "image_root": root / "val2017",
        "panoptic_root": root / "panoptic_val2017",
        "panoptic_json": root / "annotations" / "panoptic_val2017.json",
        "json_file": root / "annotations" / "instances_val2017.json",
        "sem_seg_root": tmp_path / "panoptic_stuff_val2017",
    }
    for key, path in paths.items():
        monkeypatch.setitem(metadata.__dict__, key, str(path))
    assert main([name, "--workers", "1", "--verbose"]) == 1
    out = capsys.readouterr().out
    assert "ERROR not_loadable (1)" in out
    assert "prepare_panoptic_stuff.py" in out


def test_a_name_of_a_config(folder, tmp_path):
    config = tmp_path / "c.yaml"
    images, panoptic, panoptic_json = folder.paths
    config.write_text(
        f"DATASETS:\n  REGISTER: [[own_val, {images}, {panoptic}, {panoptic_json}]]\n"
    )
    assert main(["own_val", "--config-file", str(config), "--workers", "1"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a dataset's name, or all of"),
        (["--json", "j.json"], "give a dataset's name, or all of"),
        (["name", "--json", "j.json"], "give a dataset's name, or all of"),
        (["no_such_name"], "no_such_name is not registered"),
        (["coco_2017_val"], "not registered as a panoptic dataset"),
        (["name", "--config-file", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_usage_exits_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2
    assert message in capsys.readouterr().err


def test_json_out_that_cannot_be_written(folder, capsys):
    with pytest.raises(SystemExit) as e:
        main([*arguments(folder), "--json-out", str(folder.root / "absent" / "o.json")])
    assert e.value.code == 2
    assert "--json-out" in capsys.readouterr().err


def test_it_runs_as_a_module(folder):
    command = [sys.executable, "-m", "spatialflow", "check", *arguments(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
