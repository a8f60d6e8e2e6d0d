/** Points, boxes, and the crosshair: of constant size on the screen, light on dark. */

import type { Box } from "../../types";
import { type Position, toScreen } from "../viewport";
import type { Frame } from "./pixels";

const LIGHT = "#ffffff";
const DARK = "rgba(0, 0, 0, 0.75)";
const FOREGROUND = "#15803d";
const BACKGROUND = "#b91c1c";
/** In CSS pixels. */
const RADIUS = 8;
const SIGN = 4;
const ARM = 14;
const GAP = 4;
const DASHES = [6, 4];

/** Draw a point of a prompt: a circle with a plus, or a square with a minus. */
export function drawPoint(frame: Frame, at: Position, foreground: boolean): void {
  const { context } = frame;
  const { x, y } = centred(frame, at);
  outline(context, x, y, RADIUS + 2, foreground, DARK);
  outline(context, x, y, RADIUS + 1, foreground, LIGHT);
  outline(context, x, y, RADIUS - 0.5, foreground, foreground ? FOREGROUND : BACKGROUND);
  context.beginPath();
  context.moveTo(x - SIGN, y);
  context.lineTo(x + SIGN, y);
  if (foreground) {
    context.moveTo(x, y - SIGN);
    context.lineTo(x, y + SIGN);
  }
  context.lineWidth = 2;
  context.strokeStyle = LIGHT;
  context.stroke();
}

/** Draw a box; one that is being drawn is dashed. */
export function drawRectangle(frame: Frame, box: Box, isInProgress: boolean): void {
  const { context, viewport } = frame;
  const min = centred(frame, toScreen(viewport, { x: box.xMin, y: box.yMin }));
  const max = centred(frame, toScreen(viewport, { x: box.xMax, y: box.yMax }));
  const rectangle = [min.x, min.y, max.x - min.x, max.y - min.y] as const;
  context.lineJoin = "miter";
  context.lineWidth = 3;
  context.strokeStyle = DARK;
  context.strokeRect(...rectangle);
  context.lineWidth = 1;
  context.strokeStyle = LIGHT;
  if (isInProgress) context.setLineDash(DASHES);
  context.strokeRect(...rectangle);
  context.setLineDash([]);
}

/** Draw the position of the keyboard, open in the middle. */
export function drawCrosshair(frame: Frame, at: Position): void {
  const { context } = frame;
  const { x, y } = centred(frame, at);
  context.beginPath();
  for (const [dx, dy] of [
    [1, 0],
    [-1, 0],
    [0, 1],
    [0, -1],
  ] as const) {
    context.moveTo(x + dx * GAP, y + dy * GAP);
    context.lineTo(x + dx * ARM, y + dy * ARM);
  }
  context.lineWidth = 5;
  context.strokeStyle = DARK;
  context.stroke();
  context.lineWidth = 2;
  context.strokeStyle = LIGHT;
  context.stroke();
  context.fillStyle = LIGHT;
  context.fillRect(x - 1, y - 1, 2, 2);
}

function outline(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  radius: number,
  isRound: boolean,
  fill: string,
): void {
  context.beginPath();
  if (isRound) context.arc(x, y, radius, 0, 2 * Math.PI);
  else context.roundRect(x - radius, y - radius, 2 * radius, 2 * radius, 3);
  context.fillStyle = fill;
  context.fill();
}

/** The nearest centre of a pixel of the canvas: lines there are sharp. */
function centred({ ratio }: Frame, { x, y }: Position): Position {
  return { x: (Math.floor(x * ratio) + 0.5) / ratio, y: (Math.floor(y * ratio) + 0.5) / ratio };
}
