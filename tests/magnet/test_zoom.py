"""The zoom on slides whose colours are formulas: its requests and its views."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from magnet import zoom as zoom_module
from magnet.fake_slide import formula_fetch, to_uint8, waves
from magnet.regions import NUM_FRAMES, to_slide_frame
from magnet.windows import WindowRequest, drive, wrap_in_frames
from magnet.zoom import ZoomOptions
from tests.magnet.zoom_harness import (
    SCHEDULES,
    SIDE_PX,
    by_layer,
    compose_by_hand,
    config,
    fix,
    layer_colours,
    network,
    places,
    run,
    some_thetas,
    views_of,
)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_views_show_the_colours_of_their_compose_by_hand_regions_at_every_layer(schedule: tuple[int, ...]) -> None:
    thetas, colours, num_slides = some_thetas(2, schedule), layer_colours(len(schedule)), 2
    model = network(config(schedule)).eval()
    fix(model, thetas)
    trace = run(model, by_layer(colours, num_slides), num_slides, keep_views=True).trace
    for layer, region_BN3 in enumerate(compose_by_hand([theta.numpy() for theta in thetas])):
        np.testing.assert_allclose(trace.regions[layer], region_BN3, rtol=1e-12, atol=1e-12)
        for b, n in np.ndindex(region_BN3.shape[:2]):
            view = views_of(trace)[layer][b, n]
            expected = to_uint8(colours[layer](*places(region_BN3[b, n], view.shape[0])))
            # At a distance of half an output pixel, colours differ by 6.
            np.testing.assert_allclose(view.astype(int), expected.astype(int), atol=2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("training", [False, True])
def test_requests_and_results_have_the_right_shapes_at_every_depth(schedule: tuple[int, ...], training: bool) -> None:
    settings, num_slides = config(schedule, encoder="test_resnet", head="evidence"), 2
    model = network(settings).train(training)
    requests: list[WindowRequest] = []
    end = run(model, by_layer(layer_colours(len(schedule)), num_slides, requests), num_slides, keep_views=True)
    num_nodes = [math.prod(schedule[:layer]) for layer in range(len(schedule) + 1)]
    assert [request.layer for request in requests] == list(range(len(schedule) + 1))
    for layer, (request, n) in enumerate(zip(requests, num_nodes, strict=True)):
        px = 24 if layer < len(schedule) else 32
        assert request.slide.tolist() == [0] * n + [1] * n
        assert (request.out_px, request.margin_px) == (px, 3)
        np.testing.assert_array_equal(request.region, end.trace.regions[layer].reshape(-1, 3))
        assert request.region.dtype == np.float64
        assert views_of(end.trace)[layer].shape == (num_slides, n, px, px, 3)
        assert views_of(end.trace)[layer].dtype == np.uint8
        assert end.trace.layers[layer].downsample_BN.shape == (num_slides, n)
    num_patches = num_nodes[-1]
    assert end.logit_B.shape == (num_slides,)
    assert end.patch_BN is not None
    assert end.running_BN.shape == end.patch_BN.shape == (num_slides, num_patches)
    assert torch.equal(end.running_BN[:, -1], end.logit_B)
    probability = 1 / (1 + np.exp(-end.running_BN.detach().double().numpy()))
    np.testing.assert_allclose(end.trace.running_BN, probability, rtol=1e-12)
    assert [value.shape for value in end.value_BN] == [(num_slides, n) for n in num_nodes[1:]]
    for layer, n in zip(end.trace.layers[1:], num_nodes[1:], strict=True):
        assert layer.value_BN is not None
        assert layer.value_BN.shape == (num_slides, n)
    assert end.trace.layers[0].value_BN is None
    assert end.logit_B.dtype == torch.float32


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("training", [False, True])
def test_the_amount_of_work_does_not_depend_on_what_a_slide_shows(schedule: tuple[int, ...], training: bool) -> None:
    """Otherwise ranks would wait for the rank with the slide that needs most work."""
    settings = config(schedule, tissue_mask=True, inhibit_siblings=True, peak_radius=0.3, frozen_patch=True)
    model, work = network(settings).train(training), []
    blank = waves([(0.0, 0.0)] * 3, phases=(1.5, 1.5, 1.5))
    for colour in (blank, *layer_colours(1)):
        requests: list[WindowRequest] = []
        with FlopCounterMode(display=False) as counted:
            end = run(model, by_layer([colour] * (len(schedule) + 1), 2, requests), 2, exploration=0.5)
        shapes = [(r.layer, r.region.shape, r.out_px, r.margin_px) for r in requests]
        work.append((shapes, counted.get_total_flops(), end.running_BN.shape))
    assert work[0] == work[1] == work[2]


def test_views_are_kept_only_on_request() -> None:
    trace = run(network(config()).eval(), by_layer(layer_colours(2), 1), 1).trace
    assert len(trace.layers) == 3
    assert all(layer.view_BNHWC is None for layer in trace.layers)


def test_the_trace_has_the_downsamples_of_the_windows() -> None:
    schedule, thetas = (2, 1), some_thetas(1, (2, 1))
    model = network(config(schedule)).eval()
    fix(model, thetas)
    trace = run(model, by_layer(layer_colours(2), 1), 1).trace
    for layer, region_BN3 in enumerate(compose_by_hand([theta.numpy() for theta in thetas])):
        out_px = 24 if layer < 2 else 32
        level_px_per_output_px = region_BN3[..., 0] * SIDE_PX / trace.layers[layer].downsample_BN / out_px
        assert (level_px_per_output_px >= 1).all()
        assert (level_px_per_output_px < 2).all()


def test_a_slides_result_does_not_depend_on_its_batch() -> None:
    model = network(config()).eval()
    colours = [waves([(0.3, 0.1), (-0.2, 0.4), (0.5, 0.5)]), waves([(0.1, 0.6), (0.3, 0.3), (-0.5, 0.2)])]
    sides = [SIDE_PX, SIDE_PX / 3]
    both = drive(model.zoom(np.array(sides)), formula_fetch(colours, sides))
    for b in range(2):
        alone = drive(model.zoom(np.array(sides[b : b + 1])), formula_fetch(colours[b : b + 1], sides[b : b + 1]))
        torch.testing.assert_close(alone.logit_B[0], both.logit_B[b], atol=1e-5, rtol=1e-5)
        for layer in range(3):
            np.testing.assert_allclose(alone.trace.regions[layer][0], both.trace.regions[layer][b], atol=1e-6)


def test_sampling_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(config((3, 2))).eval()
    whole = run(model, by_layer(layer_colours(2), 2), 2, keep_views=True)
    monkeypatch.setattr(zoom_module, "SAMPLE_CHUNK", 5)
    parts = run(model, by_layer(layer_colours(2), 2), 2, keep_views=True)
    assert torch.equal(whole.logit_B, parts.logit_B)
    np.testing.assert_array_equal(views_of(whole.trace)[-1], views_of(parts.trace)[-1])


def test_grey_pixels_are_black_to_the_model_only_with_a_tolerance() -> None:
    def stripes(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        grey, purple = np.array([0.6, 0.6, 0.58]), np.array([0.6, 0.3, 0.6])
        return np.where((x < 0)[..., None], grey, purple)

    fetch = formula_fetch([stripes], [SIDE_PX])
    middle = [torch.tensor([[[[0.5, 0.0, 0.0]]]], dtype=torch.float64)] * 2
    for tolerance, left in ((15, (0, 0, 0)), (None, (153, 153, 148)), (4, (153, 153, 148))):
        model = network(config((1, 1), grey_tolerance=tolerance)).eval()
        fix(model, middle)  # the border between the stripes is in the middle of every view
        for view in views_of(run(model, fetch, 1, keep_views=True).trace):
            half = view.shape[3] // 2
            assert (view[0, 0, :, : half - 1] == left).all()
            assert (view[0, 0, :, half + 1 :] == (153, 76, 153)).all()


# ----------------------------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize("head", ["recurrent", "evidence"])
def test_a_stopped_zoom_is_the_beginning_of_the_whole_one(head: str) -> None:
    model, fetch = network(config((3, 3), head=head)).eval(), by_layer(layer_colours(2), 2)
    whole = run(model, fetch, 2, keep_views=True)
    shapes: list[tuple[int, ...]] = []

    def should_stop(running_BN: torch.Tensor) -> bool:
        shapes.append(tuple(running_BN.shape))
        return len(shapes) == 2

    part = run(model, fetch, 2, keep_views=True, should_stop=should_stop)
    assert shapes == [(2, 4), (2, 8)]  # four more patches at a time, of nine
    torch.testing.assert_close(part.running_BN, whole.running_BN[:, :8])
    np.testing.assert_array_equal(part.trace.regions[-1], whole.trace.regions[-1][:, :8])
    np.testing.assert_array_equal(views_of(part.trace)[-1], views_of(whole.trace)[-1][:, :8])


def test_a_zoom_that_is_never_stopped_reads_all_patches() -> None:
    model, fetch = network(config((3, 3))).eval(), by_layer(layer_colours(2), 2)
    requests: list[WindowRequest] = []
    end = run(model, by_layer(layer_colours(2), 2, requests), 2, should_stop=lambda running_BN: False)
    assert [len(request.region) for request in requests] == [2, 6, 8, 8, 2]  # two slides; nine patches as 4 + 4 + 1
    torch.testing.assert_close(end.logit_B, run(model, fetch, 2).logit_B)


def test_an_exploration_out_of_range_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"exploration = 1\.5: must be 0 to 1"):
        ZoomOptions(exploration=1.5)


# ------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("frame", range(NUM_FRAMES))
def test_frames_give_mirrored_and_rotated_views(frame: int) -> None:
    schedule, colours = (2, 2), layer_colours(2)
    model = network(config(schedule)).eval()
    fix(model, some_thetas(1, schedule))
    straight = run(model, by_layer(colours, 1), 1, keep_views=True).trace
    in_frame = run(model, wrap_in_frames(by_layer(colours, 1), np.array([frame])), 1, keep_views=True).trace
    root = np.rot90(views_of(straight)[0][0, 0], frame % 4)
    root = np.fliplr(root) if frame >= 4 else root
    np.testing.assert_allclose(views_of(in_frame)[0][0, 0].astype(int), root.astype(int), atol=2)
    for layer in range(3):
        np.testing.assert_array_equal(in_frame.regions[layer], straight.regions[layer])
        for n, region in enumerate(in_frame.regions[layer][0]):
            view = views_of(in_frame)[layer][0, n]
            x, y = places(region, view.shape[0])
            slide_region = to_slide_frame(np.stack([np.ones_like(x), x, y], axis=-1), frame)
            expected = to_uint8(colours[layer](slide_region[..., 1], slide_region[..., 2]))
            np.testing.assert_allclose(view.astype(int), expected.astype(int), atol=2)
