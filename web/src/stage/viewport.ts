/**
 * Where the image is on the screen.
 *
 * Pure computation. Screen coordinates are CSS pixels from the top left corner of the canvas; those
 * of the image are its pixels.
 */

import type { Box, Size } from "../types";

/** A position on the screen, or in the image. */
export interface Position {
  readonly x: number;
  readonly y: number;
}

/** The image's corner (0, 0) is at (*x*, *y*) of the screen; *scale* is in CSS pixels per pixel. */
export interface Viewport {
  readonly x: number;
  readonly y: number;
  readonly scale: number;
}

/** The free space around a fitted image, in CSS pixels; edges can be scrolled as far inside. */
export const MARGIN = 16;

/** So that a small image is not only blur. */
const MAX_FIT_SCALE = 8;
const MAX_SCALE = 32;
/** Of all pixels of a canvas: screens with more get fewer of their own per CSS pixel. */
const MAX_CANVAS_PIXELS = 3840 * 2160;

/** Show the whole image, as large as the container allows, in its centre. */
export function fitted(image: Size, container: Size): Viewport {
  const scale = fitScale(image, container);
  return clamp({ x: 0, y: 0, scale }, image, container);
}

/** Multiply the scale, within its limits; what is at *at* on the screen stays there if possible. */
export function zoomAt(
  viewport: Viewport,
  factor: number,
  at: Position,
  image: Size,
  container: Size,
): Viewport {
  const least = fitScale(image, container);
  const scale = Math.min(Math.max(viewport.scale * factor, least), Math.max(MAX_SCALE, least));
  const fixed = toImage(viewport, at);
  const moved = { x: at.x - fixed.x * scale, y: at.y - fixed.y * scale, scale };
  return clamp(moved, image, container);
}

/** Move the image by CSS pixels. */
export function pan(viewport: Viewport, by: Position, image: Size, container: Size): Viewport {
  const moved = { ...viewport, x: viewport.x + by.x, y: viewport.y + by.y };
  return clamp(moved, image, container);
}

/** Move the image as little as needed so that a position of it is *MARGIN* inside the container. */
export function reveal(
  viewport: Viewport,
  position: Position,
  image: Size,
  container: Size,
): Viewport {
  const { x, y } = toScreen(viewport, position);
  const by = { x: inside(x, container.width) - x, y: inside(y, container.height) - y };
  return by.x === 0 && by.y === 0 ? viewport : pan(viewport, by, image, container);
}

/** Keep what was in the centre of the container there after its size has changed. */
export function resize(viewport: Viewport, image: Size, before: Size, container: Size): Viewport {
  const by = {
    x: (container.width - before.width) / 2,
    y: (container.height - before.height) / 2,
  };
  const scale = Math.max(viewport.scale, fitScale(image, container));
  return clamp({ x: viewport.x + by.x, y: viewport.y + by.y, scale }, image, container);
}

/** Centre the image where it is smaller than the container; else let no edge leave a wide gap. */
export function clamp(viewport: Viewport, image: Size, container: Size): Viewport {
  const { scale } = viewport;
  return {
    x: clampAxis(viewport.x, image.width * scale, container.width),
    y: clampAxis(viewport.y, image.height * scale, container.height),
    scale,
  };
}

export function toImage({ x, y, scale }: Viewport, screen: Position): Position {
  return { x: (screen.x - x) / scale, y: (screen.y - y) / scale };
}

export function toScreen({ x, y, scale }: Viewport, position: Position): Position {
  return { x: position.x * scale + x, y: position.y * scale + y };
}

export function isInside({ x, y }: Position, { width, height }: Size): boolean {
  return x >= 0 && y >= 0 && x <= width && y <= height;
}

/** Return the nearest position in the image. */
export function clampToImage({ x, y }: Position, { width, height }: Size): Position {
  return { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
}

/** Return the box between two corners, in any order, without what is outside the image. */
export function boxBetween(from: Position, to: Position, image: Size): Box {
  const a = clampToImage(from, image);
  const b = clampToImage(to, image);
  return {
    xMin: Math.min(a.x, b.x),
    yMin: Math.min(a.y, b.y),
    xMax: Math.max(a.x, b.x),
    yMax: Math.max(a.y, b.y),
  };
}

/** Return the part of the image that is on the screen; it may be empty. */
export function visiblePart(viewport: Viewport, image: Size, container: Size): Box {
  const corner = toImage(viewport, { x: container.width, y: container.height });
  return boxBetween(toImage(viewport, { x: 0, y: 0 }), corner, image);
}

/** Return the pixels of the canvas per CSS pixel. */
export function canvasRatio(container: Size, devicePixelRatio: number): number {
  const pixels = Math.max(1, container.width * container.height);
  return Math.min(devicePixelRatio, Math.sqrt(MAX_CANVAS_PIXELS / pixels));
}

function fitScale(image: Size, container: Size): number {
  const width = Math.max(1, container.width - 2 * MARGIN);
  const height = Math.max(1, container.height - 2 * MARGIN);
  return Math.min(width / image.width, height / image.height, MAX_FIT_SCALE);
}

function clampAxis(offset: number, length: number, available: number): number {
  if (length <= available - 2 * MARGIN) return (available - length) / 2;
  return Math.min(Math.max(offset, available - MARGIN - length), MARGIN);
}

function inside(offset: number, available: number): number {
  if (available <= 2 * MARGIN) return available / 2;
  return Math.min(Math.max(offset, MARGIN), available - MARGIN);
}
