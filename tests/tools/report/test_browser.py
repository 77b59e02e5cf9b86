"""The page in a real Chromium, opened from the file."""

import pytest
from saved_run import EVIL, NAME

from spatialflow.tools.report import build_content, read_saved, write_page

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


@pytest.fixture(scope="module")
def page_file(_evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(build_content(read_saved(str(_evaluation)), pictures=10), path)
    return path


@pytest.fixture
def page(request, browser, page_file):
    """The opened page; whatever a test does, there is no error and nothing is fetched."""
    scheme = getattr(request, "param", "light")
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    page.close()
    assert errors == []
    assert [url for url in requests if not url.startswith("data:image/jpeg")] == [
        page_file.as_uri()
    ]


def class_names(page):
    return page.locator("#class-table tbody th").all_inner_texts()


in_both_schemes = pytest.mark.parametrize("page", ["light", "dark"], indirect=True)


def test_numbers_are_shown(page, results):
    metrics = read_saved(str(results)).results["panoptic_seg"]
    assert page.locator("h1").inner_text() == NAME
    assert page.locator("#pq").inner_text() == f"{metrics['PQ']:.1f}"
    assert f"{metrics['PQ_th']:.2f}" in page.locator("#headline").inner_text()
    assert "12.50" in page.locator("#tasks").inner_text()
    assert "output/<model>.pth" in page.locator("#about").inner_text()
    page.get_by_text("Environment of the run").click()
    assert page.locator("#environment").inner_text() == "PyTorch 2.15.0"
    page.get_by_text("Config (config.yaml)").click()
    assert "WEIGHTS: output/<model>.pth" in page.locator("#config").inner_text()


def test_names_are_text_and_never_markup(page):
    assert EVIL in class_names(page)
    assert page.title() == f"{NAME}: panoptic segmentation"
    assert page.locator("main script, main b[onclick]").count() == 0


def test_nothing_scrolls_sideways(page):
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wider) == 0
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate(wider) == 0


@in_both_schemes
def test_pictures_are_there(page):
    pictures = page.locator("#gallery-worst img")
    assert pictures.count() == 3
    for picture in pictures.all():
        picture.evaluate("i => i.decode()")
        assert picture.evaluate("i => [i.naturalWidth, i.naturalHeight]") == [32, 24]
    # Sky, and void in the prediction where the dog is missed; centres of pixels.
    read = "(c, at) => [...c.getContext('2d').getImageData(...at, 1, 1).data]"
    truth, predicted = page.locator("#gallery-worst canvas").all()
    assert truth.evaluate(read, [1, 1])[3] == predicted.evaluate(read, [1, 1])[3] == 255
    assert truth.evaluate(read, [25, 15])[3] == 255
    assert predicted.evaluate(read, [25, 15])[3] == 0


def test_sort(page):
    assert class_names(page) == ["sky", EVIL, "cat", "dog"]  # by PQ
    header = page.locator("#class-table thead th")
    assert header.nth(2).get_attribute("aria-sort") == "descending"
    header.nth(2).get_by_role("button").click()
    assert class_names(page) == ["dog", "cat", EVIL, "sky"]
    header.nth(0).get_by_role("button").press("Enter")
    assert class_names(page) == [EVIL, "cat", "dog", "sky"]
    assert header.nth(2).get_attribute("aria-sort") is None
    header.nth(6).get_by_role("button").click()
    assert class_names(page)[0] == "dog"  # two false positives


def test_filter(page):
    page.locator("#classes label", has_text="Things").click()
    assert class_names(page) == ["cat", "dog"]
    page.locator("#class-filter").fill("O")
    assert class_names(page) == ["dog"]
    assert page.locator("#class-count").inner_text() == "1 of 4 classes"
    page.locator("#class-filter").fill("nothing like it")
    assert class_names(page) == []
    page.locator("#class-filter").fill("")
    page.locator("input[name=kind][value=stuff]").press("Space")
    assert class_names(page) == ["sky", EVIL]


def test_confusions(page):
    rows = page.locator("#confusion-table tbody tr")
    assert [r.split() for r in rows.all_inner_texts()] == [["cat", "dog", "1", "50.0"]]
    page.locator("#confusion-nothing").check()
    assert rows.count() == 3
    page.locator("#confusion-filter").fill("sky")
    assert rows.all_inner_texts() == ["No such confusion."]


@in_both_schemes
def test_matrix_by_keyboard_and_pointer(page):
    matrix, readout = page.locator("#matrix"), page.locator("#matrix-cell")
    matrix.focus()
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() == "cat → cat: 1 of 2 (50.0 %)"
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() == "cat → dog: 1 of 2 (50.0 %)"
    page.keyboard.press("Enter")
    assert page.locator("#confusion-filter").input_value() == "cat"
    box = matrix.bounding_box()
    matrix.hover(position={"x": box["width"] - 6, "y": box["height"] - 40})
    assert readout.inner_text() == "sky → missed: 0 of 1 (0.0 %)"
    assert page.locator("#tip").inner_text() == "sky → missed\n0 of 1 (0.0 %)"
    page.mouse.move(0, 0)
    playwright.expect(page.locator("#tip")).to_be_hidden()


def hover_pixel(page, canvas, x, y):
    box = canvas.bounding_box()
    canvas.hover(position={"x": (x + 0.5) / 32 * box["width"], "y": (y + 0.5) / 24 * box["height"]})
    return page.locator("#tip")


def test_hover(page):
    truth, predicted = page.locator("#gallery-worst canvas").all()
    tip = hover_pixel(page, truth, 16, 10)
    assert tip.inner_text() == "cat\nwrong class: taken for dog, IoU 1.00"
    tip = hover_pixel(page, predicted, 16, 10)
    assert tip.inner_text() == "dog, score 0.80\nwrong class: is really cat, IoU 1.00"
    assert (
        "false positive; best overlap </script>" in hover_pixel(page, predicted, 5, 21).inner_text()
    )
    assert "missed; nothing overlaps" in hover_pixel(page, truth, 25, 15).inner_text()
    playwright.expect(hover_pixel(page, predicted, 25, 15)).to_be_hidden()  # void


def test_segments_by_keyboard(page):
    page.locator("#gallery-worst summary").focus()
    page.keyboard.press("Enter")
    segments = page.locator("#gallery-worst .segment")
    playwright.expect(segments).to_have_count(10)
    read = "c => c.getContext('2d').getImageData(1, 1, 1, 1).data[3]"
    sky = page.locator("#gallery-worst canvas").first
    page.keyboard.press("Tab")  # to grass, the largest: the sky fades
    assert "matched, IoU 0.91" in page.locator(".segment:focus").inner_text()
    assert sky.evaluate(read) == 50
    page.keyboard.press("Tab")
    assert sky.evaluate(read) == 255


@in_both_schemes
def test_best_images_and_colours_of_outcomes(page):
    page.get_by_text("Best", exact=True).click()
    assert page.locator(".figure h3:visible").all_inner_texts()[0].startswith("1. scene1.jpg")
    page.get_by_text("Outcome", exact=True).click()
    assert page.locator("#legend .key").count() == 5
    truth, predicted = page.locator("#gallery-best canvas").all()
    read = "c => [...c.getContext('2d').getImageData(3, 12, 1, 1).data].slice(0, 3)"
    assert truth.evaluate(read) == predicted.evaluate(read)  # crowd, and what lies on it
    matched = "c => [...c.getContext('2d').getImageData(12, 3, 1, 1).data].slice(0, 3)"
    assert predicted.evaluate(matched) != predicted.evaluate(read)
