import pytest

from cfrestore.cli.published import translate
from cfrestore.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("--input_path a.jpg", "a.jpg"),
        ("--input_path=a.jpg", "a.jpg"),
        ("-i a.jpg", "a.jpg"),
        ("-ia.jpg", "a.jpg"),
        ("-i=a.jpg", "a.jpg"),
        ("-i -", "-"),
        ("-i -a.jpg", "./-a.jpg"),
        ("--output_path out", "--output=out/"),
        ("--output_path=out/", "--output=out//"),
        ("--output_path=", "--output="),
        ("--fidelity_weight 0.7", "--w=0.7"),
        ("--fidelity_weight=0.7", "--w=0.7"),
        ("--fidelity-weight -1", "--w=-1"),
        ("-w 0.7 -s 2 -o x.jpg", "-w 0.7 -s 2 -o x.jpg"),
        ("--has_aligned", "--aligned"),
        ("--has-aligned", "--aligned"),
        ("--has_aligned=1", "--aligned=1"),
        ("--only_center_face", "--faces=center"),
        ("--draw_box", "--draw-box"),
        ("--detection_model retinaface_resnet50", "--detector=retinaface"),
        ("--detection_model=retinaface_mobile0.25", "--detector=mobilenet"),
        ("--detection-model mtcnn", "--detector=mtcnn"),
        ("a.jpg --bg_upsampler None", "a.jpg --bg-upsampler None"),
        ("--bg_upsampler=realesrgan a.jpg", "--bg-upsampler=realesrgan a.jpg"),
        ("--face_upsample --bg_tile 200", "--face-upsample --bg-tile 200"),
        ("--save_crops --min_face=4", "--save-crops --min-face=4"),
        ("--suffix a_b my_photo.jpg", "--suffix a_b my_photo.jpg"),
        ("--suffix=a_b", "--suffix=a_b"),
        ("--draw_box -- --draw_box -i", "--draw-box -- --draw_box -i"),
        ("-", "-"),
    ],
)
def test_a_published_word_becomes_ours(words: str, ours: str) -> None:
    assert translate(words.split()) == ours.split()


def test_no_words_stay_none() -> None:
    assert translate([]) == []
    assert translate([""]) == [""]


@pytest.mark.parametrize("detector", ["YOLOv5l", "YOLOv5n", "dlib"])
def test_detectors_that_there_are_not_end_with_those_that_there_are(detector: str) -> None:
    with pytest.raises(ConfigError, match=f"no detector {detector}; there are retinaface, mobil"):
        translate(["--detection_model", detector])


@pytest.mark.parametrize("words", ["--save_video_fps 24", "--save-video-fps=24"])
def test_what_does_not_exist_yet_is_said(words: str) -> None:
    name = words.replace("=", " ").split()[0].replace("_", "-")
    with pytest.raises(ConfigError, match=f"cfrestore does not .* yet, which {name} asks for"):
        translate(["a.jpg", *words.split()])


@pytest.mark.parametrize("word", ["-i", "--fidelity_weight", "--output-path"])
def test_an_option_without_its_value_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=f"{word.replace('_', '-')} needs a value"):
        translate(["a.jpg", word])
