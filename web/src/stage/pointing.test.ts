import { beforeEach, describe, expect, it, vi } from "vitest";

const state = await vi.hoisted(async () => {
  const { signal } = await import("@preact/signals");
  return {
    everythingBitmap: signal<unknown>(null),
    activeObject: signal<unknown>(null),
    objects: signal([]),
    run: signal({ kind: "none" }),
    found: signal([]),
    embedded: signal(true),
    image: signal<unknown>(null),
    tool: signal("foreground"),
    clear: vi.fn(),
    highlight: vi.fn(),
    isKeptAt: vi.fn(() => false),
    keepOne: vi.fn(),
    addPoint: vi.fn(),
    clearPrompts: vi.fn(),
    endPreview: vi.fn(),
    previewAt: vi.fn(),
    setBox: vi.fn(),
  };
});
for (const name of ["bitmaps", "document", "everything", "image", "prompting"])
  vi.doMock(`../state/${name}`, () => state);

const { setContainer } = await import("./viewport-state");
const pointing = await import("./pointing");

/** The image is 100 x 50 and shown at (16, 16) with 8 pixels of the screen per pixel. */
const IMAGE = { size: { width: 100, height: 50 } };
const onScreen = (x: number, y: number) => ({ x: 16 + 8 * x, y: 16 + 8 * y });

vi.useFakeTimers();
vi.stubGlobal("window", globalThis);

beforeEach(() => {
  state.image.value = { ...IMAGE };
  setContainer({ width: 832, height: 432, ratio: 1 });
  state.run.value = { kind: "none" };
  state.everythingBitmap.value = null;
  state.activeObject.value = null;
  state.tool.value = "foreground";
  vi.clearAllMocks();
});

describe("a click", () => {
  it("adds a point in pixels of the image", () => {
    pointing.pointAt(onScreen(0.5, 49.25), false);
    expect(state.addPoint).toHaveBeenCalledWith({ x: 0.5, y: 49.25, foreground: false });
  });

  it("outside the image does nothing", () => {
    pointing.pointAt(onScreen(-0.5, 10), true);
    pointing.pointAt(onScreen(10, 50.5), true);
    expect(state.addPoint).not.toHaveBeenCalled();
  });
});

describe("a preview", () => {
  it("follows the pointer, but not next to the last click", () => {
    pointing.pointAt(onScreen(10, 10), true);
    pointing.hoverAt({ x: onScreen(10, 10).x + 2, y: onScreen(10, 10).y }, true);
    expect(state.previewAt).not.toHaveBeenCalled();
    pointing.hoverAt(onScreen(12, 10), true);
    expect(state.previewAt).toHaveBeenCalledWith(12, 10, true);
  });

  it("of a background point needs an object", () => {
    pointing.hoverAt(onScreen(20, 20), false);
    expect(state.previewAt).not.toHaveBeenCalled();
    state.activeObject.value = { answers: [], chosen: 0 };
    pointing.hoverAt(onScreen(20, 20), false);
    expect(state.previewAt).toHaveBeenCalledWith(20, 20, false);
  });

  it("ends outside the image, and when another tool is chosen", () => {
    pointing.hoverAt(onScreen(-1, 20), true);
    expect(state.endPreview).toHaveBeenCalledTimes(1);
    state.tool.value = "pan";
    expect(state.endPreview).toHaveBeenCalledTimes(2);
  });
});

describe("a box", () => {
  it("is set without what is outside the image", () => {
    pointing.drawBox(onScreen(90, 40), onScreen(120, -3));
    pointing.finishBox();
    expect(state.setBox).toHaveBeenCalledWith({ xMin: 90, yMin: 0, xMax: 100, yMax: 40 });
  });

  it("of less than two pixels of the screen in the image is none", () => {
    pointing.drawBox(onScreen(-20, 10), onScreen(0.2, 40));
    pointing.finishBox();
    expect(state.setBox).not.toHaveBeenCalled();
    expect(pointing.drawnBox.value).toBeNull();
  });

  it("is gone when another tool is chosen", () => {
    pointing.drawBox(onScreen(1, 1), onScreen(9, 9));
    state.tool.value = "box";
    expect(pointing.drawnBox.value).toBeNull();
  });
});

describe("while everything is shown, a click", () => {
  beforeEach(() => {
    state.run.value = { kind: "done" };
    const labels = Int16Array.of(7, -1);
    state.everythingBitmap.value = { labels, size: { width: 2, height: 1 } };
    // Long after the clicks of other tests.
    vi.advanceTimersByTime(10_000);
  });

  it("keeps the mask there", () => {
    pointing.hoverAt(onScreen(10, 10), true);
    expect(state.highlight).toHaveBeenLastCalledWith(7);
    pointing.pointAt(onScreen(10, 10), true);
    expect(state.keepOne).toHaveBeenCalledWith(7);
    expect(state.addPoint).not.toHaveBeenCalled();
  });

  it("twice keeps one mask, not also what is behind it", () => {
    pointing.pointAt(onScreen(10, 10), true);
    pointing.pointAt(onScreen(10, 10), true);
    expect(state.keepOne).toHaveBeenCalledTimes(1);
    expect(state.addPoint).not.toHaveBeenCalled();
  });

  it("elsewhere soon after keeps that one too", () => {
    pointing.pointAt(onScreen(10, 10), true);
    pointing.pointAt(onScreen(40, 10), true);
    expect(state.keepOne).toHaveBeenCalledTimes(2);
  });

  it("where there is no mask adds a point, unless one was kept there", () => {
    pointing.pointAt(onScreen(90, 10), true);
    expect(state.addPoint).toHaveBeenCalledTimes(1);
    state.isKeptAt.mockReturnValueOnce(true);
    pointing.pointAt(onScreen(90, 10), true);
    expect(state.addPoint).toHaveBeenCalledTimes(1);
  });

  it("with the right button adds a background point", () => {
    pointing.pointAt(onScreen(10, 10), false);
    expect(state.addPoint).toHaveBeenCalledWith({ x: 10, y: 10, foreground: false });
  });
});

describe("cancelLatest", () => {
  it("cancels a box, then what everything has found, then the prompts", () => {
    state.run.value = { kind: "running" };
    pointing.drawBox(onScreen(1, 1), onScreen(9, 9));
    pointing.cancelLatest();
    expect(pointing.drawnBox.value).toBeNull();
    expect(state.clear).not.toHaveBeenCalled();
    pointing.cancelLatest();
    expect(state.clear).toHaveBeenCalledTimes(1);
    state.run.value = { kind: "none" };
    pointing.cancelLatest();
    expect(state.clearPrompts).toHaveBeenCalledTimes(1);
  });
});
