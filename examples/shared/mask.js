import { decodeRle } from "./rle.js";

/** A mask, still compressed: a photo of 12 megapixels has 12 MB of pixels for each mask. */
export class Mask {
  /** @param {any} message a `samserve.v1.Mask` with `coco_rle` as {size, counts} */
  constructor(message, rle = message.cocoRle) {
    this.rle = rle;
    this.width = rle.size.width;
    this.height = rle.size.height;
    /** Number of pixels inside. */
    this.area = Number(message.area);
    /** The model's own estimate of the quality, about 0 to 1. */
    this.predictedIou = message.predictedIou;
    this.stabilityScore = message.stabilityScore;
    /** 0 for the single-mask output, 1 to 3 for the three multimask outputs. */
    this.tokenIndex = message.tokenIndex;
    /** The bounding box {x, y, width, height}. */
    this.box = message.bbox;
    /** Pass them as `logits` of a prompt to refine the mask; empty unless requested. */
    this.lowResLogits = message.lowResLogits;
  }

  /** Return the pixels row by row: 1 inside, 0 outside. */
  pixels() {
    return decodeRle(this.rle.size, this.rle.counts);
  }
}
