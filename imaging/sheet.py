"""Classified images to look at: an image with its classes drawn under it, and a page of many of them.

The page is one HTML file with the thumbnails in it. It has no scripts: CSS alone changes its order.
"""

import base64
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from alexnet_triton.common.command import printable
from alexnet_triton.common.files import replacing

Classes = Sequence[tuple[str, float]]  # labels and probabilities, the most probable first

LEAST_SIDE, MOST_SIDE, THUMBNAIL_SIDE = 360, 720, 200  # pixels of the longer side
ROW, MARGIN, TEXT, PERCENT = 30, 12, 17, 64  # pixels
LONGEST_LABEL = 200  # characters that are measured: a line of a picture holds fewer
TEXT_COLOUR, FIRST_COLOUR, BAR_COLOUR, EMPTY_COLOUR = "#1f2328", "#2f6feb", "#9db8e8", "#eceff3"
ORDERS = {"class": "by class", "least": "least sure first", "most": "most sure first"}


@dataclass(frozen=True)
class Entry:
    """One image of a page.

    Attributes:
        title: its path, say.
        classes: labels and probabilities, the most probable first.
        truth: the class that it shows; empty where that is not known.
        error: why it could not be classified; empty if it was.
        picture: a file beside the page that the thumbnail leads to; empty if there is none.
        thumbnail: a JPEG file's bytes; empty if there are none.
    """

    title: str
    classes: Classes = ()
    truth: str = ""
    error: str = ""
    picture: str = ""
    thumbnail: bytes = b""

    @property
    def best(self) -> tuple[str, float]:
        """The most probable class and its probability."""
        return self.classes[0] if self.classes else ("no class above the threshold", 0.0)


# ---- pictures


def reduced(image: Image.Image, most_side: int = MOST_SIDE) -> Image.Image:
    """A copy in RGB whose longer side has at most so many pixels."""
    return _scaled(image, min(1.0, most_side / max(image.size)))


def to_jpeg(image: Image.Image, quality: int = 85) -> bytes:
    """The bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def annotate(image: Image.Image, classes: Classes) -> Image.Image:
    """The image, its longer side within `LEAST_SIDE` and `MOST_SIDE`, with a row and a bar for each class under it.

    Pillow's own font has the letters of ASCII: accents are left out, other letters become boxes.
    """
    photograph = reduced(image)
    photograph = _scaled(photograph, max(1.0, LEAST_SIDE / max(photograph.size)))
    width = max(photograph.width, LEAST_SIDE)
    canvas = Image.new("RGB", (width, photograph.height + 2 * MARGIN + ROW * len(classes)), "white")
    canvas.paste(photograph, ((width - photograph.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for rank, (label, probability) in enumerate(classes):
        _draw_row(draw, photograph.height + MARGIN + ROW * rank, width, label, probability, rank == 0)
    return canvas


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _draw_row(draw: ImageDraw.ImageDraw, top: int, width: int, label: str, probability: float, first: bool) -> None:
    """Label, bar and percentage side by side, `ROW` pixels high."""
    middle, left, right = top + ROW // 2, round(width * 0.46), width - MARGIN - PERCENT
    font = _font()
    draw.text((MARGIN, middle), _shortened(label, left - 2 * MARGIN), TEXT_COLOUR, font, anchor="lm")
    draw.rectangle((left, middle - 7, right, middle + 7), EMPTY_COLOUR)
    if end := round((right - left) * min(1.0, probability)):
        draw.rectangle((left, middle - 7, left + end, middle + 7), FIRST_COLOUR if first else BAR_COLOUR)
    draw.text((width - MARGIN, middle), f"{probability:.1%}", TEXT_COLOUR, font, anchor="rm")


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _shortened(label: str, room: int) -> str:
    """As much of a label as fits, in letters that the font has where there are such."""
    letters = unicodedata.normalize("NFKD", printable(label[:LONGEST_LABEL]))
    text = "".join(each for each in letters if not unicodedata.combining(each))
    if _font().getlength(text) <= room:
        return text
    while text and _font().getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


# ---- the page

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { grid-column: 1 / -1; font-size: 1.1rem; margin: 1rem 0 0; }
h2 small, figcaption small { font-weight: normal; opacity: .7; }
main { display: grid; gap: 1rem; margin-top: 1rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
figure { border: 1px solid var(--line); border-radius: 6px; margin: 0; overflow: hidden; }
figure img, figure span { display: block; height: 10rem; object-fit: contain; width: 100%; background: #8881; }
figcaption { padding: .5rem .7rem; } figcaption small { display: block; overflow-wrap: anywhere; }
dl { display: grid; gap: 2px 0; grid-template-columns: 1fr 3.8rem; margin: 0 0 .4rem; }
dt { overflow: hidden; padding: 0 .3rem; text-overflow: ellipsis; white-space: nowrap;
  background: linear-gradient(#2f6feb44, #2f6feb44) no-repeat 0 / var(--p) 100%; }
dd { margin: 0; text-align: right; } dt:first-of-type { font-weight: 600; }
input { margin-left: 1rem; } ul { overflow-wrap: anywhere; }
#least:checked ~ main h2, #most:checked ~ main h2 { display: none; }
#least:checked ~ main figure { order: var(--rank); }
#most:checked ~ main figure { order: calc(-1 * var(--rank)); }
"""
# Nothing in the page is loaded from anywhere, whatever a name or a label says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: Path, heading: str, entries: Sequence[Entry], order: str = "class") -> None:
    """Write a page of all entries, which are read twice and never held together; `order` is the first one shown.

    Raises:
        WriteError: it cannot be written; an earlier page stays as it was.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(_page(heading, entries, order))


def _page(heading: str, entries: Sequence[Entry], order: str) -> Iterator[str]:
    best = {number: entry.best for number, entry in enumerate(entries) if not entry.error}
    rank = {number: place for place, number in enumerate(sorted(best, key=lambda number: best[number][1]))}
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(heading)}</title>\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>\n'
    yield f"<h1>{_text(heading)}</h1>\n"
    for name, text in ORDERS.items():
        checked = " checked" if name == order else ""
        yield f'<input type="radio" name="order" id="{name}"{checked}> <label for="{name}">{text}</label>\n'
    yield "<main>\n"
    by_class = sorted(best, key=lambda number: (best[number][0], -best[number][1]))
    for label, group in groupby(by_class, key=lambda number: best[number][0]):
        numbers = list(group)
        yield f"<h2>{_text(label)} <small>{len(numbers):,}</small></h2>\n"
        yield from (_figure(entries[number], rank[number]) for number in numbers)
    yield "</main>\n"
    yield from _failures(entries, len(entries) - len(best))
    yield "</body></html>\n"


def _figure(entry: Entry, rank: int) -> str:
    data = base64.b64encode(entry.thumbnail).decode()
    image = f'<img alt="" src="data:image/jpeg;base64,{data}">' if data else "<span></span>"
    if entry.picture:
        image = f'<a href="{escape(entry.picture)}">{image}</a>'
    rows = (
        f'<dt style="--p:{probability:.1%}" title="{_text(label)}">{_text(label)}</dt><dd>{probability:.1%}</dd>'
        for label, probability in entry.classes
    )
    truth = f"<b>shows: {_text(entry.truth)}</b>" if entry.truth else ""
    caption = f"<dl>{''.join(rows)}</dl>{truth}<small>{_text(entry.title)}</small>"
    return f'<figure style="--rank:{rank}">{image}<figcaption>{caption}</figcaption></figure>\n'


def _failures(entries: Sequence[Entry], count: int) -> Iterator[str]:
    if not count:
        return
    yield f"<h2>Not classified <small>{count:,}</small></h2>\n<ul>\n"
    for entry in entries:
        if entry.error:
            yield f"<li>{_text(entry.title)}: {_text(entry.error)}</li>\n"
    yield "</ul>\n"


def _text(text: str) -> str:
    """As HTML, with control characters and bytes that are no letters escaped."""
    return escape(printable(text))
