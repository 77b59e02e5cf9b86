"""One shard: from pictures to files that appear whole, whoever does it, and however often."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatialflow.errors import UserError
from spatialflow.saved.predictions import PREDICTIONS
from spatialflow.utils.files import publish_folder, read_json, write_json

from ..picture import PictureError, decode_picture, open_picture
from ..predictors import PanopticPredictor
from .formats import FORMATS
from .manifest import UNREADABLE, Picture
from .model import ModelChoice

WORK = ".work"
"""Folder of what is not finished, one folder a client."""
TRASH = ".trash-"
DONE = "shard.json"
STRIKES = 3
"""At how many lost workers a picture becomes an error row."""
_ADDRESS = re.compile(r" object at 0x[0-9a-f]+")
_loaded: dict[str, PanopticPredictor] = {}


@dataclass(frozen=True)
class Job:
    """What all shards of a run have in common.

    Attributes:
        output: its folder.
        root: folder of the pictures.
        manifest: digest of the plan.
        run: of this client; strikes of other runs do not count.
        model: the model.
        identity: its digests, which a worker compares with those of its own files.
        format: of the results, see :data:`.FORMATS`.
        deadline: seconds for the pictures of a shard; None: no limit.
    """

    output: str
    root: str
    manifest: str
    run: str
    model: ModelChoice
    identity: dict[str, Any]
    format: str
    deadline: float | None


@dataclass(frozen=True)
class Shard:
    """The task of a worker: a number and its pictures."""

    job: Job
    index: int
    pictures: list[Picture]


@dataclass(frozen=True)
class ShardResult:
    """What a shard had.

    Attributes:
        pictures: how many, those with errors included.
        errors: ``file_name`` and ``message`` of those that have no result.
        memory: the most that the worker had resident so far, in megabytes; 0: not known.
    """

    pictures: int
    errors: list[dict[str, str]]
    memory: float = 0.0


def shard_folder(output: str | os.PathLike, index: int) -> Path:
    """Where a finished shard is."""
    return Path(output, PREDICTIONS, f"{index:06d}")


def read_shard(output: str | os.PathLike, index: int, manifest: str) -> ShardResult:
    """A finished shard.

    Raises:
        UserError: it is of another plan.
        FileNotFoundError, ValueError: it is missing or damaged.
    """
    path = shard_folder(output, index) / DONE
    content = read_json(path, "Shard")
    if content["manifest"] != manifest:
        raise UserError(f"{path} is of another plan than {output}: remove {path.parent}.")
    return ShardResult(content["pictures"], content["errors"])


def discard(folder: Path) -> None:
    """Remove a folder of unfinished shards, of which no part can be published from then on."""
    trash = folder.with_name(f"{TRASH}{uuid.uuid4().hex[:12]}")
    try:
        os.rename(folder, trash)  # at once; who still writes there finds nothing
    except FileNotFoundError:
        return
    shutil.rmtree(trash, ignore_errors=True)


def predict_shard(shard: Shard) -> ShardResult:
    """Predict the pictures of a shard and publish the results, unless that is done already.

    Raises:
        UserError: the results cannot be written, or this worker has another model.
        Exception: whatever else went wrong; the next attempt begins anew.
    """
    job = shard.job
    if shard_folder(job.output, shard.index).exists():
        return read_shard(job.output, shard.index, job.manifest)
    attempt = _Attempt(shard)
    predictor = _predictor_of(job)
    if job.deadline is not None:
        # In C, without Python's lock, whatever the model is doing; and it says where that was.
        faulthandler.dump_traceback_later(job.deadline, exit=True, file=2)
    try:
        return attempt.run(predictor)
    except OSError as e:
        reason = (e.strerror or str(e)).rstrip(".")
        raise UserError(
            f"{job.output} cannot be written on {socket.gethostname()}: {reason}. What is "
            "finished stays. Mend that, and run the same command again."
        ) from e
    finally:
        if job.deadline is not None:
            faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(attempt.partial, ignore_errors=True)


class _Attempt:
    """One attempt at a shard. What it was doing last is in a note, also when it was killed."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        work = Path(shard.job.output, WORK, shard.job.run)
        name = f"{shard.index:06d}-{uuid.uuid4().hex[:12]}"
        self.partial = work / name
        self._note = work / f"{name}.at"
        # Their folders stay: whoever had one may be alive, and only cut off.
        self._earlier = list(work.glob(f"{shard.index:06d}-*.at"))

    def run(self, predictor: PanopticPredictor) -> ShardResult:
        """Predict and publish. OSError where something cannot be written."""
        job = self._shard.job
        strikes = [note.read_text().split("\n", 1) for note in self._earlier]
        counts = Counter(place for place, *_ in strikes)
        reasons = {place: reason for place, *reasons in strikes for reason in reasons}
        self.partial.mkdir()  # not its parent, which goes with the client
        begun = self.partial / "begun"
        begun.touch()
        writer = FORMATS[job.format](str(self.partial), predictor.categories, self._shard.pictures)
        errors = []
        for place, picture in enumerate(self._shard.pictures):
            message = None
            if counts[str(place)] >= STRIKES:
                reason = reasons.get(str(place), "its worker ended, or the time of its shard.")
                message = f"It failed {STRIKES} times: {reason}"
            else:
                self._note.write_text(str(place))
                try:
                    found = _predict(predictor, job, picture)
                except Exception as e:
                    self._note.write_text(f"{place}\n{type(e).__name__}: {e}")
                    raise
                begun.stat()  # FileNotFoundError, where the folder was discarded meanwhile
                if isinstance(found, str):
                    message = found
                else:
                    writer.add(picture, *found)
            if message is not None:
                errors.append({"file_name": picture.name, "message": message})
        writer.close()
        result = ShardResult(len(self._shard.pictures), errors, peak_memory())
        content = {"manifest": job.manifest, "pictures": result.pictures, "errors": errors}
        write_json(str(self.partial / DONE), content)
        begun.unlink()  # not there, either, if writing made the folder again with a part of it
        publish_folder(str(self.partial), str(shard_folder(job.output, self._shard.index)))
        for note in [*self._earlier, self._note]:
            note.unlink(missing_ok=True)
        return result


def _predict(
    predictor: PanopticPredictor, job: Job, picture: Picture
) -> tuple[np.ndarray, list[dict[str, Any]]] | str:
    """Map and segments of a picture, or why there are none.

    Raises:
        RuntimeError: reading or the model failed for a reason that may be gone the next time.
    """
    if picture.sha256 == UNREADABLE:
        return "It could not be read when the run was planned."
    try:
        data = Path(job.root, picture.name).read_bytes()
    except (FileNotFoundError, PermissionError) as e:
        return f"It cannot be read: {e.strerror}."
    except OSError as e:
        raise RuntimeError(f"{picture.name} cannot be read: {e}") from e
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        return "It has changed since the run was planned."
    try:
        image = decode_picture(open_picture(data, job.model.max_pixels, formats=None))
        return predictor(image)
    except PictureError as e:
        return _ADDRESS.sub("", str(e))
    except (ValueError, TypeError, UserError) as e:
        return _ADDRESS.sub("", f"It cannot be segmented: {type(e).__name__}: {e}")
    except OSError as e:  # not one of writing results
        raise RuntimeError(str(e)) from e


def _predictor_of(job: Job) -> PanopticPredictor:
    """The model, loaded once in a process.

    Raises:
        UserError: files of the model are other ones here than where the run was begun.
    """
    if job.manifest not in _loaded:
        own = job.model.identity()
        for key, value in job.identity.items():
            if own[key] != value:
                raise UserError(
                    f"Worker {socket.gethostname()} has another {key}: {own[key]!r}, not "
                    f"{value!r}. Give it the same package and the same files."
                )
        Image.MAX_IMAGE_PIXELS = None  # the limit is that of the job
        _loaded.clear()
        _loaded[job.manifest] = job.model.load()
    return _loaded[job.manifest]


def peak_memory() -> float:
    """The most that this process had resident so far, in megabytes."""
    # Of its own program: ru_maxrss begins with what the process that started it had.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
