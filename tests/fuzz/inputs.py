"""What users bring: prompts, captions, pictures, videos, in any state and encoding."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.cases import Case, command
from tests.fuzz.damage import DEEP, WORDS, Damage, bytes_gone_wrong, odd_value
from tests.fuzz.kit import Kit, put
from tests.tiny import PROMPT
from tests.tiny import WORDS as KNOWN

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "gbk", "shift-jis", "koi8-r")
SUFFIXES = (".txt", ".jsonl", ".csv", ".json", ".tsv", "", ".TXT", ".pdf")


def prompt_files(draw: Random, kit: Kit, folder: Path) -> Case:
    """A file of prompts in any encoding and shape."""
    file = folder / f"prompts{draw.choice(SUFFIXES)}"
    damage = _table(draw, draw.choice(("caption", "text", "prompt", "Prompt", "x", "")))
    put(file, damage)
    line = draw.choice(
        (
            [
                "generate",
                "--prompts-file",
                file,
                "--model",
                kit.model,
                "--plan",
                1,
                "--frames",
                5,
                "-o",
                "c/",
                "--dry-run",
            ],
            ["prepare", file, "lat", "--model", kit.model, "--from-teacher", "--dry-run"],
            ["calibrate", kit.model, "--prompts-file", file, "--chunks", 1, "--captions", 0],
        )
    )
    return Case(what=f"{line[0]} {file.name}: {damage.what}", act=lambda: command(*line))


def _table(draw: Random, column: str, file_column: str = "") -> Damage:
    """Rows as text, JSON or CSV, in an encoding, perhaps broken."""
    texts = [draw.choice((PROMPT, "a red ball", "é", "红球", " ", *WORDS)) for _ in range(draw.choice((1, 2, 3)))]
    names = [draw.choice(("0.mp4", "1.mp4", "2", "../x.mp4", "/x.mp4", "", "a\0.mp4", "x" * 300)) for _ in texts]
    way = draw.choice(("lines", "jsonl", "csv", "json", "odd jsonl", "deep", "odd json"))
    if way == "lines":
        text = draw.choice(("\n", "\r\n", "\r", "\x85", "\0")).join(texts)
    elif way in ("jsonl", "odd jsonl"):
        rows = [{file_column or "file_name": name, column: one} for name, one in zip(names, texts, strict=True)]
        rows = [odd_value(draw) if way == "odd jsonl" and draw.random() < 0.5 else row for row in rows]
        text = "\n".join(json.dumps(row) for row in rows)
    elif way == "csv":
        separator = draw.choice((",", ";", "\t", ", ", "|"))
        rows = [separator.join((file_column or "file_name", column))]
        rows += [separator.join((name, one)) for name, one in zip(names, texts, strict=True)]
        text = "\n".join([*rows, draw.choice(("", '"', "a,b,c,d", ",", '"a\n'))])
    elif way == "deep":
        text = DEEP
    else:
        content = [{file_column or "file_name": n, column: t} for n, t in zip(names, texts, strict=True)]
        text = json.dumps(odd_value(draw) if way == "odd json" else draw.choice((content, {"data": content}, texts)))
    encoding = draw.choice(ENCODINGS)
    data = text.encode(encoding, errors=draw.choice(("replace", "ignore")))
    damage = bytes_gone_wrong(draw, data) if draw.random() < 0.3 else Damage("whole", data, never=False)
    return damage._replace(what=f"{way} in {encoding}, {damage.what}")


def captions(draw: Random, kit: Kit, folder: Path) -> Case:
    """A folder of videos with captions beside them or in a table, counted before and after."""
    source, _ = kit.copy_of(kit.videos, folder)
    way = draw.choice(("beside", "beside", "table", "table"))
    if way == "beside":
        file = source / draw.choice(("0.txt", "0.TXT", "0.caption", "0.mp4.txt", "1.txt", "0.json"))
        text = draw.choice((PROMPT, "é", "红球", *WORDS))
        damage = Damage("", text.encode(draw.choice(ENCODINGS), errors="replace"), never=False)
        damage = bytes_gone_wrong(draw, damage.data) if draw.random() < 0.3 else damage
    else:
        file = source / draw.choice(
            ("metadata.csv", "metadata.jsonl", "metadata.json", "captions.tsv", "videos2caption.json")
        )
        column = draw.choice(("file_name", "video", "path", "video_path", "File_Name"))
        damage = _table(draw, draw.choice(("caption", "text", "Caption", "cap")), column)
    put(file, damage)
    line = ["prepare", source, "lat", "--model", kit.model, "--workers", 0]

    def act() -> tuple[int, int]:
        foreseen = command(*line, "--dry-run")
        said = [row for row in foreseen.splitlines() if row.startswith("would encode")]
        command(*line)
        made = json.loads(Path("lat/index.json").read_text())["clips"]
        return int(said[0].split()[4]) if said else -1, made

    def judge(counts: tuple[int, int]) -> str | None:
        return None if counts[0] == counts[1] else f"--dry-run says {counts[0]} clips, {counts[1]} were made"

    return Case(what=f"{file.name}: {damage.what}", act=act, judge=judge)


def pictures(draw: Random, kit: Kit, folder: Path) -> Case:
    """A picture that a stream goes on from."""
    kind, mode = (
        draw.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
        draw.choice(("RGB", "L", "RGBA", "P", "1", "I;16")),
    )
    size = draw.choice(((32, 32), (33, 31), (1, 1), (64, 16), (1, 4000), (200, 300)))
    stream = io.BytesIO()
    picture = (
        Image.new("I;16" if mode == "I;16" else "RGB", size).convert(mode)
        if mode != "I;16"
        else Image.new("I;16", size, 9)
    )
    try:
        picture.save(stream, kind)
    except OSError:
        picture.convert("RGB").save(stream, kind)
    whole, way = stream.getvalue(), draw.random()
    if way < 0.1:
        damage = Damage("a bomb", _bomb(draw.choice((20_000, 60_000, 2**31 - 1))), never=True)
    elif way < 0.5:
        damage = bytes_gone_wrong(draw, whole)
    else:
        damage = Damage(f"{mode} of {size}", whole, never=False)
    file = folder / f"x{draw.choice(('.png', '.jpg', '.webp', '.gif', '.PNG', '', '.mp4'))}"
    put(file, damage)
    line = ["stream", PROMPT, "--model", kit.model, "--plan", 1, "--chunks", 1, "-o", "out.mp4", "--image", file]
    return Case(what=f"{kind} {damage.what}", act=lambda: command(*line))


def _bomb(side: int) -> bytes:
    """A PNG whose head says that it is enormous."""
    import struct
    import zlib

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")


def videos(draw: Random, kit: Kit, folder: Path) -> Case:
    """A video that is prepared, or that a stream goes on from."""
    from nearstep.data.videos import ClipSize, read_clips

    suffix = draw.choice((".mp4", ".mkv", ".webm", ".gif", ".avi", ".mov", ".m4v", ""))
    damage, file = bytes_gone_wrong(draw, kit.clip.read_bytes()), folder / f"x{suffix}"
    put(file, damage)
    way = draw.random()
    if way < 0.3:
        line = ["stream", PROMPT, "--model", kit.model, "--plan", 1, "--chunks", 1, "-o", "out.mp4", "--video", file]
        return Case(what=f"stream: {damage.what}", act=lambda: command(*line))
    if way < 0.4:
        (folder / "v").mkdir()
        file.rename(folder / "v" / "x.mp4")
        (folder / "v" / "x.txt").write_text(PROMPT)
        line = ["prepare", folder / "v", "lat", "--model", kit.model, "--workers", 0]
        return Case(what=f"prepare: {damage.what}", act=lambda: command(*line))
    size = ClipSize(frames=draw.choice((1, 5, 9)), height=32, width=32, fps=draw.choice((1, 12, 60)))

    def judge(clips: list[np.ndarray]) -> str | None:
        right = all(clip.shape == (size.frames, 32, 32, 3) and clip.dtype == np.uint8 for clip in clips)
        return None if right else "a clip of another size"

    return Case(what=damage.what, act=lambda: read_clips(file, size), judge=judge)


def prompts(draw: Random, kit: Kit, folder: Path) -> Case:
    """Prompts on the command line."""
    words = [draw.choice((*KNOWN.split(), *WORDS)) for _ in range(draw.choice((1, 2, 5, 20)))]
    prompt = draw.choice((" ", " ", "", "\n", "\u00a0")).join(words)
    way = draw.choice(("generate", "generate", "stream", "--negative", "--at"))
    line: list[object] = ["generate", "--model", kit.model, "--plan", 1, "--frames", 5, "-o", "c/"]
    if way == "generate":
        line = [*line, "--dry-run", "--", prompt] if prompt.startswith("-") else [*line, "--dry-run", prompt]
    elif way == "--negative":
        line += [PROMPT, "--guidance", 2, "--dry-run", f"--negative={prompt}"]
    else:
        line = ["stream", "--model", kit.model, "--plan", 1, "--chunks", 2, "-o", "x.mp4"]
        line += [PROMPT, "--at", 1, prompt] if way == "--at" else [prompt]
    return Case(what=f"{way} {prompt!r:.150}", act=lambda: command(*line))


def parsing(draw: Random, kit: Kit, folder: Path) -> Case:
    """The playground's parser of captions: what it understands, its own captions say again."""
    from nearstep.playground import parsing as parser

    known = parser.vocabulary()
    words = [
        draw.choice((*known, *known, *random.Random(draw.random()).sample(WORDS, 3))) for _ in range(draw.randrange(14))
    ]
    text = draw.choice((" ", " ", " ", ", ", "-", "\n")).join(words)
    return Case(what=f"{text!r:.150}", act=lambda: parser.parse(text))
