import type { Mask } from "./mask.js";

export interface CallOptions {
  /** Time for the whole call, retries included; one minute by default. */
  timeoutMs?: number;
  /** Cancels the call, on the server too. */
  signal?: AbortSignal;
  /** The server's default model unless set. */
  model?: string;
}

/** A prompt for one object, in image pixels. Its parts can be combined. */
export interface Prompt {
  points?: { x: number; y: number; foreground?: boolean }[];
  box?: { xMin: number; yMin: number; xMax: number; yMax: number };
  /** `Mask.lowResLogits` of an earlier response for the same image. */
  logits?: Uint8Array;
}

export interface PredictOptions extends CallOptions {
  /** ALL returns three masks for each prompt. */
  multimask?: "AUTO" | "ALL" | "SINGLE";
  /** Include the low-resolution logits, to refine the masks. */
  logits?: boolean;
  /** The image, which is sent if its embedding is no longer cached. */
  file?: Uint8Array;
}

export interface AutoMaskOptions extends CallOptions {
  /** `AutoMaskOptions` of the proto, for instance {pointsPerSide: 16}. */
  parameters?: Record<string, unknown>;
}

export interface Embedding {
  id: string;
  width: number;
  height: number;
  model: string;
  /** Whether it was cached before. */
  cached: boolean;
}

export type AutoMaskEvent =
  | { kind: "progress"; done: number; total: number }
  | { kind: "mask"; mask: Mask }
  | { kind: "summary"; maskCount: number };

/** A call in progress; its deadline is as of `Date.now()`. */
export interface Call {
  deadline: number;
  signal?: AbortSignal;
}

export interface ErrorDetails {
  reason?: string;
  metadata?: Record<string, string>;
  fieldViolations?: { field: string; description: string }[];
  retryDelayMs?: number;
  quotaSubject?: string;
  requestId?: string;
}
