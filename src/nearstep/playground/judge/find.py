"""Finds the things of a clip: the one that explains most, then a second one before or behind it.

Each is named by the matched filters summed over frames, followed through all frames, and fitted; then the two are
fitted in turn, each given the other, and the backdrop is taken anew from what neither covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.playground.judge.bank import Bank, View, gains, make_bank, peak
from nearstep.playground.judge.fit import Fit, fit
from nearstep.playground.judge.scenery import Scenery, fill, find_scenery
from nearstep.playground.world import WorldConfig

_EVERY = 8
"""Frames among which things are named."""
_LEAST_SHARE = 0.15
"""Part of its own energy that a thing must explain to be one."""
_LEAST_GAIN = 1.2
"""Squared error a frame that it must explain, on a picture of 64 x 64; the faintest real thing explains 2, and what is
left over after real things is explained by a thing too many to .2."""
_COVERED = 0.02
"""Part of a pixel that a thing must cover to touch it."""
_BARE = 0.98
"""Part of a pixel that must be bare to tell the backdrop."""
_LEAST_BARE = 2
"""Frames in which it must be."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What was found in each clip."""

    scenery: Scenery
    things: tuple[Fit, Fit]
    """Whatever fits best first and second; whether they are there, ``present`` tells."""
    present: Bool[Tensor, "B 2"]
    first_in_front: Bool[Tensor, " B"]
    redrawn: Float[Tensor, "B T 3 H W"]
    """The clip as it should look."""
    bare: Float[Tensor, "B T 1 H W"]
    """Part of each pixel that no thing covers."""

    @cached_property
    def near(self) -> Float[Tensor, "B T 1 H W"]:
        """1 within two pixels (of a frame of 64) of what a thing covers, else 0."""
        width = 4 * max(1, round(self.bare.shape[-1] / 64)) + 1
        wide = F.max_pool2d(1 - self.bare.flatten(0, 1), width, stride=1, padding=width // 2)
        return (wide > _COVERED).float().view_as(self.bare)


def look(video: Float[Tensor, "B T 3 H W"], config: WorldConfig) -> Sight:
    """Find the things of each clip."""
    bank = make_bank(config)
    scenery = find_scenery(video)
    behind = scenery.backdrop[:, None].expand_as(video)
    open_view = View(picture=video, behind=behind, through=torch.ones_like(video[:, :, :1]))
    first = _find(open_view, bank)
    second, first_in_front = _find_other(video, behind, first, bank)
    present = torch.stack([_is_there(first, video), _is_there(second, video)], dim=1)
    present[:, 1] &= present[:, 0]
    pair = present[:, 1].nonzero()[:, 0]
    if len(pair):
        # The first was named while the second still was a part of its surroundings: name it again.
        renamed, _ = _find_other(video[pair], behind[pair], second.rows(pair), bank)
        found = _refit_pair(video[pair], behind[pair], renamed, second.rows(pair))
        first, second = first.put(pair, found[0]), second.put(pair, found[1])
        first_in_front = first_in_front.index_put((pair,), found[2])
    layers = [fit.layer(video.shape[-1]).spread(video.shape[-1]) for fit in (first, second)]
    layers = [layer * there[:, None, None, None, None] for layer, there in zip(layers, present.T.float(), strict=True)]
    bare = (1 - layers[0][:, :, 3:]) * (1 - layers[1][:, :, 3:])
    backdrop = _bare_backdrop(video, bare, scenery)
    scenery = Scenery(place=scenery.place, likely=scenery.likely, backdrop=backdrop)
    redrawn = _draw(backdrop, layers, first_in_front)
    return Sight(
        scenery=scenery,
        things=(first, second),
        present=present,
        first_in_front=first_in_front,
        redrawn=redrawn,
        bare=bare,
    )


def _find(view: View, bank: Bank) -> Fit:
    # The filter with the largest gain over the sparse frames, followed through all of them.
    sparse = gains(view.frames(_EVERY), bank).flatten(3).amax(dim=3).sum(dim=1)
    return _follow(view, bank, sparse.argmax(dim=1))


def _follow(view: View, bank: Bank, chosen: Tensor) -> Fit:
    return fit(view, bank.thing[chosen], peak(gains(view, bank, chosen)[:, :, 0]), bank.side[chosen], iterations=5)


def _find_other(video: Tensor, behind: Tensor, known: Fit, bank: Bank) -> tuple[Fit, Tensor]:
    # A thing before or behind the known one, whichever explains more; and whether the known one is in front.
    over, under = _views(video, behind, known)
    sparse = torch.stack(
        [gains(view.frames(_EVERY), bank).flatten(3).amax(dim=3).sum(dim=1) for view in (over, under)]
    )  # [2, B, N]
    best, chosen = sparse.max(dim=2)
    hides = best[1] > best[0]
    return _follow(_choose(over, under, hides), bank, torch.where(hides, chosen[1], chosen[0])), hides


def _choose(over: View, under: View, behind: Tensor) -> View:
    pick = behind[:, None, None, None, None]
    return View(
        picture=torch.where(pick, under.picture, over.picture),
        behind=torch.where(pick, under.behind, over.behind),
        through=torch.where(pick, under.through, over.through),
    )


def _views(video: Tensor, behind: Tensor, other: Fit) -> tuple[View, View]:
    # What a thing before, and one behind, the ``other`` has to explain.
    layer = other.layer(video.shape[-1]).spread(video.shape[-1])
    colour, through = layer[:, :, :3], 1 - layer[:, :, 3:]
    over = View(picture=video, behind=colour + through * behind, through=torch.ones_like(through))
    return over, View(picture=video - colour, behind=behind, through=through)


def _is_there(found: Fit, video: Tensor) -> Tensor:
    gain, energy = found.gain.sum(dim=1), found.energy.sum(dim=1)
    scale = (video.shape[-1] / 64) ** 2 * video.shape[1]
    return (gain > _LEAST_SHARE * energy) & (gain > _LEAST_GAIN * scale)


def _refit_pair(video: Tensor, behind: Tensor, first: Fit, second: Fit) -> tuple[Fit, Fit, Tensor]:
    # Both orders, each thing given the other; the better one of the two.
    results = []
    for first_in_front in (True, False):
        one, two = first, second
        for _ in range(2):
            one = _again(_views(video, behind, two)[0 if first_in_front else 1], one)
            two = _again(_views(video, behind, one)[1 if first_in_front else 0], two)
        error = _error(video, behind, one, two, first_in_front)
        results.append((one, two, error))
    (one, two, error), (other_one, other_two, other_error) = results
    swap = (other_error < error).nonzero()[:, 0]
    one, two = one.put(swap, other_one.rows(swap)), two.put(swap, other_two.rows(swap))
    return one, two, error <= other_error


def _again(view: View, found: Fit) -> Fit:
    return fit(view, found.thing, found.centre, found.side, iterations=2)


def _error(video: Tensor, behind: Tensor, one: Fit, two: Fit, first_in_front: bool) -> Tensor:
    layers = [fit.layer(video.shape[-1]).spread(video.shape[-1]) for fit in (one, two)]
    front = torch.full((len(video),), first_in_front)
    return (video - _compose(behind, layers, front)).square().sum(dim=(1, 2, 3, 4))


def _compose(behind: Tensor, layers: list[Tensor], first_in_front: Tensor) -> Tensor:
    pick = first_in_front[:, None, None, None, None]
    rear, front = torch.where(pick, layers[1], layers[0]), torch.where(pick, layers[0], layers[1])
    picture = rear[:, :, :3] + (1 - rear[:, :, 3:]) * behind
    return front[:, :, :3] + (1 - front[:, :, 3:]) * picture


def _draw(backdrop: Tensor, layers: list[Tensor], first_in_front: Tensor) -> Tensor:
    return _compose(backdrop[:, None].expand(-1, layers[0].shape[1], -1, -1, -1), layers, first_in_front)


def _bare_backdrop(video: Tensor, bare: Tensor, scenery: Scenery) -> Tensor:
    # Mean of what is bare over time; where nothing ever is, what is known around.
    weight = (bare >= _BARE).float()
    seen = weight.sum(dim=1)
    mean = (video * weight).sum(dim=1) / seen.clamp(min=1)
    return fill(mean, (seen >= _LEAST_BARE)[:, 0], scenery.likely)
