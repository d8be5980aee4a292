"""Faces followed through videos: no video is read here."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stubs import face_at

from cfrestore.detail import TOO_SHARP
from cfrestore.detect import Face
from cfrestore.options import Options
from cfrestore.select import SkippedFace
from cfrestore.video.tracks import (
    FAINTEST,
    Frame,
    PlannedFace,
    Sighting,
    link,
    plan_faces,
)

SIZE = (360, 480)


def seen(*lists: list[Face], rate: float = 25, cuts: tuple[int, ...] = ()) -> list[Frame]:
    """Frames with these faces."""
    return [
        Frame(n / rate, tuple(map(Sighting, faces)), cut=n in cuts) for n, faces in enumerate(lists)
    ]


def walk(count: int, x: float = 40, step: float = 2, side: float = 60) -> list[list[Face]]:
    return [[face_at(x + step * n, 50, side)] for n in range(count)]


def left_eyes(frames: tuple[tuple[PlannedFace, ...], ...]) -> np.ndarray:
    return np.array([faces[0].landmarks[0] for faces in frames])


def test_a_face_that_moves_is_one_track_and_two_faces_are_two() -> None:
    both = [a + b for a, b in zip(walk(20), walk(20, x=300, step=-2), strict=True)]
    tracks = link(seen(*both))
    assert [len(track.sightings) for track in tracks] == [20, 20]
    for track, start in zip(tracks, (40, 300), strict=True):
        assert abs(track.sightings[0].face.box[0] - start) < 1
        assert track.shot == (0, 20)


def test_faces_that_come_near_each_other_are_not_exchanged() -> None:
    near = [
        [face_at(50 + n, 50, 60), face_at(115 + n, 50, 60)][:: 1 if n % 2 else -1]
        for n in range(20)
    ]
    tracks = link(seen(*near))
    assert len(tracks) == 2
    for track in tracks:
        steps = np.diff([sighting.face.box[0] for sighting in track.sightings.values()])
        np.testing.assert_allclose(steps, 1, atol=1e-4)


def test_a_gap_is_filled_and_a_long_one_is_not() -> None:
    faces = walk(40)
    short = [[] if 10 <= n < 15 else found for n, found in enumerate(faces)]
    plan = plan_faces(seen(*short), SIZE, Options())
    assert len(plan.tracks) == 1
    assert all(len(found) == 1 for found in plan.frames)
    truth = np.array([found[0].landmarks[0] for found in faces])
    np.testing.assert_allclose(left_eyes(plan.frames), truth, atol=0.01)
    long = [[] if 10 <= n < 24 else found for n, found in enumerate(faces)]
    plan = plan_faces(seen(*long), SIZE, Options())
    assert len(plan.tracks) == 2
    assert not any(plan.frames[10:24])


def test_a_face_is_not_followed_across_a_cut() -> None:
    tracks = link(seen(*walk(20, step=0), cuts=(8,)))
    assert [track.shot for track in tracks] == [(0, 8), (8, 20)]


def test_a_face_of_another_size_or_far_away_is_another_face() -> None:
    for other in (walk(10, side=120), walk(10, x=200)):
        assert len(link(seen(*walk(10), *other))) == 2


def test_trembling_is_smoothed_and_steady_movement_is_followed() -> None:
    rng = np.random.default_rng(0)
    truth = [found[0] for found in walk(60, step=3)]
    shaken = [
        [replace(f, landmarks=(f.landmarks + rng.normal(0, 1, (5, 2))).astype(np.float32))]
        for f in truth
    ]
    plan = plan_faces(seen(*shaken), SIZE, Options())
    goal = np.array([f.landmarks[0] for f in truth])
    before = np.array([faces[0].landmarks[0] for faces in shaken]) - goal
    after = left_eyes(plan.frames) - goal
    assert np.abs(np.diff(after, axis=0)).mean() < 0.2 * np.abs(np.diff(before, axis=0)).mean()
    assert after[5:-5].std() < 0.5 * before[5:-5].std()
    still = plan_faces(seen(*[[f] for f in truth]), SIZE, Options())
    np.testing.assert_allclose(left_eyes(still.frames), goal, atol=0.01)


def test_a_face_fades_in_and_out_within_a_shot_but_not_at_cuts() -> None:
    faces = walk(20)
    inside = [found if 4 <= n < 14 else [] for n, found in enumerate(faces)]
    plan = plan_faces(seen(*inside), SIZE, Options())
    opacity = [found[0].opacity for found in plan.frames if found]
    assert opacity[0] == opacity[-1] == pytest.approx(FAINTEST)
    assert np.all(np.diff(opacity[:5]) > 0)
    assert np.all(np.diff(opacity[-5:]) < 0)
    assert max(opacity) == 1
    whole = plan_faces(seen(*faces, cuts=(10,)), SIZE, Options())
    assert {found[0].opacity for found in whole.frames} == {1.0}


def test_what_is_seen_in_a_few_frames_is_left_alone() -> None:
    faces = walk(30)
    faces[12] = [*faces[12], face_at(300, 200, 40)]
    plan = plan_faces(seen(*faces), SIZE, Options())
    assert [len(found) for found in plan.frames] == [1] * 30
    skipped = plan.chosen[1]
    assert isinstance(skipped, SkippedFace)
    assert skipped.reason == "seen in 1 frame only"


def test_in_a_short_shot_a_face_need_not_be_seen_often() -> None:
    assert [len(found) for found in plan_faces(seen(*walk(2)), SIZE, Options()).frames] == [1, 1]


def test_a_face_that_is_mostly_too_sharp_is_left_alone_in_every_frame() -> None:
    frames = [
        replace(frame, sightings=tuple(replace(s, sharp=n % 3 > 0) for s in frame.sightings))
        for n, frame in enumerate(seen(*walk(30)))
    ]
    plan = plan_faces(frames, SIZE, Options())
    (choice,) = plan.chosen
    assert isinstance(choice, SkippedFace)
    assert choice.reason == TOO_SHARP
    assert not any(plan.frames)
    assert all(plan_faces(frames, SIZE, Options(max_face=None)).frames)


def test_choices_are_made_once_for_a_track() -> None:
    """The larger face is so in most frames only."""
    sides = [60 if n % 4 else 40 for n in range(20)]
    faces = [[face_at(40, 50, side), face_at(250, 50, 50)] for side in sides]
    plan = plan_faces(seen(*faces), SIZE, Options(faces="largest"))
    assert all(len(found) == 1 and found[0].box[0] < 100 for found in plan.frames)
    plan = plan_faces(seen(*faces), SIZE, Options(min_face=55))
    assert all(len(found) == 1 and found[0].box[0] < 100 for found in plan.frames)
    plan = plan_faces(seen(*faces), SIZE, Options(faces=(0, 7)))
    assert plan.missing == (7,)
    assert all(len(found) == 1 for found in plan.frames)


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 400), st.floats(10, 90)), max_size=4),
        min_size=1,
        max_size=25,
    ),
    st.sets(st.integers(0, 24)),
)
def test_every_sighting_is_in_one_track_and_no_track_has_two_of_a_frame(
    places: list[list[tuple[float, float]]], cuts: set[int]
) -> None:
    frames = seen(
        *[[face_at(x, 50, side) for x, side in found] for found in places], cuts=tuple(cuts)
    )
    tracks = link(frames)
    for index, frame in enumerate(frames):
        own = [track.sightings[index] for track in tracks if index in track.sightings]
        assert sorted(map(id, own)) == sorted(map(id, frame.sightings))
    for track in tracks:
        assert list(track.sightings) == sorted(track.sightings)
        assert track.shot[0] <= track.first <= track.last < track.shot[1]
    plan = plan_faces(frames, SIZE, Options())
    for found in plan.frames:
        for face in found:
            assert np.isfinite(face.landmarks).all()
            assert 0 < face.opacity <= 1
