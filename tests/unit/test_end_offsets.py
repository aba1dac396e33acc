"""Since when the message at an offset has been there."""

import random

from vaultml_operator.autoscaler.lag.end_offsets import EndOffsetHistory


def test_between_two_looks_it_is_interpolated() -> None:
    history = EndOffsetHistory()
    history.add(100.0, 50)
    history.add(110.0, 50)
    history.add(120.0, 60)
    assert history.since(49) is None  # there before the first look
    assert history.since(50) == 111.0
    assert history.since(59) == 120.0
    assert history.since(60) is None  # not there yet


def test_a_log_that_stood_still_did_so_until_the_last_look() -> None:
    history = EndOffsetHistory()
    for time in range(0, 1000, 10):
        history.add(float(time), 5)
    history.add(1000.0, 6)
    assert history.since(5) == 1000.0
    assert history.since(4) is None


def test_a_log_that_went_back_begins_anew() -> None:
    history = EndOffsetHistory()
    history.add(1.0, 100)
    history.add(2.0, 3)
    history.add(3.0, 4)
    assert history.since(50) is None
    assert history.since(3) == 3.0


def test_however_long_it_is_it_stays_small_and_nearly_right() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    history, end = EndOffsetHistory(), 0
    for second in range(5000):
        history.add(float(second), end)
        end += rng.randrange(1, 3)
    assert len(history._points) <= 65, f"seed {seed}"
    found = [history.since(offset) for offset in range(0, end - 5, 7)]
    known = [each for each in found if each is not None]
    assert known == sorted(known), f"seed {seed}"
    assert len(known) > len(found) * 0.9, f"seed {seed}"


def test_the_newest_is_known_however_much_was_thinned_out() -> None:
    history = EndOffsetHistory()
    for look in range(300):
        history.add(15.0 * look, 10 * look)
        assert look == 0 or history.since(10 * look - 1) == 15.0 * look
