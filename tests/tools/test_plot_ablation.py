"""Learning curves of an ablation."""

import json
import sys

import plot_ablation
import pytest
from PIL import Image
from run_ablation import RECORD


def write_run(folder, losses, pq=()):
    folder.mkdir(parents=True)
    (folder / RECORD).write_text("{}")
    lines = [{"iteration": i, "total_loss": loss} for i, loss in losses]
    lines += [{"iteration": i, "panoptic_seg/PQ": value} for i, value in pq]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_are_those_of_the_seeds_where_all_have_values(tmp_path):
    write_run(tmp_path / "a" / "seed_1", [(19, 2.0), (39, 1.0)], pq=[(39, 50.0)])
    # Stopped and resumed: the second value of 19 is the one that the training went on from.
    write_run(tmp_path / "a" / "seed_2", [(19, 9.0), (19, 4.0), (39, 3.0), (59, 2.0)])
    arms = plot_ablation.read_arms(tmp_path)
    iterations, values = arms["a"]["total_loss"]
    assert iterations.tolist() == [19, 39]
    assert values.tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert len(arms["a"]["panoptic_seg/PQ"][0]) == 0  # not of all seeds


def test_picture_has_a_panel_for_each_metric(tmp_path, monkeypatch):
    for arm, start in (("flows", 2.0), ("none", 3.0)):
        for seed in (1, 2):
            losses = [(19, start + seed / 10), (39, start / 2)]
            pq = [(19, 40.0 + seed), (39, 50.0 + seed)]
            write_run(tmp_path / "runs" / arm / f"seed_{seed}", losses, pq)
    picture = tmp_path / "new" / "curves.png"
    arguments = ["--runs", str(tmp_path / "runs"), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["plot_ablation.py", *arguments])
    shown = []
    close = plot_ablation.plt.close
    monkeypatch.setattr(plot_ablation.plt, "close", lambda f: (shown.append(f), close(f)))
    plot_ablation.main()
    assert Image.open(picture).size[0] > 1000
    titles = [axis.get_title() for axis in shown[0].axes]
    assert titles == ["loss", "PQ"]
    assert [line.get_label() for line in shown[0].axes[0].lines] == ["flows", "none"]
    assert shown[0].axes[1].lines[0].get_ydata().tolist() == [41.5, 51.5]


def test_metric_of_the_end_alone_has_no_panel(tmp_path, monkeypatch):
    write_run(tmp_path / "flows" / "seed_1", [(19, 2.0), (39, 1.0)], pq=[(39, 50.0)])
    arms = plot_ablation.read_arms(tmp_path)
    shown = []
    monkeypatch.setattr(plot_ablation.plt, "close", shown.append)
    plot_ablation.draw(arms, tmp_path / "curves.png")
    assert [axis.get_title() for axis in shown[0].axes] == ["loss", ""]


def test_folder_without_runs_is_named(tmp_path, monkeypatch):
    arguments = ["--runs", str(tmp_path), "--picture", str(tmp_path / "p.png")]
    monkeypatch.setattr(sys, "argv", ["plot_ablation.py", *arguments])
    with pytest.raises(SystemExit, match="has no runs of tools/run_ablation.py"):
        plot_ablation.main()
