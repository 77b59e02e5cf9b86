"""The page in a headless Chromium."""

import base64
import io
import json
import re

import cv2
import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("starlette", reason="the extra [serve] is not installed")

from served import BrightOrDark, serving, until  # noqa: E402

from spatialflow.tools.picture import decode_picture, open_picture  # noqa: E402
from spatialflow.visualization import draw_panoptic, drawn_segments  # noqa: E402

playwright.expect.set_options(timeout=30_000)  # where others use the processor too

DISK, GRASS = 'role=checkbox[name="disk"]', 'role=checkbox[name="grass"]'
PIXEL = "(canvas, at) => [...canvas.getContext('2d').getImageData(...at, 1, 1).data]"


def disk_picture(center=(80, 60), size=(120, 160), **options):
    """A bright disk on dark ground, as a PNG."""
    image = np.full((*size, 3), 40, np.uint8)
    cv2.circle(image, center, 30, (200, 220, 240), -1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model():
    return BrightOrDark()


@pytest.fixture(scope="module")
def client(model):
    with serving(model) as client:
        yield client


@pytest.fixture
def page(request, browser, client):
    """The opened page; nothing is fetched from elsewhere and there is no error."""
    width = getattr(request, "param", 1280)
    page = browser.new_page(viewport={"width": width, "height": 800}, has_touch=width < 500)
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(client.url)
    yield page
    page.close()
    assert [e for e in errors if not re.search("status of (4|503)", e)] == []
    assert all(url.startswith((client.url, f"blob:{client.url}")) for url in requests)


def choose(page, data, name="scene.png"):
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def drop(page, data, event="drop"):
    """Drop (or paste) a file of these bytes."""
    make = """([text, type]) => {
        const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        const event = type === "paste"
            ? new ClipboardEvent(type, { clipboardData: data, bubbles: true })
            : new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    page.evaluate(make, [base64.b64encode(data).decode(), event])


def answered(page):
    playwright.expect(page.locator("#panel")).to_be_visible()
    playwright.expect(page.locator("#status")).to_be_hidden()
    return page.locator("#map")


def pixel(page, x, y):
    return page.locator("#map").evaluate(PIXEL, [x, y])


def color(page, x, y):
    """Which class a pixel shows; a canvas keeps colours less exactly where they are transparent."""
    shown = np.array(pixel(page, x, y)[:3])
    colors = {"disk": (200, 60, 50), "grass": (70, 130, 70), "border": (255, 255, 255)}
    return next((name for name, c in colors.items() if np.abs(shown - c).max() <= 2), None)


def hover(page, x, y, size=(160, 120)):
    box = page.locator("#map").bounding_box()
    at = {"x": (x + 0.5) / size[0] * box["width"], "y": (y + 0.5) / size[1] * box["height"]}
    page.locator("#map").hover(position=at)


def downloaded(page, button):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def decoded(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, event):
    drop(page, disk_picture(), event)
    answered(page)
    assert (color(page, 80, 60), color(page, 5, 5)) == ("disk", "grass")
    assert pixel(page, 80, 60)[3] == 140  # 55 % of 255
    assert pixel(page, 80, 29) == [255] * 4  # the border
    assert page.locator("#classes b").all_inner_texts() == ["grass", "disk"]
    assert page.locator("#model").inner_text() == "bright or dark · 2 classes"


def test_a_second_picture_takes_the_place_of_the_first(page, model):
    model.gate.clear()
    choose(page, disk_picture())
    playwright.expect(page.locator("#status")).to_have_text("Segmenting …")
    choose(page, disk_picture(center=(40, 60)), "second.png")  # while the first is waited for
    model.gate.set()
    answered(page)
    assert (color(page, 40, 60), color(page, 90, 60)) == ("disk", "grass")
    choose(page, np.ascontiguousarray(cv2.imencode(".png", np.zeros((50, 90, 3)))[1]).tobytes())
    answered(page)
    assert page.locator("#classes b").all_inner_texts() == ["grass"]
    assert page.locator("#map").get_attribute("width") == "90"


def test_hover_lights_up_a_segment(page):
    choose(page, disk_picture())
    answered(page)
    hover(page, 80, 60)
    tip = page.locator("#tip")
    playwright.expect(tip).to_contain_text("disk, score 0.90")
    assert "pixels, 14." in tip.inner_text()
    assert pixel(page, 80, 60)[3] == 140 and pixel(page, 5, 5)[3] == 35
    hover(page, 5, 5)
    playwright.expect(tip).to_contain_text("grass")
    assert pixel(page, 80, 60)[3] == 35 and pixel(page, 5, 5)[3] == 140
    page.mouse.move(1, 1)
    playwright.expect(tip).to_be_hidden()
    assert pixel(page, 80, 60)[3] == 140


def test_classes_switch_on_and_off(page):
    choose(page, disk_picture())
    answered(page)
    page.locator(DISK).uncheck()
    assert pixel(page, 80, 60)[3] == 0 and pixel(page, 5, 5)[3] == 140
    hover(page, 80, 60)
    playwright.expect(page.locator("#tip")).to_be_hidden()
    page.get_by_role("button", name="None").click()
    assert pixel(page, 5, 5)[3] == 0 and pixel(page, 80, 29)[3] == 0
    page.get_by_role("button", name="All").click()
    assert pixel(page, 80, 60)[3] == pixel(page, 5, 5)[3] == 140


def test_opacity_and_before_and_after(page):
    choose(page, disk_picture())
    canvas = answered(page)
    page.get_by_label("Opacity").fill("1")
    assert pixel(page, 80, 60)[3] == 255
    page.get_by_label("Opacity").fill("0")
    assert pixel(page, 80, 60)[3] == 0 and pixel(page, 80, 29)[3] == 0
    page.get_by_label("Before and after").fill("50")
    assert canvas.evaluate("c => getComputedStyle(c).clipPath") == "inset(0px 0px 0px 50%)"


def test_downloads(page, model):
    data = disk_picture()
    choose(page, data, "my scene.png")
    answered(page)
    image = decode_picture(open_picture(data))
    ids, segments = model(image)
    name, png = downloaded(page, "PNG of ids")
    assert name == "my scene_ids.png" and (rgb2id(decoded(png)[:, :, ::-1]) == ids).all()
    name, text = downloaded(page, "JSON")
    assert name == "my scene_segments.json"
    assert [s["area"] for s in json.loads(text)["segments"]] == [
        int((ids == s["id"]).sum()) for s in segments
    ]
    name, png = downloaded(page, "Drawn picture")
    assert name == "my scene_panoptic.png"
    expected = draw_panoptic(image, ids, drawn_segments(segments, model.categories), labels=False)
    assert np.abs(decoded(png).astype(int) - expected).max() <= 2


def test_large_pictures_are_reduced_on_the_page_and_not_in_downloads(page, model):
    data = disk_picture(center=(3000, 200), size=(400, 4000))
    choose(page, data)
    answered(page)
    assert page.locator("#map").evaluate("c => [c.width, c.height]") == [1600, 160]
    assert color(page, 1200, 80) == "disk"
    image = decode_picture(open_picture(data))
    ids, segments = model(image)
    _, png = downloaded(page, "PNG of ids")
    assert (rgb2id(decoded(png)[:, :, ::-1]) == ids).all()
    _, png = downloaded(page, "Drawn picture")
    expected = draw_panoptic(image, ids, drawn_segments(segments, model.categories), labels=False)
    assert np.abs(decoded(png).astype(int) - expected).max() <= 2


def test_keyboard_alone(page):
    choose(page, disk_picture())
    answered(page)
    page.locator("#file").focus()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        focused = "document.activeElement.id || document.activeElement.ariaLabel"
        reached.append(page.evaluate(focused))
        if reached[-1] == "map":
            page.keyboard.press("ArrowRight")
            playwright.expect(page.locator("#pointed")).to_contain_text("grass")
            page.keyboard.press("ArrowRight")
            playwright.expect(page.locator("#pointed")).to_contain_text("disk, score 0.90")
            assert pixel(page, 5, 5)[3] == 35
            page.keyboard.press("Enter")
            assert not page.locator(DISK).is_checked()
            page.keyboard.press("Escape")
    for name in ("map", "opacity", "wipe", "class-3", "class-11", "download-json"):
        assert name in reached
    assert any(name.startswith("disk, score 0.90") for name in reached)
    page.locator("#class-3").focus()
    page.keyboard.press("Space")
    assert page.locator(DISK).is_checked() and pixel(page, 80, 60)[3] == 140


@pytest.mark.parametrize("page", [360], indirect=True)
def test_a_phone(page):
    choose(page, disk_picture())
    canvas = answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert canvas.bounding_box()["width"] > 300
    assert page.locator("#panel").bounding_box()["width"] > 300
    box = canvas.bounding_box()
    canvas.tap(position={"x": box["width"] / 2, "y": box["height"] / 2})
    playwright.expect(page.locator("#pointed")).to_contain_text("disk, score 0.90")


def test_refusals_are_said(page, client):
    choose(page, b"no picture")
    status = page.locator("#status")
    playwright.expect(status).to_contain_text("no picture in one of the formats")
    page.evaluate("open(new File([new Uint8Array(20000001)], 'large.png'))")
    playwright.expect(status).to_contain_text("more than 20 MB")
    playwright.expect(page.locator("#panel")).to_be_hidden()
    choose(page, disk_picture())
    answered(page)


def test_a_picture_turned_by_exif_lies_under_its_segments(page):
    image = Image.new("RGB", (160, 120), (10, 10, 10))
    image.paste((250, 250, 250), (0, 0, 40, 120))  # bright on the left, on top when turned
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif, quality=95)
    choose(page, buffer.getvalue())
    canvas = answered(page)
    assert canvas.evaluate("c => [c.width, c.height]") == [120, 160]
    photo = page.locator("#photo").evaluate("i => [i.naturalWidth, i.naturalHeight]")
    assert photo == [120, 160]
    assert (color(page, 60, 5), color(page, 60, 150)) == ("disk", "grass")


def test_a_busy_server_is_asked_again(page, client, model):
    refused = client.counter('spatialflow_requests_total{status="503"}')
    page.route("**/predict", lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}),
               times=1)  # fmt: skip
    choose(page, disk_picture())
    playwright.expect(page.locator("#status")).to_contain_text("busy; asking again in 1 s")
    answered(page)
    assert client.counter('spatialflow_requests_total{status="503"}') == refused


def test_leaving_the_page_cancels_its_request(page, client, model):
    cancelled = client.counter("spatialflow_cancelled_requests_total")
    model.gate.clear()
    choose(page, disk_picture())
    until(lambda: client.counter("spatialflow_accepted_requests") == 1)
    page.goto("about:blank")
    until(lambda: client.counter("spatialflow_cancelled_requests_total") == cancelled + 1)
    model.gate.set()


def test_a_token_is_typed_in(browser, model):
    with serving(model, token="sesame") as client:
        page = browser.new_page()
        page.goto(client.url)
        page.get_by_label("Token").fill("sesame")
        page.keyboard.press("Tab")
        playwright.expect(page.locator("#model")).to_contain_text("2 classes")
        choose(page, disk_picture())
        answered(page)
        page.close()


def test_names_are_text_and_never_markup(browser):
    class Named(BrightOrDark):
        categories = BrightOrDark.categories.from_json(
            [
                {"id": 3, "name": "<img src=x onerror=alert(1)>", "isthing": 1},
                {"id": 11, "name": "grass", "isthing": 0},
            ]
        )

    with serving(Named()) as client:
        page = browser.new_page()
        page.goto(client.url)
        choose(page, disk_picture())
        answered(page)
        assert "<img src=x onerror=alert(1)>" in page.locator("#classes b").all_inner_texts()
        assert page.locator("#panel img").count() == 0
        page.close()
