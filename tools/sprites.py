"""Makes the sprites of the world of things out of two npm packages, and the contact sheet to look at them.

npm pack @lobehub/fluent-emoji-3d && npm pack emoji-datasource-google
python tools/sprites.py lobehub-fluent-emoji-3d-*.tgz emoji-datasource-google-*.tgz src/nearstep/playground/sprites

The first holds the pictures (MIT, 256 x 256 with alpha), the second the names. Each thing is cut to what is visible,
brought to ``CELL`` pixels by averaging in premultiplied alpha (so that no colour of invisible pixels bleeds in), and
put into one atlas, a category a row. ``--sheet`` writes a picture of all things at several sizes.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CELL = 64
MARGIN = 1
"""Transparent texels around a thing, so that its edge fades inside its cell."""
VISIBLE = 0.05
"""Alpha below which a pixel is no part of the thing's extent."""

# name -> (short name in the datasource, the colour that a caption may give it or None). In a category the ones that are
# recognised most easily come first: a world of fewer things leaves the last ones out.
THINGS: dict[str, dict[str, tuple[str, str | None]]] = {
    "animal": {
        "cat": ("cat", "orange"),
        "frog": ("frog", "green"),
        "penguin": ("penguin", None),
        "dog": ("dog", "brown"),
        "parrot": ("parrot", "red"),
        "elephant": ("elephant", "grey"),
    },
    "fruit": {
        "apple": ("apple", "red"),
        "banana": ("banana", "yellow"),
        "grapes": ("grapes", "purple"),
        "watermelon": ("watermelon", "red"),
        "pear": ("pear", "green"),
        "strawberry": ("strawberry", "red"),
    },
    "vehicle": {
        "bus": ("bus", None),
        "car": ("car", "red"),
        "rocket": ("rocket", None),
        "boat": ("boat", "orange"),
        "train": ("steam_locomotive", "black"),
        "airplane": ("airplane", "blue"),
    },
    "ball": {
        "football": ("soccer", "blue"),
        "basketball": ("basketball", "orange"),
        "eight ball": ("8ball", "black"),
        "baseball": ("baseball", "white"),
        "rugby ball": ("rugby_football", "orange"),
        "softball": ("softball", "yellow"),
    },
    "sweet": {
        "doughnut": ("doughnut", "brown"),
        "cupcake": ("cupcake", "pink"),
        "lollipop": ("lollipop", None),
        "cake": ("cake", None),
        "candy": ("candy", "red"),
        "cookie": ("cookie", "brown"),
    },
    "flower": {
        "sunflower": ("sunflower", "yellow"),
        "tulip": ("tulip", "pink"),
        "hyacinth": ("hyacinth", "purple"),
        "daisy": ("blossom", "white"),
        "hibiscus": ("hibiscus", "pink"),
        "lotus": ("lotus", "pink"),
    },
    "building": {
        "house": ("house", None),
        "castle": ("european_castle", None),
        "tent": ("tent", "green"),
        "factory": ("factory", "grey"),
        "pagoda": ("japanese_castle", "red"),
        "tower": ("tokyo_tower", "orange"),
    },
    "instrument": {
        "guitar": ("guitar", "red"),
        "piano": ("musical_keyboard", "black"),
        "drum": ("drum_with_drumsticks", "red"),
        "saxophone": ("saxophone", "yellow"),
        "accordion": ("accordion", "red"),
        "violin": ("violin", "brown"),
    },
}


def read_sources(pictures: Path, names: Path) -> dict[str, np.ndarray]:
    """Short name -> premultiplied RGBA in [0, 1], [256, 256, 4], of every thing in THINGS."""
    with tarfile.open(names) as archive:
        listed = json.load(member(archive, "package/emoji.json"))
    codes = {entry["short_name"]: entry["unified"].lower() for entry in listed}
    found = {}
    with tarfile.open(pictures) as archive:
        for source, _ in (entry for row in THINGS.values() for entry in row.values()):
            with Image.open(member(archive, f"package/assets/{codes[source]}.webp")) as picture:
                found[source] = premultiplied(np.asarray(picture.convert("RGBA"), np.float64) / 255)
    return found


def member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    """The file ``name`` of the archive, to read."""
    file = archive.extractfile(name)
    if file is None:
        raise SystemExit(f"{name} is not in the archive; pack the package anew")
    return file


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    """Colours times alpha."""
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)


def straight(rgba: np.ndarray) -> np.ndarray:
    """Colours divided by alpha, where there is any."""
    return np.concatenate([rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-6), rgba[..., 3:]], axis=-1)


def fit_square(rgba: np.ndarray, side: int) -> np.ndarray:
    """The visible part, its longer extent brought to ``side`` and centred, [side, side, 4]."""
    rows, columns = np.where(rgba[..., 3] > VISIBLE)
    part = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = part.shape[:2]
    longest = max(height, width)
    tall, wide = coverage(height, longest, side), coverage(width, longest, side)
    return np.einsum("ih,hwc,jw->ijc", tall, part, wide)


def coverage(length: int, longest: int, side: int) -> np.ndarray:
    """Which part of each of ``side`` output pixels each of ``length`` centred input pixels covers, [side, length]."""
    edges = (np.arange(length + 1) + (longest - length) / 2) * side / longest
    low = np.maximum(edges[None, :-1], np.arange(side)[:, None])
    high = np.minimum(edges[None, 1:], np.arange(side)[:, None] + 1)
    return np.maximum(high - low, 0)


def make_atlas(sources: dict[str, np.ndarray]) -> Image.Image:
    """Every thing in its cell, a category a row."""
    columns = max(map(len, THINGS.values()))
    atlas = np.zeros((len(THINGS) * CELL, columns * CELL, 4))
    for row, things in enumerate(THINGS.values()):
        for column, (source, _) in enumerate(things.values()):
            top, left = row * CELL + MARGIN, column * CELL + MARGIN
            inner = CELL - 2 * MARGIN
            atlas[top : top + inner, left : left + inner] = straight(fit_square(sources[source], inner))
    return Image.fromarray((atlas.clip(0, 1) * 255).round().astype(np.uint8), "RGBA")


def make_sheet(sources: dict[str, np.ndarray], sides: tuple[int, ...] = (24, 19, 15)) -> Image.Image:
    """Every thing at several sizes on several grounds, enlarged four times."""
    grounds = np.array([(0.1, 0.1, 0.25), (0.45, 0.66, 0.32), (0.88, 0.8, 0.6)])
    columns = max(map(len, THINGS.values()))
    cell = max(sides) + 4
    sheet = np.zeros((len(THINGS) * cell, columns * len(sides) * cell, 3))
    for row, things in enumerate(THINGS.values()):
        for column, (source, _) in enumerate(things.values()):
            for which, (side, ground) in enumerate(zip(sides, grounds, strict=True)):
                top, left = row * cell, (column * len(sides) + which) * cell
                sheet[top : top + cell, left : left + cell] = ground
                thing = fit_square(sources[source], side)
                part = sheet[top + 2 : top + 2 + side, left + 2 : left + 2 + side]
                part *= 1 - thing[..., 3:]
                part += thing[..., :3]
    picture = Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST)


def main() -> None:
    """Read both packages, write ``things.png`` and ``things.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("names", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    sources = read_sources(given.pictures, given.names)
    given.folder.mkdir(parents=True, exist_ok=True)
    make_atlas(sources).save(given.folder / "things.png", optimize=True)
    listed = [
        {"name": name, "category": category, "colour": colour, "row": row, "column": column}
        for row, (category, things) in enumerate(THINGS.items())
        for column, (name, (_, colour)) in enumerate(things.items())
    ]
    lines = ",\n".join(json.dumps(entry) for entry in listed)
    text = f'{{"cell": {CELL}, "margin": {MARGIN}, "things": [\n{lines}\n]}}\n'
    (given.folder / "things.json").write_text(text, encoding="utf-8")
    if given.sheet:
        make_sheet(sources).save(given.sheet)


if __name__ == "__main__":
    main()
