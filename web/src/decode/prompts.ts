/** Prompts in pixels of the image, as inputs of the decoder. */

import type { Box, Point, Prompt, Size } from "../types";
import { type Family, type ModelRules, resizedIn } from "./families";
import { InvalidPrompt } from "./unsupported";

/** The inputs of the decoder for one prompt of N points. */
export interface PromptTensors {
  /** Float32 `[N, 2]`, in the model frame. */
  readonly coords: Float32Array;
  /** Float32 `[N]`: 1 foreground, 0 background, -1 padding, 2 and 3 corners of a box. */
  readonly labels: Float32Array;
  /** Float32 `side * side`, or null without a mask. */
  readonly mask: Float32Array | null;
}

/** Convert a prompt. Throws `InvalidPrompt` for one that the server would reject too. */
export function promptTensors(
  prompt: Prompt,
  image: Size,
  model: ModelRules,
  family: Family,
): PromptTensors {
  check(prompt, image, model);
  const resized = resizedIn(image, model.imageSide, family);
  const scale = { x: resized.width / image.width, y: resized.height / image.height };
  // The API has float32 coordinates; they are scaled in float64.
  const toModel = (x: number, y: number) => [Math.fround(x) * scale.x, Math.fround(y) * scale.y];
  const { box, points } = prompt;
  const given = {
    coords: points.flatMap((point) => toModel(point.x, point.y)),
    labels: points.map((point) => (point.foreground ? 1 : 0)),
  };
  const corners = box && [...toModel(box.xMin, box.yMin), ...toModel(box.xMax, box.yMax)];
  const { coords, labels } = family.prompt(given, corners ?? null);
  return {
    coords: Float32Array.from(coords),
    labels: Float32Array.from(labels),
    mask: prompt.logits === undefined ? null : readLogits(prompt.logits),
  };
}

function check({ points, box, logits }: Prompt, image: Size, model: ModelRules) {
  if (points.length === 0 && box === undefined && logits === undefined) {
    throw new InvalidPrompt("A prompt needs points, a box or a mask.");
  }
  if (
    !points.every((point) => isInside(point, image)) ||
    !(box === undefined || fits(box, image))
  ) {
    throw new InvalidPrompt("A prompt must lie inside the image.");
  }
  if (logits !== undefined && logits.byteLength !== 4 * model.maskSide ** 2) {
    throw new InvalidPrompt(`Logits must have ${model.maskSide} x ${model.maskSide} numbers.`);
  }
}

function isInside({ x, y }: Pick<Point, "x" | "y">, image: Size): boolean {
  return x >= 0 && x <= image.width && y >= 0 && y <= image.height;
}

function fits(box: Box, image: Size): boolean {
  const corners = [
    { x: box.xMin, y: box.yMin },
    { x: box.xMax, y: box.yMax },
  ];
  return (
    corners.every((each) => isInside(each, image)) && box.xMin < box.xMax && box.yMin < box.yMax
  );
}

/** Read little-endian float32, the order of every browser; a copy, since it may not be aligned. */
function readLogits(bytes: Uint8Array<ArrayBuffer>): Float32Array {
  return new Float32Array(bytes.slice().buffer);
}
