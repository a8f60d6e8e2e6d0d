/** Keys on the canvas: they move the crosshair, add points, and draw boxes. */

import { image } from "../state/image";
import { tool } from "../state/prompting";
import { announceBoxCorner, announcePosition } from "./announcements";
import { moved, stepOf } from "./meanings";
import {
  crosshair,
  drawnBox,
  finishBox,
  hoverCrosshair,
  isCrosshairShown,
  leave,
  pointIn,
} from "./pointing";
import { clampToImage, type Position, toImage } from "./viewport";
import { container, panBy, reveal, viewport } from "./viewport-state";

/** In CSS pixels. */
const PAN_STEP = 40;

let repeats = 0;

/** Follow the keys on a canvas; returns a function that ends this. */
export function followKeys(canvas: HTMLCanvasElement): () => void {
  const ended = new AbortController();
  const { signal } = ended;
  canvas.addEventListener("keydown", (event) => press(event), { signal });
  canvas.addEventListener(
    "focus",
    () => {
      if (canvas.matches(":focus-visible")) show();
    },
    { signal },
  );
  canvas.addEventListener("blur", hide, { signal });
  return () => ended.abort();
}

function press(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || !image.value) return;
  repeats = event.repeat ? repeats + 1 : 0;
  const step = stepOf(event, repeats);
  if (step) {
    event.preventDefault();
    if (tool.value === "pan") pan(step);
    else moveCrosshair(step);
  } else if (event.key === "Enter" && !event.repeat) {
    event.preventDefault();
    enter(event.shiftKey);
  }
}

function moveCrosshair(by: Position): void {
  const size = image.value?.size;
  const view = viewport.value;
  if (!size || !view) return;
  const at = moved(position(), by, view.scale, size);
  crosshair.value = at;
  isCrosshairShown.value = true;
  reveal(at);
  if (drawnBox.value) drawnBox.value = { from: drawnBox.value.from, to: at };
  announcePosition(at, hoverCrosshair());
}

/** The image moves the other way, as if the window on it moved. */
function pan(step: Position): void {
  panBy({ x: -Math.sign(step.x) * PAN_STEP, y: -Math.sign(step.y) * PAN_STEP });
}

function enter(isShifted: boolean): void {
  if (tool.value === "pan") return;
  const at = position();
  crosshair.value = at;
  isCrosshairShown.value = true;
  if (tool.value === "box" && !isShifted) enterCorner(at);
  else pointIn(at, tool.value !== "background" && !isShifted);
}

function enterCorner(at: Position): void {
  if (drawnBox.value) {
    finishBox();
    return;
  }
  drawnBox.value = { from: at, to: at };
  announceBoxCorner(at);
}

function show(): void {
  if (!image.value) return;
  crosshair.value = position();
  isCrosshairShown.value = true;
}

function hide(): void {
  isCrosshairShown.value = false;
  leave();
}

/** Where the crosshair is: it begins in the middle of what is visible. */
function position(): Position {
  const size = image.value?.size;
  const view = viewport.value;
  if (crosshair.value) return crosshair.value;
  if (!size || !view) return { x: 0, y: 0 };
  const { width, height } = container.value;
  return clampToImage(toImage(view, { x: width / 2, y: height / 2 }), size);
}
