"""Many pictures, on one machine or several: ``spatialflow predict``.

    command.py   arguments, progress, the table at the end
    inputs.py    which pictures: a folder, a list, a parquet file
    model.py     which model, by digests, and how a worker loads it
    manifest.py  the plan, written once: what is predicted, by what, in which shards
    shard.py     one shard, a pure function from pictures to files that appear whole
    formats.py   what a shard's files are: COCO's PNGs and JSON, JSON lines, parquet
    merge.py     the index of all shards, at the end
    lock.py      one client a folder

The protocol. A run is planned once, in ``manifest.json`` and ``inputs.jsonl`` (a line a shard). A
shard is written in a folder under ``.work`` and gets its final name, which is
``panoptic_predictions/NUMBER``, by a rename once all of it is on the disk: what has a final name is
done and is never done again.
Whoever is second with a shard finds it there and throws its own away, so that neither a worker that
was cut off nor a second client can harm. Who schedules is :mod:`spatialflow.tools.executors`.
"""
