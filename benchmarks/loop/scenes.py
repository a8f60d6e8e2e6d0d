"""Images of other kinds than those that `sam_tiny` is trained on, with the masks of their objects.

Cells of a stained tissue, print on textured paper, and tools on wood.  The textures of tissue and
paper are photographs of scikit-image; everything else is drawn from the seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import skimage
from samserve.types import Array, BoolArray, UInt8Array
from scipy import spatial

SIDE = 512
MIN_VISIBLE = 150
NUCLEUS = np.array([120.0, 125.0, 165.0])
"""Pixels of an object that is annotated."""


@dataclass(frozen=True)
class OtherScene:
    """uint8 RGB ``image`` ``[S, S, 3]`` and the visible pixels of its objects, bool ``[S, S]``."""

    kind: str
    image: UInt8Array
    masks: list[BoolArray]


def other_scene(seed: int, index: int) -> OtherScene:
    """Return a scene; its kind is decided by *index*, all else by both numbers."""
    kind = list(KINDS)[index % len(KINDS)]
    rng = np.random.default_rng((seed, index))
    image, ids = KINDS[kind](rng)
    masks = [ids == each for each in range(1, int(ids.max()) + 1)]
    visible = [mask for mask in masks if mask.sum() >= MIN_VISIBLE]
    noisy = image + rng.normal(0, rng.uniform(2, 6), image.shape)
    return OtherScene(kind, np.clip(noisy, 0, 255).astype(np.uint8), visible)


def cells(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return cells of a stained tissue: membranes that are faint in places, and darker nuclei.

    Colours and textures are those of `skimage.data.immunohistochemistry`.
    """
    tissue = _tissue(rng)
    labels = _packed(rng)
    stroma = 0.4 * tissue + 0.6 * np.array([214.0, 216.0, 228.0])
    image, ids = stroma.copy(), np.zeros((SIDE, SIDE), np.int32)
    stain = np.array([190.0, 150.0, 105.0]) + rng.uniform(-25, 25, 3)
    strength, width = rng.uniform(0.25, 0.6) * (0.4 + 0.9 * _clouds(rng, 60)), rng.uniform(2, 4)
    nucleus = rng.uniform(0.35, 0.6)
    number = 0
    for label in rng.permutation(np.unique(labels)):
        if rng.random() < 0.3:
            continue
        cell = labels == label
        depth = cv2.distanceTransform(np.pad(cell, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        number += 1
        ids[cell] = number
        colour = stain * rng.uniform(0.85, 1.15)
        body = 0.35 * tissue + 0.65 * colour
        core = depth > (1 - nucleus) * depth.max()
        if rng.random() < 0.85:
            darker = 0.4 * tissue + 0.6 * NUCLEUS * rng.uniform(0.8, 1.2)
            body = np.where(core[:, :, None], darker, body)
        membrane = (strength * np.exp(-((depth / width) ** 2)))[:, :, None]
        image[cell] = (body * (1 - membrane) + 0.45 * colour * membrane)[cell]
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 1.3)), ids


def prints(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return stamped characters and signs with worn ink, on paper with a strong texture."""
    texture = _texture(rng)
    image = rng.uniform(150, 225, 3) + rng.uniform(25, 60) * (texture[:, :, None] - 0.5) * 2
    ids = np.zeros((SIDE, SIDE), np.int32)
    number, row = 0, int(rng.uniform(50, 100))
    size = rng.uniform(2.0, 4.5)
    while row < SIDE:
        column = int(rng.uniform(5, 40))
        while column < SIDE - 40:
            glyph = np.zeros((SIDE, SIDE), np.uint8)
            text = "ABDEGKMNPRSTUX2345689&#@"[int(rng.integers(24))]
            font = [cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_DUPLEX]
            thick = max(3, int(size * rng.uniform(2.2, 4.5)))
            chosen = font[int(rng.integers(3))]
            cv2.putText(glyph, text, (column, row), chosen, size, 1, thick, cv2.LINE_8)
            if rng.random() < 0.8:
                number += 1
                ids[glyph > 0] = number
                _ink(rng, image, glyph > 0, texture)
            column += int(size * rng.uniform(24, 32))
        row += int(size * rng.uniform(30, 40))
    return image, ids


def tools(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return slim tools that lie across each other on a board, with their shadows."""
    image = _wood(rng)
    ids = np.zeros((SIDE, SIDE), np.int32)
    for number in range(1, int(rng.integers(5, 11))):
        shape = TOOLS[int(rng.integers(len(TOOLS)))](rng)
        mask = _placed(rng, shape)
        shadow = cv2.GaussianBlur(np.roll(mask.astype(np.float64), (5, 4), (0, 1)), (0, 0), 4)
        image *= 1 - 0.5 * (shadow * ~mask)[:, :, None]
        # Handles of wood on wood, and metal that mirrors it.
        own = _wood(rng) if rng.random() < 0.5 else 0.35 * image + rng.uniform(40, 140)
        shade = 0.8 + 0.5 * _clouds(rng, 25)
        image[mask] = (own * shade[:, :, None])[mask]
        ids[mask] = number
    return cv2.GaussianBlur(image, (0, 0), 0.8), ids


KINDS: dict[str, Callable[[np.random.Generator], tuple[Array, Array]]] = {
    "cells": cells,
    "print": prints,
    "tools": tools,
}


def _clouds(rng: np.random.Generator, scale: float) -> Array:
    """Return smooth noise from 0 to 1, ``[S, S]``, with spots of about *scale* pixels."""
    side = max(2, int(SIDE / scale) + 2)
    noise = rng.random((side, side))
    large = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(large, 0, 1))


def _packed(rng: np.random.Generator) -> Array:
    """Return labels ``[S, S]`` of long cells side by side, the Voronoi cells of a turned grid."""
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.1, 2.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    space = rng.uniform(48, 84)
    reach = np.arange(-0.8 * SIDE, 0.8 * SIDE, space)
    seeds = np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)
    seeds += rng.normal(0, 0.22 * space, seeds.shape)
    wave = rng.normal(0, 6, (2,))
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    rows = rows + wave[0] * np.sin(columns / 23)
    columns = columns + wave[1] * np.sin(rows / 31)
    pixels = np.stack([columns, rows], -1).reshape(-1, 2) @ turn.T * (1, 1 / stretch)
    nearest = spatial.cKDTree(seeds).query(pixels)[1]
    return np.asarray(nearest.reshape(SIDE, SIDE))


def _filled(corners: Array) -> BoolArray:
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(canvas, [np.round(corners).astype(np.int32)], 1)
    return canvas > 0


def _ink(rng: np.random.Generator, image: Array, glyph: BoolArray, texture: Array) -> None:
    """Print a character: less ink in the hollows of the paper."""
    colour = rng.uniform(20, 120) + rng.uniform(-20, 20, 3)
    cover = np.clip(rng.uniform(0.5, 0.9) + 0.8 * (texture - 0.5), 0.15, 1)[:, :, None]
    image[glyph] = (image * (1 - cover) + colour * cover)[glyph]


def _tissue(rng: np.random.Generator) -> Array:
    """Return a part of a photograph of stained tissue, ``[S, S, 3]``."""
    photo = np.rot90(_stained(), int(rng.integers(4)))
    side = int(rng.uniform(120, 300))
    row, column = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    return cv2.resize(photo[row : row + side, column : column + side], (SIDE, SIDE))


@functools.cache
def _stained() -> Array:
    return np.asarray(skimage.data.immunohistochemistry(), np.float64)


@functools.cache
def _photograph(name: str) -> Array:
    grey = getattr(skimage.data, name)().astype(np.float64)
    grey = grey if grey.ndim == 2 else grey.mean(2)
    return np.asarray((grey - grey.min()) / (grey.max() - grey.min()))


def _texture(rng: np.random.Generator) -> Array:
    """Return a texture ``[S, S]`` from 0 to 1."""
    photo = _photograph(("gravel", "grass", "brick")[int(rng.integers(3))])
    side = int(rng.uniform(200, min(photo.shape)))
    row, column = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape)
    return cv2.resize(photo[row : row + side, column : column + side], (SIDE, SIDE))


def _wood(rng: np.random.Generator) -> Array:
    """Return a board ``[S, S, 3]``: rings that are cut lengthwise."""
    rows = np.arange(SIDE)[:, None] / SIDE
    bend = 0.35 * _clouds(rng, 200) + 0.04 * _clouds(rng, 40)
    rings = np.sin((rows + bend) * rng.uniform(60, 140)) * 0.5 + 0.5
    fibres = cv2.resize(rng.random((SIDE, 8)), (SIDE, SIDE))
    dark, light = rng.uniform(60, 110), rng.uniform(130, 190)
    grey = dark + (light - dark) * (0.65 * rings + 0.35 * fibres)
    return np.asarray(
        grey[:, :, None] * np.array([1.0, rng.uniform(0.7, 0.85), rng.uniform(0.45, 0.65)])
    )


def _placed(rng: np.random.Generator, shape: list[Array]) -> BoolArray:
    """Return outlines around the origin, turned and moved into the image."""
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.5)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    move = rng.uniform(90, SIDE - 90, 2)
    mask = np.zeros((SIDE, SIDE), bool)
    for outline in shape:
        # An outline inside of another one is a hole.
        mask ^= _filled(outline @ turn + move)
    return mask


def _bar(left: float, right: float, *halves: float) -> Array:
    """Return an outline along the x axis with half widths at even distances."""
    x = np.linspace(left, right, len(halves))
    half = np.array(halves)
    return np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])


def _ring(x: float, radius: float, corners: int = 40) -> Array:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], 1)


def _screwdriver(rng: np.random.Generator) -> list[Array]:
    half = rng.uniform(9, 14)
    handle = _bar(-120, -30, half * 0.8, half, half * 0.8, half, half * 0.6)
    return [np.concatenate([handle[:5], _bar(-28, 110, 4, 4, 4, 4, 6), handle[5:]])]


def _spanner(rng: np.random.Generator) -> list[Array]:
    end, half = rng.uniform(20, 27), rng.uniform(6, 9)
    body = _bar(-95, 95, end * 0.7, end, half, half, half, half, end, end * 0.7)
    return [body, _ring(-82, end * 0.5, 6), _ring(88, end * 0.45, 6)]


def _hammer(rng: np.random.Generator) -> list[Array]:
    half, head = rng.uniform(6, 9), rng.uniform(32, 44)
    return [_bar(-110, 85, half * 1.3, half, half, half, half, head, head, head * 0.9)]


def _washer(rng: np.random.Generator) -> list[Array]:
    radius = rng.uniform(20, 34)
    return [_ring(0, radius), _ring(0, radius * rng.uniform(0.4, 0.6))]


TOOLS = (_screwdriver, _spanner, _hammer, _washer)
