/** From the decoder's output for one prompt to masks of the image, in the server's order. */

import type { Mask } from "../types";
import type { ChoiceRules, DecoderOutput, Family, MaskChoice } from "./families";
import { trace } from "./trace";
import type { Upsampling } from "./upsampling";

/** Pixels with logits above this belong to a mask, in every family. */
const MASK_THRESHOLD = 0;
/** Distance of both thresholds of the stability from that one, in every family. */
const STABILITY_OFFSET = 1;

/** Return the masks that are made of *output*, each a function that computes it. */
export function maskJobs(
  output: DecoderOutput,
  family: Family,
  rules: ChoiceRules,
  upsampling: Upsampling,
  withLogits: boolean,
): (() => Mask)[] {
  const choices = family.choose(output, rules);
  return choices.map((choice) => () => {
    const logits = sumOf(choice, output.logits, upsampling.side);
    const traced = trace(logits, upsampling, { level: MASK_THRESHOLD, offset: STABILITY_OFFSET });
    return {
      size: upsampling.image,
      runs: traced.runs,
      area: traced.area,
      bbox: traced.bbox,
      predictedIou: output.iou[choice.iouToken] as number,
      stabilityScore: Math.fround(traced.stability),
      token: choice.token,
      ...(withLogits ? { logits: returned(logits, family.maxLogit) } : {}),
    };
  });
}

function sumOf({ tokens }: MaskChoice, logits: Float32Array, side: number): Float32Array {
  const count = side * side;
  const of = (token: number) => logits.subarray(token * count, (token + 1) * count);
  const [first = 0, ...others] = tokens;
  return others.reduce((sum, token) => {
    const added = of(token);
    // Float32Array rounds each sum to float32, as on the server.
    return sum.map((each, index) => each + (added[index] as number));
  }, of(first));
}

/** Return a copy, which holds no others of the output in memory. */
function returned(logits: Float32Array, limit: number): Uint8Array<ArrayBuffer> {
  const limited = logits.map((each) => Math.min(Math.max(each, -limit), limit));
  return new Uint8Array(limited.buffer as ArrayBuffer);
}
