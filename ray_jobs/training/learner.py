"""A model and what trains it: one optimizer step from a step's micro-batches, on one worker or on many.

A step's micro-batches are dealt out to the workers, their gradients summed, and every worker takes the same optimizer
step. Nothing here knows Ray; several workers are a torch process group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from magnet.config import RecipeConfig
from magnet.evidence import NegativeQuantile
from magnet.objective import objective
from magnet.windows import Fetch, WindowRequest, Windows, drive_many
from magnet.zoom import MagNet, Zoomed, ZoomOptions
from ray_jobs.training.group import gathered
from ray_jobs.training.quarantine import SlideLostError
from ray_jobs.training.running_statistics import RunningStatistics
from service.errors import StoppedError

Portion = tuple[int, NDArray[np.float64], Fetch, Tensor]
"""A micro-batch to zoom into: its number within the step, side of each slide's root square in level-0 pixels, what
answers the zoom, and labels (B,)."""

Mend = Callable[[int, SlideLostError], Portion | None]
"""Is told which micro-batch lost a slide, and gives it back without that slide; None if no slide is left."""


class NotFiniteError(StoppedError):
    """The loss or its gradient is not a number. Training stops before the optimizer takes it in."""


class TooLargeError(RuntimeError):
    """A worker's card has no room for a micro-batch. Raised on all workers alike, with the model as before the step."""


class Learner:
    """A model with its optimizer and its calibration on negative slides.

    Args:
        model: on its device.
        recipe: how it is trained.
        num_steps: of the whole training; learning rate and exploration follow `step / num_steps`.
        num_workers: of the process group; 1 needs none.
    """

    def __init__(self, model: MagNet, recipe: RecipeConfig, num_steps: int, num_workers: int = 1) -> None:
        self.model, self.recipe, self.num_steps, self.num_workers = model, recipe, num_steps, num_workers
        self.negatives = NegativeQuantile(recipe.value_quantile)
        self.optimizer = _adam(model, recipe)
        self.statistics = RunningStatistics(model, num_workers)

    def step(
        self, step: int, micro_batches: Sequence[Portion], pool: Executor, mend: Mend | None = None
    ) -> dict[str, float]:
        """One optimizer step.

        Args:
            step: its number.
            micro_batches: this worker's.
            pool: threads that fetch.
            mend: called when a fetch raises `SlideLostError`; its micro-batch is then zoomed into anew, after the
                others, with what is left of it. None: the error is raised.

        Returns:
            Sums over this worker's slides: `loss`, its parts, `slides`; and the gradient norms, the same everywhere.

        Raises:
            NotFiniteError, TooLargeError: before weights and optimizer were changed, on all workers alike.
        """
        self.model.train()
        self._set_learning_rates(step / self.num_steps)
        # Nothing here draws from it; an encoder with dropout would, and must not depend on what came before.
        torch.manual_seed(self.recipe.seed * 1_000_003 + step)
        sums: dict[str, float] = {"slides": 0.0}
        with self.statistics.of_one_step():
            found, too_large = self._gradients(self._zoomed(step, micro_batches, pool, mend), sums)
            loss, too_large = self._sum_gradients(sums.get("loss", 0.0), too_large)
            if too_large:
                self.optimizer.zero_grad(set_to_none=True)
                raise TooLargeError(f"step {step}: a micro-batch does not fit the memory of a worker's card")
            norms = self._clip()
            if not all(map(math.isfinite, (loss, *norms.values()))):  # both are sums over all workers, who thus agree
                self.optimizer.zero_grad(set_to_none=True)
                raise NotFiniteError(
                    f"step {step}: loss {loss}, gradient norms {norms}; the weights are as before this step"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._calibrate(found)
        return sums | norms

    def state_dict(self) -> dict[str, Any]:
        """All but the model's weights."""
        return {"optimizer": self.optimizer.state_dict(), "negatives": self.negatives.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.negatives.load_state_dict(state["negatives"])

    def _gradients(self, zooms: Iterator[tuple[Tensor, Zoomed]], sums: dict[str, float]) -> tuple[list[Tensor], bool]:
        """Add all micro-batches' gradients; patch logits of negative slides, and whether memory ran out.

        A function of its own so that a micro-batch that was too large is gone when it returns: what comes next, with
        the other workers waiting, takes memory too.
        """
        found = []
        try:
            with autocast(self.recipe.precision, self.model.device):
                for label_B, zoomed in zooms:
                    found.append(self._backward(zoomed, label_B.to(self.model.device), sums))
        except torch.OutOfMemoryError:  # not raised: the other workers wait for these gradients, and are told with them
            return found, True
        return found, False

    def _zoomed(
        self, step: int, portions: Sequence[Portion], pool: Executor, mend: Mend | None
    ) -> Iterator[tuple[Tensor, Zoomed]]:
        """Labels and zooms of micro-batches, those that lost a slide on the way last."""
        catch = SlideLostError if mend is not None else ()
        while portions:
            torn: list[tuple[int, SlideLostError]] = []
            zooms = (((i, label_B), self._zoom(step, i, sides), fetch) for i, sides, fetch, label_B in portions)
            for (index, label_B), end in drive_many(zooms, pool, self.model.config.zoom.num_in_flight, catch):
                if isinstance(end, SlideLostError):
                    torn.append((index, end))
                else:
                    yield label_B, end
            mended = [mend(*one) for one in torn] if mend is not None else []
            portions = [portion for portion in mended if portion is not None]

    def _zoom(self, step: int, index: int, side_px: NDArray[np.float64]) -> Generator[WindowRequest, Windows, Zoomed]:
        progress = step / self.num_steps
        # Random numbers depend on the micro-batch, not on who computes it or what was computed before.
        seed = (self.recipe.seed * 1_000_003 + step) * 1_009 + index
        options = ZoomOptions(
            exploration=self.recipe.exploration(progress),
            theta_gradient=self.recipe.theta_gradient_on(progress),
            generator=torch.Generator().manual_seed(seed),
        )
        return self.model.zoom(side_px, options)

    def _backward(self, zoomed: Zoomed, label_B: Tensor, sums: dict[str, float]) -> Tensor:
        """Add a micro-batch's gradients and losses; the patch logits of its negative slides."""
        threshold = float(self.negatives.value) if torch.isfinite(self.negatives.value) else None
        loss_B, parts = objective(zoomed, label_B, self.recipe, self.model.config.zoom, threshold)
        (loss_B.sum() / self.recipe.batch).backward()
        for name, part_B in {"loss": loss_B.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(part_B.sum())
        sums["slides"] += len(label_B)
        return torch.empty(0) if zoomed.patch_BN is None else zoomed.patch_BN.detach()[label_B == 0].flatten().cpu()

    def _set_learning_rates(self, progress: float) -> None:
        """Cosine from the initial rates to zero: a function of the progress alone. Source: the paper, section 4.3."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * progress)) / 2

    def _sum_gradients(self, loss: float, too_large: bool) -> tuple[float, bool]:
        """Sum every worker's gradients, each loss was divided by the whole step's batch already.

        Returns the losses' sum, and whether any worker ran out of memory.

        One flat all-reduce per step instead of DistributedDataParallel: its hooks expect one backward after each
        forward, here several zooms are in flight; and a worker without a micro-batch takes part with zeros.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # zeros on one worker too: the optimizer counts the steps that it takes part in
                parameter.grad = torch.zeros_like(parameter)
        if self.num_workers == 1:
            return loss, too_large
        # The loss goes along: some gradients are finite where it is not (that of logcumsumexp is zero).
        flat = torch.cat(
            [
                *(p.grad.flatten() for p in parameters if p.grad is not None),
                torch.tensor([loss, float(too_large)], device=self.model.device),
            ]
        )
        distributed.all_reduce(flat)
        *parts, total, num_too_large = flat.split([*(p.numel() for p in parameters), 1, 1])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        return float(total), bool(num_too_large)

    def _clip(self) -> dict[str, float]:
        """Gradient norms by group, each clipped by itself: a locator's can be a thousand times the encoder's."""
        limit = math.inf if self.recipe.clip_norm is None else self.recipe.clip_norm
        groups = self.model.parameter_groups()
        norms = {
            f"gradient_norm_locator{layer}": float(
                nn.utils.get_total_norm([p.grad for p in part.parameters() if p.grad is not None])
            )
            for layer, part in enumerate(self.model.layers, start=1)
        }
        return norms | {
            f"gradient_norm_{name}": float(nn.utils.clip_grad_norm_(group, limit)) for name, group in groups.items()
        }

    def _calibrate(self, mine: list[Tensor]) -> None:
        """Follow the whole step's negative patches, whoever computed them."""
        everyone = gathered(mine, self.num_workers)
        logit_N = torch.cat([logits for worker in everyone for logits in worker] or [torch.empty(0)])
        self.negatives.update(logit_N[None], torch.zeros(1))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a model computes at a precision, "fp32" or "bf16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _adam(model: MagNet, recipe: RecipeConfig) -> torch.optim.Adam:
    """Adam, with the locators in a group of their own. Source: the paper, section 4.3."""
    rates = {"locators": recipe.locator_learning_rate or recipe.learning_rate, "rest": recipe.learning_rate}
    groups = model.parameter_groups()
    return torch.optim.Adam(
        [{"params": groups[name], "lr": rate, "initial_lr": rate} for name, rate in rates.items()],
        weight_decay=recipe.weight_decay,
    )
