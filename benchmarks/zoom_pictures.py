"""Pictures of zooms into test slides: found lesions of each stratum, and the positive slide with the lowest score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from learning import ArmResult, World

from magnet.regions import to_level0
from magnet.zoom import MagNet
from ray_jobs.scoring.evidence import to_layers
from ray_jobs.scoring.rows import score_slides
from service.cohort.manifest import Slide
from service.cohort.outlines import MIN_HIT_COVERAGE, measure_coverage
from service.results.zoom_tree import draw_zoom_tree
from service.settings.score import ZoomSettings


def draw_zooms(model: MagNet, world: World, judged: ArmResult, folder: Path) -> list[Path]:
    """Write the zoom tree of each selected slide as ``zoom_KIND.jpg``.

    Args:
        model: trained network.
        world: world of the slides.
        judged: results of the network on the test slides.
        folder: folder for the pictures.

    Returns:
        Paths of the pictures.
    """
    paths = []
    for kind, slide in select_slides(world.test, judged).items():
        [scored] = score_slides(model, [slide], world.reader, ZoomSettings(gate=None), keep_views=True)
        assert scored.zoomed is not None
        assert scored.opened.batch is not None
        trace, info = scored.zoomed.trace, scored.opened.batch.info[0]
        mpp = None if info.mpp_xy is None else float(np.mean(info.mpp_xy))
        share = measure_coverage(to_level0(trace.regions[-1][0], info.size_px), world.lesions.get(slide.slide_id))
        hits = [str(n + 1) for n in np.flatnonzero(share >= MIN_HIT_COVERAGE)]
        picture = draw_zoom_tree(
            to_layers(trace, info, mpp),
            scored.row["running"],
            model.config.zoom.schedule,
            title=f"{slide.slide_id}: {slide.stratum}, probability {scored.row['probability']:.3f}",
            note=f"Patches on the lesion: {', '.join(hits) or 'none'}",
        )
        paths.append(folder / f"zoom_{kind}.jpg")
        paths[-1].write_bytes(picture)
    return paths


def select_slides(slides: tuple[Slide, ...], judged: ArmResult) -> dict[str, Slide]:
    """Return the slides to show, by kind.

    They are, of each stratum, the slide with the median score among those whose lesion was found, and the positive
    slide with the lowest score.
    """
    places: dict[str, int] = {}
    for stratum in sorted({s for s, y in zip(judged.strata, judged.labels, strict=True) if y}):
        hits = [n for n, hit in enumerate(judged.hits) if hit and judged.strata[n] == stratum]
        if hits:
            places[f"{stratum}_found"] = sorted(hits, key=lambda n: judged.scores[n])[len(hits) // 2]
    positives = [n for n, label in enumerate(judged.labels) if label]
    places["gone_wrong"] = min(positives, key=lambda n: judged.scores[n])
    return {kind: slides[n] for kind, n in places.items()}
