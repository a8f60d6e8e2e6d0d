import { describe, expect, it } from "vitest";
import { familyOf, type ModelRules, resizedIn } from "./families";
import { promptTensors } from "./prompts";
import { InvalidPrompt, Unsupported } from "./unsupported";

const RULE = { delta: 0.05, thresh: 0.98 };
const model = (family: string): ModelRules => ({
  name: "test",
  family,
  imageSide: 1024,
  maskSide: 4,
  maskTokens: 4,
  stabilityRule: family === "sam2" ? RULE : null,
});
const IMAGE = { width: 512, height: 256 };
const POINT = { x: 100, y: 50, foreground: true };
const BACKGROUND = { x: 512, y: 256, foreground: false };
const BOX = { xMin: 10, yMin: 20, xMax: 30, yMax: 40 };

function tensors(family: string, prompt: Parameters<typeof promptTensors>[0]) {
  const { coords, labels } = promptTensors(prompt, IMAGE, model(family), familyOf(model(family)));
  return { coords: Array.from(coords), labels: Array.from(labels) };
}

describe("promptTensors", () => {
  it("ends points of SAM with a padding point, but not with a box", () => {
    expect(tensors("sam1", { points: [POINT, BACKGROUND] })).toEqual({
      coords: [200, 100, 1024, 512, 0, 0],
      labels: [1, 0, -1],
    });
    expect(tensors("sam_hq", { points: [POINT], box: BOX })).toEqual({
      coords: [200, 100, 20, 40, 60, 80],
      labels: [1, 2, 3],
    });
    const logits = new Uint8Array(64);
    expect(tensors("sam1", { points: [], logits })).toEqual({ coords: [], labels: [] });
  });

  it("begins points of SAM 2 with the box, and stretches the image", () => {
    expect(tensors("sam2", { points: [POINT], box: BOX })).toEqual({
      coords: [20, 80, 60, 160, 200, 200, 0, 0],
      labels: [2, 3, 1, -1],
    });
    const logits = new Uint8Array(64);
    expect(tensors("sam2", { points: [], logits }).labels).toEqual([-1, -1]);
  });

  it("rounds coordinates to float32 before they are scaled", () => {
    const image = { width: 3000, height: 3000 };
    const prompt = { points: [{ x: 0.1, y: 1 / 3, foreground: true }] };
    const { coords } = promptTensors(prompt, image, model("sam1"), familyOf(model("sam1")));
    const scale = 1024 / 3000;
    expect(coords[0]).toBe(Math.fround(Math.fround(0.1) * scale));
    expect(coords[1]).toBe(Math.fround(Math.fround(1 / 3) * scale));
  });

  it("reads logits as little-endian float32 of bytes that are not aligned", () => {
    const bytes = new Uint8Array(65);
    new DataView(bytes.buffer).setFloat32(1 + 4 * 5, -2.5, true);
    const logits = bytes.subarray(1);
    const rules = model("sam1");
    const { mask } = promptTensors({ points: [POINT], logits }, IMAGE, rules, familyOf(rules));
    expect(mask?.[5]).toBe(-2.5);
  });

  it("rejects prompts that the server rejects", () => {
    const invalid = [
      { points: [] },
      { points: [{ x: -1, y: 0, foreground: true }] },
      { points: [{ x: 0, y: 257, foreground: true }] },
      { points: [{ x: Number.NaN, y: 0, foreground: true }] },
      { points: [], box: { ...BOX, xMax: 10 } },
      { points: [], box: { ...BOX, yMax: 300 } },
      { points: [POINT], logits: new Uint8Array(60) },
    ];
    for (const prompt of invalid) {
      expect(() => tensors("sam1", prompt)).toThrow(InvalidPrompt);
    }
  });
});

describe("resizedIn", () => {
  it("rounds the shorter side to the nearest pixel, and never to none", () => {
    const family = familyOf(model("sam1"));
    expect(resizedIn({ width: 1200, height: 1800 }, 1024, family)).toEqual({
      width: 683,
      height: 1024,
    });
    expect(resizedIn({ width: 5000, height: 1 }, 1024, family)).toEqual({ width: 1024, height: 1 });
  });
});

describe("choose", () => {
  const iou = Float32Array.from([0.9, 0.2, 0.8, 0.8]);
  // Of token 0, half of the logits above -delta are above delta.
  const logits = Float32Array.from([1, 0, -1, -1, ...Array(12).fill(0)]);
  const tokens = (family: string, multimask: "AUTO" | "SINGLE" | "ALL", labels: number) => {
    const { stabilityRule } = model(family);
    const rules = { multimask, labels, stabilityRule };
    return familyOf(model(family))
      .choose({ iou, logits }, rules)
      .map((each) => each.tokens);
  };

  it("returns the best mask of an ambiguous prompt of SAM, the first of equals", () => {
    expect(tokens("sam1", "AUTO", 2)).toEqual([[2]]);
    expect(tokens("sam1", "AUTO", 3)).toEqual([[0]]);
    expect(tokens("sam1", "SINGLE", 2)).toEqual([[0]]);
    expect(tokens("sam1", "ALL", 3)).toEqual([[1], [2], [3]]);
  });

  it("adds the mask of SAM-HQ to one plain mask", () => {
    expect(tokens("sam_hq", "AUTO", 3)).toEqual([[0, 4]]);
    expect(tokens("sam_hq", "ALL", 3)).toEqual([[2, 4]]);
  });

  it("replaces a single mask of SAM 2 that is not stable", () => {
    expect(tokens("sam2", "AUTO", 2)).toEqual([[2]]);
    expect(tokens("sam2", "SINGLE", 2)).toEqual([[0]]);
    const choose = (delta: number, thresh: number) => {
      const rules = { multimask: "AUTO", labels: 2, stabilityRule: { delta, thresh } } as const;
      return familyOf(model("sam2")).choose({ iou, logits }, rules)[0]?.token;
    };
    expect(choose(0.05, 0.5)).toBe(0);
    // None is above: an empty mask is stable.
    expect(choose(-2, 1)).toBe(0);
  });

  it("is not known for other families", () => {
    expect(() => familyOf(model("sam9"))).toThrow(Unsupported);
  });
});
