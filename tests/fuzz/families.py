"""All families, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz import calls, commands, folders, inputs, records
from tests.fuzz.cases import Family, Found, run
from tests.fuzz.kit import Kit

FAMILIES: tuple[Family, ...] = (
    Family(name="options", case=commands.options, share=1500),
    Family(name="paths", case=commands.paths, share=700),
    *(Family(name=name, case=folders.config(name), share=250) for name in folders.CONFIGS),
    Family(name="weights header", case=folders.header, share=300),
    Family(name="weights numbers", case=folders.numbers, share=150),
    Family(name="weights index", case=folders.shard_index, share=200),
    Family(name="pickles", case=folders.pickles, share=300),
    Family(name="decoys", case=folders.decoys, share=100),
    Family(name="adapters", case=folders.loras, share=300),
    Family(name="text cache", case=folders.text_cache, share=200),
    Family(name="takes", case=records.takes, share=500),
    Family(name="latents", case=records.latents, share=400),
    Family(name="prepare goes on", case=records.preparing, share=100),
    Family(name="checkpoints", case=records.checkpoints, share=300),
    Family(name="runs go on", case=records.resuming, share=60),
    Family(name="metrics", case=records.metrics, share=200),
    Family(name="results", case=records.results, share=300),
    Family(name="comments", case=records.comments, share=150),
    Family(name="prompt files", case=inputs.prompt_files, share=350),
    Family(name="captions", case=inputs.captions, share=250),
    Family(name="pictures", case=inputs.pictures, share=200),
    Family(name="videos", case=inputs.videos, share=300),
    Family(name="prompts", case=inputs.prompts, share=350),
    Family(name="parsers", case=inputs.parsing, share=300),
    Family(name="calls", case=calls.api, share=650),
    Family(name="plans", case=calls.plans, share=700),
    Family(name="names", case=calls.names, share=150),
    Family(name="settings", case=calls.numbers, share=300),
)
"""What is fuzzed; the shares sum up to about 10,000."""


def counts(cases: int) -> dict[str, int]:
    """How many of so many cases are of each family, at least one, and no fewer together."""
    whole = sum(family.share for family in FAMILIES)
    return {family.name: max(1, -(-cases * family.share // whole)) for family in FAMILIES}


def runs(families: Sequence[Family], cases: dict[str, int], root: Path, seed: int = 0) -> Iterator[Found]:
    """Run the cases of some families, one after the other."""
    kit = Kit(root)
    for family in families:
        for number in range(cases[family.name]):
            yield run(family, number, kit, seed)
