"""Data from a folder of pictures: `images:FOLDER?resize=256&crop=224&mean=0.485,0.456,0.406`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibration.feeds import Feed, Source, grouped
from onnxq.calibration.options import Options
from onnxq.calibration.spread import spread
from onnxq.errors import DataError
from onnxq.interface import TensorSpec, describe

if TYPE_CHECKING:
    from PIL.Image import Image

OPTIONS = ("resize", "crop", "mean", "std", "scale", "layout", "channels", "limit")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}


def from_images(folder: Path, options: str, inputs: Sequence[TensorSpec]) -> Source:
    """The pictures below a folder, sorted by path, each read when it is needed.

    Options, in the order in which they apply:
        limit: use so many pictures, spread evenly over the sorted list.
        channels: rgb, bgr or gray; without it what the number of channels of the model suggests.
        resize: 256 makes the shorter side 256 long; 480x640 gives exactly that height and width. Bilinear.
        crop: 224 or 480x640, from the centre.
        scale: divide by it; 255, or 1 where the model takes integers.
        mean, std: then subtract and divide, per channel.
        layout: nchw or nhwc; without it what the shape of the input suggests.
    Where the model fixes height and width, that is the crop unless another one or an exact size is given, and
    without resize the shorter side is made just long enough for it.

    Raises:
        DataError: Pillow or the folder is missing, an option is wrong, a picture cannot be read, or the model
            takes something else than one picture.
    """
    _pillow()
    if len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) not in (3, 4):
        raise DataError(f"Pictures fill one input of rank 4 or 3. The model expects {describe(inputs)}.")
    recipe = _recipe(Options.parse("images", options, OPTIONS), inputs[0])
    if not folder.is_dir():
        raise DataError(f"images:{folder}: there is no such folder. Give the folder that holds the pictures.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"images:{folder}: no pictures in there. Known endings are {' '.join(SUFFIXES)}.")
    chosen = [files[index] for index in spread(min(recipe.limit or len(files), len(files)), len(files))]
    source = Source(
        description=f"images:{folder}" + (f"?{options}" if options else ""),
        count=len(chosen),
        read=lambda index: recipe.feed(chosen[index]),
        where=lambda index: str(chosen[index]),
    )
    first = inputs[0].shape[0]
    return grouped(source, first if len(inputs[0].shape) == 4 and isinstance(first, int) else 1)


@dataclass(frozen=True)
class _Recipe:
    """How a picture becomes the input of the model."""

    spec: TensorSpec
    limit: int
    channels: str
    resize: tuple[int, ...]
    crop: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str

    def feed(self, path: Path) -> Feed:
        pixels = self._normalized(self._pixels(path))
        pixels = pixels.transpose(2, 0, 1) if self.layout == "nchw" else pixels
        return {self.spec.name: pixels if len(self.spec.shape or ()) == 3 else pixels[np.newaxis]}

    def _pixels(self, path: Path) -> np.ndarray:
        """uint8[height, width, channels]."""
        try:
            with _pillow().open(path) as image:
                cut = self._cut(image.convert(_MODES[self.channels]), path)
        except DataError:
            raise
        except Exception as error:  # Pillow raises many types for broken files
            raise DataError(f"{path} cannot be read as a picture ({error}). Repair it or take it away.") from error
        pixels = np.atleast_3d(np.asarray(cut))
        return pixels[:, :, ::-1] if self.channels == "bgr" else pixels

    def _cut(self, image: Image, path: Path) -> Image:
        if self.resize:
            image = image.resize(_resized(image.size, self.resize), _pillow().Resampling.BILINEAR)
        if not self.crop:
            return image
        height, width = self.crop[0], self.crop[-1]
        if height > image.height or width > image.width:
            raise DataError(
                f"{path} is {image.height}x{image.width} and cannot be cropped to {height}x{width}. "
                f"Add resize={max(height, width)}."
            )
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _normalized(self, pixels: np.ndarray) -> np.ndarray:
        if self.scale == 1 and not self.mean and not self.std:
            return pixels
        mean, std = np.array(self.mean or 0, np.float32), np.array(self.std or 1, np.float32)
        return (pixels.astype(np.float32) / np.float32(self.scale) - mean) / std


def _resized(size: tuple[int, int], target: tuple[int, ...]) -> tuple[int, int]:
    """Width and height after resizing: `target` is the shorter side, or height and width."""
    if len(target) == 2:
        return target[1], target[0]
    width, height = size
    return max(target[0], target[0] * width // height), max(target[0], target[0] * height // width)


def _recipe(options: Options, spec: TensorSpec) -> _Recipe:
    shape = spec.shape or ()
    last_is_colour = shape[-1] in (1, 3) and shape[-3] not in (1, 3)
    layout = options.choice("layout", "nhwc" if last_is_colour else "nchw", ("nchw", "nhwc"))
    colours, height, width = shape[-3:] if layout == "nchw" else (shape[-1], shape[-3], shape[-2])
    channels = options.choice("channels", "gray" if colours == 1 else "rgb", tuple(_MODES))
    resize, crop = options.sides("resize"), options.sides("crop")
    if not crop and len(resize) < 2 and isinstance(height, int) and isinstance(width, int):
        resize, crop = resize or (max(height, width),), (height, width)
    return _Recipe(
        spec=spec,
        limit=options.whole("limit", 1) if "limit" in options.values else 0,
        channels=channels,
        resize=resize,
        crop=crop,
        scale=(_divisors(options, "scale", 1) or ((1.0,) if spec.dtype.kind in "iu" else (255.0,)))[0],
        mean=options.numbers("mean", _counts(channels)),
        std=_divisors(options, "std", *_counts(channels)),
        layout=layout,
    )


def _counts(channels: str) -> tuple[int, ...]:
    """How many means or deviations may be given: one for all, or one for each channel."""
    return (1,) if channels == "gray" else (1, 3)


def _divisors(options: Options, key: str, *counts: int) -> tuple[float, ...]:
    values = options.numbers(key, counts)
    if 0 in values:
        raise DataError(f"Data 'images': option {key}={options.values[key]} divides by 0. Give other numbers.")
    return values


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError('Pictures need Pillow, which is not installed: pip install "onnxq[images]".') from error
    return Image
