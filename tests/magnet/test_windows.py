"""The protocol of a zoom: requests, turns of several zooms, and windows in turned frames."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnet.fake_slide import formula_fetch, to_uint8, waves
from magnet.regions import NUM_FRAMES, to_slide_frame
from magnet.windows import (
    MAX_STEP,
    WindowRequest,
    Windows,
    drive,
    drive_many,
    turn_windows,
    window_side_px,
    wrap_in_frames,
)

Zoom = Generator[WindowRequest, Windows, Any]


def make_request(number: int = 0) -> WindowRequest:
    return WindowRequest(number, np.zeros(1, np.int64), np.array([[1.0, 0.0, 0.0]]), 4, 0)


def windows(number: int = 0) -> Windows:
    return Windows(pixels=np.full((1, 4, 4, 3), number, np.uint8), place=np.zeros((1, 4)), level=np.ones(1))


class RecordingZoom:
    """A zoom that makes some requests and returns the numbers that it was sent; it appends its turns to a list."""

    def __init__(self, name: str, num_requests: int, turns: list[str], fails_at: int | None = None) -> None:
        self.name, self.num_requests, self.turns, self.fails_at = name, num_requests, turns, fails_at
        self.closed = False

    def zoom(self) -> Zoom:
        answers = []
        try:
            for number in range(self.num_requests):
                self.turns.append(f"{self.name}{number}")
                if number == self.fails_at:
                    raise ArithmeticError(self.name)
                answers.append(int((yield make_request(number)).pixels[0, 0, 0, 0]))
            return answers
        finally:
            self.closed = True


def by_layer(request: WindowRequest) -> Windows:
    return windows(10 * request.layer)


def test_drive_answers_each_request_and_returns_the_result_of_the_zoom() -> None:
    assert drive(RecordingZoom("a", 3, []).zoom(), by_layer) == [0, 10, 20]
    assert drive(RecordingZoom("a", 0, []).zoom(), by_layer) == []


def test_zooms_take_turns_and_results_come_in_the_order_of_their_last_turns() -> None:
    turns: list[str] = []
    zooms = [(name, RecordingZoom(name, num, turns).zoom(), by_layer) for name, num in (("a", 2), ("b", 1), ("c", 2))]
    with ThreadPoolExecutor(2) as pool:
        ended = list(drive_many(zooms, pool, 2))
    assert turns == ["a0", "b0", "a1", "c0", "c1"]
    assert ended == [("b", [0]), ("a", [0, 10]), ("c", [0, 10])]


def test_zooms_spread_over_the_layers_so_that_every_read_overlaps_with_the_end_of_a_zoom() -> None:
    turns: list[str] = []
    num_requests = 3  # layers 0 to 2
    zooms = ((name, RecordingZoom(name, num_requests, turns).zoom(), by_layer) for name in "abcdefgh")
    with ThreadPoolExecutor(1) as pool:
        for name, _ in drive_many(zooms, pool, num_requests + 1):
            turns.append(f"{name}.")  # the end of a zoom, which takes long
    assert " ".join(turns[:16]) == "a0 d0 c0 b0 a1 d1 c1 b1 a2 d2 c2 b2 a. e0 b. f0"
    ends = [n for n, turn in enumerate(turns) if turn[1] == "."]
    assert [turns[n] for n in ends] == [f"{name}." for name in "abcdefgh"]
    for name in "fgh":  # the first zooms start together
        positions = [turns.index(f"{name}{layer}") for layer in range(num_requests)]
        for request_at, resumed_at in itertools.pairwise([*positions, turns.index(f"{name}.")]):
            assert any(request_at < end < resumed_at for end in ends), f"{name}: no end is computed while it reads"


class SimulatedPool(Executor):
    """Fetches take 30 ms of a simulated time, which passes only while a zoom computes or waits."""

    def __init__(self) -> None:
        self.now_ms = self.waited_ms = 0.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        simulated, ready_ms = self, self.now_ms + 30

        class DelayedFuture(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                late_ms = max(0.0, ready_ms - simulated.now_ms)
                simulated.waited_ms += late_ms
                simulated.now_ms += late_ms
                return super().result(timeout)

        future = DelayedFuture()
        future.set_result(fn(*args, **kwargs))
        return future

    def zoom(self, num_requests: int, layer_ms: float, end_ms: float) -> Zoom:
        for number in range(num_requests):
            yield make_request(number)
            self.now_ms += layer_ms
        self.now_ms += end_ms


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize(("end_ms", "ends_a_read"), [(480.0, 1), (120.0, 1), (40.0, 1), (20.0, 2), (7.0, 5)])
def test_reads_overlap_with_the_ends_of_other_zooms(num_layers: int, end_ms: float, ends_a_read: int) -> None:
    num_zooms, num_requests, pool = 100, num_layers + 1, SimulatedPool()
    zooms = [(n, pool.zoom(num_requests, 1.0, end_ms), by_layer) for n in range(num_zooms)]
    assert [n for n, _ in drive_many(zooms, pool, num_requests * ends_a_read + 1)] == list(range(num_zooms))
    initial_wait_ms = num_requests * 30.0  # at the start there is nothing to compute
    assert pool.waited_ms <= initial_wait_ms
    assert pool.now_ms - pool.waited_ms == num_zooms * (num_requests * 1.0 + end_ms)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.randoms())
@settings(max_examples=40)
def test_turns_and_results_do_not_depend_on_when_windows_arrive(
    num_zooms: int, num_requests: int, in_flight: int, chance: Any
) -> None:
    delays = {(z, a): chance.random() * 1e-4 for z in range(num_zooms) for a in range(num_requests)}

    def run(delayed: bool) -> tuple[list[str], list[Any]]:
        turns: list[str] = []

        def fetch_for(z: int) -> Any:
            def fetch(request: WindowRequest) -> Windows:
                if delayed:
                    threading.Event().wait(delays[z, request.layer])
                return windows(z)

            return fetch

        zooms = ((z, RecordingZoom(f"{z}/", num_requests, turns).zoom(), fetch_for(z)) for z in range(num_zooms))
        with ThreadPoolExecutor(in_flight) as pool:
            return turns, list(drive_many(zooms, pool, in_flight))

    turns, results = run(delayed=True)
    assert results == [(z, [z] * num_requests) for z in range(num_zooms)]
    assert (turns, results) == run(delayed=False)


def test_the_number_of_zooms_in_flight_is_limited() -> None:
    started, ended = [], []

    def zooms() -> Iterator[tuple[int, Zoom, Any]]:
        for z in range(7):
            started.append(z)
            assert len(started) - len(ended) <= 3
            yield z, RecordingZoom("z", 2, []).zoom(), by_layer

    with ThreadPoolExecutor(3) as pool:
        for z, _ in drive_many(zooms(), pool, 3):
            ended.append(z)
    assert ended == list(range(7))


def test_zooms_are_taken_only_when_results_are_requested() -> None:
    started: list[int] = []

    def zooms() -> Iterator[tuple[int, Zoom, Any]]:
        for z in range(100):
            started.append(z)
            yield z, RecordingZoom("z", 1, []).zoom(), by_layer

    with ThreadPoolExecutor(2) as pool:
        results = drive_many(zooms(), pool, 2)
        assert started == []
        assert next(results)[0] == 0
        assert started == [0, 1]


def test_fetches_of_different_zooms_run_at_the_same_time() -> None:
    both_running = threading.Barrier(2, timeout=10)

    def fetch(request: WindowRequest) -> Windows:
        both_running.wait()  # raises after ten seconds if the other fetch does not start
        return windows()

    with ThreadPoolExecutor(2) as pool:
        zooms = [(z, RecordingZoom("z", 3, []).zoom(), fetch) for z in range(2)]
        assert [z for z, _ in drive_many(zooms, pool, 2)] == [0, 1]


@pytest.mark.parametrize("where", ["zoom", "fetch"])
def test_a_caught_error_ends_only_its_zoom(where: str) -> None:
    def broken(request: WindowRequest) -> Windows:
        raise ArithmeticError("fetch")

    bad = RecordingZoom("b", 3, [], fails_at=1 if where == "zoom" else None)
    zooms = [
        ("a", RecordingZoom("a", 3, []).zoom(), by_layer),
        ("b", bad.zoom(), by_layer if where == "zoom" else broken),
        ("c", RecordingZoom("c", 3, []).zoom(), by_layer),
    ]
    with ThreadPoolExecutor(2) as pool:
        ends = dict(drive_many(zooms, pool, 2, catch=ArithmeticError))
    assert ends["a"] == ends["c"] == [0, 10, 20]
    assert isinstance(ends["b"], ArithmeticError)
    assert bad.closed


def test_other_errors_are_raised() -> None:
    zooms = [("a", RecordingZoom("a", 1, [], fails_at=0).zoom(), by_layer)]
    with ThreadPoolExecutor(1) as pool, pytest.raises(ArithmeticError):
        list(drive_many(zooms, pool, 1, catch=KeyError))


@given(
    st.integers(16, 512), st.integers(0, 16), st.floats(1, MAX_STEP, exclude_max=True), st.floats(0, 1), st.floats(0, 1)
)
def test_the_side_of_a_window_is_enough_for_every_snapped_window(
    out_px: int, margin: int, step: float, x: float, y: float
) -> None:
    """`x` and `y` are the fractional parts of the position of a region's corner on the pixel grid."""
    for corner in (x, y):
        needed = math.ceil(corner + step * out_px + margin) - math.floor(corner - margin)
        assert needed <= window_side_px(out_px, margin)


def test_the_side_of_a_window_equals_a_computation_by_hand() -> None:
    assert window_side_px(224, 4) == 2 * 224 + 2 * 4 + 2


COLOUR = waves([(0.3, 0.1), (-0.1, 0.35), (0.25, 0.25)])


def requests_in_frames(frames: np.ndarray) -> WindowRequest:
    """Request a region off the centre for each frame, each on a separate slide."""
    region = np.tile([0.3, 0.35, -0.2], (len(frames), 1))
    return WindowRequest(1, np.arange(len(frames)), region, 16, 2)


def colours_at(shown: Windows, frame: int, n: int) -> np.ndarray:
    """Return the slide's colours at the positions of a turned window, which are in the frame's coordinates."""
    left, top, wide, high = shown.place[n]
    index = np.arange(shown.pixels.shape[1]) + 0.5
    x, y = np.meshgrid(left + index * wide, top + index * high)
    _, slide_x, slide_y = np.moveaxis(to_slide_frame(np.stack([np.ones_like(x), x, y], axis=-1), frame), -1, 0)
    return to_uint8(COLOUR(slide_x, slide_y))


def test_turned_windows_show_the_same_colours_at_the_right_positions() -> None:
    frames = np.arange(NUM_FRAMES)
    requested = requests_in_frames(frames)
    straight = formula_fetch([COLOUR] * NUM_FRAMES, [4096] * NUM_FRAMES)(requested)
    shown = turn_windows(straight, frames)
    for n, frame in enumerate(frames):
        np.testing.assert_allclose(shown.pixels[n].astype(int), colours_at(shown, frame, n).astype(int), atol=1)
        np.testing.assert_array_equal(np.sort(shown.pixels[n], axis=None), np.sort(straight.pixels[n], axis=None))
    np.testing.assert_array_equal(shown.pixels[0], straight.pixels[0])
    assert len({window.tobytes() for window in shown.pixels}) == NUM_FRAMES


def test_a_quarter_turn_exchanges_the_width_and_height_of_pixels() -> None:
    straight = Windows(
        pixels=np.zeros((1, 4, 4, 3), np.uint8), place=np.array([[-0.5, 0.25, 0.1, 0.05]]), level=np.array([3.0])
    )
    shown = turn_windows(straight, np.array([1]))
    np.testing.assert_allclose(shown.place, [[0.25, 0.1, 0.05, 0.1]])  # x and y are now the slide's y and -x
    assert shown.level.tolist() == [3.0]


def test_a_zoom_in_frames_receives_windows_that_cover_its_regions() -> None:
    frames = np.array([5, 0, 3, 6])
    requested = requests_in_frames(frames)
    received: list[WindowRequest] = []
    straight = formula_fetch([COLOUR] * 4, [4096] * 4)

    def fetch(request: WindowRequest) -> Windows:
        received.append(request)
        return straight(request)

    shown = wrap_in_frames(fetch, frames)(requested)
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(received[0].region[n], to_slide_frame(requested.region[n], int(frame)))
        left, top, wide, high = shown.place[n]
        side = shown.pixels.shape[1]
        s, x, y = requested.region[n]
        assert left <= x - s
        assert x + s <= left + side * wide
        assert top <= y - s
        assert y + s <= top + side * high
        np.testing.assert_allclose(shown.pixels[n].astype(int), colours_at(shown, int(frame), n).astype(int), atol=1)
    assert (received[0].layer, received[0].out_px, received[0].margin_px) == (1, 16, 2)


def test_frames_belong_to_slides_and_not_to_rows() -> None:
    requested = WindowRequest(1, np.array([1, 0, 1]), np.tile([0.3, 0.35, -0.2], (3, 1)), 16, 2)
    shown = wrap_in_frames(formula_fetch([COLOUR] * 2, [4096] * 2), np.array([0, 2]))(requested)
    np.testing.assert_array_equal(shown.pixels[0], shown.pixels[2])
    assert (shown.pixels[0] != shown.pixels[1]).any()


def test_a_frame_out_of_range_is_rejected() -> None:
    with pytest.raises(ValueError, match="frame 8: must be 0 to 7"):
        turn_windows(windows(), np.array([8]))


@pytest.mark.parametrize(
    ("pixels", "place", "level"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4)), np.ones(2)),
        (np.zeros((2, 4, 5, 3), np.uint8), np.zeros((2, 4)), np.ones(2)),
        (np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4)), np.ones(2)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((1, 4)), np.ones(2)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4)), np.ones(3)),
    ],
)
def test_windows_of_inconsistent_shapes_are_rejected(pixels: Any, place: Any, level: Any) -> None:
    with pytest.raises(ValueError, match="windows: "):
        Windows(pixels=pixels, place=place, level=level)
