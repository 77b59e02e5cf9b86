"""Pictures from strangers."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from served import png_of_size

from spatialflow.tools.picture import PictureError, decode_picture, open_picture


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(width=40, height=30):
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(row, (height, 1))] * 3, axis=2))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
def test_formats(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    image = decode_picture(open_picture(encoded(gradient(), file_format, **options)))
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.asarray(gradient())).max() <= 4


def test_channels_are_bgr():
    image = decode_picture(open_picture(encoded(Image.new("RGB", (2, 1), (1, 2, 3)))))
    assert image.tolist() == [[[3, 2, 1]] * 2]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "CMYK"])
def test_other_modes_become_colour(mode):
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    data = encoded(gradient().convert(mode), file_format)
    assert decode_picture(open_picture(data)).shape == (30, 40, 3)


def test_turned_by_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned by 90 degrees clockwise
    image = gradient()
    turned = decode_picture(open_picture(encoded(image, "PNG", exif=exif.tobytes())))
    assert turned.shape == (40, 30, 3)
    assert turned[0].max() < 10 and turned[-1].min() > 245


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode_picture(open_picture(data)) == [0, 0, 255]).all()


@pytest.mark.parametrize(
    "data, status",
    [
        (b"", 400),
        (b"no picture", 415),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415),
        (encoded(gradient(), "GIF"), 415),
        (encoded(gradient(), "TIFF"), 415),
        (encoded(Image.fromarray(np.full((4, 4), 300, np.uint16))), 415),
        (png_of_size(8000, 6000), 413),
        (png_of_size(50_000, 50_000), 413),
        (png_of_size(0, 10), 400),
    ],
    ids=str,
)
def test_refused_before_decoding(data, status):
    tracemalloc.start()
    with pytest.raises(PictureError) as error:
        open_picture(data)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert error.value.status in (status, 415 if status == 400 and data else status)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_truncated(file_format):
    data = encoded(gradient(400, 300), file_format)
    for length in (len(data) // 2, 40, 13):
        with pytest.raises(PictureError) as error:
            decode_picture(open_picture(data[:length]))
        assert error.value.status in (400, 415)


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_flipped_byte_is_a_picture_or_a_refusal(place, byte, file_format):
    data = bytearray(encoded(gradient(), file_format))
    data[place % len(data)] = byte
    try:
        assert decode_picture(open_picture(bytes(data))).ndim == 3
    except PictureError as error:
        assert error.status in (400, 413, 415)
