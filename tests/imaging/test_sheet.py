"""Pictures with bars, and a page whose order a real browser changes without scripts."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from alexnet_triton.common.files import WriteError
from alexnet_triton.imaging.sheet import (
    FIRST_COLOUR,
    LEAST_SIDE,
    MARGIN,
    MOST_SIDE,
    ROW,
    THUMBNAIL_SIDE,
    Entry,
    annotate,
    reduced,
    to_jpeg,
    write_page,
)

LABELS = (
    "Ankle boot",
    "a label that is much longer than there is room beside the bar of its probability, and then some",
    "Wäscheklammer, зажим 洗濯ばさみ 🐱",
    "line\nbreak\x1b[2J \udcff",
    "",
)
THUMBNAIL = to_jpeg(Image.new("RGB", (8, 8), "red"))


@pytest.mark.parametrize("size", [(28, 28), (3000, 2000), (500, 375), (1, 900), (900, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_of_any_size_with_any_label(size: tuple[int, int], mode: str) -> None:
    picture = annotate(Image.new(mode, size, 128), [(label, 0.2) for label in LABELS])
    assert picture.mode == "RGB"
    assert LEAST_SIDE <= picture.width <= MOST_SIDE
    assert picture.height <= MOST_SIDE + 2 * MARGIN + ROW * len(LABELS)


def test_a_bar_is_as_long_as_its_probability_and_no_label_reaches_it() -> None:
    def first_bar(probability: float) -> np.ndarray:
        """Where the first row of a black image's picture has the bar's colour: bool [H, W]."""
        pixels = np.asarray(annotate(Image.new("RGB", (400, 300)), [("M" * 90, probability)]))
        return (pixels == [int(FIRST_COLOUR[place : place + 2], 16) for place in (1, 3, 5)]).all(axis=2)

    full, half = first_bar(1.0), first_bar(0.5)
    assert half.any(axis=0).sum() == pytest.approx(full.any(axis=0).sum() / 2, abs=2)
    assert not first_bar(0.0).any()
    box = full[full.any(axis=1)][:, full.any(axis=0)]
    assert box.all()  # a label over it would have other colours


def test_a_thumbnail_is_small() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 1500, 3), np.uint8))
    with Image.open(io.BytesIO(to_jpeg(reduced(noise, THUMBNAIL_SIDE)))) as thumbnail:
        assert thumbnail.size == (150, 200)


def test_the_order_is_chosen_on_the_page(browser: Browser, tmp_path: Path) -> None:
    entries = [
        Entry("1.jpg", [("dog", 0.9), ("cat", 0.1)], thumbnail=THUMBNAIL, picture="one.jpg"),
        Entry("2.jpg", [("cat", 0.4)], thumbnail=THUMBNAIL, truth="dog"),
        Entry("<script>3</script>.jpg", [("<i>cat</i>", 0.5)], thumbnail=THUMBNAIL),
        Entry("4.jpg", error="no such file"),
        Entry("5.jpg", [("cat", 0.6)]),
        Entry("6.jpg"),
    ]
    write_page(tmp_path / "index.html", "Six & more", entries)
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.goto((tmp_path / "index.html").as_uri())

    def order() -> list[str]:
        """The first characters of the titles from left to right and from top to bottom."""
        figures = page.locator("figure").all()
        places = [(box["y"], box["x"]) for figure in figures if (box := figure.bounding_box())]
        titles = [figure.locator("small").inner_text()[0] for figure in figures]
        return [title for _, title in sorted(zip(places, titles, strict=True))]

    assert order() == ["<", "5", "2", "1", "6"]
    assert page.locator("h2").all_inner_texts() == [
        *("<i>cat</i> 1", "cat 2", "dog 1", "no class above the threshold 1", "Not classified 1")
    ]
    page.get_by_label("least sure first").check()
    assert order() == ["6", "2", "<", "5", "1"]
    page.get_by_label("most sure first").check()
    assert order() == ["1", "5", "<", "2", "6"]
    assert page.locator("img").evaluate_all("images => images.every(image => image.naturalWidth == 8)")
    assert page.get_by_role("listitem").all_inner_texts() == ["4.jpg: no such file"]
    assert page.locator("figure a").get_attribute("href") == "one.jpg"
    assert page.get_by_text("shows: dog").count() == 1
    assert problems == []


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "before", [])

    class Failing(list[Entry]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match="no space left"):
        write_page(tmp_path / "index.html", "after", Failing())
    assert "before" in (tmp_path / "index.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
