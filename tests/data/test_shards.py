"""Datasets in tar shards: the samples of the folder, in its order, for training and evaluation."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from recorded_run import run
from tiny_runs import CONFIG, tiny_config, tiny_overrides

from spatialflow import cli
from spatialflow.data import build_train_loader, load_coco_panoptic, register, shards
from spatialflow.data.coco_panoptic import read_categories
from spatialflow.data.mapper import read_image
from spatialflow.data.targets import read_panoptic_png
from spatialflow.tools.check import check_dataset

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nothing_remembered():
    shards._places.cache_clear()
    shards._read_member.cache_clear()


@pytest.fixture
def toy_shards(toy_datasets, tmp_path):
    """The toy scenes' folders as shards of five files, by the commands of datasets/README.md."""
    commands = (REPOSITORY / "datasets" / "README.md").read_text()
    block = commands[commands.index("```bash\ncd streets") :].split("```")[1]
    lines = block.splitlines()[2:]
    toy = toy_datasets / "toy"
    for split in ("train", "val"):
        text = "\n".join(lines).replace("1000", "5").replace("train", split)
        text = f"cp -r {toy}/{split} {toy}/panoptic_{split} {toy}/panoptic_{split}.json .\n{text}"
        subprocess.run(["bash", "-ec", text], cwd=tmp_path, check=True)
        for folder in (split, f"panoptic_{split}"):
            for file in (tmp_path / folder).iterdir():
                file.unlink()
    assert len(list((tmp_path / "shards").iterdir())) == 8
    return tmp_path


def sharded(root, split):
    parts = f"shards/{split}-*.tar", f"shards/panoptic_{split}-*.tar", f"panoptic_{split}.json"
    return [f"sharded_{split}_{root.name}", *(str(root / part) for part in parts)]


def sharded_overrides(root):
    entries = [sharded(root, split) for split in ("train", "val")]
    names = ["DATASETS.TRAIN", (entries[0][0],), "DATASETS.TEST", (entries[1][0],)]
    return ["DATASETS.REGISTER", entries, *names, "SOLVER.STEPS", ()]


def pack(path, files):
    """A tar file of names and contents, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_training_from_shards_has_the_losses_and_results_of_the_folder(
    toy_datasets, toy_shards, tmp_path
):
    folder = tiny_config(toy_datasets, tmp_path / "a", 2, ["SOLVER.STEPS", ()])
    _, expected = run(folder)
    shards_ = [*sharded_overrides(toy_shards), "TEST.SAVE_PREDICTIONS", True]
    shards_ += ["TEST.SAVE_RAW_OUTPUTS", True]
    _, rows = run(tiny_config(toy_datasets, tmp_path / "b", 2, shards_))
    assert rows == expected
    by_folder, by_shards = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b")
    )
    assert [*by_folder.values()] == [*by_shards.values()]
    (saved,) = (tmp_path / "b" / "inference").iterdir()
    assert cli.main(["sweep", str(saved), "--score-thresh", "0.3", "--workers", "1"]) in (0, None)
    assert cli.main(["report", str(tmp_path / "b")]) in (0, None)
    weights = ["MODEL.WEIGHTS", tmp_path / "b" / "model_final.pth"]
    opts = map(str, [*tiny_overrides(toy_datasets, tmp_path / "b"), *shards_, *weights])
    drawn = ["--config-file", str(CONFIG), "--output", str(tmp_path / "drawn")]
    assert cli.main(["draw", *drawn, "--opts", *opts]) in (0, None)
    assert len(list((tmp_path / "drawn").iterdir())) == 3


def test_samples_and_their_order_are_those_of_the_folder(toy_datasets, toy_shards, tmp_path):
    """Over more than an epoch, in worker processes."""
    workers = ["DATALOADER.NUM_WORKERS", 2]
    batches = []
    for cfg in (
        tiny_config(toy_datasets, tmp_path, 2, workers),
        tiny_config(toy_datasets, tmp_path, 2, [*sharded_overrides(toy_shards), *workers]),
    ):
        loader = iter(build_train_loader(cfg))
        batches.append([next(loader) for _ in range(8)])
    for one, two in zip(*batches, strict=True):
        for folder, shard in zip(one, two, strict=True):
            assert folder["image_id"] == shard["image_id"]
            assert torch.equal(folder["image"], shard["image"])
            assert torch.equal(folder["sem_seg"], shard["sem_seg"])
            assert shard["file_name"].startswith("tar://")


def test_one_shard_may_have_images_and_pngs_as_webdataset_has_them(toy_datasets, tmp_path):
    """Members of a sample stand together and differ behind the first dot of their names."""
    toy = toy_datasets / "toy"
    content = json.loads((toy / "panoptic_val.json").read_text())
    files = []
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        name = image["file_name"]
        key = f"scenes/{Path(name).stem}"
        files.append((f"{key}.img.png", (toy / "val" / name).read_bytes()))
        files.append((f"{key}.png", (toy / "panoptic_val" / name).read_bytes()))
        image["file_name"], annotation["file_name"] = f"{key}.img.png", f"{key}.png"
    pack(tmp_path / "val-0000.tar", [(f"./{name}", data) for name, data in files[:2]])
    pack(tmp_path / "val-0001.tar", files[2:])
    panoptic_json = str(tmp_path / "panoptic.json")
    Path(panoptic_json).write_text(json.dumps(content))
    root = str(tmp_path / "val-*.tar")
    dicts = load_coco_panoptic(root, root, panoptic_json, read_categories(panoptic_json))
    for d, name in zip(dicts, sorted(os.listdir(toy / "val")), strict=True):
        expected = read_image(str(toy / "val" / name), "BGR")
        assert np.array_equal(read_image(d["file_name"], "BGR"), expected)
        expected = read_panoptic_png(str(toy / "panoptic_val" / name))
        assert np.array_equal(read_panoptic_png(d["pan_seg_file_name"]), expected)
    report = check_dataset(register.PanopticFiles(root, root, panoptic_json))
    assert report.images == 3 and {p.kind for p in report.problems} <= {"class_never_occurs"}


def test_shards_at_a_url_of_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a-0.tar", Path(pack(tmp_path / "x.tar", [("a.txt", b"one")])).read_bytes())
    path = shards.file_in_shards("memory://bucket/a-*.tar", "a.txt")
    assert path.endswith("memory:///bucket/a-0.tar!/a.txt")
    assert shards.read_file(path) == b"one"


def test_index_is_kept_beside_the_shard_and_made_again_for_a_newer_one(tmp_path):
    shard = Path(pack(tmp_path / "a.tar", [("a.txt", b"one"), ("b.txt", b"two")]))
    folder = str(shard)
    assert shards.read_file(shards.file_in_shards(folder, "b.txt")) == b"two"
    index = tmp_path / "a.tar.index.json"
    assert json.loads(index.read_text()) == {"a.txt": [512, 3], "b.txt": [1536, 3]}
    index.write_text('{"c.txt": [1536, 3]}')
    shards._places.cache_clear()
    assert shards.names_in_shards(folder) == ["c.txt"]
    os.utime(shard, ns=(0, index.stat().st_mtime_ns + 10**9))
    shards._places.cache_clear()
    assert shards.names_in_shards(folder) == ["a.txt", "b.txt"]
    assert {file.name for file in tmp_path.iterdir()} == {"a.tar", index.name}


@pytest.mark.parametrize(
    "files",
    [
        [("a.txt", b"other")],
        [("b.txt", b"one")],
        [("b.txt", b"x" * 1000), ("a.txt", b"one")],
    ],
    ids=["another size", "another name", "elsewhere"],
)
def test_shard_that_was_replaced_meanwhile_is_not_taken_for_the_old_one(tmp_path, files):
    shard = tmp_path / "a.tar"
    path = shards.file_in_shards(pack(shard, [("a.txt", b"one")]), "a.txt")
    pack(shard, files)
    with pytest.raises(ValueError, match=r"a\.tar has changed.*a\.txt is not at byte 512"):
        shards.read_file(path)


def test_mistakes_name_the_file(tmp_path, toy_datasets):
    toy = toy_datasets / "toy"
    panoptic_json = str(toy / "panoptic_val.json")
    folder = pack(tmp_path / "a.tar", [("a.txt", b"one")])
    with pytest.raises(FileNotFoundError, match=r"a\.tar: 00000\.png, "):
        categories = read_categories(panoptic_json)
        load_coco_panoptic(folder, str(toy / "panoptic_val"), panoptic_json, categories)
    with pytest.raises(FileNotFoundError, match=r"b\.txt is in no shard of .*a\.tar"):
        shards.file_in_shards(folder, "b.txt")
    pack(tmp_path / "b.tar", [("a.txt", b"two")])
    with pytest.raises(ValueError, match=r"a\.txt in more than one shard"):
        shards.names_in_shards(str(tmp_path / "*.tar"))
    (tmp_path / "c.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"c\.tar is no tar file"):
        shards.names_in_shards(str(tmp_path / "c.tar"))
    with pytest.raises(FileNotFoundError, match=r"image_root .*none-\*\.tar not found"):
        register.register_coco_panoptic(
            "none", str(tmp_path / "none-*.tar"), str(toy / "panoptic_val"), panoptic_json
        )


def test_shards_are_read_without_torch():
    code = "import spatialflow.data.file_names, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.stdout == b"False\n", done.stderr
