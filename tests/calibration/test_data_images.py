"""Pictures: order, resizing, cropping, colours, layout and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxq.calibration.data import Data, open_data
from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec

FREE: tuple[Dimension, ...] = ("N", 3, "H", "W")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def flat(red: int, height: int = 4, width: int = 4) -> np.ndarray:
    """uint8[height, width, 3] of one colour: (red, 100, 200)."""
    return np.full((height, width, 3), (red, 100, 200), np.uint8)


def opened(folder: Path, options: str = "", shape: tuple[Dimension, ...] = FREE, dtype: Any = np.float32) -> Data:
    return open_data(f"images:{folder}{options}", [TensorSpec("x", np.dtype(dtype), shape)])


def test_pictures_are_sorted_by_path_and_subfolders_count(tmp_path: Path) -> None:
    for red, name in ((51, "b/1.png"), (0, "a/2.png"), (255, "c.PNG")):
        save(tmp_path / name, flat(red))
    (tmp_path / "a/notes.txt").write_text("no picture")
    data = opened(tmp_path)
    assert [batch["x"].shape for batch in data.batches()] == [(3, 3, 4, 4)]
    np.testing.assert_allclose(next(data.batches())["x"][:, 0, 0, 0], [0, 0.2, 1], rtol=1e-6)
    assert data.description == f"images:{tmp_path}, 3 samples"


def test_the_limit_takes_pictures_from_everywhere(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number:02}.png", flat(number))
    data = opened(tmp_path, "?limit=4&scale=1")
    reds = [int(data.sample(place)["x"][0, 0, 0, 0]) for place in range(len(data))]
    assert [red // 5 for red in reds] == [0, 1, 2, 3]
    assert len(opened(tmp_path, "?limit=50")) == 20


def test_mean_and_std_apply_after_the_scale(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(255))
    pixel = opened(tmp_path, "?mean=0.5,0.4,0.3&std=0.5,0.25,0.2").sample(0)["x"][0, :, 0, 0]
    np.testing.assert_allclose(pixel, [(1 - 0.5) / 0.5, (100 / 255 - 0.4) / 0.25, (200 / 255 - 0.3) / 0.2], rtol=1e-5)
    pixel = opened(tmp_path, "?mean=127&std=2&scale=1").sample(0)["x"][0, :, 0, 0]
    np.testing.assert_allclose(pixel, [64, -13.5, 36.5])


@pytest.mark.parametrize(("channels", "expected"), [("rgb", [0, 100, 200]), ("bgr", [200, 100, 0])])
def test_channels_and_layouts(tmp_path: Path, channels: str, expected: list[int]) -> None:
    save(tmp_path / "a.png", flat(0))
    first = opened(tmp_path, f"?scale=1&channels={channels}").sample(0)["x"]
    assert first[0, :, 0, 0].tolist() == expected
    last = opened(tmp_path, f"?scale=1&channels={channels}&layout=nhwc", ("N", "H", "W", "C")).sample(0)["x"]
    assert last[0, 0, 0].tolist() == expected


def test_the_layout_and_the_colours_follow_the_model(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(0, 4, 6))
    assert opened(tmp_path, shape=("N", "H", "W", 3)).sample(0)["x"].shape == (1, 4, 6, 3)
    assert opened(tmp_path, shape=("N", 1, "H", "W")).sample(0)["x"].shape == (1, 1, 4, 6)
    assert opened(tmp_path, shape=("N", "H", "W", 1)).sample(0)["x"].shape == (1, 4, 6, 1)
    assert opened(tmp_path, shape=(3, "H", "W")).sample(0)["x"].shape == (3, 4, 6)


def test_gray_pictures_and_transparent_ones_become_rgb(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((4, 4), 51, np.uint8))
    save(tmp_path / "b.png", np.full((4, 4, 4), 51, np.uint8))
    np.testing.assert_allclose(next(opened(tmp_path).batches())["x"], np.full((2, 3, 4, 4), 0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ("?resize=8", (8, 12)),  # the shorter side
        ("?resize=8x10", (8, 10)),
        ("?resize=8&crop=6", (6, 6)),
        ("?crop=10x15", (10, 15)),
        ("", (20, 30)),
    ],
)
def test_resize_and_crop(tmp_path: Path, options: str, shape: tuple[int, int]) -> None:
    save(tmp_path / "wide.png", flat(0, 20, 30))
    save(tmp_path / "zigh.png", flat(0, 30, 20))
    data = opened(tmp_path, options)
    assert data.sample(0)["x"].shape[2:] == shape
    if options == "?resize=8":
        assert data.sample(1)["x"].shape[2:] == shape[::-1]


def test_the_crop_is_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[2:4, 3:7] = 255
    save(tmp_path / "a.png", pixels)
    assert (opened(tmp_path, "?crop=2x4").sample(0)["x"] == 1).all()
    assert opened(tmp_path, "?crop=4x6").sample(0)["x"][0, 0].sum() == 8


def test_resizing_is_bilinear_and_smooth(tmp_path: Path) -> None:
    """Halving a checkerboard of single pixels averages it; picking the nearest pixel would not."""
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "a.png", board)
    pixels = opened(tmp_path, "?resize=8").sample(0)["x"]
    assert 0.4 < pixels.min() <= pixels.max() < 0.6


def test_a_model_of_fixed_size_needs_no_options(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(0, 20, 30))
    save(tmp_path / "b.png", flat(0, 9, 3))
    for options in ("", "?resize=9", "?resize=8x8"):
        assert next(opened(tmp_path, options, ("N", 3, 8, 8)).batches())["x"].shape == (2, 3, 8, 8)


def test_a_fixed_batch_takes_several_pictures(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / f"{number}.png", flat(number))
    data = opened(tmp_path, "?scale=1", shape=(2, 3, "H", "W"))
    assert [batch["x"][:, 0, 0, 0].tolist() for batch in data.batches()] == [[0, 1], [2, 3]]
    assert "the last 1 left out: the model takes batches of 2" in data.description


def test_pictures_of_other_sizes_do_not_fill_a_fixed_batch(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(0, 4, 4))
    save(tmp_path / "b.png", flat(0, 4, 5))
    with pytest.raises(DataError, match=r"a\.png and the 1 after it differ in shape.*batches of 2"):
        opened(tmp_path, shape=(2, 3, "H", "W"))


def test_a_model_of_integers_gets_pixels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(7))
    pixels = opened(tmp_path, dtype=np.uint8).sample(0)["x"]
    assert pixels.dtype == np.uint8
    assert pixels[0, :, 0, 0].tolist() == [7, 100, 200]
    with pytest.raises(DataError, match=r"a\.png: input 'x' is float32 and would lose values as uint8"):
        opened(tmp_path, "?mean=0.5", dtype=np.uint8)


def test_pictures_are_read_when_they_are_needed(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(0))
    save(tmp_path / "b.png", flat(0))
    data = opened(tmp_path)
    (tmp_path / "b.png").write_bytes(b"broken")
    assert data.sample(0)["x"].shape == (1, 3, 4, 4)
    with pytest.raises(DataError, match=r"b\.png cannot be read as a picture"):
        list(data.batches())


def test_a_picture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save(tmp_path / "a.jpg", pixels)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.jpg cannot be read as a picture"):
        opened(tmp_path)


def test_a_picture_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(0, 4, 4))
    with pytest.raises(DataError, match=r"a\.png is 4x4 and cannot be cropped to 8x8. Add resize=8"):
        opened(tmp_path, "?crop=8")
    with pytest.raises(DataError, match=r"a\.png: input 'x' has shape \[1, 3, 2, 2\]"):
        opened(tmp_path, "?crop=2", shape=("N", 3, 4, 4))
    with pytest.raises(DataError, match=r"a\.png: input 'x' has shape \[1, 3, 3, 3\]"):
        opened(tmp_path, "?resize=3x3", shape=("N", 3, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?size=3", "'images' has no option 'size'. Its options are resize, crop, mean"),
        ("?resize=big", "option resize=big is wrong. It takes pixels, like 224"),
        ("?resize=0", "option resize=0 is wrong"),
        ("?crop=1x2x3", "option crop=1x2x3 is wrong"),
        ("?mean=1,2", "option mean=1,2 is wrong. It takes 1 or 3 finite numbers"),
        ("?mean=nan", "option mean=nan is wrong"),
        ("?mean=a", "option mean=a is wrong. It takes numbers"),
        ("?channels=gray&mean=1,2,3", "option mean=1,2,3 is wrong. It takes 1 finite numbers"),
        ("?std=1,0,1", "option std=1,0,1 divides by 0"),
        ("?scale=0", "option scale=0 divides by 0"),
        ("?layout=chw", "option layout=chw is wrong. It takes nchw or nhwc"),
        ("?channels=cmyk", "option channels=cmyk is wrong. It takes rgb or bgr or gray"),
        ("?limit=0", "option limit=0 is wrong"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: str, message: str) -> None:
    save(tmp_path / "a.png", flat(0))
    with pytest.raises(DataError, match=message):
        opened(tmp_path, options)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no pictures in there. Known endings are \.bmp"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "inputs",
    [
        [TensorSpec("x", np.dtype(np.float32), FREE), TensorSpec("size", np.dtype(np.int64), (2,))],
        [TensorSpec("x", np.dtype(np.float32), ("N", 3))],
        [TensorSpec("x", np.dtype(np.float32), None)],
    ],
)
def test_models_that_take_something_else_are_refused(tmp_path: Path, inputs: list[TensorSpec]) -> None:
    save(tmp_path / "a.png", flat(0))
    with pytest.raises(DataError, match=r"Pictures fill one input of rank 4 or 3\. The model expects x: "):
        open_data(f"images:{tmp_path}", inputs)


def test_missing_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'pip install "onnxq\[images\]"'):
        opened(tmp_path)
