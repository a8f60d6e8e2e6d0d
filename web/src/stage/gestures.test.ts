import { beforeEach, describe, expect, it } from "vitest";

import { Gestures, type Press, type Sample } from "./gestures";

const FOREGROUND: Press = { kind: "point", foreground: true };
const BOX: Press = { kind: "box", click: "none" };

let calls: unknown[][];
let gestures: Gestures;

beforeEach(() => {
  calls = [];
  const log =
    (name: string) =>
    (...args: readonly unknown[]) => {
      calls.push([name, ...args.map(plain)]);
    };
  gestures = new Gestures({
    point: log("point"),
    box: log("box"),
    boxEnd: log("boxEnd"),
    boxCancel: log("boxCancel"),
    pan: log("pan"),
    pinch: log("pinch"),
  });
});

function plain(value: unknown): unknown {
  return typeof value === "object" && value ? [(value as Sample).x, (value as Sample).y] : value;
}

function mouse(x: number, y: number): Sample {
  return { id: 1, type: "mouse", x, y };
}

function finger(id: number, x: number, y: number): Sample {
  return { id, type: "touch", x, y };
}

describe("a press of the mouse", () => {
  it("is a point where it began, even if it moves a little", () => {
    gestures.press(mouse(10, 20), FOREGROUND);
    gestures.move(mouse(13, 21));
    gestures.release(mouse(13, 21));
    expect(calls).toEqual([["point", [10, 20], true]]);
  });

  it("moves the image and is no point once it is dragged", () => {
    gestures.press(mouse(10, 20), FOREGROUND);
    gestures.move(mouse(30, 20));
    gestures.move(mouse(35, 22));
    gestures.release(mouse(35, 22));
    expect(calls).toEqual([
      ["pan", [20, 0]],
      ["pan", [5, 2]],
    ]);
  });

  it("pans from the first pixel on with the tool for it", () => {
    gestures.press(mouse(10, 20), { kind: "pan" });
    gestures.move(mouse(11, 20));
    expect(gestures.isPanning).toBe(true);
    gestures.release(mouse(11, 20));
    expect(calls).toEqual([["pan", [1, 0]]]);
    expect(gestures.isPanning).toBe(false);
  });

  it("does nothing with a button that has no meaning", () => {
    gestures.press(mouse(10, 20), { kind: "none" });
    gestures.move(mouse(50, 50));
    gestures.release(mouse(50, 50));
    expect(calls).toEqual([]);
  });
});

describe("a box", () => {
  it("is drawn from its first corner to where the mouse is released", () => {
    gestures.press(mouse(50, 60), BOX);
    gestures.move(mouse(20, 30));
    gestures.release(mouse(18, 28));
    expect(calls).toEqual([
      ["box", [50, 60], [20, 30]],
      ["boxEnd", [50, 60], [18, 28]],
    ]);
  });

  it("of less than two pixels in one direction is none", () => {
    gestures.press(mouse(50, 60), BOX);
    gestures.release(mouse(90, 61.5));
    expect(calls).toEqual([["boxCancel"]]);
  });

  it("that is not dragged is a background point if a modifier was held", () => {
    gestures.press(mouse(50, 60), { kind: "box", click: "background" });
    gestures.release(mouse(51, 60));
    expect(calls).toEqual([["boxCancel"], ["point", [50, 60], false]]);
  });

  it("is gone after a cancel, whatever follows until the release", () => {
    gestures.press(mouse(50, 60), BOX);
    gestures.move(mouse(80, 90));
    expect(gestures.cancel()).toBe(true);
    gestures.move(mouse(90, 95));
    gestures.release(mouse(90, 95));
    expect(calls.slice(1)).toEqual([["boxCancel"]]);
    gestures.press(mouse(1, 2), FOREGROUND);
    gestures.release(mouse(1, 2));
    expect(calls.at(-1)).toEqual(["point", [1, 2], true]);
  });
});

describe("fingers", () => {
  it("that pinch zoom about their middle and add no point", () => {
    gestures.press(finger(1, 100, 100), FOREGROUND);
    gestures.press(finger(2, 200, 100), FOREGROUND);
    gestures.move(finger(2, 300, 100));
    gestures.release(finger(2, 300, 100));
    gestures.release(finger(1, 100, 100));
    expect(calls).toEqual([["pinch", [50, 0], 2, [200, 100]]]);
  });

  it("that move together move the image", () => {
    gestures.press(finger(1, 100, 100), FOREGROUND);
    gestures.press(finger(2, 200, 100), FOREGROUND);
    gestures.move(finger(1, 100, 140));
    gestures.move(finger(2, 200, 140));
    const [first, second] = calls as [string, [number, number], number][];
    const factor = (first?.[2] ?? 0) * (second?.[2] ?? 0);
    expect(factor).toBeCloseTo(1);
    expect((first?.[1][1] ?? 0) + (second?.[1][1] ?? 0)).toBeCloseTo(40);
  });

  it("end a box when the second one touches", () => {
    gestures.press(finger(1, 100, 100), BOX);
    gestures.press(finger(2, 200, 100), BOX);
    gestures.release(finger(1, 100, 100));
    gestures.release(finger(2, 200, 100));
    expect(calls).toEqual([["boxCancel"]]);
  });

  it("pan with the one that stays after a pinch", () => {
    gestures.press(finger(1, 100, 100), FOREGROUND);
    gestures.press(finger(2, 200, 100), FOREGROUND);
    gestures.release(finger(1, 100, 100));
    gestures.move(finger(2, 210, 105));
    gestures.release(finger(2, 210, 105));
    expect(calls).toEqual([["pan", [10, 5]]]);
  });

  it("may shake more than a mouse and still tap", () => {
    gestures.press(finger(1, 100, 100), FOREGROUND);
    gestures.move(finger(1, 108, 103));
    gestures.release(finger(1, 108, 103));
    expect(calls).toEqual([["point", [100, 100], true]]);
  });

  it("that the system takes over have no effect", () => {
    gestures.press(finger(1, 100, 100), FOREGROUND);
    gestures.lose(1);
    gestures.release(finger(1, 100, 100));
    expect(calls).toEqual([]);
    expect(gestures.isActive).toBe(false);
  });
});
