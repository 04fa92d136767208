"""Scene → pixels. Only numpy and Pillow; the same scene gives the same pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vlmexport.demo.scenes import BACKGROUNDS, SIDE, Placed, Scene
from vlmexport.demo.sprites import sprite

Floats = NDArray[np.float32]


def paint(scene: Scene) -> Image.Image:
    """The picture: RGB, 336×336."""
    return paint_with_alpha(scene)[0]


def paint_with_alpha(scene: Scene) -> tuple[Image.Image, list[Image.Image]]:
    """The picture, and for each object its visible opacity as an 8-bit image of the same size."""
    rng = np.random.default_rng([1, scene.paint_seed])
    canvas = _background(scene, rng)
    alphas: list[Image.Image] = []
    for placed in scene.objects:
        tile = _transformed(placed)
        corner = (round(placed.x - tile.width / 2), round(placed.y - tile.height / 2))
        alpha = Image.new("L", (SIDE, SIDE))
        alpha.paste(tile.getchannel("A"), corner)
        canvas.paste(tile, corner, tile)
        alphas.append(alpha)
    _occlude(canvas, scene, rng)
    return _noisy(canvas, scene, rng), alphas


def _background(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Plain, a gradient, or low-frequency blotches, around the named colour."""
    colour = np.array(BACKGROUNDS[scene.background], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    strength = scene.difficulty.texture
    kind = int(rng.integers(3))
    if kind == 0:
        field = np.zeros((2, 2), np.float32)
    elif kind == 1:
        corner = rng.uniform(-strength, strength, 2).astype(np.float32)
        field = np.array([[-corner[0], corner[1]], [-corner[1], corner[0]]], np.float32)
    else:
        cells = int(rng.integers(4, 10))
        field = rng.normal(0, strength * 0.7, (cells, cells)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return _image(colour + smooth[:, :, None])


def _transformed(placed: Placed) -> Image.Image:
    """The sprite in its size, angle and colours: RGBA."""
    side = round(placed.size)
    tile = sprite(placed.class_id).resize((side, side), Image.Resampling.BICUBIC)
    tile = tile.rotate(placed.angle, Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(tile, np.float32)
    colours = pixels[:, :, :3] @ hue_rotation(placed.hue)
    colours = (colours - 128) * (1 + placed.contrast) + 128 * (1 + placed.brightness)
    out = np.concatenate([np.clip(colours, 0, 255), pixels[:, :, 3:]], axis=2)
    return Image.fromarray(np.rint(out).astype(np.uint8))


def hue_rotation(angle: float) -> Floats:
    """The 3×3 matrix that turns RGB about the gray axis by `angle` radians (row vectors)."""
    c, s = math.cos(angle), math.sin(angle)
    third, root = (1 - c) / 3, s / math.sqrt(3)
    a, b, d = c + third, third - root, third + root
    return np.array([[a, d, b], [b, a, d], [d, b, a]], np.float32)


def _occlude(canvas: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """A thin bar across some of the objects."""
    draw = ImageDraw.Draw(canvas)
    level = scene.difficulty
    for placed in scene.objects:
        hit, turn, shift = rng.random(), rng.uniform(0, math.pi), rng.uniform(-0.25, 0.25) * placed.size
        width = int(rng.integers(level.bar_width[0], level.bar_width[1] + 1))
        colour = tuple(int(c) for c in rng.integers(20, 236, 3))
        if hit < level.bar_chance:
            dx, dy = math.cos(turn) * placed.size * 0.6, math.sin(turn) * placed.size * 0.6
            x, y = placed.x - math.sin(turn) * shift, placed.y + math.cos(turn) * shift
            draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=colour, width=width)


def _noisy(canvas: Image.Image, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Gray pixel noise; its strength differs from scene to scene."""
    sigma = float(rng.uniform(*scene.difficulty.noise))
    noise = (rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * np.float32(sigma)).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))
