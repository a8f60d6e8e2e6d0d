import type { Mask, SegmentedObject } from "../types";
import type { Position } from "./viewport";

/** Return for instance: Answer 1 of 3, score 0.93, 12 % of the image. */
export function answerText(
  { answers, chosen }: Pick<SegmentedObject, "answers" | "chosen">,
  mask: Mask,
): string {
  return `Answer ${chosen + 1} of ${answers.length}, score ${mask.predictedIou.toFixed(2)}, ${areaText(mask)}`;
}

export function positionText({ x, y }: Position): string {
  return `x ${Math.floor(x)}, y ${Math.floor(y)}`;
}

/** Return for instance: 12 % of the image. */
export function areaText({ area, size }: Mask): string {
  const percent = (100 * area) / (size.width * size.height);
  const digits =
    percent < 1 && percent > 0 ? Math.max(percent, 0.1).toFixed(1) : percent.toFixed(0);
  return `${digits} % of the image`;
}
