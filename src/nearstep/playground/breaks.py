"""Deliberate mistakes: each spoils real clips in one way, so that a judge shows what it sees.

A break draws a scene wrongly, or spoils its picture; it applies to the scenes for which that makes sense. Beside it
stands what it should lower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nearstep import rng
from nearstep.playground.paths import RATES
from nearstep.playground.places import PLACES
from nearstep.playground.relations import OVERLAPS
from nearstep.playground.sprites import THINGS
from nearstep.playground.world import SIZES, Actor, Scene, WorldConfig, render


@dataclass(frozen=True)
class Break:
    """One kind of mistake."""

    spoil: Callable[[WorldConfig, Scene], Tensor | None]
    """The scene's clip [T, 3, H, W], spoilt; None where the mistake makes no sense."""
    lowers: tuple[str, ...]
    """The attributes and figures that it should lower."""
    keeps: tuple[str, ...] = ()
    """Those that it must not lower, though it comes near."""


def spoiled(which: Break, config: WorldConfig, scenes: Sequence[Scene]) -> tuple[list[int], Tensor]:
    """The scenes that the break applies to, by number, and their clips [B, T, 3, H, W]."""
    clips = [(row, clip) for row, scene in enumerate(scenes) if (clip := which.spoil(config, scene)) is not None]
    size = (0, config.frames, 3, config.size, config.size)
    return [row for row, _ in clips], torch.stack([clip for _, clip in clips]) if clips else torch.zeros(size)


def _drawn(config: WorldConfig, scene: Scene) -> Tensor:
    return render(config, [scene])[0]


def _with(scene: Scene, index: int, **changes: object) -> Scene:
    actors = list(scene.actors)
    actors[index] = replace(actors[index], **changes)  # pyright: ignore[reportArgumentType]
    return replace(scene, actors=tuple(actors))


def _after(name: str, names: Sequence[str], step: int = 1) -> str:
    return names[(names.index(name) + step) % len(names)]


def _halves(first: Tensor, second: Tensor) -> Tensor:
    half = len(first) // 2
    return torch.cat([first[:half], second[half:]])


# --- scenes drawn wrongly -------------------------------------------------------------------------------------------


def _another_thing(config: WorldConfig, scene: Scene) -> Tensor:
    return _drawn(config, _with(scene, 0, thing=_after(scene.actors[0].thing, config.names)))


def _another_of_its_kind(config: WorldConfig, scene: Scene) -> Tensor:
    kind = [name for name in config.names if THINGS[name].category == THINGS[scene.actors[0].thing].category]
    return _drawn(config, _with(scene, 0, thing=_after(scene.actors[0].thing, kind)))


def _another_size(config: WorldConfig, scene: Scene) -> Tensor:
    actor = scene.actors[0]
    factor = SIZES[_after(actor.size, tuple(SIZES))] / SIZES[actor.size]
    return _drawn(config, _with(scene, 0, side=actor.side * factor))


def _backwards(config: WorldConfig, scene: Scene) -> Tensor | None:
    turning = all(actor.motion in ("slide", "orbit") for actor in scene.actors)
    return _drawn(config, scene).flip(0) if turning else None


def _half_as_fast(config: WorldConfig, scene: Scene) -> Tensor | None:
    actor = scene.actors[0]
    if actor.speed != "fast" or actor.motion not in ("slide", "orbit", "swing"):
        return None
    return _drawn(config, _slowed(scene, 0.5))


def _a_fifth_slower(config: WorldConfig, scene: Scene) -> Tensor | None:
    actor = scene.actors[0]
    if actor.motion not in ("slide", "orbit", "swing") or actor.speed is None:
        return None
    slower = 0.8 * RATES[actor.motion][actor.speed] / abs(actor.track.rate)
    return _drawn(config, _slowed(scene, slower))


def _slowed(scene: Scene, factor: float) -> Scene:
    track = scene.actors[0].track
    return _with(scene, 0, track=replace(track, rate=factor * track.rate))


def _another_place(config: WorldConfig, scene: Scene) -> Tensor:
    return _drawn(config, replace(scene, place=_after(scene.place, PLACES)))


def _frozen(config: WorldConfig, scene: Scene) -> Tensor | None:
    if all(actor.motion == "rest" for actor in scene.actors):
        return None
    return _drawn(config, scene)[:1].expand(config.frames, -1, -1, -1)


def _one_missing(config: WorldConfig, scene: Scene) -> Tensor | None:
    if len(scene.actors) < 2:
        return None
    return _drawn(config, replace(scene, actors=scene.actors[:1], relation=None))


def _one_too_many(config: WorldConfig, scene: Scene) -> Tensor:
    # At the point reflection of the first thing, so that the two do not lie on each other all the time.
    first, taken = scene.actors[0], [actor.thing for actor in scene.actors]
    other = next(name for name in config.names if name not in taken)
    x, y = first.track.anchor
    rest = replace(first.track, motion="rest", anchor=(1 - x, 1 - y), rate=0.0)
    return _over(config, scene, replace(first, thing=other, track=rest))


def _over(config: WorldConfig, scene: Scene, actor: Actor) -> Tensor:
    # The scene with one more thing in front, whatever the scene allows: drawn alone on both, where it covers.
    bare = replace(scene, actors=(), relation=None)
    alone = replace(scene, actors=(actor,), relation=None)
    clip, ground = _drawn(config, scene), _drawn(config, bare)
    there = (_drawn(config, alone) - ground).abs().sum(dim=1, keepdim=True) > 0.02
    return torch.where(there, _drawn(config, alone), clip)


def _order_swapped(config: WorldConfig, scene: Scene) -> Tensor | None:
    if scene.relation not in OVERLAPS:
        return None
    return _drawn(config, replace(scene, relation=_after(scene.relation, OVERLAPS)))


def _things_swapped(config: WorldConfig, scene: Scene) -> Tensor | None:
    if len(scene.actors) < 2:
        return None
    one, two = scene.actors
    said = [(actor.size, actor.motion, actor.direction, actor.speed) for actor in scene.actors]
    if said[0] == said[1]:
        return None
    return _drawn(config, replace(scene, actors=(replace(one, thing=two.thing), replace(two, thing=one.thing))))


def _turning_into_another(config: WorldConfig, scene: Scene) -> Tensor:
    other = _with(scene, 0, thing=_after(scene.actors[0].thing, config.names))
    return _halves(_drawn(config, scene), _drawn(config, other))


def _vanishing(config: WorldConfig, scene: Scene) -> Tensor:
    return _halves(_drawn(config, scene), _drawn(config, replace(scene, actors=scene.actors[1:], relation=None)))


def _another_texture(config: WorldConfig, scene: Scene) -> Tensor:
    return _halves(_drawn(config, scene), _drawn(config, replace(scene, texture=scene.texture + 1)))


def _trembling(config: WorldConfig, scene: Scene) -> Tensor:
    away = torch.randn(config.frames, 2, generator=rng.generator("trembling", scene.texture)) * 1.5 / 64
    frames = []
    for index, (x, y) in enumerate(away.tolist()):
        track = scene.actors[0].track
        moved = replace(track, anchor=(track.anchor[0] + x, track.anchor[1] + y))
        frames.append(render(config, [_with(scene, 0, track=moved)], frames=1, first=index)[0])
    return torch.cat(frames)


# --- pictures spoilt --------------------------------------------------------------------------------------------------


def blurred(video: Tensor, width: float) -> Tensor:
    """Frames [T, 3, H, W] under a Gaussian of this many pixels."""
    reach = max(1, round(3 * width))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width).square())
    line = (line / line.sum()).view(1, 1, 1, -1)
    wide = F.pad(video.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, line), line.mT)[:, 0].view_as(video)


def noised(video: Tensor, spread: float, *names: int | str) -> Tensor:
    """Frames with Gaussian noise of this deviation, named."""
    return (video + spread * torch.randn(video.shape, generator=rng.generator("broken clips", *names))).clamp(0.0, 1.0)


def _blurred(config: WorldConfig, scene: Scene) -> Tensor:
    return blurred(_drawn(config, scene), config.size / 64)


def _blurred_first(config: WorldConfig, scene: Scene) -> Tensor:
    clip = _drawn(config, scene)
    return torch.cat([blurred(clip[:1], 1.5 * config.size / 64), clip[1:]])


def _noisy(config: WorldConfig, scene: Scene) -> Tensor:
    return noised(_drawn(config, scene), 0.1, scene.texture)


def _flickering(config: WorldConfig, scene: Scene) -> Tensor:
    light = torch.randn(config.frames, 1, 1, 1, generator=rng.generator("flicker", scene.texture))
    return (_drawn(config, scene) + 0.05 * light).clamp(0.0, 1.0)


def _blotched(config: WorldConfig, scene: Scene) -> Tensor:
    # Patches of wrong colour on the things alone, as of a network that has not learnt how they look.
    clip = _drawn(config, scene)
    there = (clip - _drawn(config, replace(scene, actors=(), relation=None))).abs().sum(dim=1, keepdim=True) > 0.02
    coarse = torch.randn(1, 3, 8, 8, generator=rng.generator("blotches", scene.texture))
    return clip + 0.2 * there * F.interpolate(coarse, size=(config.size, config.size), mode="bilinear")


def _decaying(config: WorldConfig, scene: Scene) -> Tensor:
    clip = _drawn(config, scene)
    grows = torch.linspace(0.0, 1.0, len(clip)).square()[:, None, None, None]
    return torch.lerp(clip, noised(blurred(clip, 2.0 * config.size / 64), 0.15, scene.texture), grows)


BREAKS: dict[str, Break] = {
    "another thing": Break(_another_thing, ("thing", "category")),
    "another of its kind": Break(_another_of_its_kind, ("thing",)),
    "another size": Break(_another_size, ("size",)),
    "played backwards": Break(_backwards, ("direction",)),
    "half as fast": Break(_half_as_fast, ("speed", "pace")),
    "a fifth slower": Break(_a_fifth_slower, ("pace",)),
    "frozen": Break(_frozen, ("motion", "dynamic")),
    "another place": Break(_another_place, ("place",)),
    "one missing": Break(_one_missing, ("count",)),
    "one too many": Break(_one_too_many, ("count",)),
    "order swapped": Break(_order_swapped, ("relation",)),
    "things swapped": Break(_things_swapped, ("binding",)),
    "turning into another": Break(_turning_into_another, ("identity",)),
    "vanishing": Break(_vanishing, ("count",)),
    "another texture": Break(_another_texture, ("keeping",)),
    "trembling": Break(_trembling, ("smoothness",)),
    "blurred": Break(_blurred, ("sharpness", "first sharpness")),
    "blurred first frame": Break(_blurred_first, ("first sharpness",)),
    "blotched": Break(_blotched, ("fidelity", "identity"), keeps=("count", "thing")),
    "noisy": Break(_noisy, ("fidelity", "steadiness")),
    "flickering": Break(_flickering, ("steadiness",)),
    "decaying": Break(_decaying, ("constancy",)),
}
"""Name -> mistake."""
