import { describe, expect, it } from "vitest";

import { moved, pressOf, shortcutOf, stepOf, zoomFactor } from "./meanings";

const LEFT = { button: 0, altKey: false, shiftKey: false, ctrlKey: false };
const FOREGROUND = { kind: "point", foreground: true };
const BACKGROUND = { kind: "point", foreground: false };

describe("pressOf", () => {
  it("is a point of the chosen tool", () => {
    expect(pressOf(LEFT, "foreground", false)).toEqual(FOREGROUND);
    expect(pressOf(LEFT, "background", false)).toEqual(BACKGROUND);
  });

  it("is a background point with the right button, or a modifier", () => {
    expect(pressOf({ ...LEFT, button: 2 }, "foreground", false)).toEqual(BACKGROUND);
    expect(pressOf({ ...LEFT, altKey: true }, "foreground", false)).toEqual(BACKGROUND);
    expect(pressOf({ ...LEFT, shiftKey: true }, "foreground", false)).toEqual(BACKGROUND);
    expect(pressOf({ ...LEFT, button: 2 }, "box", false)).toEqual(BACKGROUND);
  });

  it("is a background point with the far end of a pen", () => {
    expect(pressOf({ ...LEFT, button: 5 }, "foreground", false)).toEqual(BACKGROUND);
  });

  it("draws a box with the tool for it", () => {
    expect(pressOf(LEFT, "box", false)).toEqual({ kind: "box", click: "none" });
    const modified = pressOf({ ...LEFT, shiftKey: true }, "box", false);
    expect(modified).toEqual({ kind: "box", click: "background" });
  });

  it("pans with the middle button, the space bar, or the tool for it", () => {
    expect(pressOf({ ...LEFT, button: 1 }, "foreground", false)).toEqual({ kind: "pan" });
    expect(pressOf(LEFT, "box", true)).toEqual({ kind: "pan" });
    expect(pressOf(LEFT, "pan", false)).toEqual({ kind: "pan" });
  });

  it("does nothing with other buttons", () => {
    expect(pressOf({ ...LEFT, button: 3 }, "foreground", false)).toEqual({ kind: "none" });
    expect(pressOf({ ...LEFT, button: 2 }, "pan", false)).toEqual({ kind: "none" });
  });
});

describe("zoomFactor", () => {
  const STEP = { deltaY: -100, deltaMode: 0, ctrlKey: false };

  it("a wheel turned back undoes a wheel turned on", () => {
    expect(zoomFactor(STEP)).toBeGreaterThan(1.1);
    expect(zoomFactor(STEP) * zoomFactor({ ...STEP, deltaY: 100 })).toBeCloseTo(1);
  });

  it("lines count as many pixels", () => {
    const lines = zoomFactor({ deltaY: -3, deltaMode: 1, ctrlKey: false });
    expect(lines).toBeCloseTo(zoomFactor({ ...STEP, deltaY: -48 }));
  });

  it("a pinch on a trackpad zooms more per pixel", () => {
    const pinched = { deltaY: -10, deltaMode: 0, ctrlKey: true };
    expect(zoomFactor(pinched)).toBeGreaterThan(zoomFactor({ ...pinched, ctrlKey: false }));
  });

  it("one event zooms by a limited factor", () => {
    expect(zoomFactor({ deltaY: -1e6, deltaMode: 2, ctrlKey: true })).toBe(1.6);
  });
});

describe("stepOf", () => {
  it("is a pixel of the screen, and ten with Shift", () => {
    expect(stepOf({ key: "ArrowLeft", shiftKey: false }, 0)).toEqual({ x: -1, y: 0 });
    expect(stepOf({ key: "ArrowDown", shiftKey: true }, 0)).toEqual({ x: 0, y: 10 });
  });

  it("grows as the key is held, up to a limit", () => {
    const held = (repeated: number) => stepOf({ key: "ArrowRight", shiftKey: false }, repeated)?.x;
    expect(held(25)).toBe(3);
    expect(held(1000)).toBe(8);
  });

  it("is null for other keys", () => {
    expect(stepOf({ key: "a", shiftKey: false }, 0)).toBeNull();
  });
});

describe("moved", () => {
  const size = { width: 100, height: 50 };

  it("moves by pixels of the screen", () => {
    expect(moved({ x: 10, y: 10 }, { x: 10, y: -1 }, 4, size)).toEqual({ x: 12.5, y: 9.75 });
  });

  it("stays in the image", () => {
    expect(moved({ x: 99, y: 1 }, { x: 10, y: -10 }, 1, size)).toEqual({ x: 100, y: 0 });
  });
});

describe("shortcutOf", () => {
  const none = { ctrlKey: false, metaKey: false, altKey: false, shiftKey: false };
  const ctrl = { ...none, ctrlKey: true };

  it("is undo or redo with Ctrl, or with the command key of a Mac", () => {
    expect(shortcutOf({ ...ctrl, key: "z" })).toBe("undo");
    expect(shortcutOf({ ...none, metaKey: true, key: "z" })).toBe("undo");
    expect(shortcutOf({ ...ctrl, shiftKey: true, key: "Z" })).toBe("redo");
    expect(shortcutOf({ ...ctrl, key: "y" })).toBe("redo");
  });

  it("is none of those of the browser", () => {
    expect(shortcutOf({ ...ctrl, key: "f" })).toBeNull();
    expect(shortcutOf({ ...ctrl, key: "+" })).toBeNull();
    expect(shortcutOf({ ...none, altKey: true, key: "f" })).toBeNull();
  });

  it("is a tool for its letter, also with caps lock", () => {
    expect(shortcutOf({ ...none, key: "f" })).toBe("foreground");
    expect(shortcutOf({ ...none, key: "R" })).toBe("box");
    expect(shortcutOf({ ...none, shiftKey: true, key: "R" })).toBeNull();
  });

  it("zooms with plus, on keyboards that have it with Shift too", () => {
    expect(shortcutOf({ ...none, shiftKey: true, key: "+" })).toBe("zoom-in");
    expect(shortcutOf({ ...none, key: "-" })).toBe("zoom-out");
  });

  it("cancels with Escape", () => {
    expect(shortcutOf({ ...none, key: "Escape" })).toBe("cancel");
  });
});
