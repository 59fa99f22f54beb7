"""Silhouettes and backgrounds: how a scene becomes pixels.

Each kind of thing is one function that draws it into a unit square. A thing is drawn four
times too large, turned a little, reduced and pasted; then the light falls on the picture and
the camera blurs it and adds noise. This module knows nothing about questions.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 96
CELL_SIZE = 32
SUPERSAMPLE = 4
JPEG_QUALITY = 90
INK = (40, 36, 44)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "orange": (247, 140, 20),
    "yellow": (246, 222, 50),
    "green": (46, 160, 60),
    "blue": (40, 90, 220),
    "purple": (140, 50, 180),
    "white": (248, 248, 248),
}

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws in a unit square (x to the right, y down) on a transparent tile."""

    def __init__(self, size: int, fill: Colour) -> None:
        self.size = size
        self.fill = fill
        self.line = max(3, round(size * 0.045))
        self.tile = Image.new("RGBA", (size, size), (*fill, 0))
        self.draw = ImageDraw.Draw(self.tile)

    def polygon(self, points: list[Point], fill: Colour | None = None) -> None:
        """A filled, outlined polygon."""
        scaled = [(x * self.size, y * self.size) for x, y in points]
        self.draw.polygon(scaled, fill=fill or self.fill, outline=INK, width=self.line)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """A filled, outlined rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """A filled, outlined ellipse."""
        corners = [v * self.size for v in (x0, y0, x1, y1)]
        self.draw.ellipse(corners, fill=fill or self.fill, outline=INK, width=self.line)

    def slice(self, x0: float, y0: float, x1: float, y1: float, start: int, end: int) -> None:
        """A filled, outlined part of an ellipse, from angle `start` to `end` in degrees."""
        corners = [v * self.size for v in (x0, y0, x1, y1)]
        self.draw.chord(corners, start, end, fill=self.fill, outline=INK, width=self.line)

    def stroke(self, points: list[Point], width: float, fill: Colour = INK) -> None:
        """An open line of a given width."""
        scaled = [(x * self.size, y * self.size) for x, y in points]
        self.draw.line(scaled, fill=fill, width=round(width * self.size), joint="curve")

    def ring(self, x0: float, y0: float, x1: float, y1: float, width: float) -> None:
        """An outlined ring in the fill colour."""
        corners = [v * self.size for v in (x0, y0, x1, y1)]
        self.draw.ellipse(corners, outline=INK, width=round(width * self.size))
        inner = [
            corners[0] + self.line,
            corners[1] + self.line,
            corners[2] - self.line,
            corners[3] - self.line,
        ]
        self.draw.ellipse(inner, outline=self.fill, width=round(width * self.size) - 2 * self.line)


def ball(pen: Pen) -> None:
    pen.oval(0.06, 0.06, 0.94, 0.94)
    pen.stroke([(0.10, 0.36), (0.5, 0.5), (0.90, 0.36)], 0.06)
    pen.stroke([(0.5, 0.5), (0.5, 0.92)], 0.06)


def car(pen: Pen) -> None:
    pen.polygon([(0.22, 0.5), (0.34, 0.24), (0.68, 0.24), (0.82, 0.5)], (190, 205, 215))
    pen.box(0.02, 0.46, 0.98, 0.74)
    pen.oval(0.12, 0.60, 0.40, 0.88, INK)
    pen.oval(0.60, 0.60, 0.88, 0.88, INK)


def boat(pen: Pen) -> None:
    pen.stroke([(0.46, 0.04), (0.46, 0.66)], 0.06)
    pen.polygon([(0.5, 0.06), (0.92, 0.56), (0.5, 0.56)])
    pen.polygon([(0.02, 0.64), (0.98, 0.64), (0.80, 0.94), (0.20, 0.94)])


def house(pen: Pen) -> None:
    pen.box(0.14, 0.46, 0.86, 0.96)
    pen.polygon([(0.02, 0.48), (0.5, 0.04), (0.98, 0.48)], (110, 104, 112))
    pen.box(0.40, 0.62, 0.60, 0.96, INK)


def tree(pen: Pen) -> None:
    pen.box(0.42, 0.7, 0.58, 0.98, (96, 74, 60))
    pen.polygon([(0.06, 0.78), (0.5, 0.30), (0.94, 0.78)])
    pen.polygon([(0.18, 0.46), (0.5, 0.02), (0.82, 0.46)])


def fish(pen: Pen) -> None:
    pen.polygon([(0.60, 0.5), (0.98, 0.2), (0.98, 0.8)])
    pen.oval(0.02, 0.22, 0.76, 0.78)
    pen.oval(0.14, 0.38, 0.28, 0.52, INK)


def cup(pen: Pen) -> None:
    pen.ring(0.54, 0.28, 0.98, 0.74, 0.12)
    pen.polygon([(0.06, 0.12), (0.72, 0.12), (0.66, 0.92), (0.12, 0.92)])


def key(pen: Pen) -> None:
    pen.ring(0.02, 0.26, 0.48, 0.74, 0.17)
    pen.box(0.44, 0.43, 0.98, 0.57)
    pen.box(0.66, 0.5, 0.76, 0.76)
    pen.box(0.86, 0.5, 0.96, 0.76)


def book(pen: Pen) -> None:
    pen.polygon([(0.5, 0.26), (0.98, 0.14), (0.98, 0.76), (0.5, 0.9)])
    pen.polygon([(0.5, 0.26), (0.02, 0.14), (0.02, 0.76), (0.5, 0.9)])
    for y in (0.36, 0.52, 0.68):
        pen.stroke([(0.12, y - 0.04), (0.40, y + 0.03)], 0.05)
        pen.stroke([(0.60, y + 0.03), (0.88, y - 0.04)], 0.05)


def hat(pen: Pen) -> None:
    pen.box(0.24, 0.10, 0.76, 0.78)
    pen.box(0.24, 0.54, 0.76, 0.70, INK)
    pen.box(0.02, 0.72, 0.98, 0.90)


def mushroom(pen: Pen) -> None:
    pen.box(0.38, 0.5, 0.62, 0.96, (226, 214, 190))
    pen.slice(0.04, 0.06, 0.96, 1.06, 180, 360)
    for x, y in ((0.26, 0.34), (0.5, 0.2), (0.72, 0.36)):
        pen.oval(x - 0.07, y - 0.06, x + 0.07, y + 0.08, INK)


def umbrella(pen: Pen) -> None:
    pen.stroke([(0.5, 0.4), (0.5, 0.90), (0.62, 0.96), (0.70, 0.86)], 0.07)
    pen.polygon(
        [
            (0.02, 0.54),
            (0.14, 0.2),
            (0.5, 0.04),
            (0.86, 0.2),
            (0.98, 0.54),
            (0.80, 0.44),
            (0.66, 0.54),
            (0.5, 0.44),
            (0.34, 0.54),
            (0.2, 0.44),
        ]
    )


def kite(pen: Pen) -> None:
    pen.polygon([(0.56, 0.02), (0.90, 0.30), (0.56, 0.74), (0.22, 0.30)])
    pen.stroke([(0.56, 0.02), (0.56, 0.74)], 0.05)
    pen.stroke([(0.22, 0.30), (0.90, 0.30)], 0.05)
    pen.stroke([(0.56, 0.74), (0.40, 0.82), (0.42, 0.92), (0.16, 0.96)], 0.06)


def candle(pen: Pen) -> None:
    pen.box(0.34, 0.36, 0.66, 0.88)
    pen.box(0.14, 0.84, 0.86, 0.97, (120, 116, 122))
    pen.oval(0.40, 0.02, 0.60, 0.34, (255, 226, 130))


def bell(pen: Pen) -> None:
    pen.oval(0.40, 0.76, 0.60, 0.98, INK)
    pen.polygon(
        [
            (0.42, 0.04),
            (0.58, 0.04),
            (0.74, 0.24),
            (0.78, 0.62),
            (0.96, 0.84),
            (0.04, 0.84),
            (0.22, 0.62),
            (0.26, 0.24),
        ]
    )


DRAW: dict[str, Callable[[Pen], None]] = {
    f.__name__: f
    for f in (
        ball,
        car,
        boat,
        house,
        tree,
        fish,
        cup,
        key,
        book,
        hat,
        mushroom,
        umbrella,
        kite,
        candle,
        bell,
    )
}
MIRRORED = ("car", "boat", "fish", "cup", "key", "kite", "umbrella")


def thing_tile(kind: str, colour: str, rng: np.random.Generator) -> Image.Image:
    """One thing, 24 to 30 pixels wide, in a shade of its colour, turned by up to twelve degrees."""
    fill = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 7, 3), 0, 255).astype(int)
    size = int(rng.integers(25, 31)) * SUPERSAMPLE
    pen = Pen(size, (int(fill[0]), int(fill[1]), int(fill[2])))
    DRAW[kind](pen)
    tile = pen.tile
    if kind in MIRRORED and rng.random() < 0.5:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tile = tile.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
    width = size // SUPERSAMPLE
    height = max(23, round(width * rng.uniform(0.9, 1.0)))
    return tile.resize((width, height), Image.Resampling.BOX)


def source_background(rng: np.random.Generator) -> np.ndarray:
    """A bright plain pastel, (96, 96, 3) in 0..255."""
    return np.tile(rng.uniform(196, 246, 3), (IMAGE_SIZE, IMAGE_SIZE, 1))


def target_background(rng: np.random.Generator) -> np.ndarray:
    """Night, sand, grid or gradient, (96, 96, 3) in 0..255."""
    style = rng.integers(4)
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    if style == 0:
        picture = np.tile(rng.uniform((18, 20, 40), (50, 56, 90)), (IMAGE_SIZE, IMAGE_SIZE, 1))
        stars = rng.random((IMAGE_SIZE, IMAGE_SIZE)) < 0.012
        picture[stars] = rng.uniform(150, 230)
    elif style == 1:
        picture = np.tile(rng.uniform((150, 120, 80), (190, 160, 110)), (IMAGE_SIZE, IMAGE_SIZE, 1))
        coarse = rng.normal(0, 16, (24, 24)).repeat(4, 0).repeat(4, 1)
        picture = picture + (coarse + rng.normal(0, 14, (IMAGE_SIZE, IMAGE_SIZE)))[:, :, None]
    elif style == 2:
        picture = np.tile(rng.uniform(70, 130, 3), (IMAGE_SIZE, IMAGE_SIZE, 1))
        pitch, phase = rng.integers(7, 13), rng.integers(0, 7)
        lines = ((rows + phase) % pitch < 2) | ((columns + phase) % pitch < 2)
        picture[lines] += rng.choice([-45, 45])
    else:
        start, end = rng.uniform(30, 150, 3), rng.uniform(30, 150, 3)
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (np.cos(angle) * columns + np.sin(angle) * rows) / (1.42 * IMAGE_SIZE)
        ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
        picture = start + (end - start) * ramp[:, :, None]
    return picture


def draw_scene(
    things: dict[int, tuple[str, str]], domain: str, rng: np.random.Generator
) -> Image.Image:
    """Draw a scene, {cell: (kind, colour)}, in its domain's surroundings, light and camera."""
    background = source_background(rng) if domain == "source" else target_background(rng)
    image = Image.fromarray(background.clip(0, 255).astype(np.uint8))
    for cell, (kind, colour) in things.items():
        tile = thing_tile(kind, colour, rng)
        x = CELL_SIZE * (cell % 3) + int(rng.integers(0, CELL_SIZE - tile.width + 1))
        y = CELL_SIZE * (cell // 3) + int(rng.integers(0, CELL_SIZE - tile.height + 1))
        image.paste(tile, (x, y), tile)
    if domain == "source":
        return image
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    light = rng.uniform(0.55, 0.95) * rng.uniform(0.85, 1.0, 3)
    noise = rng.normal(0, rng.uniform(2, 9), (IMAGE_SIZE, IMAGE_SIZE, 3))
    return Image.fromarray((np.asarray(image) * light + noise).clip(0, 255).astype(np.uint8))


def to_jpeg(image: Image.Image) -> bytes:
    """The picture as the frames ship it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def from_jpeg(data: bytes) -> np.ndarray:
    """The picture as a model sees it, (96, 96, 3), uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
