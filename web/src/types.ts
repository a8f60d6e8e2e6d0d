/**
 * The types that all parts of the page share.
 *
 * Coordinates are pixels of the image as the server sees it, after its EXIF orientation is applied:
 * x to the right, y down, (0, 0) the outer corner of the first pixel.
 */

export interface Size {
  readonly width: number;
  readonly height: number;
}

export interface Point {
  readonly x: number;
  readonly y: number;
  readonly foreground: boolean;
}

export interface Box {
  readonly xMin: number;
  readonly yMin: number;
  readonly xMax: number;
  readonly yMax: number;
}

/** A prompt; *logits* are the low-resolution logits of an earlier answer, to refine it. */
export interface Prompt {
  readonly points: readonly Point[];
  readonly box?: Box;
  readonly logits?: Uint8Array<ArrayBuffer>;
}

export interface BoundingBox {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** A binary mask of the whole image with its scores. */
export interface Mask {
  readonly size: Size;
  /** COCO's run lengths: down the columns, column by column; the first run is outside the mask. */
  readonly runs: Uint32Array;
  readonly area: number;
  readonly bbox: BoundingBox;
  readonly predictedIou: number;
  readonly stabilityScore: number;
  /** The mask token of the decoder that made it. */
  readonly token: number;
  /** Float32, little-endian, square; only if they were requested. */
  readonly logits?: Uint8Array<ArrayBuffer>;
}

/** Which masks a prompt returns: the best one, all of an ambiguous prompt, or what fits the prompt. */
export type Multimask = "AUTO" | "SINGLE" | "ALL";

export interface PredictOptions {
  readonly multimask: Multimask;
  readonly logits: boolean;
  readonly signal?: AbortSignal;
}

/** One step of a call, in milliseconds. */
export interface Step {
  readonly name: string;
  readonly ms: number;
}

export interface Prediction {
  readonly masks: readonly Mask[];
  readonly steps: readonly Step[];
}

export interface Embedding {
  readonly id: string;
  readonly size: Size;
  readonly model: string;
  /** Whether the server had it already. */
  readonly cached: boolean;
  readonly steps: readonly Step[];
}

export interface ModelInfo {
  readonly name: string;
  readonly description: string;
  /** `sam1`, `sam2` or `sam_hq`. */
  readonly family: string;
  readonly isDefault: boolean;
  /** Side of the encoder's square input, and of the low-resolution logits, in pixels. */
  readonly imageSide: number;
  readonly maskSide: number;
  readonly maskTokens: number;
  /** SAM 2's rule of `AUTO`; null for models without it. */
  readonly stabilityRule: StabilityRule | null;
  readonly embeddingBytes: number;
  /** SHA-256 of the decoder's file; empty if it cannot be downloaded. */
  readonly decoderSha256: string;
  readonly supportsAutomask: boolean;
  readonly automask: AutoMaskDefaults;
}

/**
 * A mask is stable if the number of its low-resolution logits above *delta*, divided by the number
 * above minus *delta*, is at least *thresh*.
 */
export interface StabilityRule {
  readonly delta: number;
  readonly thresh: number;
}

export interface AutoMaskDefaults {
  readonly pointsPerSide: number;
  readonly predIouThresh: number;
  readonly stabilityScoreThresh: number;
}

/** Limits of the server on one request. */
export interface Limits {
  readonly maxImagePixels: number;
  readonly maxImageSide: number;
  readonly maxImageBytes: number;
}

export interface ServerInfo {
  readonly models: readonly ModelInfo[];
  readonly limits: Limits;
}

export interface AutoMaskParameters {
  readonly pointsPerSide: number;
  readonly predIouThresh: number;
  readonly stabilityScoreThresh: number;
}

export type AutoMaskEvent =
  | { readonly kind: "progress"; readonly done: number; readonly total: number }
  | { readonly kind: "masks"; readonly masks: readonly Mask[] }
  | { readonly kind: "summary"; readonly maskCount: number; readonly steps: readonly Step[] };

/** An opened image. */
export interface LoadedImage {
  readonly name: string;
  /** The file that the server gets: the original, or PNG if the server does not read its format. */
  readonly file: Uint8Array<ArrayBuffer>;
  readonly size: Size;
  /** For drawing: at most 2,048 pixels on the longer side, and the whole image. */
  readonly preview: ImageBitmap;
  readonly full: ImageBitmap;
}

/** Red, green and blue, 0 to 255. */
export type Rgb = readonly [number, number, number];

/** An object that the user segments: its prompt, the answers of the model, and the chosen one. */
export interface SegmentedObject {
  readonly id: number;
  readonly name: string;
  readonly colour: Rgb;
  readonly visible: boolean;
  readonly prompt: Prompt;
  readonly answers: readonly Mask[];
  /** The prompt that *answers* belong to, which is an earlier one until the server has answered. */
  readonly answered: Prompt | null;
  /** Index in *answers*. */
  readonly chosen: number;
}

export type Tool = "foreground" | "background" | "box" | "pan";

/** Polygons in pixels: each an exterior ring and its holes, rings of x, y pairs without repetition. */
export type Ring = readonly (readonly [number, number])[];
export interface Polygon {
  readonly exterior: Ring;
  readonly holes: readonly Ring[];
}
