/**
 * The rules of the families of models, as `samserve/models/families` has them on the server.
 *
 * Coordinates are in the model frame, x and y alternating.
 */

import type { Multimask, Size, StabilityRule } from "../types";
import { Unsupported } from "./unsupported";

/** What the rules need to know of a model; `ModelInfo` is one. */
export interface ModelRules {
  readonly name: string;
  readonly family: string;
  readonly imageSide: number;
  readonly maskSide: number;
  readonly maskTokens: number;
  readonly stabilityRule: StabilityRule | null;
}

/** All T mask tokens of a prompt: `logits` float32 `[T, side, side]`, `iou` float32 `[T]`. */
export interface DecoderOutput {
  readonly logits: Float32Array;
  readonly iou: Float32Array;
}

/** What is chosen for: the number of points with padding and corners, and the model's rule. */
export interface ChoiceRules {
  readonly multimask: Multimask;
  readonly labels: number;
  readonly stabilityRule: StabilityRule | null;
}

/** The points of one prompt as the decoder takes them; `coords` has two numbers for each label. */
export interface SparsePrompt {
  readonly coords: readonly number[];
  readonly labels: readonly number[];
}

/** A returned mask: the sum of the logits of *tokens*, with the predicted IoU of *iouToken*. */
export interface MaskChoice {
  readonly token: number;
  readonly iouToken: number;
  readonly tokens: readonly number[];
}

export interface Family {
  /** Whether every image is stretched to the model frame. */
  readonly fillsFrame: boolean;
  /** Returned logits are limited to plus and minus this. */
  readonly maxLogit: number;
  prompt(points: SparsePrompt, corners: readonly number[] | null): SparsePrompt;
  /** Choose the masks that are returned for a prompt. */
  choose(output: DecoderOutput, rules: ChoiceRules): readonly MaskChoice[];
}

const PADDING = -1;
const CORNERS = [2, 3];
const MULTIMASK_TOKENS = [1, 2, 3];
const HQ_TOKEN = 4;

const sam1: Family = {
  fillsFrame: false,
  maxLogit: Number.POSITIVE_INFINITY,

  /** The points, then the corners of the box, or without a box one padding point. */
  prompt({ coords, labels }, corners) {
    if (corners !== null) {
      return { coords: [...coords, ...corners], labels: [...labels, ...CORNERS] };
    }
    return labels.length > 0 ? { coords: [...coords, 0, 0], labels: [...labels, PADDING] } : NONE;
  },

  /** Of AUTO the single mask for an unambiguous prompt, otherwise the best of the three. */
  choose({ iou }, { multimask, labels }) {
    if (multimask === "ALL") {
      return MULTIMASK_TOKENS.map(choiceOf);
    }
    return [choiceOf(multimask === "SINGLE" || labels >= 3 ? 0 : bestOf(iou))];
  },
};

const samHq: Family = {
  ...sam1,

  /** One plain mask, the best for ALL, to which the mask of token 4 is added. */
  choose({ iou, logits }, rules) {
    const single = sam1.choose({ iou, logits }, rules)[0] as MaskChoice;
    const plain = rules.multimask === "ALL" ? bestOf(iou) : single.token;
    return [{ token: HQ_TOKEN, iouToken: plain, tokens: [plain, HQ_TOKEN] }];
  },
};

const sam2: Family = {
  fillsFrame: true,
  maxLogit: 32,

  /** The corners of the box, the points, a padding point; a second one without points or box. */
  prompt({ coords, labels }, corners) {
    const padding = labels.length > 0 || corners !== null ? 1 : 2;
    return {
      coords: [...(corners ?? []), ...coords, ...Array<number>(2 * padding).fill(0)],
      labels: [...(corners === null ? [] : CORNERS), ...labels, ...Array(padding).fill(PADDING)],
    };
  },

  /** Of AUTO the single mask while it is stable, otherwise the best of the three. */
  choose({ iou, logits }, { multimask, stabilityRule }) {
    if (multimask === "ALL") {
      return MULTIMASK_TOKENS.map(choiceOf);
    }
    const single = logits.subarray(0, logits.length / iou.length);
    const isUsed = multimask === "SINGLE" || stabilityRule === null;
    return [choiceOf(isUsed || isStable(single, stabilityRule) ? 0 : bestOf(iou))];
  },
};

const NONE: SparsePrompt = { coords: [], labels: [] };
const FAMILIES: ReadonlyMap<string, Family> = new Map([
  ["sam1", sam1],
  ["sam2", sam2],
  ["sam_hq", samHq],
]);

/** Return the rules of a model. Throws `Unsupported` for a family that the page does not know. */
export function familyOf(model: ModelRules): Family {
  const family = FAMILIES.get(model.family);
  if (family === undefined) {
    throw new Unsupported(`The page cannot decode models of the family ${model.family}.`);
  }
  return family;
}

/** Return the size that an image has inside the model frame, from its top-left corner. */
export function resizedIn(image: Size, side: number, family: Family): Size {
  if (family.fillsFrame) {
    return { width: side, height: side };
  }
  const scale = side / Math.max(image.width, image.height);
  const resized = (length: number) => Math.max(Math.trunc(length * scale + 0.5), 1);
  return { width: resized(image.width), height: resized(image.height) };
}

function choiceOf(token: number): MaskChoice {
  return { token, iouToken: token, tokens: [token] };
}

/** Return whether low-resolution logits are those of a stable mask; an empty one is. */
function isStable(logits: Float32Array, { delta, thresh }: StabilityRule): boolean {
  const [upper, lower] = [Math.fround(delta), Math.fround(-delta)];
  let [inner, outer] = [0, 0];
  for (const logit of logits) {
    inner += logit > upper ? 1 : 0;
    outer += logit > lower ? 1 : 0;
  }
  return outer === 0 || Math.fround(inner / outer) >= Math.fround(thresh);
}

/** Return the multimask token with the highest predicted IoU, the first of equals; never NaN. */
function bestOf(iou: Float32Array): number {
  const score = (token: number) => {
    const value = iou[token] as number;
    return Number.isNaN(value) ? Number.NEGATIVE_INFINITY : value;
  };
  return MULTIMASK_TOKENS.reduce((best, token) => (score(token) > score(best) ? token : best));
}
