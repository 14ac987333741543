"""The command: ``python -m tests.fuzz --cases 10000 --table docs/reliability.md``."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

GIB = 2**30
MEMORY = 8 * GIB
"""Beyond what torch reserves; a case that wants more gets a MemoryError, and not the machine."""
BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"


def main() -> int:
    """Run, print what is not good, and write the table; 1 if anything was not good."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="of all families together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="these families alone")
    parser.add_argument("--number", type=int, help="this case of theirs alone")
    parser.add_argument("--table", type=Path, help="the document to write the table into")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))

    import torch

    from tests.fuzz.cases import GOOD, Found, run
    from tests.fuzz.families import FAMILIES, counts, runs
    from tests.fuzz.kit import Kit

    torch.set_num_threads(1)
    chosen = [family for family in FAMILIES if not asked.only or family.name in asked.only]
    began = time.monotonic()
    found: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        if asked.number is not None:
            every = (run(family, asked.number, Kit(Path(root)), asked.seed) for family in chosen)
        else:
            every = runs(chosen, counts(asked.cases), Path(root), asked.seed)
        for one in every:
            found.append(one)
            if one.outcome not in GOOD or asked.number is not None:
                print(f"{one.family} {one.number}: {one.outcome}: {one.what!r}\n    {one.detail!r}", flush=True)
    seconds = time.monotonic() - began
    table = "\n".join(rows(found))
    print(table)
    print(f"{len(found)} cases in {seconds:.0f} s")
    if asked.table:
        note = f"{len(found):,} cases of seed {asked.seed} in {seconds / 60:.0f} minutes on one core."
        write(asked.table, f"{table}\n\n{note}")
    return int(any(one.outcome not in GOOD for one in found))


def rows(found: Sequence[object]) -> list[str]:
    """The table in markdown."""
    from tests.fuzz.cases import Found, Outcome

    ones = [one for one in found if isinstance(one, Found)]
    names = dict.fromkeys(one.family for one in ones)
    counted = Counter((one.family, one.outcome) for one in ones)
    lines = ["| family | cases | " + " | ".join(Outcome) + " |", "|---" * (2 + len(Outcome)) + "|"]
    for name in (*names, "all"):
        row = [sum(counted[each, outcome] for each in ([name] if name != "all" else names)) for outcome in Outcome]
        lines.append(f"| {name} | {sum(row):,} | " + " | ".join(f"{count:,}" for count in row) + " |")
    return lines


def write(document: Path, text: str) -> None:
    """Put the text between the marks of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
