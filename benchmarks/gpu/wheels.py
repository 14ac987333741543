"""Fetch the wheels that a machine without a package index lacks, and check that they are enough.

    python -m benchmarks.gpu.wheels                    # into .wheels, versions from constraints.txt
    python -m benchmarks.gpu.wheels --python PYTHON    # and import everything in a Python 3.12 like that machine's

The check reads what each wheel and pyproject.toml ask for and looks it up among the wheels and in machine.txt, where
what the machine has is listed. PyAV stays behind: it is four times as large as all other wheels together, and no part
of the kit needs a video file.
"""

from __future__ import annotations

import email.parser
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MISSING = (
    "beartype", "diffusers", "docstring-parser", "ftfy", "importlib-metadata", "lazy-importer", "rich", "shtab",
    "typeguard", "tyro", "wcwidth",
)  # fmt: skip
"""What is fetched."""
BEHIND = frozenset({"av"})
"""What we depend on and leave behind."""
MOST_BYTES = 12_000_000
PYTHON = (3, 12)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "manylinux2014_x86_64")
IMPORTS = (
    "nearstep", "nearstep.cli.main", "nearstep.recipes.playground", "nearstep.recipes.wan", "nearstep.cost.bench",
    "nearstep.stream.pipeline", "nearstep.train.distill.stage", "ftfy", "rich", "tyro",
)  # fmt: skip

Versions = Mapping[str, Version | None]
"""Name -> version, None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do."""

    folder: Path = ROOT / ".wheels"
    """Where the wheels go; git ignores it."""
    fetch: bool = True
    """Or only check those that lie there."""
    python: Path | None = None
    """A Python 3.12 with the packages of machine.txt, to import everything in."""


@dataclass(frozen=True)
class Wheel:
    """A wheel, as its file says."""

    path: Path
    name: str
    version: Version
    fits: bool
    """Whether the machine can install it."""
    needs: tuple[Requirement, ...] = field(default=())


def main(options: Options) -> int:
    """Fetch, check, and say what is wrong; 1 where something is."""
    if options.fetch:
        fetch(options.folder, pins((ROOT / "constraints.txt").read_text()))
    wheels = [read(path) for path in sorted(options.folder.glob("*.whl"))]
    size = sum(wheel.path.stat().st_size for wheel in wheels)
    found = [*problems(wheels, machine(), project())]
    if size >= MOST_BYTES:
        found.append(f"the wheels have {size / 1e6:.1f} MB; less than {MOST_BYTES / 1e6:.0f} can travel")
    if options.python is not None and not found:
        found += imported(options.python, wheels)
    for wheel in wheels:
        print(f"{wheel.path.stat().st_size / 1e6:6.2f} MB  {wheel.name} {wheel.version}")
    print(f"{size / 1e6:6.2f} MB  in {len(wheels)} wheels at {options.folder}")
    print("\n".join(found) or "enough: all that they and nearstep ask for is there")
    return int(bool(found))


def fetch(folder: Path, pinned: Mapping[str, Version]) -> None:
    """Download what is missing, in the versions that are pinned, and drop other wheels from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    wanted = [f"{name}=={pinned[name]}" if name in pinned else name for name in MISSING]
    target = ["--python-version", f"{PYTHON[0]}.{PYTHON[1]}", "--implementation", "cp", "--only-binary", ":all:"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *target, *platforms, "--dest", str(folder), *wanted], check=True)


def pins(constraints: str) -> dict[str, Version]:
    """Name -> version of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def machine() -> dict[str, Version | None]:
    """What is there already, of machine.txt."""
    text = Path(__file__).with_name("machine.txt").read_text()
    names = (line.partition("#")[0].partition("==")[0].strip() for line in text.splitlines())
    return {canonicalize_name(name): None for name in names if name} | pins(text)


def project() -> list[Requirement]:
    """What nearstep asks for, with what its tests and adapters do, but for what stays behind."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = told["optional-dependencies"]
    needs = [Requirement(line) for line in (*told["dependencies"], *extras["train"], *extras["lora"])]
    return [need for need in needs if canonicalize_name(need.name) not in BEHIND]


def read(path: Path) -> Wheel:
    """Name, version, tags and requirements of a wheel."""
    name, version, _, tags = parse_wheel_filename(path.name)
    interpreter = f"cp{PYTHON[0]}{PYTHON[1]}"
    known = {*cpython_tags(PYTHON, platforms=PLATFORMS), *compatible_tags(PYTHON, interpreter, PLATFORMS)}
    with zipfile.ZipFile(path) as archive:
        inside = next(each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        told = email.parser.Parser().parsestr(archive.read(inside).decode())
    needs = tuple(Requirement(line) for line in told.get_all("Requires-Dist") or [])
    return Wheel(path, canonicalize_name(name), version, bool(tags & known), needs)


def problems(wheels: Sequence[Wheel], there: Versions, asked: Iterable[Requirement]) -> Iterator[str]:
    """What does not fit, is twice there, or is asked for and missing: a line each."""
    names = [wheel.name for wheel in wheels]
    yield from (f"{wheel.path.name} is for another machine" for wheel in wheels if not wheel.fits)
    yield from (f"{name} is there twice: two of one name stop the installation" for name in doubled(names))
    have = {**there, **{wheel.name: wheel.version for wheel in wheels}}
    asking = [("nearstep", need) for need in asked] + [(wheel.name, need) for wheel in wheels for need in wheel.needs]
    for who, need in asking:
        if need.marker and not need.marker.evaluate(environment()):
            continue
        name = canonicalize_name(need.name)
        if name not in have:
            yield f"{who} asks for {need}, which is neither on the machine nor among the wheels"
        elif (version := have[name]) and not need.specifier.contains(version, prereleases=True):
            yield f"{who} asks for {need}; {version} is what there is"


def doubled(names: Sequence[str]) -> list[str]:
    """Names that come up more than once."""
    return sorted({name for name in names if names.count(name) > 1})


def environment() -> dict[str, str]:
    """The machine's, as markers see it."""
    python = ".".join(map(str, PYTHON))
    there = {
        "python_version": python, "python_full_version": f"{python}.3", "sys_platform": "linux", "os_name": "posix",
        "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "extra": "",
    }  # fmt: skip
    return {**{key: str(value) for key, value in default_environment().items()}, **there}


def imported(python: Path, wheels: Sequence[Wheel]) -> list[str]:
    """Install the wheels offline beside this Python's packages and import; what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        files = [str(wheel.path) for wheel in wheels]
        subprocess.run([*pip, "--no-index", "--no-deps", "--target", folder, *files], check=True)
        # PyAV may be there: it is not where the kit runs.
        code = f"import sys; sys.modules['av'] = None; import {', '.join(IMPORTS)}; print(*sys.version_info[:2])"
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(ROOT / "src")])}
        done = subprocess.run([str(python), "-c", code], check=False, capture_output=True, text=True, env=paths)
    if done.returncode:
        return [f"importing in {python} failed:", *done.stderr.strip().splitlines()[-5:]]
    version = tuple(map(int, done.stdout.split()[-2:]))
    return [] if version == PYTHON else [f"{python} is a Python {version}, the machine's is {PYTHON}"]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
