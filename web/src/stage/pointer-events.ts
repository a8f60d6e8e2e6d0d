/** Mouse, pen, and fingers on the canvas. */

import { image } from "../state/image";
import { tool } from "../state/prompting";
import { Gestures, type Sample } from "./gestures";
import { isBackground, MIDDLE, pressOf } from "./meanings";
import {
  cancelBox,
  drawBox,
  finishBox,
  hoverAt,
  isCrosshairShown,
  isPanning,
  isSpaceHeld,
  leave,
  pointAt,
} from "./pointing";
import { panBy, zoomAt } from "./viewport-state";

export const gestures = new Gestures({
  point: pointAt,
  box: drawBox,
  boxEnd: (from, to) => {
    drawBox(from, to);
    finishBox();
  },
  boxCancel: cancelBox,
  pan: panBy,
  pinch: (by, factor, centre) => {
    panBy(by);
    zoomAt(factor, centre);
  },
});

/** Follow the pointers on a canvas; returns a function that ends this. */
export function followPointers(canvas: HTMLCanvasElement): () => void {
  const ended = new AbortController();
  const on = <K extends keyof HTMLElementEventMap>(
    type: K,
    listener: (event: HTMLElementEventMap[K]) => void,
  ) => canvas.addEventListener(type, listener, { signal: ended.signal });

  on("pointerdown", (event) => press(canvas, event));
  on("pointermove", (event) => move(canvas, event));
  on("pointerup", (event) => {
    gestures.release(sampleOf(canvas, event));
    isPanning.value = gestures.isPanning;
  });
  on("pointercancel", ({ pointerId }) => lose(pointerId));
  on("lostpointercapture", ({ pointerId }) => lose(pointerId));
  on("pointerleave", leave);
  // Background points, and no scrolling by the middle button.
  on("contextmenu", (event) => event.preventDefault());
  on("mousedown", (event) => {
    if (event.button === MIDDLE) event.preventDefault();
  });
  addEventListener("blur", leave, { signal: ended.signal });
  return () => {
    gestures.cancel();
    ended.abort();
  };
}

function press(canvas: HTMLCanvasElement, event: PointerEvent): void {
  if (!image.value) return;
  leave();
  isCrosshairShown.value = false;
  canvas.setPointerCapture(event.pointerId);
  gestures.press(sampleOf(canvas, event), pressOf(event, tool.value, isSpaceHeld.value));
  isPanning.value = gestures.isPanning;
}

function move(canvas: HTMLCanvasElement, event: PointerEvent): void {
  const sample = sampleOf(canvas, event);
  if (gestures.isActive) {
    gestures.move(sample);
    isPanning.value = gestures.isPanning;
    return;
  }
  const isPointing = tool.value === "foreground" || tool.value === "background";
  if (event.buttons !== 0 || event.pointerType === "touch" || !isPointing || isSpaceHeld.value)
    return;
  hoverAt(sample, tool.value === "foreground" && !isBackground(event));
}

function lose(id: number): void {
  gestures.lose(id);
  isPanning.value = gestures.isPanning;
}

function sampleOf(canvas: HTMLCanvasElement, event: PointerEvent): Sample {
  const { left, top } = canvas.getBoundingClientRect();
  const type =
    event.pointerType === "touch" || event.pointerType === "pen" ? event.pointerType : "mouse";
  return { id: event.pointerId, type, x: event.clientX - left, y: event.clientY - top };
}
