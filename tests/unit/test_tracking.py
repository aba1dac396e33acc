import pytest

from tests.recordings import TRIALS
from vaultml_worker import video
from vaultml_worker.records import Box, Detection
from vaultml_worker.tracking import track


def seen(label: str, x: float, y: float, width: float = 40, height: float = 80, probability: float = 0.9) -> Detection:
    return Detection(label, probability, (x, y, x + width, y + height))


def at(times: int, spacing: float = 1600) -> list[float]:
    return [spacing * i for i in range(times)]


def test_a_walker_is_one_moving_track_and_a_parked_car_a_static_one() -> None:
    frames = [[seen("person", 50 + 70 * i, 100), seen("car", 500 + (i % 2) * 4, 50, 90, 60)] for i in range(5)]
    tracks = track(frames, at(5), move_distance=100)
    assert [(t.label, t.static, len(t.sightings)) for t in tracks] == [("person", False, 5), ("car", True, 5)]
    assert tracks[0].distance == pytest.approx(280)
    assert tracks[1].distance == pytest.approx(4)


def test_distance_is_between_the_farthest_sightings() -> None:
    """There and back again: the net way is zero, the farthest two sightings are not."""
    tracks = track([[seen("person", x, 100)] for x in (0, 60, 120, 60, 0)], at(5), move_distance=100)
    assert tracks[0].distance == pytest.approx(120)
    assert not tracks[0].static


@pytest.mark.parametrize(("move_distance", "static"), [(0, False), (1, True)])
def test_seen_once_is_static_unless_everything_counts(move_distance: float, static: bool) -> None:
    (only,) = track([[seen("person", 10, 10)]], [0.0], move_distance=move_distance)
    assert only.static is static
    assert only.distance == 0


def test_a_gap_does_not_break_a_track() -> None:
    car = seen("car", 500, 50, 90, 60)
    tracks = track([[car], [], [], [car], [car]], at(5), move_distance=10)
    assert len(tracks) == 1


def test_labels_that_change_on_the_spot_are_one_object_named_by_the_majority() -> None:
    labels = ["truck", "car", "car", "truck", "car"]
    tracks = track([[seen(label, 500, 50, 90, 60)] for label in labels], at(5), move_distance=10)
    assert [t.label for t in tracks] == ["car"]


def test_one_box_with_two_labels_is_one_object() -> None:
    both = [seen("car", 500, 50, 90, 60, 0.8), seen("truck", 502, 50, 90, 60, 0.6)]
    tracks = track([both, both], at(2), move_distance=10)
    assert [(t.label, len(t.sightings)) for t in tracks] == [("car", 2)]


def test_a_person_does_not_become_a_car() -> None:
    tracks = track([[seen("person", 100, 100)], [seen("car", 130, 100)]], at(2), move_distance=10)
    assert len(tracks) == 2


def test_two_walkers_who_pass_each_other_keep_their_ways() -> None:
    frames = [[seen("person", 60 * i, 100), seen("person", 330 - 60 * i, 110)] for i in range(6)]
    tracks = track(frames, at(6), move_distance=10)
    assert len(tracks) == 2
    for t in tracks:
        steps = [b.detection.box[0] - a.detection.box[0] for a, b in zip(t.sightings, t.sightings[1:], strict=False)]
        assert all(step > 0 for step in steps) or all(step < 0 for step in steps)


def test_far_away_is_someone_else() -> None:
    tracks = track([[seen("person", 0, 100)], [seen("person", 600, 100)]], at(2), move_distance=10)
    assert len(tracks) == 2


def test_more_time_allows_a_longer_way() -> None:
    two = [[seen("person", 0, 100)], [seen("person", 180, 100)]]
    assert len(track(two, [0, 400], move_distance=10)) == 2
    assert len(track(two, [0, 2500], move_distance=10)) == 1


def test_a_moving_car_does_not_steal_a_parked_ones_track() -> None:
    parked = seen("car", 500, 50, 90, 60)
    frames = [[parked, seen("car", 300 + 90 * i, 130, 90, 60)] for i in range(4)]
    tracks = track(frames, at(4, 800), move_distance=50)
    assert sorted(t.static for t in tracks) == [False, True]


def test_absurd_times_do_not_loosen_a_track() -> None:
    """A clock that jumps by hours would let anybody be anybody: tracking gets the plausible times of the sample."""
    data = (TRIALS / "13-gap-5h.mkv").read_bytes()
    times = [frame.timestamp for frame in video.sample(data, 5, (128, 96), video.Limits()).frames]
    steady = [[seen("person", 30 * n, 100)] for n in range(5)]
    assert len(track(steady, times, move_distance=10)) == 1
    jumping = [[seen("person", 30 * n + 500 * (n >= 3), 100)] for n in range(5)]
    assert len(track(jumping, times, move_distance=10)) == 2


def test_degenerate_boxes_do_no_harm() -> None:
    flat: Box = (5, 5, 5, 5)
    tracks = track([[Detection("x", 0.5, flat)]] * 3, [0, 0, 0], move_distance=1)
    assert len(tracks) == 1


def test_someone_coming_the_other_way_is_someone_else() -> None:
    """The first walker is lost from sight where another comes towards the place."""
    frames = [[seen("person", 70 * i, 100)] for i in range(3)] + [[seen("person", 30, 100)]]
    tracks = track(frames, at(4), move_distance=10)
    assert [len(t.sightings) for t in tracks] == [3, 1]
