"""Zooms through held-out slides as pictures: a large lesion that was found, a small one, and a zoom that went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from learning import Judged, World

from magnet.regions import to_level0
from magnet.zoom import MagNet
from ray_jobs.scoring.evidence import layers_of
from ray_jobs.scoring.rows import score_slides
from service.cohort.manifest import Slide
from service.cohort.outlines import HIT, covered
from service.results.zoom_tree import zoom_tree_picture
from service.settings.score import ZoomSettings


def draw_zooms(model: MagNet, world: World, judged: Judged, folder: Path) -> list[Path]:
    """Write a zoom tree of each chosen slide as ``zoom_KIND.jpg``; the paths.

    Args:
        model: trained.
        world: of the slides.
        judged: how the model did on them.
        folder: where to.
    """
    paths = []
    for kind, slide in chosen(world.test, judged).items():
        [scored] = score_slides(model, [slide], world.reader, ZoomSettings(gate=None), keep_views=True)
        assert scored.zoomed is not None
        assert scored.batch is not None
        trace, info = scored.zoomed.trace, scored.batch.info[0]
        mpp = None if info.mpp_xy is None else float(np.mean(info.mpp_xy))
        share = covered(to_level0(trace.regions[-1][0], info.size_px), world.lesions.get(slide.slide_id))
        found = [str(n + 1) for n in np.flatnonzero(share >= HIT)]
        picture = zoom_tree_picture(
            layers_of(trace, info, mpp),
            scored.row["running"],
            model.config.zoom.schedule,
            title=f"{slide.slide_id}: {slide.stratum}, probability {scored.row['probability']:.3f}",
            note=f"Patches on the lesion: {', '.join(found) or 'none'}",
        )
        paths.append(folder / f"zoom_{kind}.jpg")
        paths[-1].write_bytes(picture)
    return paths


def chosen(slides: tuple[Slide, ...], judged: Judged) -> dict[str, Slide]:
    """The slides to show: of each stratum the found lesion with the median score, and the positive slide that scores
    lowest."""
    places: dict[str, int] = {}
    for stratum in sorted({s for s, y in zip(judged.strata, judged.labels, strict=True) if y}):
        found = [n for n, hit in enumerate(judged.hits) if hit and judged.strata[n] == stratum]
        if found:
            places[f"{stratum}_found"] = sorted(found, key=lambda n: judged.scores[n])[len(found) // 2]
    positives = [n for n, label in enumerate(judged.labels) if label]
    places["gone_wrong"] = min(positives, key=lambda n: judged.scores[n])
    return {kind: slides[n] for kind, n in places.items()}
