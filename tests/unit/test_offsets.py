from hypothesis import given
from hypothesis import strategies as st

from vaultml_worker.queues.kafka.offsets import Progress


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_only_the_finished_prefix_is_committed(gaps: list[int], random: object) -> None:
    """Offsets may have gaps (transactions leave some); messages finish in any order."""
    offsets = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    progress = Progress()
    for offset in offsets:
        progress.start(offset)
    order = list(offsets)
    random.shuffle(order)  # type: ignore[attr-defined]
    finished: set[int] = set()
    committed = None
    for offset in order:
        progress.finish(offset)
        finished.add(offset)
        committed = progress.advance() or committed
        prefix = [o for i, o in enumerate(offsets) if set(offsets[: i + 1]) <= finished]
        assert committed == (prefix[-1] + 1 if prefix else None)
    assert committed == offsets[-1] + 1


def test_an_offset_is_given_out_once_until_asked_again() -> None:
    progress = Progress()
    progress.start(7)
    assert progress.advance() is None
    progress.finish(7)
    assert progress.advance() == 8
    assert progress.advance() is None
    progress.again()
    assert progress.advance() == 8
