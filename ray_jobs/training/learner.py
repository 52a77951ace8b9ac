"""A model with what trains it: one optimizer step from the micro-batches of a step, on one worker or on many.

The workers share the micro-batches of a step, their gradients are summed, and every worker takes the same optimizer
step. Several workers are a torch process group.

Shapes: B slides of a micro-batch, N last patches of a slide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, distributed, nn

from magnet.config import RecipeConfig
from magnet.evidence import NegativeQuantile
from magnet.objective import objective
from magnet.windows import WindowRequest, Windows, drive_many
from magnet.zoom import MagNet, ZoomOptions, ZoomResult
from ray_jobs.training.group import gather
from ray_jobs.training.input.micro_batch import StepInput
from ray_jobs.training.input.seeds import derive_micro_batch_seed, derive_step_seed
from ray_jobs.training.quarantine import SlideLostError
from ray_jobs.training.running_statistics import RunningStatistics
from service.errors import StoppedError

Retry = Callable[[StepInput, SlideLostError], StepInput | None]
"""Is called with a micro-batch that lost a slide; returns it without that slide, or None if no slide is left."""


class NotFiniteError(StoppedError):
    """The loss or its gradient is not finite. The training stops before the optimizer applies it."""


class TooLargeError(RuntimeError):
    """A worker's GPU lacks the memory for a micro-batch. Raised on all workers, with the model as before the step."""


class Learner:
    """A model with its optimizer and its calibration on negative slides.

    Args:
        model: network, on its device.
        recipe: how it is trained.
        num_steps: steps of the whole training; learning rate and exploration follow `step / num_steps`.
        num_workers: number of workers in the process group; 1 needs no group.
    """

    def __init__(self, model: MagNet, recipe: RecipeConfig, num_steps: int, num_workers: int = 1) -> None:
        self.model, self.recipe, self.num_steps, self.num_workers = model, recipe, num_steps, num_workers
        self.negatives = NegativeQuantile(recipe.value_quantile)
        self.optimizer = _make_adam(model, recipe)
        self.statistics = RunningStatistics(model, num_workers)

    def step(
        self, step: int, inputs: Sequence[StepInput], pool: Executor, retry: Retry | None = None
    ) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            step: number of the step, from 0.
            inputs: this worker's micro-batches.
            pool: threads that fetch.
            retry: called when a fetch raises `SlideLostError`; what it returns is zoomed into from the beginning, after
                the other micro-batches. None: the error is raised.

        Returns:
            Sums over this worker's slides: `loss`, its parts, `slides`; and the gradient norms, the same on each.

        Raises:
            NotFiniteError, TooLargeError: before weights and optimizer were changed, on all workers.
        """
        self.model.train()
        self._set_learning_rates(step / self.num_steps)
        # Nothing here draws from it; an encoder with dropout would, and must not depend on what was computed before.
        torch.manual_seed(derive_step_seed(self.recipe.seed, step))
        sums: dict[str, float] = {"slides": 0.0}
        with self.statistics.track_step():
            patch_logits, too_large = self._accumulate(self._zoom_all(step, inputs, pool, retry), sums)
            loss, too_large = self._sum_gradients(sums.get("loss", 0.0), too_large)
            if too_large:
                self.optimizer.zero_grad(set_to_none=True)  # the step is repeated with smaller micro-batches
                raise TooLargeError(f"step {step}: a micro-batch does not fit the memory of a worker's GPU")
            norms = self._clip()
            # Loss and norms are those of all workers together, so that all of them stop or none.
            if not all(map(math.isfinite, (loss, *norms.values()))):
                self.optimizer.zero_grad(set_to_none=True)
                raise NotFiniteError(
                    f"step {step}: loss {loss}, gradient norms {norms}; the weights are as before this step"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._calibrate(patch_logits)
        return sums | norms

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the weights of the model."""
        return {"optimizer": self.optimizer.state_dict(), "negatives": self.negatives.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.negatives.load_state_dict(state["negatives"])

    def _accumulate(
        self, zooms: Iterator[tuple[Tensor, ZoomResult]], sums: dict[str, float]
    ) -> tuple[list[Tensor], bool]:
        """Add the gradients and losses of all micro-batches.

        A function by itself, so that it lets go of a micro-batch that was too large when it returns: the exchange with
        the other workers, which follows, takes memory too.

        Returns:
            Patch logits of negative slides, and whether memory ran out.
        """
        patch_logits = []
        try:
            with autocast(self.recipe.precision, self.model.device):
                for label_B, zoomed in zooms:
                    patch_logits.append(self._backward(zoomed, label_B.to(self.model.device), sums))
        except torch.OutOfMemoryError:  # not raised: the other workers wait for these gradients, and learn of it there
            return patch_logits, True
        return patch_logits, False

    def _zoom_all(
        self, step: int, inputs: Sequence[StepInput], pool: Executor, retry: Retry | None
    ) -> Iterator[tuple[Tensor, ZoomResult]]:
        """Yield labels and zooms of the micro-batches, those that lost a slide at the end."""
        catch = SlideLostError if retry is not None else ()
        num_in_flight = self.model.config.zoom.num_in_flight
        while inputs:
            failed: list[tuple[StepInput, SlideLostError]] = []
            zooms = ((step_input, self._zoom(step, step_input), step_input.fetch) for step_input in inputs)
            for step_input, result in drive_many(zooms, pool, num_in_flight, catch):
                if isinstance(result, SlideLostError):
                    failed.append((step_input, result))
                else:
                    yield step_input.label_B, result
            retried = [retry(step_input, error) for step_input, error in failed] if retry is not None else []
            inputs = [step_input for step_input in retried if step_input is not None]

    def _zoom(self, step: int, step_input: StepInput) -> Generator[WindowRequest, Windows, ZoomResult]:
        """Begin a zoom; its random numbers depend on the micro-batch, not on which worker computes it or when."""
        progress = step / self.num_steps
        options = ZoomOptions(
            exploration=self.recipe.exploration(progress),
            theta_gradient=self.recipe.theta_gradient_on(progress),
            generator=torch.Generator().manual_seed(derive_micro_batch_seed(self.recipe.seed, step, step_input.index)),
        )
        return self.model.zoom(step_input.side_px_B, options)

    def _backward(self, zoomed: ZoomResult, label_B: Tensor, sums: dict[str, float]) -> Tensor:
        """Add the gradients and losses of a micro-batch; return the patch logits of its negative slides, flat."""
        # Infinite until the first negative patch was seen.
        threshold = float(self.negatives.value) if torch.isfinite(self.negatives.value) else None
        loss_B, parts = objective(zoomed, label_B, self.recipe, self.model.config.zoom, threshold)
        # By the whole batch and not the micro-batch: gradients of micro-batches and workers then add up to its mean.
        (loss_B.sum() / self.recipe.batch).backward()
        for name, part_B in {"loss": loss_B.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(part_B.sum())
        sums["slides"] += len(label_B)
        return torch.empty(0) if zoomed.patch_BN is None else zoomed.patch_BN.detach()[label_B == 0].flatten().cpu()

    def _set_learning_rates(self, progress: float) -> None:
        """Set the rates for the progress, 0 to 1: a cosine from the initial rates to zero.

        Source: the paper, section 4.3.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * progress)) / 2

    def _sum_gradients(self, loss: float, too_large: bool) -> tuple[float, bool]:
        """Sum the gradients of all workers; each loss was divided by the whole batch before.

        One flat all-reduce per step instead of DistributedDataParallel: its hooks expect one backward pass after each
        forward pass, and here several zooms are in flight. A worker without a micro-batch takes part with zeros.

        Args:
            loss: sum of this worker's losses.
            too_large: whether this worker ran out of memory.

        Returns:
            Sum of the losses of all workers, and whether any of them ran out of memory.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # zeros with one worker too: Adam counts the steps in which a weight has any
                parameter.grad = torch.zeros_like(parameter)
        if self.num_workers == 1:
            return loss, too_large
        # The loss is summed too: some gradients are finite where it is not (that of logcumsumexp is zero).
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
        """Clip the gradients of each parameter group, and return the norms before.

        Each group by itself: the gradients of the locators can be a thousand times those of the encoder.
        """
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

    def _calibrate(self, patch_logits: list[Tensor]) -> None:
        """Update the quantile of negative patches with those of all workers."""
        by_worker = gather(patch_logits, self.num_workers)
        logit_N = torch.cat([logits for worker in by_worker for logits in worker] or [torch.empty(0)])
        self.negatives.update(logit_N[None], torch.zeros(1))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a model computes at a precision, "fp32" or "bf16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _make_adam(model: MagNet, recipe: RecipeConfig) -> torch.optim.Adam:
    """Return Adam with a parameter group for the locators and one for the rest. Source: the paper, section 4.3."""
    rates = {"locators": recipe.locator_learning_rate or recipe.learning_rate, "rest": recipe.learning_rate}
    groups = model.parameter_groups()
    return torch.optim.Adam(
        [{"params": groups[name], "lr": rate, "initial_lr": rate} for name, rate in rates.items()],
        weight_decay=recipe.weight_decay,
    )
