import { expect, it } from "vitest";

import type { Mask } from "../types";
import { answerText, areaText, positionText } from "./texts";

function maskOfArea(area: number): Mask {
  return {
    size: { width: 100, height: 100 },
    runs: Uint32Array.of(10_000 - area, area),
    area,
    bbox: { x: 0, y: 0, width: 1, height: 1 },
    predictedIou: 0.928,
    stabilityScore: 1,
    token: 0,
  };
}

it("answerText counts answers from one", () => {
  const mask = maskOfArea(1234);
  expect(answerText({ answers: [mask, mask, mask], chosen: 1 }, mask)).toBe(
    "Answer 2 of 3, score 0.93, 12 % of the image",
  );
});

it("areaText does not round a small area to nothing", () => {
  expect(areaText(maskOfArea(50))).toBe("0.5 % of the image");
  expect(areaText(maskOfArea(1))).toBe("0.1 % of the image");
  expect(areaText(maskOfArea(0))).toBe("0 % of the image");
});

it("positionText names the pixel", () => {
  expect(positionText({ x: 12.7, y: 0.5 })).toBe("x 12, y 0");
});
