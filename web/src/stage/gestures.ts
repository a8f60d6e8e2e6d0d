/**
 * What presses and movements of mouse, pen, and fingers mean.
 *
 * Independent of the DOM. All positions are CSS pixels from the top left corner of the canvas.
 */

import type { Position } from "./viewport";

export interface Sample extends Position {
  readonly id: number;
  readonly type: "mouse" | "pen" | "touch";
}

/** What a press does: a box becomes a click if it is not dragged. */
export type Press =
  | { readonly kind: "none" }
  | { readonly kind: "pan" }
  | { readonly kind: "point"; readonly foreground: boolean }
  | { readonly kind: "box"; readonly click: "none" | "background" };

export interface Handlers {
  point(at: Position, foreground: boolean): void;
  /** A box is being drawn; null: no longer. */
  box(from: Position, to: Position): void;
  boxEnd(from: Position, to: Position): void;
  boxCancel(): void;
  pan(by: Position): void;
  /** Two fingers have moved: by how far, and how much further apart they are now. */
  pinch(by: Position, factor: number, centre: Position): void;
}

/** A box has at least this width and height on the screen, in CSS pixels; a smaller one is none. */
export const MIN_BOX = 2;

/** A press that moves further is no click, in CSS pixels. */
const SLOP = { mouse: 6, pen: 8, touch: 12 } as const;

type Mode =
  | { readonly kind: "idle" }
  | { readonly kind: "click"; readonly start: Sample; readonly foreground: boolean }
  | { readonly kind: "box"; readonly start: Sample; readonly click: "none" | "background" }
  | { readonly kind: "pan" }
  | { readonly kind: "pinch" }
  /** Until all are released. */
  | { readonly kind: "ended" };

export class Gestures {
  private readonly down = new Map<number, Sample>();
  private mode: Mode = { kind: "idle" };

  constructor(private readonly handlers: Handlers) {}

  get isActive(): boolean {
    return this.down.size > 0;
  }

  get isPanning(): boolean {
    return this.mode.kind === "pan" || this.mode.kind === "pinch";
  }

  press(sample: Sample, press: Press): void {
    const isFirst = this.down.size === 0;
    this.down.set(sample.id, sample);
    if (isFirst) this.mode = begun(sample, press);
    else if (sample.type === "touch") this.beginPinch();
  }

  move(sample: Sample): void {
    const before = this.down.get(sample.id);
    if (!before) return;
    const pair = this.pair();
    this.down.set(sample.id, sample);
    const { mode } = this;
    if (mode.kind === "pan") this.handlers.pan(difference(sample, before));
    else if (mode.kind === "box") this.handlers.box(mode.start, sample);
    else if (mode.kind === "pinch") this.movePinch(pair);
    else if (mode.kind === "click" && isBeyondSlop(mode.start, sample)) {
      this.mode = { kind: "pan" };
      this.handlers.pan(difference(sample, mode.start));
    }
  }

  release(sample: Sample): void {
    if (!this.down.delete(sample.id)) return;
    const { mode } = this;
    const isLast = this.down.size === 0;
    // The finger that stays moves the image.
    this.mode = isLast ? { kind: "idle" } : { kind: mode.kind === "pinch" ? "pan" : "ended" };
    if (mode.kind === "click") this.handlers.point(mode.start, mode.foreground);
    else if (mode.kind === "box") this.releaseBox(mode.start, sample, mode.click);
  }

  /** End what is in progress without an effect; returns whether that was a box. */
  cancel(): boolean {
    const wasBox = this.mode.kind === "box";
    if (wasBox) this.handlers.boxCancel();
    this.mode = this.down.size > 0 ? { kind: "ended" } : { kind: "idle" };
    return wasBox;
  }

  /** The system has taken a pointer over. */
  lose(id: number): void {
    if (!this.down.delete(id)) return;
    this.cancel();
  }

  private releaseBox(start: Sample, end: Sample, click: "none" | "background"): void {
    if (isBox(start, end)) {
      this.handlers.boxEnd(start, end);
      return;
    }
    this.handlers.boxCancel();
    if (click === "background" && !isBeyondSlop(start, end)) this.handlers.point(start, false);
  }

  private beginPinch(): void {
    if (this.mode.kind === "box") this.handlers.boxCancel();
    this.mode = { kind: "pinch" };
  }

  private movePinch(before: readonly [Sample, Sample] | null): void {
    const after = this.pair();
    if (!before || !after) return;
    const centre = middle(after);
    const factor = Math.max(1, distance(after)) / Math.max(1, distance(before));
    this.handlers.pinch(difference(centre, middle(before)), factor, centre);
  }

  private pair(): readonly [Sample, Sample] | null {
    const [first, second] = this.down.values();
    return first && second ? [first, second] : null;
  }
}

/** Whether two corners on the screen are far enough apart in both directions. */
export function isBox(from: Position, to: Position): boolean {
  return Math.abs(from.x - to.x) >= MIN_BOX && Math.abs(from.y - to.y) >= MIN_BOX;
}

function begun(start: Sample, press: Press): Mode {
  switch (press.kind) {
    case "point":
      return { kind: "click", start, foreground: press.foreground };
    case "box":
      return { kind: "box", start, click: press.click };
    case "pan":
      return { kind: "pan" };
    case "none":
      return { kind: "ended" };
  }
}

function isBeyondSlop(start: Sample, now: Sample): boolean {
  return Math.hypot(now.x - start.x, now.y - start.y) > SLOP[start.type];
}

function difference(after: Position, before: Position): Position {
  return { x: after.x - before.x, y: after.y - before.y };
}

function middle([a, b]: readonly [Position, Position]): Position {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

function distance([a, b]: readonly [Position, Position]): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}
