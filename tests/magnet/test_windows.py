"""The conversation between a zoom and what answers it, and windows in turned frames."""

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
from magnet.windows import MAX_STEP, WindowRequest, Windows, drive, drive_many, in_frames, turn_windows, window_side_px

Zoom = Generator[WindowRequest, Windows, Any]


def ask(number: int = 0) -> WindowRequest:
    return WindowRequest(number, np.zeros(1, np.int64), np.array([[1.0, 0.0, 0.0]]), 4, 0)


def windows(number: int = 0) -> Windows:
    return Windows(pixels=np.full((1, 4, 4, 3), number, np.uint8), place=np.zeros((1, 4)), level=np.ones(1))


class Heard:
    """A zoom that asks so many times and returns what it was sent, and a note of its turns."""

    def __init__(self, name: str, num_asks: int, turns: list[str], fails_at: int | None = None) -> None:
        self.name, self.num_asks, self.turns, self.fails_at = name, num_asks, turns, fails_at
        self.closed = False

    def zoom(self) -> Zoom:
        answers = []
        try:
            for number in range(self.num_asks):
                self.turns.append(f"{self.name}{number}")
                if number == self.fails_at:
                    raise ArithmeticError(self.name)
                answers.append(int((yield ask(number)).pixels[0, 0, 0, 0]))
            return answers
        finally:
            self.closed = True


def by_layer(question: WindowRequest) -> Windows:
    return windows(10 * question.layer)


def test_drive_answers_each_request_and_returns_the_result_of_the_zoom() -> None:
    assert drive(Heard("a", 3, []).zoom(), by_layer) == [0, 10, 20]
    assert drive(Heard("a", 0, []).zoom(), by_layer) == []


def test_zooms_take_turns_and_results_come_in_the_order_of_their_last_turns() -> None:
    turns: list[str] = []
    zooms = [(name, Heard(name, num, turns).zoom(), by_layer) for name, num in (("a", 2), ("b", 1), ("c", 2))]
    with ThreadPoolExecutor(2) as pool:
        ended = list(drive_many(zooms, pool, 2))
    assert turns == ["a0", "b0", "a1", "c0", "c1"]
    assert ended == [("b", [0]), ("a", [0, 10]), ("c", [0, 10])]


def test_zooms_spread_over_the_layers_so_that_every_read_overlaps_with_the_end_of_a_zoom() -> None:
    turns: list[str] = []
    num_asks = 3  # layers 0 to 2
    zooms = ((name, Heard(name, num_asks, turns).zoom(), by_layer) for name in "abcdefgh")
    with ThreadPoolExecutor(1) as pool:
        for name, _ in drive_many(zooms, pool, num_asks + 1):
            turns.append(f"{name}.")  # the end, which takes long
    assert " ".join(turns[:16]) == "a0 d0 c0 b0 a1 d1 c1 b1 a2 d2 c2 b2 a. e0 b. f0"
    ends = [n for n, turn in enumerate(turns) if turn[1] == "."]
    assert [turns[n] for n in ends] == [f"{name}." for name in "abcdefgh"]
    for name in "fgh":  # the first ones begin together
        asked = [turns.index(f"{name}{layer}") for layer in range(num_asks)]
        for said, heard in itertools.pairwise([*asked, turns.index(f"{name}.")]):
            assert any(said < end < heard for end in ends), f"{name}: nothing long is computed while it reads"


class Played(Executor):
    """Fetches that answer 30 ms late, in a time that passes only where somebody computes or waits."""

    def __init__(self) -> None:
        self.now_ms = self.waited_ms = 0.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        played, ready_ms = self, self.now_ms + 30

        class Late(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                late_ms = max(0.0, ready_ms - played.now_ms)
                played.waited_ms += late_ms
                played.now_ms += late_ms
                return super().result(timeout)

        late = Late()
        late.set_result(fn(*args, **kwargs))
        return late

    def zoom(self, num_asks: int, layer_ms: float, end_ms: float) -> Zoom:
        for number in range(num_asks):
            yield ask(number)
            self.now_ms += layer_ms
        self.now_ms += end_ms


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize(("end_ms", "ends_a_read"), [(480.0, 1), (120.0, 1), (40.0, 1), (20.0, 2), (7.0, 5)])
def test_reads_overlap_with_the_ends_of_other_zooms(num_layers: int, end_ms: float, ends_a_read: int) -> None:
    num_zooms, num_asks, pool = 100, num_layers + 1, Played()
    zooms = [(n, pool.zoom(num_asks, 1.0, end_ms), by_layer) for n in range(num_zooms)]
    assert [n for n, _ in drive_many(zooms, pool, num_asks * ends_a_read + 1)] == list(range(num_zooms))
    at_the_beginning_ms = num_asks * 30.0  # where nothing can be computed yet
    assert pool.waited_ms <= at_the_beginning_ms
    assert pool.now_ms - pool.waited_ms == num_zooms * (num_asks * 1.0 + end_ms)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.randoms())
@settings(max_examples=40)
def test_turns_and_results_do_not_depend_on_when_windows_arrive(
    num_zooms: int, num_asks: int, in_flight: int, chance: Any
) -> None:
    delays = {(z, a): chance.random() * 1e-4 for z in range(num_zooms) for a in range(num_asks)}

    def run(delayed: bool) -> tuple[list[str], list[Any]]:
        turns: list[str] = []

        def fetch_for(z: int) -> Any:
            def fetch(question: WindowRequest) -> Windows:
                if delayed:
                    threading.Event().wait(delays[z, question.layer])
                return windows(z)

            return fetch

        zooms = ((z, Heard(f"{z}/", num_asks, turns).zoom(), fetch_for(z)) for z in range(num_zooms))
        with ThreadPoolExecutor(in_flight) as pool:
            return turns, list(drive_many(zooms, pool, in_flight))

    turns, results = run(delayed=True)
    assert results == [(z, [z] * num_asks) for z in range(num_zooms)]
    assert (turns, results) == run(delayed=False)


def test_the_number_of_zooms_in_flight_is_limited() -> None:
    begun, ended = [], []

    def zooms() -> Iterator[tuple[int, Zoom, Any]]:
        for z in range(7):
            begun.append(z)
            assert len(begun) - len(ended) <= 3
            yield z, Heard("z", 2, []).zoom(), by_layer

    with ThreadPoolExecutor(3) as pool:
        for z, _ in drive_many(zooms(), pool, 3):
            ended.append(z)
    assert ended == list(range(7))


def test_zooms_are_taken_only_when_results_are_requested() -> None:
    begun: list[int] = []

    def zooms() -> Iterator[tuple[int, Zoom, Any]]:
        for z in range(100):
            begun.append(z)
            yield z, Heard("z", 1, []).zoom(), by_layer

    with ThreadPoolExecutor(2) as pool:
        results = drive_many(zooms(), pool, 2)
        assert begun == []
        assert next(results)[0] == 0
        assert begun == [0, 1]


def test_fetches_of_different_zooms_run_at_the_same_time() -> None:
    both_there = threading.Barrier(2, timeout=10)

    def fetch(question: WindowRequest) -> Windows:
        both_there.wait()  # breaks after ten seconds if nobody else comes
        return windows()

    with ThreadPoolExecutor(2) as pool:
        zooms = [(z, Heard("z", 3, []).zoom(), fetch) for z in range(2)]
        assert [z for z, _ in drive_many(zooms, pool, 2)] == [0, 1]


@pytest.mark.parametrize("where", ["zoom", "fetch"])
def test_a_caught_error_ends_only_its_zoom(where: str) -> None:
    def broken(question: WindowRequest) -> Windows:
        raise ArithmeticError("fetch")

    bad = Heard("b", 3, [], fails_at=1 if where == "zoom" else None)
    zooms = [
        ("a", Heard("a", 3, []).zoom(), by_layer),
        ("b", bad.zoom(), by_layer if where == "zoom" else broken),
        ("c", Heard("c", 3, []).zoom(), by_layer),
    ]
    with ThreadPoolExecutor(2) as pool:
        ends = dict(drive_many(zooms, pool, 2, catch=ArithmeticError))
    assert ends["a"] == ends["c"] == [0, 10, 20]
    assert isinstance(ends["b"], ArithmeticError)
    assert bad.closed


def test_other_errors_are_raised() -> None:
    zooms = [("a", Heard("a", 1, [], fails_at=0).zoom(), by_layer)]
    with ThreadPoolExecutor(1) as pool, pytest.raises(ArithmeticError):
        list(drive_many(zooms, pool, 1, catch=KeyError))


@given(
    st.integers(16, 512), st.integers(0, 16), st.floats(1, MAX_STEP, exclude_max=True), st.floats(0, 1), st.floats(0, 1)
)
def test_the_side_of_a_window_is_enough_for_every_snapped_window(
    out_px: int, margin: int, step: float, x: float, y: float
) -> None:
    """`x` and `y` are the fractions by which a region's corner lies off the pixel grid."""
    for corner in (x, y):
        needed = math.ceil(corner + step * out_px + margin) - math.floor(corner - margin)
        assert needed <= window_side_px(out_px, margin)


def test_the_side_of_a_window_equals_a_computation_by_hand() -> None:
    assert window_side_px(224, 4) == 2 * 224 + 2 * 4 + 2


COLOUR = waves([(0.3, 0.1), (-0.1, 0.35), (0.25, 0.25)])


def questions(frames: np.ndarray) -> WindowRequest:
    """A region off the centre for each frame, each on a slide of its own."""
    region = np.tile([0.3, 0.35, -0.2], (len(frames), 1))
    return WindowRequest(1, np.arange(len(frames)), region, 16, 2)


def colours_at(shown: Windows, frame: int, n: int) -> np.ndarray:
    """What the slide shows at the places that a turned window's pixels claim, which are in the frame's coordinates."""
    left, top, wide, high = shown.place[n]
    index = np.arange(shown.pixels.shape[1]) + 0.5
    x, y = np.meshgrid(left + index * wide, top + index * high)
    _, slide_x, slide_y = np.moveaxis(to_slide_frame(np.stack([np.ones_like(x), x, y], axis=-1), frame), -1, 0)
    return to_uint8(COLOUR(slide_x, slide_y))


def test_turned_windows_show_the_same_colours_at_the_right_positions() -> None:
    frames = np.arange(NUM_FRAMES)
    asked = questions(frames)
    straight = formula_fetch([COLOUR] * NUM_FRAMES, [4096] * NUM_FRAMES)(asked)
    shown = turn_windows(straight, frames)
    for n, frame in enumerate(frames):
        np.testing.assert_allclose(shown.pixels[n].astype(int), colours_at(shown, frame, n).astype(int), atol=1)
        np.testing.assert_array_equal(np.sort(shown.pixels[n], axis=None), np.sort(straight.pixels[n], axis=None))
    np.testing.assert_array_equal(shown.pixels[0], straight.pixels[0])
    assert len({window.tobytes() for window in shown.pixels}) == NUM_FRAMES


def test_a_quarter_turn_exchanges_the_width_and_height_of_pixels() -> None:
    """Pixel sizes along x and y change places with a quarter turn."""
    one = Windows(
        pixels=np.zeros((1, 4, 4, 3), np.uint8), place=np.array([[-0.5, 0.25, 0.1, 0.05]]), level=np.array([3.0])
    )
    shown = turn_windows(one, np.array([1]))
    np.testing.assert_allclose(shown.place, [[0.25, 0.1, 0.05, 0.1]])  # x and y are now the slide's y and -x
    assert shown.level.tolist() == [3.0]


def test_a_zoom_in_frames_receives_windows_that_cover_its_regions() -> None:
    frames = np.array([5, 0, 3, 6])
    asked = questions(frames)
    seen: list[WindowRequest] = []
    straight = formula_fetch([COLOUR] * 4, [4096] * 4)

    def fetch(question: WindowRequest) -> Windows:
        seen.append(question)
        return straight(question)

    shown = in_frames(fetch, frames)(asked)
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(seen[0].region[n], to_slide_frame(asked.region[n], int(frame)))
        left, top, wide, high = shown.place[n]
        side = shown.pixels.shape[1]
        s, x, y = asked.region[n]
        assert left <= x - s
        assert x + s <= left + side * wide
        assert top <= y - s
        assert y + s <= top + side * high
        np.testing.assert_allclose(shown.pixels[n].astype(int), colours_at(shown, int(frame), n).astype(int), atol=1)
    assert (seen[0].layer, seen[0].out_px, seen[0].margin_px) == (1, 16, 2)


def test_frames_belong_to_slides_and_not_to_rows() -> None:
    asked = WindowRequest(1, np.array([1, 0, 1]), np.tile([0.3, 0.35, -0.2], (3, 1)), 16, 2)
    shown = in_frames(formula_fetch([COLOUR] * 2, [4096] * 2), np.array([0, 2]))(asked)
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
