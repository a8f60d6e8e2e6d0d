/**
 * What the two layers of the stage show.
 *
 * The lower one has the image and the masks that are finished. It is drawn again when the viewport
 * changes; a mask that is added is drawn onto it. The upper one has all that changes as the user
 * points: it is drawn often, and has little on it.
 */

import {
  everythingBitmap,
  highlightBitmap,
  objectBitmaps,
  previewBitmap,
} from "../../state/bitmaps";
import { type DrawnMask, details, part } from "../../state/details";
import { activeObject, objects } from "../../state/document";
import { run } from "../../state/everything";
import { image } from "../../state/image";
import { isSharp } from "../parts";
import { boxInProgress, crosshair, isCrosshairShown } from "../pointing";
import { toScreen, visiblePart } from "../viewport";
import { container, viewport } from "../viewport-state";
import { additions } from "./additions";
import { drawCrosshair, drawPoint, drawRectangle } from "./marks";
import { drawBitmap, drawImage, type Frame } from "./pixels";

/** How visible masks are: behind those of everything; that a preview may replace. */
const BEHIND = 0.35;
const REPLACED = 0.4;
const PREVIEW = 0.8;
const EVERYTHING = 0.8;

/** Return a function that draws the image and the masks of all objects but the active one. */
export function lowerLayer(context: CanvasRenderingContext2D): () => void {
  let viewBefore: readonly unknown[] = [];
  let masksBefore: readonly DrawnMask[] = [];
  return () => {
    const view = [image.value, viewport.value, container.value, isCovered()];
    const masks = finishedMasks();
    const isSameView = view.every((each, index) => each === viewBefore[index]);
    const added = isSameView ? additions(masksBefore, masks) : null;
    viewBefore = view;
    masksBefore = masks;
    if (!added) drawPhoto(context);
    drawFinished(context, added ?? masks);
  };
}

/** Return a function that draws the mask of the active object, previews, and marks. */
export function upperLayer(context: CanvasRenderingContext2D): () => void {
  return () => {
    clear(context);
    const frame = frameOf(context);
    if (!frame) return;
    drawMasks(frame);
    const active = activeObject.value;
    const drawn = boxInProgress();
    if (active?.visible && active.prompt.box) drawRectangle(frame, active.prompt.box, false);
    if (drawn) drawRectangle(frame, drawn, true);
    for (const point of active?.visible ? active.prompt.points : [])
      drawPoint(frame, toScreen(frame.viewport, point), point.foreground);
    if (crosshair.value && isCrosshairShown.value)
      drawCrosshair(frame, toScreen(frame.viewport, crosshair.value));
  };
}

function drawPhoto(context: CanvasRenderingContext2D): void {
  clear(context);
  const frame = frameOf(context);
  if (frame && image.value) drawImage(frame, image.value.preview, image.value.full);
}

function drawFinished(context: CanvasRenderingContext2D, masks: readonly DrawnMask[]): void {
  const frame = frameOf(context);
  if (!frame) return;
  for (const mask of masks) drawMask(frame, mask, isCovered() ? BEHIND : 1);
}

function drawMasks(frame: Frame): void {
  const active = activeObject.value;
  const mask = active?.visible ? drawnMask(active.id, isMagnified()) : null;
  const alpha = previewBitmap.value ? REPLACED : 1;
  if (mask) drawMask(frame, mask, isCovered() ? BEHIND : alpha);
  if (everythingBitmap.value && isCovered()) {
    frame.context.globalAlpha = EVERYTHING;
    const { width, height } = frame.image;
    drawBitmap(frame, everythingBitmap.value.bitmap, { x: 0, y: 0, width, height });
  }
  if (previewBitmap.value) drawMask(frame, previewBitmap.value, PREVIEW);
  if (highlightBitmap.value) drawMask(frame, highlightBitmap.value, 1);
  frame.context.globalAlpha = 1;
}

function drawMask(frame: Frame, { bitmap, region }: DrawnMask, alpha: number): void {
  frame.context.globalAlpha = alpha;
  drawBitmap(frame, bitmap, region);
  frame.context.globalAlpha = 1;
}

/** The masks of the visible objects but the active one, in their order. */
function finishedMasks(): DrawnMask[] {
  const activeId = activeObject.value?.id;
  const sharp = isMagnified();
  return objects.value.flatMap(
    ({ id, visible }) => (visible && id !== activeId && drawnMask(id, sharp)) || [],
  );
}

/** The bitmap of an object, or the sharper one of what is visible. */
function drawnMask(id: number, isSharpShown: boolean): DrawnMask | undefined {
  const whole = objectBitmaps.value.get(id);
  const detail = isSharpShown ? details.value.get(id) : undefined;
  const isSame = detail && detail.mask === whole?.mask && detail.colour === whole.colour;
  return isSame ? detail : whole;
}

/** Whether the details are those of what is visible. */
function isMagnified(): boolean {
  const view = viewport.value;
  const size = image.value?.size;
  if (!view || !size) return false;
  const visible = visiblePart(view, size, container.value);
  return isSharp(part.value, view.scale * container.value.ratio, visible);
}

/** Whether the masks of everything are shown. */
function isCovered(): boolean {
  return everythingBitmap.value !== null && run.value.kind === "done";
}

function clear(context: CanvasRenderingContext2D): void {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
}

/** Prepare for drawing in CSS pixels; null: there is nothing to draw. */
function frameOf(context: CanvasRenderingContext2D): Frame | null {
  const view = viewport.value;
  const size = image.value?.size;
  if (!view || !size) return null;
  const { ratio } = container.value;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, viewport: view, container: container.value, ratio, image: size };
}
