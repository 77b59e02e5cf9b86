"""What a run writes, what it reads, what it refuses, and what becomes an error row."""

import errno
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from counted_predictor import CATEGORIES
from predict_runs import SHARD_SIZE, content_of, until
from pyarrow import parquet
from pycocotools import mask as coco_mask
from served import png_of_size

from spatialflow.cli import run_command
from spatialflow.data.targets import read_panoptic_png
from spatialflow.errors import UserError
from spatialflow.saved.predictions import PanopticFolder, read_predictions_json
from spatialflow.tools.predict import command, lock, shard
from spatialflow.tools.predict.manifest import Picture
from spatialflow.tools.predict.shard import Job, Shard, predict_shard, shard_folder

COUNT = 18


def errors_of(folder):
    rows = map(json.loads, (folder / "errors.jsonl").read_text().splitlines())
    return {row["file_name"]: row["message"] for row in rows}


@pytest.fixture
def one_run(runs):
    """A finished run; ``out``."""
    assert runs.here("out") == 0
    return runs


def test_output_is_coco_results_of_all_and_of_each_shard(one_run):
    out = one_run.folder / "out"
    predictions = PanopticFolder.of_evaluation(str(out))
    content = read_predictions_json(predictions.json)
    assert [a["image_id"] for a in content["annotations"]] == [f"{i:04}.png" for i in range(COUNT)]
    assert content["categories"] == CATEGORIES.as_json()
    for annotation in content["annotations"]:
        image = cv2.imread(str(one_run.pictures / annotation["image_id"]))
        ids = expected(image)
        assert np.array_equal(read_panoptic_png(predictions.png(annotation)), ids)
        areas = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert areas == dict(zip(*np.unique(ids, return_counts=True), strict=True))
    first = PanopticFolder.of_evaluation(str(shard_folder(out, 0)))
    annotations = read_predictions_json(first.json)["annotations"]
    assert len(annotations) == SHARD_SIZE
    assert all(Path(first.png(a)).is_file() for a in annotations)
    assert {p.name for p in out.iterdir()} == {
        *("manifest.json", "inputs.jsonl", "errors.jsonl"),
        *("panoptic_predictions.json", "panoptic_predictions"),
    }


def expected(image):
    return np.where(image.max(axis=2) > 127, 1, 2)


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_run_lengths_are_those_of_the_pngs(runs, file_format):
    assert runs.here("out", "--format", file_format) == 0
    rows = []
    for path in sorted((runs.folder / "out").rglob(f"predictions.{file_format}")):
        if file_format == "jsonl":
            rows += map(json.loads, path.read_text().splitlines())
        else:
            rows += parquet.read_table(path).to_pylist()
    assert [row["image_id"] for row in rows] == [f"{i:04}.png" for i in range(COUNT)]
    for row in rows:
        ids = expected(cv2.imread(str(runs.pictures / row["file_name"])))
        assert (row["height"], row["width"]) == ids.shape
        for segment in row["segments"]:
            found = coco_mask.decode(segment["segmentation"])
            assert np.array_equal(found, ids == segment["id"])
            assert segment["category"] == {1: "disk", 2: "grass"}[segment["id"]]


@pytest.mark.parametrize("kind", ["list", "parquet"])
def test_lists_give_what_the_folder_gives(one_run, monkeypatch, kind):
    names = [f"{i:04}.png" for i in range(COUNT)]
    path = one_run.pictures / f"pictures.{kind}"
    if kind == "list":
        path.write_text("\n".join(names) + "\n\n")
    else:
        parquet.write_table(pa.table({"size": [0] * COUNT, "path": names}), path)
    folder, one_run.pictures = one_run.pictures, path
    assert one_run.here("other") == 0
    one_run.pictures = folder
    assert one_run.content("other") == one_run.content("out")


def test_subfolders_are_searched_and_names_may_be_equal(runs):
    for name in ("a", "b"):
        (runs.pictures / name).mkdir()
        shutil.copy(runs.pictures / "0003.png", runs.pictures / name / "0003.png")
    assert runs.here("out") == 0
    annotations = json.loads((runs.folder / "out/panoptic_predictions.json").read_text())
    names = {a["image_id"]: a["file_name"] for a in annotations["annotations"]}
    assert len(set(names.values())) == COUNT + 2
    assert {"a/0003.png", "b/0003.png", "0003.png"} <= names.keys()


def test_pictures_that_cannot_be_read_are_error_rows(runs, monkeypatch):
    bad = {
        "corrupt.png": b"\x89PNG\r\n\x1a\nwhat is this",
        "empty.png": b"",
        "huge.png": png_of_size(10_000, 10_000),
        "text.jpg": b"no picture",
        "truncated.jpg": b"",
    }
    for name, data in bad.items():
        (runs.pictures / name).write_bytes(data)
    noise = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    (runs.pictures / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    names = sorted(p.name for p in runs.pictures.iterdir()) + ["missing.png"]
    listed = runs.pictures / "list.txt"
    listed.write_text("\n".join(names))
    runs.pictures = listed
    assert runs.here("out") == 0
    errors = errors_of(runs.folder / "out")
    assert errors.keys() == {*bad, "missing.png"}
    assert errors["empty.png"] == "The picture is empty: it has no bytes."
    assert errors["huge.png"] == "The picture has more than 64 megapixels; it is 10000x10000"
    assert errors["text.jpg"] == "This is no picture in a known format."
    assert errors["missing.png"] == "It could not be read when the run was planned."
    assert "damaged" in errors["truncated.jpg"]
    assert runs.count() == dict.fromkeys(range(COUNT), 1)
    content = json.loads((runs.folder / "out/panoptic_predictions.json").read_text())
    assert len(content["annotations"]) == COUNT


def test_limit_of_pixels_is_an_option_and_not_that_of_pillow(runs, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow refuses twice as many
    assert runs.here("out", "--max-megapixels", "0.0002") == 0
    errors = errors_of(runs.folder / "out")
    heights = {f"{i:04}.png": 12 + i % 5 for i in range(COUNT)}
    assert errors.keys() == {name for name, height in heights.items() if height * 16 > 200}
    assert 0 < len(errors) < COUNT


def test_second_run_does_nothing(one_run):
    before = one_run.content("out")
    assert one_run.here("out") == 0
    assert one_run.content("out") == before
    assert one_run.count() == dict.fromkeys(range(COUNT), 1)


def test_missing_shard_is_done_again_and_nothing_else(one_run):
    before = one_run.content("out")
    shutil.rmtree(shard_folder(one_run.folder / "out", 1))
    (one_run.folder / "out/errors.jsonl").unlink()
    assert one_run.here("out") == 0
    assert one_run.content("out") == before
    assert one_run.count() == {**dict.fromkeys(range(COUNT), 1), **dict.fromkeys(range(4, 8), 2)}


@pytest.mark.parametrize(
    "more, key",
    [
        (["--shard-size", "5"], "shard_size: 4, now 5"),
        (["--format", "jsonl"], "format: 'coco', now 'jsonl'"),
        (["--threads", "2"], "threads: 1, now 2"),
        (["--max-megapixels", "2"], "max_pixels: 64000000, now 2000000"),
        (["--predictor", "predict_runs:Inline"], "config: 'counted_predictor:build', now"),
    ],
)
def test_other_settings_into_the_same_folder_are_refused(one_run, more, key):
    before = one_run.content("out")
    with pytest.raises(SystemExit, match=rf"error: .*/out holds results of another {key}"):
        one_run.here("out", *more)
    assert one_run.content("out") == before


def test_other_code_of_the_model_is_refused(one_run, monkeypatch, tmp_path):
    changed = tmp_path / "counted_predictor.py"
    changed.write_text("# other weights")
    import counted_predictor

    monkeypatch.setattr(counted_predictor, "__file__", str(changed))
    with pytest.raises(SystemExit, match="holds results of another weights"):
        one_run.here("out")


@pytest.mark.parametrize("change", ["new", "gone", "edited"])
def test_other_pictures_are_refused_by_name(one_run, change):
    file = one_run.pictures / ("0002.png" if change != "new" else "0002a.png")
    if change == "gone":
        file.unlink()
    else:
        shutil.copy(one_run.pictures / "0005.png", file)
    with pytest.raises(SystemExit, match=r"other inputs: 000[23a]+.png (was there|has changed)"):
        one_run.here("out")


def test_picture_that_was_only_touched_is_the_same(one_run):
    os.utime(one_run.pictures / "0002.png", (1, 1))
    assert one_run.here("out") == 0


def test_picture_that_changes_after_the_plan_is_an_error(runs, monkeypatch):
    def plan_and_change(*args):
        found = plan(*args)
        shutil.copy(runs.pictures / "0005.png", runs.pictures / "0002.png")
        return found

    plan = command.plan
    monkeypatch.setattr(command, "plan", plan_and_change)
    assert runs.here("out") == 0
    assert errors_of(runs.folder / "out") == {
        "0002.png": "It has changed since the run was planned."
    }


@pytest.mark.parametrize(
    "names, message",
    [
        (["0001.png", "0002.png", "0001.png"], "has 0001.png twice"),
        ([], "has no picture"),
    ],
)
def test_lists_that_are_refused(runs, names, message):
    runs.pictures = runs.pictures / "list.txt"
    runs.pictures.write_text("\n".join(names))
    with pytest.raises(SystemExit, match=message):
        runs.here("out")


def test_parquet_without_a_column_of_paths(runs):
    runs.pictures = runs.pictures / "pictures.parquet"
    parquet.write_table(pa.table({"url": ["a"]}), runs.pictures)
    with pytest.raises(SystemExit, match="no column path or file_name; it has url"):
        runs.here("out")


def test_output_among_the_pictures_is_refused(runs):
    with pytest.raises(SystemExit, match="is in the folder --input"):
        runs.here("pictures/out")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--model", "m.onnx"], "One model"),
        (["--config-file", "c.yaml"], "One model"),
        (["--weights", "w.pth"], "One model"),
        (["--scheduler", "tcp://a:1"], "--scheduler is for --executor dask"),
        (["--panoptic", "pngs"], "--panoptic is the folder"),
        (["--executor", "kubernetes"], "--executor is one of processes, dask, ray, inline"),
    ],
)
def test_arguments_that_do_not_fit(runs, more, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command("predict", runs.arguments("out", *more))
    assert message in f"{stop.value.code} {capsys.readouterr().err}"


def test_exported_file_of_another_ending(runs):
    words = ["--input", str(runs.pictures), "--output", "out", "--model", "weights.pth"]
    with pytest.raises(SystemExit) as stop:
        run_command("predict", words)
    assert stop.value.code == 2


def test_ids_of_a_json(runs):
    images = [
        {"id": 100 + i, "file_name": f"{i:04}.png", "height": 12, "width": 16} for i in range(COUNT)
    ]
    path = runs.folder / "images.json"
    path.write_text(json.dumps({"images": images}))
    assert runs.here("out", "--json", str(path)) == 0
    content = json.loads((runs.folder / "out/panoptic_predictions.json").read_text())
    assert [a["image_id"] for a in content["annotations"]] == list(range(100, 100 + COUNT))
    dataset = json.loads((runs.folder / "out/dataset.json").read_text())
    assert dataset["images_json"] == str(path)
    path.write_text(json.dumps({"images": images[1:]}))
    with pytest.raises(SystemExit, match="images.json has no image 0000.png"):
        runs.here("other", "--json", str(path))


def test_model_that_fails_once__is_asked_again(one_run):
    one_run.order("once", 5)
    assert one_run.here("other") == 0
    assert one_run.content("other") == one_run.content("out")
    assert one_run.count() == {**dict.fromkeys(range(COUNT), 2), 4: 3, 5: 3}


def test_model_that_fails_at_a_picture__is_an_error_that_says_why(runs):
    runs.order("raise", 5)
    assert runs.here("out") == 0
    assert errors_of(runs.folder / "out") == {
        "0005.png": "It failed 3 times: RuntimeError: out of memory"
    }


def test_model_that_always_fails__ends_the_run(runs, capsys):
    for number in range(COUNT):
        runs.order("raise", number)
    assert runs.here("out") == 1
    printed, said = capsys.readouterr()
    assert "error: shard 2 failed: RuntimeError: out of memory" in said
    assert "run the same command again" in said
    assert max(runs.count()) < 3 * SHARD_SIZE  # the fourth shard was not begun
    for fault in runs.faults.glob("raise-*"):
        fault.unlink()
    assert runs.here("out") == 0


def test_results_that_cannot_be_written__end_the_run_and_leave_nothing_half(one_run, monkeypatch):
    write, number = shard.FORMATS["coco"].add, iter(range(100))

    def fill(self, *args):
        if next(number) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)

    monkeypatch.setattr(shard.FORMATS["coco"], "add", fill)
    with pytest.raises(SystemExit, match="other cannot be written on .*: No space left on device"):
        one_run.here("other")
    assert one_run.finished("other") == set(range(8))
    assert one_run.here("other") == 0
    assert one_run.content("other") == one_run.content("out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_full_disk__the_next_run_finishes(one_run):
    small = one_run.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=2k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine mounts no file systems")
    try:
        ballast = small / "ballast"
        ballast.write_bytes(bytes(40_000))
        with pytest.raises(SystemExit, match="No space left on device.*run the same command again"):
            one_run.here("small/out")
        finished = one_run.finished("small/out")
        assert 0 < len(finished) < COUNT
        half = [p for p in (small / "out").rglob("*") if p.suffix == ".partial"]
        assert not half
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        before = one_run.count()
        assert one_run.here("small/out") == 0
        assert one_run.content("small/out") == one_run.content("out")
        assert all(one_run.count()[n] == before[n] for n in finished)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def job_of(runs, output, **changes):
    arguments = command.parser().parse_args(runs.arguments(output))
    model = command.model_of(arguments)
    known = {"output": str(runs.folder / output), "root": str(runs.pictures), "manifest": "m"}
    known |= {"run": "r", "model": model, "identity": model.identity(), "format": "coco"}
    (runs.folder / output / "panoptic_predictions").mkdir(parents=True, exist_ok=True)
    (runs.folder / output / ".work/r").mkdir(parents=True, exist_ok=True)
    return Job(**{**known, "deadline": None, **changes})


def test_two_workers_with_one_shard__the_first_one_counts(one_run, monkeypatch):
    """As when a worker was cut off, and comes back."""
    pictures = [
        Picture(*entry)
        for entry in json.loads((one_run.folder / "out/inputs.jsonl").read_text().splitlines()[0])
    ]
    task = Shard(job_of(one_run, "other"), 0, pictures)
    publish = shard.publish_folder
    seen = []

    def overtaken(partial, path):
        monkeypatch.setattr(shard, "publish_folder", publish)
        predict_shard(task)  # another worker, which ends first
        seen.append(content_of(Path(path)))
        publish(partial, path)

    monkeypatch.setattr(shard, "publish_folder", overtaken)
    result = predict_shard(task)
    assert result.pictures == SHARD_SIZE and seen
    assert content_of(shard_folder(task.job.output, 0)) == seen[0]
    assert not list((one_run.folder / "other/.work").rglob("0*"))


def test_worker_that_was_cut_off__publishes_nothing_once_its_folder_was_discarded(one_run):
    """As when its client was killed, and the next one has begun."""
    pictures = [
        Picture(*entry)
        for entry in json.loads((one_run.folder / "out/inputs.jsonl").read_text().splitlines()[0])
    ]
    task = Shard(job_of(one_run, "other"), 0, pictures)
    hold = one_run.order("hold", 2)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(predict_shard, task)
        until(lambda: one_run.count()[2] == 2)
        shard.discard(one_run.folder / "other/.work")
        hold.unlink()
        with pytest.raises(UserError, match="No such file"):
            running.result(60)
    assert not list((one_run.folder / "other").rglob("0*"))
    # And where writing made the folder again, with the last two pictures in it.
    (one_run.folder / "other/.work/r").mkdir(parents=True)
    add = shard.FORMATS["coco"].add

    def discard_and_add(self, picture, *args):
        if picture.name == "0002.png":
            shard.discard(Path(self._folder))
            Path(self._folder).mkdir()
        return add(self, picture, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard.FORMATS["coco"], "add", discard_and_add)
        with pytest.raises(UserError, match="No such file"):
            predict_shard(task)
    assert not shard_folder(task.job.output, 0).exists()


def test_worker_with_other_files__is_named(runs):
    identity = {**job_of(runs, "out").identity, "weights": "of the client"}
    task = Shard(job_of(runs, "out", identity=identity), 0, [])
    with pytest.raises(UserError, match=r"Worker .* has another weights: .* not 'of the client'"):
        predict_shard(task)


def test_shard_of_another_plan__is_refused(one_run):
    path = shard_folder(one_run.folder / "out", 2) / "shard.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "manifest": "other"}))
    with pytest.raises(SystemExit, match="000002/shard.json is of another plan"):
        one_run.here("out")


def test_lock_of_a_dead_process__is_taken_over(tmp_path):
    (tmp_path / lock.LOCK).write_text("process 1 on elsewhere")
    with lock.locked(tmp_path) as alone:
        assert alone
        assert f"process {os.getpid()} on" in (tmp_path / lock.LOCK).read_text()
        with pytest.raises(UserError, match=f"being written by process {os.getpid()}"):
            lock.locked(tmp_path).__enter__()
    assert not (tmp_path / lock.LOCK).exists()


def test_file_system_without_locks__goes_on(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.locked(tmp_path) as alone:
        assert not alone
