"""All parts in order, each in a process of its own with seconds to spend; what each measured is there at once.

    bash benchmarks/gpu/run.sh                            # on a GPU, at Wan2.1-1.3B's shapes with random weights
    bash benchmarks/gpu/run.sh --device cpu --size tiny   # anywhere: that the kit itself works
    bash benchmarks/gpu/run.sh --parts numerics training --budget 300

A part may take its own seconds and those that earlier ones left; then it is killed, what it has measured stays, and the
next one begins. The folder that comes out holds results.json (rewritten after every part), lines.jsonl (a line a
number, as it was measured), log.txt (what the parts said, part by part) and a picture, within the limits below.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
import tyro

from benchmarks.gpu.report import told
from nearstep.files import replacing

ROOT = Path(__file__).parents[2]
MOST_FILES, MOST_BYTES, MOST_FOLDERS = 8, 16 * 2**20, 2
"""What may come out: so many files of so many bytes, so many folders deep."""
MOST_LOG = 2**20
"""Bytes of what one part said."""
PLAIN = re.compile(r"[A-Za-z0-9._-]+")


class Part(NamedTuple):
    """A file beside this one, and the seconds that it may take of the default budget."""

    name: str
    seconds: float


PARTS = (
    Part("smoke", 45),
    Part("numerics", 65),
    Part("inference", 165),
    Part("calls", 70),
    Part("products", 20),
    Part("decoding", 50),
    Part("windows", 25),
    Part("training", 100),
)
"""In order."""
ASKED = Part("chain", 240)
"""Runs where it is asked for by name: it leaves weights, and no time for what comes after it."""
BUDGET = sum(part.seconds for part in PARTS)
ASIDE = Part("planner", 300)
"""Runs on the CPU beside the others, which do not wait for it: predictions of what training measures."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    size: Literal["1.3B", "tiny"] = "1.3B"
    parts: tuple[str, ...] = ()
    """Names of some of them (default: all, in order)."""
    skip: tuple[Literal["compile", "text"], ...] = ()
    """compile: leave blocks as they are alone. text: leave out the text encoder of UMT5-xxl's size."""
    budget: float = BUDGET
    """Seconds for all parts together; each one's share grows and shrinks with it."""
    device: str | None = None
    """A GPU, if there is one."""
    out: Path = Path("gpu-results")
    """A folder for what is measured; run.sh takes it from $OUT, if that is set."""


def main(options: Options) -> int:
    """Run the parts, print the summary; 1 where a check or a part failed, 2 for what cannot be asked."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = [part.name for part in (*PARTS, ASKED, ASIDE)]
    if device == "cpu" and options.size != "tiny":
        print("there is no GPU here: --size tiny tries this kit on a CPU", file=sys.stderr)
        return 2
    if unknown := [name for name in options.parts if name not in names]:
        print(f"--parts {unknown[0]}: the parts are {', '.join(names)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and not without ending the parts
    options.out.mkdir(parents=True, exist_ok=True)
    lines, results = options.out / "lines.jsonl", options.out / "results.json"
    lines.write_text("")
    found: dict[str, Any] = {
        "size": options.size,
        "command": shlex.join(["bash", "benchmarks/gpu/run.sh", *sys.argv[1:]]),
        "budget": options.budget,
        "parts": {},
    }
    for name, ended in Runs(options, device, lines).ends():
        found["parts"][name] = ended
        found["rows"] = [json.loads(line) for line in lines.read_text().splitlines()]
        with replacing(results) as part:
            part.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {ended['status']} after {ended['seconds']:.0f} s", flush=True)
    print("\n".join(told(found)))
    wrong = beyond(options.out)
    print("\n".join(wrong) or f"written to {options.out}")
    failed = any(ended["status"] == "failed" for ended in found["parts"].values())
    return int(bool(wrong) or failed or any(row.get("passed") is False for row in found["rows"]))


class Run(NamedTuple):
    """A part at work."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]
    """What it prints, a file that has no name."""
    since: float


class Runs:
    """The processes of the parts that are asked for."""

    def __init__(self, options: Options, device: str, lines: Path) -> None:
        self.options, self.device, self.lines = options, device, lines
        self.log = options.out / "log.txt"
        self.log.write_text("")

    def ends(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and end of each part, as they end."""
        options, asked = self.options, self.options.parts
        chosen = [part for part in (*PARTS, ASKED) if part.name in asked] if asked else PARTS
        scale = options.budget / (sum(part.seconds for part in chosen) or ASIDE.seconds)
        began = deadline = time.monotonic()
        aside = self._start(ASIDE.name, options.budget) if not asked or ASIDE.name in asked else None
        try:
            for part in chosen:
                deadline += scale * part.seconds
                left = deadline - time.monotonic()
                yield part.name, self._ended(part.name, self._start(part.name, left), left)
            if aside is not None:
                yield ASIDE.name, self._ended(ASIDE.name, aside, began + options.budget - time.monotonic())
        finally:
            if aside is not None:
                _kill(aside.process)

    def _start(self, name: str, seconds: float) -> Run:
        device = "cpu" if name == ASIDE.name else self.device
        options = ["--size", self.options.size, "--device", device, "--lines", str(self.lines.resolve())]
        options += ["--out", str(self.options.out.resolve()), "--seconds", f"{seconds:.1f}"]
        options += ["--skip", *self.options.skip] if self.options.skip else []
        # Training takes a GPU where it sees one.
        hidden = {} if device.startswith("cuda") else {"CUDA_VISIBLE_DEVICES": ""}
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by _ended
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.part", name, *options],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
            process_group=0,  # a kill reaches the compilers that it has started
            env={**os.environ, **hidden},
        )
        return Run(process, said, time.monotonic())

    def _ended(self, name: str, run: Run, seconds: float) -> dict[str, Any]:
        """Wait for a part, and kill it at its limit."""
        try:
            code = run.process.wait(max(seconds, 0.1))
            status = "failed" if code else "done"
        except subprocess.TimeoutExpired:
            status = "killed at its limit"
        finally:
            _kill(run.process)
        run.said.seek(0)
        said = run.said.read()[-MOST_LOG:].decode(errors="replace").strip()
        run.said.close()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"--- {name}: {status}\n{said}\n")
        last = "\n".join(line[:400] for line in said.splitlines()[-8:])
        ended = {"status": status, "seconds": time.monotonic() - run.since, "limit": seconds}
        return ended | ({"error": last} if status == "failed" else {})


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it, and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def beyond(folder: Path) -> Sequence[str]:
    """What of a folder would not come back from that machine."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    wrong = [f"{len(files)} files, and {MOST_FILES} come back"] if len(files) > MOST_FILES else []
    for file in files:
        if (folder / file).stat().st_size > MOST_BYTES:
            wrong.append(f"{file} is larger than {MOST_BYTES // 2**20} MiB")
        if len(file.parts) > MOST_FOLDERS + 1:
            wrong.append(f"{file} lies more than {MOST_FOLDERS} folders deep")
        if not all(PLAIN.fullmatch(part) for part in file.parts):
            wrong.append(f"{file}: names are of letters, digits and ._- alone")
    return wrong


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
