"""File names of recordings, as Agents of all ages write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultml_worker.recording_names import RecordingName, parse_name


@pytest.mark.parametrize(
    ("file", "seconds", "fraction", "camera", "region", "changes", "duration"),
    [
        # today's Agent: continuous, motion, unfinished, by hand
        ("1764300000_3-250_yard_0-0-0-0_-1_29870.mp4", 1764300000, 0.25, "yard", None, -1, 29870),
        (
            "1764300007_1-9_back gate_402-260-210-180_801_12040.mp4",
            1764300007,
            0.009,
            "back gate",
            (402, 260, 210, 180),
            801,
            12040,
        ),
        ("1764300000_3-250_yard_0-0-0-0_0_0_.mp4", 1764300000, 0.25, "yard", None, 0, None),
        ("1764300000_3-250_yard_0-0-0-0_0_.mp4", 1764300000, 0.25, "yard", None, 0, None),
        ("1764300007_1-0_gate_402-260-210-180_801_0.mp4", 1764300007, 0.0, "gate", (402, 260, 210, 180), 801, None),
        ("1764300007_1-0_gate_0-0-0-0_100000000_5000.mp4", 1764300007, 0.0, "gate", None, 100000000, 5000),
        # the trials
        ("1750000000_3-123_frontdoor_0-0-0-0_-1_30033.mp4", 1750000000, 0.123, "frontdoor", None, -1, 30033),
        (
            "1750000001_2-45_frontdoor_10-20-30-40_24_15000.mp4",
            1750000001,
            0.045,
            "frontdoor",
            (10, 20, 30, 40),
            24,
            15000,
        ),
        ("1750000002_1-5_frontdoor_0-0-0-0_0_0_.mp4", 1750000002, 0.005, "frontdoor", None, 0, None),
        # placeholders of older Agents, and of the settings page of today's
        ("1630567591_6-967003_highway4_200-200-400-400_24_769.mp4", 1630567591, None, "highway4", None, None, None),
        ("1630567591_6-967003_highway4_200-200-400-400_1801_769.mp4", 1630567591, None, "highway4", None, 1801, None),
        # real microseconds and corners, long ago; padded by someone else
        ("1400000000_6-474162_cam_10-20-30-40_1500_300.mp4", 1400000000, 0.474162, "cam", (10, 20, 30, 40), 1500, 300),
        ("1400000000_5-74162_cam_10-20-30-40_1500_300.mp4", 1400000000, 0.074162, "cam", (10, 20, 30, 40), 1500, 300),
        ("10_3-047_c_0-0-0-0_1_2.mp4", 10, 0.047, "c", None, 1, 2),
        # cameras of every kind
        ("1764300000_3-250_front_door_2_0-0-0-0_-1_5000.mp4", 1764300000, 0.25, "front_door_2", None, -1, 5000),
        ("1764300000_3-250_cam.v2-east (1)_0-0-0-0_-1_5000.mp4", 1764300000, 0.25, "cam.v2-east (1)", None, -1, 5000),
        (
            "1764300000_3-250_Einfahrt Süd é 前門_0-0-0-0_-1_5000.mp4",
            1764300000,
            0.25,
            "Einfahrt Süd é 前門",
            None,
            -1,
            5000,
        ),
        ("1764300000_3-250_a_1-2-3-4_5_6_0-0-0-0_-1_5000.mp4", 1764300000, 0.25, "a_1-2-3-4_5_6", None, -1, 5000),
        ("1764300000_3-250____0-0-0-0_-1_5000.mp4", 1764300000, 0.25, "__", None, -1, 5000),
        ("1764300000_3-250__0-0-0-0_-1_5000.mp4", 1764300000, 0.25, None, None, -1, 5000),
        # other endings, and names of long ago
        ("1764300000_3-250_yard_0-0-0-0_-1_29870.jpg", 1764300000, 0.25, "yard", None, -1, 29870),
        ("1764300000_3-250_cam.one_0-0-0-0_-1_29870", 1764300000, 0.25, "cam.one", None, -1, 29870),
        ("1630567591_6-0___nowhere_0_token.mp4", 1630567591, 0.0, "_", None, 0, None),
    ],
)
def test_names(
    file: str,
    seconds: int,
    fraction: float | None,
    camera: str | None,
    region: tuple[int, int, int, int] | None,
    changes: int | None,
    duration: int | None,
) -> None:
    for key in (file, f"user/{file}", f"user/2026_1-2_x/{file}"):
        assert parse_name(key) == RecordingName(seconds, fraction, camera, region, changes, duration)


@pytest.mark.parametrize(
    "key",
    [
        "u/file.mp4",
        "x",
        "",
        "u/a_b_c_d_e_f.mp4",
        "u/1_2_3_4_5.mp4",
        "u/1_6-x_c_r_1_1.mp4",
        "u/1_3-2_c_0-0-0-0_1_2.mp4/",
        "u/-1_3-250_yard_0-0-0-0_-1_1.mp4",
        "u/\u0661_3-250_yard_0-0-0-0_-1_1.mp4",
    ],
)
def test_other_names_are_no_error(key: str) -> None:
    assert parse_name(key) is None


@pytest.mark.parametrize("text", ["3-1250", "1-1000", "10-5", "400-5"])
def test_a_fraction_that_can_not_be_is_unknown(text: str) -> None:
    name = parse_name(f"10_{text}_c_0-0-0-0_1_2.mp4")
    assert name is not None
    assert name.fraction is None
    assert name.timestamp == 10


@given(
    st.integers(0, 2**40),
    st.integers(0, 999),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=20),
    st.integers(-1, 10**9),
    st.integers(1, 10**7).filter(lambda value: value != 769),
)
def test_what_todays_agent_writes_is_read_back(
    seconds: int, milliseconds: int, camera: str, changes: int, duration: int
) -> None:
    fraction = f"{len(str(milliseconds))}-{milliseconds}"
    name = parse_name(f"d/{seconds}_{fraction}_{camera}_1-2-3-4_{changes}_{duration}.mp4")
    assert name == RecordingName(seconds, milliseconds / 1000, camera, (1, 2, 3, 4), changes, duration)


@given(st.text(max_size=200) | st.from_regex(r"[0-9]{1,3}_[0-9]-[0-9]{1,3}_[a-z0-9_-]{0,40}(\.mp4)?", fullmatch=True))
def test_no_text_raises(key: str) -> None:
    parse_name(key)
