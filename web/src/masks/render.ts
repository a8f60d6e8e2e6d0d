/** Bitmaps of single masks, drawn from their outlines; in the worker. */

import type { BoundingBox, Rgb, Size } from "../types";
import { css, drawnSize, openCanvas, toImageBitmap } from "./canvas";
import type { Part, Rendering } from "./interfaces";
import { byRows, MaskSet, paint } from "./labels";
import { addOutline } from "./paths";
import { boundsOf, type Shape } from "./run-lengths";

/** Of the inside, 0 to 1. */
export const ALPHA = 0.45;
/** Above this, as for noise, masks are drawn from pixels: outlines would need too much memory. */
export const MAX_RUNS = 400_000;
/** Around the mask in a thumbnail, in the mask's larger side. */
const MARGIN = 0.15;
/** Smallest side of what a thumbnail shows, in pixels of the image. */
const MIN_SHOWN = 24;
const DIMMED = css([10, 12, 16], 0.68);

/** Draw a mask in one colour; the bitmap has the scale of one of the whole image. */
export function render(shape: Shape, colour: Rgb, maxSide: number): Rendering {
  if (shape.runs.length > MAX_RUNS) return renderPixels(shape, colour, maxSide);
  const whole = drawnSize(shape.size, maxSide);
  const scale = { x: whole.width / shape.size.width, y: whole.height / shape.size.height };
  const edge = edgeWidth(whole);
  return draw(shape, colour, scale, cutAround(boundsOf(shape), scale, edge + 1, whole), edge);
}

/** Draw a part of the image at its own scale; null if the mask is not there. */
export function renderPart(shape: Shape, colour: Rgb, part: Part): Rendering | null {
  const bounds = boundsOf(shape);
  if (!bounds || shape.runs.length > MAX_RUNS) return null;
  const { region, edge } = part;
  const scale = { x: part.scale, y: part.scale };
  const { width, height } = shape.size;
  const whole = { width: Math.ceil(width * scale.x), height: Math.ceil(height * scale.y) };
  const around = cutAround(bounds, scale, edge + 1, whole);
  const shown = intersection(around, cutAround(region, scale, 0, whole));
  return shown && draw(shape, colour, scale, shown, edge);
}

/** Draw the pixels *drawn* of a drawing of the whole image, with edges of *edge* pixels. */
function draw(
  shape: Shape,
  colour: Rgb,
  scale: { readonly x: number; readonly y: number },
  drawn: BoundingBox,
  edge: number,
): Rendering {
  const { canvas, context } = openCanvas(drawn);
  context.translate(-drawn.x, -drawn.y);
  context.scale(scale.x, scale.y);
  const path = new Path2D();
  addOutline(path, shape, scale.x);
  context.fillStyle = css(colour, ALPHA);
  context.fill(path, "evenodd");
  strokeEdge(context, path, colour, edge / scale.x);
  const region = {
    x: drawn.x / scale.x,
    y: drawn.y / scale.y,
    width: drawn.width / scale.x,
    height: drawn.height / scale.y,
  };
  return { bitmap: canvas.transferToImageBitmap(), region };
}

/**
 * Return whole pixels of a drawing that have a box of the image and a border around it.
 *
 * *scale*: pixels of the drawing per pixel of the image. One pixel for an empty mask.
 */
export function cutAround(
  bounds: BoundingBox | null,
  scale: { readonly x: number; readonly y: number },
  border: number,
  whole: Size,
): BoundingBox {
  if (!bounds) return { x: 0, y: 0, width: 1, height: 1 };
  const x = Math.max(0, Math.floor(bounds.x * scale.x - border));
  const y = Math.max(0, Math.floor(bounds.y * scale.y - border));
  const right = Math.ceil((bounds.x + bounds.width) * scale.x + border);
  const bottom = Math.ceil((bounds.y + bounds.height) * scale.y + border);
  return {
    x,
    y,
    width: Math.min(whole.width, right) - x,
    height: Math.min(whole.height, bottom) - y,
  };
}

/** Return what two boxes have in common, or null. */
export function intersection(a: BoundingBox, b: BoundingBox): BoundingBox | null {
  const x = Math.max(a.x, b.x);
  const y = Math.max(a.y, b.y);
  const width = Math.min(a.x + a.width, b.x + b.width) - x;
  const height = Math.min(a.y + a.height, b.y + b.height) - y;
  return width > 0 && height > 0 ? { x, y, width, height } : null;
}

/** Draw a square of the image around a mask, with the outside dimmed. */
export function thumbnail(
  shape: Shape,
  preview: ImageBitmap,
  side: number,
  colour: Rgb = [255, 255, 255],
): ImageBitmap {
  const { canvas, context } = openCanvas({ width: side, height: side });
  const { width, height } = shape.size;
  const shown = squareAround(boundsOf(shape), shape.size);
  const scale = side / shown.width;
  context.scale(scale, scale);
  context.translate(-shown.x, -shown.y);
  context.imageSmoothingQuality = "high";
  context.drawImage(preview, 0, 0, width, height);
  const path = new Path2D();
  if (shape.runs.length <= MAX_RUNS) addOutline(path, shape, scale);
  const outside = new Path2D(path);
  outside.rect(0, 0, width, height);
  context.fillStyle = DIMMED;
  context.fill(outside, "evenodd");
  strokeEdge(context, path, colour, Math.max(1.5, side / 90) / scale);
  return canvas.transferToImageBitmap();
}

/** Return the square that a thumbnail shows: within the image where it has that many pixels. */
export function squareAround(bounds: BoundingBox | null, { width, height }: Size): BoundingBox {
  const around = bounds ?? { x: 0, y: 0, width, height };
  const wanted = Math.max(around.width, around.height) * (1 + 2 * MARGIN);
  const side = Math.min(Math.max(width, height), Math.max(MIN_SHOWN, wanted));
  return {
    x: start(around.x + around.width / 2, side, width),
    y: start(around.y + around.height / 2, side, height),
    width: side,
    height: side,
  };
}

/** Return the width of edges on a drawing of a size; drawings are larger than they are shown. */
export function edgeWidth({ width, height }: Size): number {
  return Math.max(1.5, Math.max(width, height) / 640);
}

function start(centre: number, side: number, length: number): number {
  if (side >= length) return (length - side) / 2;
  return Math.max(0, Math.min(length - side, centre - side / 2));
}

/** Draw a line over a thin dark one, which keeps it visible on an image of its own colour. */
function strokeEdge(
  context: OffscreenCanvasRenderingContext2D,
  path: Path2D,
  colour: Rgb,
  width: number,
): void {
  context.lineJoin = "round";
  context.lineWidth = 2 * width;
  context.strokeStyle = css([0, 0, 0], 0.35);
  context.stroke(path);
  context.lineWidth = width;
  context.strokeStyle = css(colour, 1);
  context.stroke(path);
}

function renderPixels(shape: Shape, colour: Rgb, maxSide: number): Rendering {
  const masks = new MaskSet([shape], maxSide);
  const labels = byRows(masks.label([0]), masks.size);
  return {
    bitmap: toImageBitmap(paint(labels, masks.size, [colour], ALPHA), masks.size),
    region: { x: 0, y: 0, ...shape.size },
  };
}
