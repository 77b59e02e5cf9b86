"""The recorded data is complete, unchanged and small."""

from __future__ import annotations

import hashlib

from recordings import RECORDINGS


def test_files_are_those_that_were_recorded():
    lines = (RECORDINGS / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {
        str(file.relative_to(RECORDINGS)): file
        for file in RECORDINGS.rglob("*")
        if file.is_file() and file.suffix != ".md" and file.name != "SHA256SUMS"
    }
    assert {n: hashlib.sha256(f.read_bytes()).hexdigest() for n, f in files.items()} == listed
    official = sum(f.stat().st_size for f in (RECORDINGS / "official").iterdir())
    assert official <= 8_000_000
