"""Image files, and what is named after them. Nothing here opens one."""

from __future__ import annotations

from pathlib import Path

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)


def output_names(images: list[Path]) -> list[str]:
    """A name for the results of each image: its own, with a number where that is taken."""
    names: dict[str, None] = {}
    for image in images:
        name, number = image.stem, 2
        while name in names:
            name, number = f"{image.stem}_{number}", number + 1
        names[name] = None
    return list(names)
