"""The records of chapter 05: the lengths of both averages, and a run guided by its own past.

``ema_lengths``  guided samples against the lengths of both averages
``early_guide``  the main model guided by an average of its own run after an eighth of it
"""

from __future__ import annotations

from guidance_edu.guidance import Guided
from guidance_edu.samplers import noise_levels, sample
from guidance_edu.settings import device, generator
from toy_models.snapshots import averaged, train_with_snapshots
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.tree_quality import quality
from toy_models.tree import own_tree

WIDTHS = [0.015, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25]


@sweep(
    "ema_lengths",
    seeds=(1000, 2000, 3000),
    settings=grid(main=WIDTHS, w=[1.0], guide=[0.05]) + grid(main=WIDTHS, w=[2.0], guide=WIDTHS),
)
def ema_lengths(main: float, w: float, guide: float) -> dict[str, float]:
    """Shares outside and astray, and distance of branch shares, for widths of main and guide."""
    start = own_tree().mixture("A").sample(8192, generator(51), sigma=5.0).float().to(device())
    model = averaged(*train_with_snapshots("tree-main"), main)
    if w != 1:
        model = Guided(model, averaged(*train_with_snapshots("tree-guide"), guide), w)
    x = sample(model, start, noise_levels(32, sigma_max=5.0)).cpu()
    return quality(x)


@sweep("early_guide", seeds=(1000, 2000, 3000, 4000), settings=[{"w": w} for w in (1.0, 2.0, 3.0)])
def early_guide(w: float) -> dict[str, float]:
    """Shares outside and astray of the main model, guided by its own early average."""
    start = own_tree().mixture("A").sample(8192, generator(51), sigma=5.0).float().to(device())
    last, snapshots = train_with_snapshots("tree-main")
    early = averaged(last, snapshots, 0.05, max(s.updates for s in snapshots) // 8)
    model = Guided(averaged(last, snapshots, 0.03), early, w)
    return quality(sample(model, start, noise_levels(32, sigma_max=5.0)).cpu())
