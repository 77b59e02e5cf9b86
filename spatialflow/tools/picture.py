"""Pictures from strangers: what is too large or no picture is refused before it is decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 20 * 10**6
MAX_PIXELS = 40 * 10**6


class PictureError(ValueError):
    """A picture that is not accepted.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def open_picture(
    data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = FORMATS
) -> Image.Image:
    """A picture whose header was read and whose pixels were not.

    Args:
        data: content of the file.
        max_pixels: more are refused.
        formats: which ones are taken; None: all that Pillow knows.

    Raises:
        PictureError: it is empty, no picture of these formats, damaged, or has too many pixels.
    """
    if not data:
        raise PictureError(400, "The picture is empty: it has no bytes.")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as e:
        known = f"one of the formats {', '.join(formats)}" if formats else "a known format"
        raise PictureError(415, f"This is no picture in {known}.") from e
    except Image.DecompressionBombError as e:
        raise PictureError(413, _too_large(max_pixels)) from e
    except (OSError, ValueError, SyntaxError) as e:  # Pillow raises any of them
        raise PictureError(400, f"The picture is damaged: {e}") from e
    if image.width * image.height > max_pixels:
        raise PictureError(413, f"{_too_large(max_pixels)}; it is {image.width}x{image.height}")
    if image.mode.startswith(("I", "F")):
        raise PictureError(415, "The picture has more than 8 bits a channel: convert it to 8 bits.")
    return image


def decode_picture(image: Image.Image) -> np.ndarray:
    """The pixels of the first frame, turned as its EXIF data says.

    Args:
        image: see :func:`open_picture`.

    Returns:
        (H, W, 3) uint8 in BGR order.

    Raises:
        PictureError: it is damaged.
    """
    try:
        rgb = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as e:
        raise PictureError(400, f"The picture is damaged: {e}") from e
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


def _too_large(max_pixels: int) -> str:
    return f"The picture has more than {max_pixels / 1e6:.0f} megapixels"
