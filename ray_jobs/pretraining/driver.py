"""The loop of a pretraining without labels: random regions of tissue, two views of each, one optimizer step.

Regions and views are a function of (seed, step) and do not depend on the number of threads. It runs in one process,
with or without a cluster: a small encoder takes minutes on one core.

Shapes: N regions of a step, C H W pixels.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from magnet.config import ModelConfig, ZoomConfig
from magnet.encoder import Encoder, make_encoder
from magnet.pretraining import (
    blur,
    contrastive_loss,
    crop,
    draw_regions,
    make_projection,
    patch_scale_range,
    restain,
    turn,
)
from magnet.regions import ROOT, Floats
from magnet.sampler import MARGIN_PX, sample
from magnet.views import area_pool, grey_filter, tissue_mask
from magnet.windows import WindowRequest, Windows
from ray_jobs.models.network_check import network_errors
from ray_jobs.training.input.seeds import derive_step_seed
from ray_jobs.training.learner import NotFiniteError, autocast
from ray_jobs.training.record.progress import REPORT_EVERY_S, print_line
from service import storage
from service.cohort.manifest import Slide
from service.errors import UsageError
from service.settings.train import TrainSettings
from service.slides.reader import RegionReader, SlideBatch

LEARNING_RATE = 1e-3
"""Initial learning rate of Adam; it decreases to zero on a cosine."""
SLIDES_PER_STEP = 16
"""Most slides that the regions of a step come from: few, so that the stain does not identify the partner of a view."""
READ_AHEAD = 2
"""Steps whose windows are read while an earlier one is computed."""

AfterStep = Callable[[int, float, float], None]
"""Is called with the number of steps done, the loss of the last step and the share of partners found in it."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The length of a pretraining: a number of steps, which can be repeated exactly, or a time."""

    steps: int | None = None
    """Number of steps; None: the time counts."""
    minutes: float = 5.0
    """Wall time in minutes; not used if there are `steps`."""

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return the share done, 0 to 1; above 1 where the time has passed.

        Args:
            step: number of steps done.
            elapsed_s: seconds since the start.
        """
        return elapsed_s / (60 * self.minutes) if self.steps is None else step / self.steps


class TissueRegions:
    """Random regions on the tissue of a cohort, as windows of pixels.

    Args:
        slides: slides of the cohort; their labels are not used.
        reader: reads their pixels.
        config: configuration of the network; the regions are as large as its last patches.
        batch: regions per step.
        seed: seed of the random regions.
    """

    def __init__(
        self, slides: Sequence[Slide], reader: RegionReader, config: ModelConfig, *, batch: int, seed: int
    ) -> None:
        self._uris = [slide.uri for slide in slides]
        self._reader, self._config, self._batch, self._seed = reader, config, batch, seed
        self._tissue: dict[str, NDArray[np.bool_]] = {}

    def read(self, step: int) -> tuple[Floats, Windows]:
        """Read the regions of a step.

        Args:
            step: number of the step, from 0.

        Returns:
            Regions (N, 3) in root coordinates, and their windows.

        Raises:
            UsageError: no slide of the step shows tissue.
            MagnetError: a slide cannot be read.
        """
        rng = np.random.default_rng([self._seed, step])
        drawn = rng.choice(len(self._uris), min(SLIDES_PER_STEP, len(self._uris)), replace=False)
        opened = self._reader.batch([self._uris[n] for n in drawn])
        tissue = self._tissue_of(opened)
        with_tissue = [b for b, mask in enumerate(tissue) if mask.any()]
        if not with_tissue:
            raise UsageError(
                f"no tissue on any of {len(tissue)} slides, such as {opened.info[0].uri}; look at their thumbnails: "
                "tissue must be coloured and darker than glass"
            )
        slide = np.sort(np.resize(with_tissue, self._batch))  # sorted, since regions are drawn slide by slide
        region = np.concatenate(
            [
                draw_regions(
                    tissue[b], patch_scale_range(self._config, opened.side_px[b]), int((slide == b).sum()), rng
                )
                for b in np.unique(slide)
            ]
        )
        zoom = self._config.zoom
        return region, opened.fetch(WindowRequest(zoom.num_layers, slide, region, zoom.patch_px, MARGIN_PX["bilinear"]))

    def _tissue_of(self, opened: SlideBatch) -> list[NDArray[np.bool_]]:
        """Return the tissue masks of the root views; each slide is read once and then kept."""
        uris = [info.uri for info in opened.info]
        new = [b for b, uri in enumerate(uris) if uri not in self._tissue]
        if new:
            roots = np.tile(ROOT, (len(new), 1))
            zoom, margin_px = self._config.zoom, MARGIN_PX["bilinear"]
            windows = opened.fetch(WindowRequest(0, np.array(new), roots, zoom.view_px, margin_px))
            view = sample(_pixels(windows), torch.from_numpy(windows.place), torch.from_numpy(roots), zoom.view_px)
            masks = tissue_mask(area_pool(view, zoom.map_px)).numpy()
            self._tissue |= {uris[b]: mask for b, mask in zip(new, masks, strict=True)}
        return [self._tissue[uri] for uri in uris]


def pretrain(
    settings: TrainSettings,
    slides: Sequence[Slide],
    reader: RegionReader,
    budget: Budget,
    *,
    batch: int,
    after_step: AfterStep | None = None,
) -> Encoder:
    """Pretrain the encoder of a training with these settings.

    Args:
        settings: settings of the training; used are the encoder, its initial weights and the patches of `model`, and
            seed and precision of `recipe`.
        slides: slides whose tissue is used.
        reader: reads their pixels.
        budget: length of the pretraining.
        batch: regions per step.
        after_step: called after each step.

    Returns:
        The encoder, in training mode.

    Raises:
        NotFiniteError: the loss is not finite.
    """
    seed, zoom = settings.recipe.seed, settings.model.zoom
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = _make_encoder(settings.model).to(device).train()
    project = make_projection(encoder.num_features).to(device).train()
    optimizer = torch.optim.Adam([*encoder.parameters(), *project.parameters()], lr=LEARNING_RATE)
    regions = TissueRegions(slides, reader, settings.model, batch=batch, seed=seed)
    began_s = time.perf_counter()
    for step, (region_N3, windows) in enumerate(_read_ahead(regions.read)):
        progress = budget.progress(step, time.perf_counter() - began_s)
        if progress >= 1:
            break
        generator = torch.Generator().manual_seed(derive_step_seed(seed, step))
        # One generator for both views: they differ, and still follow from seed and step.
        first, second = (_random_view(region_N3, windows, zoom, generator, device) for _ in range(2))
        with autocast(settings.recipe.precision, device):
            # In one pass, so that batch normalisation sees both views of all regions.
            projected = project(encoder(torch.cat([first, second])))
        result = contrastive_loss(*projected.chunk(2))
        # Before the backward pass, so that the weights stay as they were before the step.
        if not math.isfinite(loss := result.loss.item()):
            raise NotFiniteError(f"step {step}: loss {loss}; the weights are as before this step")
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * progress)) / 2
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step(step + 1, loss, result.accuracy.item())
    return encoder


def save_weights(encoder: Encoder, out: str) -> str:
    """Write a file that `model.classifier.weights` can name.

    Args:
        encoder: encoder, without the projection.
        out: path or URI ending in ``.safetensors``.

    Returns:
        SHA-256 of the file.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.backbone.state_dict().items()}
    content = safetensors.torch.save(state)
    storage.write_bytes(out, content)
    return hashlib.sha256(content).hexdigest()


class ProgressReport:
    """Prints the progress of a pretraining at intervals; an `AfterStep`.

    Args:
        budget: length of the pretraining.
        batch: regions per step.
    """

    def __init__(self, budget: Budget, batch: int) -> None:
        self._budget, self._batch = budget, batch
        self._began_s = self._printed_s = time.perf_counter()
        self._since: list[tuple[float, float]] = []

    def __call__(self, step: int, loss: float, share_found: float) -> None:
        """Print the means over the steps since the last line, if it is time to, and at the end.

        Args:
            step: number of steps done.
            loss: loss of the last step.
            share_found: share of partners found in it, 0 to 1.
        """
        self._since.append((loss, share_found))
        now_s = time.perf_counter()
        share = self._budget.progress(step, now_s - self._began_s)
        if share < 1 and now_s - self._printed_s < REPORT_EVERY_S:
            return
        mean_loss, mean_found = np.mean(self._since, axis=0)
        rate = self._batch * len(self._since) / (now_s - self._printed_s)
        print_line(
            f"step {step}  {min(share, 1):.0%} done  loss {mean_loss:.3f} (chance {math.log(2 * self._batch - 1):.3f})"
            f"  partners found {mean_found:.1%}  {rate:.0f} regions/s"
        )
        self._printed_s, self._since = now_s, []


def _make_encoder(model: ModelConfig) -> Encoder:
    """Return the encoder of a training, with its initial weights."""
    parts = model.classifier
    with network_errors():
        return make_encoder(
            parts.encoder,
            weights=parts.weights,
            in_px=model.zoom.patch_px,
            sha256=parts.weights_sha256,
            fetch=storage.read_bytes,
            checkpointing=parts.checkpointing,
            channels_last=parts.channels_last,
            compile=parts.compile,
            to_be_loaded=parts.weights is None,  # random weights are meant here: no warning
        )


def _random_view(
    region_N3: Floats, windows: Windows, zoom: ZoomConfig, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Return a random view (N, C, H, W) in [0, 1] of each region, as a patch might look on another slide."""
    place_N4 = torch.from_numpy(windows.place).to(device)
    crop_N3 = crop(torch.from_numpy(region_N3), generator).to(device)
    view = sample(_pixels(windows).to(device), place_N4, crop_N3, zoom.patch_px)
    view = blur(restain(turn(view, generator), generator), generator)
    return view if zoom.grey_tolerance is None else grey_filter(view, zoom.grey_tolerance)


def _pixels(windows: Windows) -> Tensor:
    """Return the pixels of windows (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(windows.pixels).permute(0, 3, 1, 2).float() / 255


def _read_ahead(read: Callable[[int], tuple[Floats, Windows]]) -> Iterator[tuple[Floats, Windows]]:
    """Yield the results of `read` for 0, 1, 2, ..., without end; threads call it in advance."""
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="regions") as pool:
        coming = deque(pool.submit(read, step) for step in range(READ_AHEAD))
        for step in count(READ_AHEAD):
            yield coming.popleft().result()
            coming.append(pool.submit(read, step))
