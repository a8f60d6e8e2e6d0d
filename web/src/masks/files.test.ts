import { describe, expect, it } from "vitest";
import { toCoco } from "./coco";
import { crc32 } from "./crc32";
import { cocoFile, masksFile, svgFile } from "./files";
import type { ExportedObject } from "./interfaces";
import { safeName, stemOf, unique } from "./names";
import { escapeXml, toSvg } from "./svg";
import { drawn, toMask } from "./test-masks";

function object(name: string, ...rows: string[]): ExportedObject {
  return { name, colour: [255, 128, 0], mask: toMask(drawn(...rows), 0.75) };
}

const TWO = [object("dog", ".##", ".#."), object("cat", "...", "#..")];
const SIZE = { width: 3, height: 2 };

describe("COCO JSON", () => {
  it("has boxes and areas of pixels, and sizes with the height first", () => {
    const file = toCoco(TWO, "park.jpg", SIZE);
    expect(file.images).toEqual([{ id: 1, file_name: "park.jpg", width: 3, height: 2 }]);
    expect(file.annotations[0]).toEqual({
      id: 1,
      image_id: 1,
      category_id: 1,
      segmentation: { size: [2, 3], counts: "231" },
      area: 3,
      bbox: [1, 0, 2, 2],
      iscrowd: 0,
      score: 0.75,
    });
  });

  it("has one category for each name", () => {
    const file = toCoco([...TWO, object(" dog ", "#.."), object("", "#..")], "park.jpg", SIZE);
    expect(file.categories.map(({ id, name }) => [id, name])).toEqual([
      [1, "dog"],
      [2, "cat"],
      [3, "object"],
    ]);
    expect(file.annotations.map((each) => each.category_id)).toEqual([1, 2, 1, 3]);
    expect(file.annotations.map(({ id }) => id)).toEqual([1, 2, 3, 4]);
  });

  it("accepts an empty mask and no objects", () => {
    const [empty] = toCoco([object("none", "...", "...")], "a", SIZE).annotations;
    expect([empty?.area, empty?.bbox]).toEqual([0, [0, 0, 0, 0]]);
    expect(toCoco([], "a", SIZE).annotations).toEqual([]);
  });
});

describe("SVG", () => {
  it("has a path with title and colour for each object", () => {
    const text = toSvg(TWO, SIZE, 0);
    expect(text).toContain('viewBox="0 0 3 2"');
    expect(text.match(/<path id="object-\d" fill="#ff8000"/g)).toHaveLength(2);
    expect(text).toContain("<title>dog</title>");
    expect(text).toContain('d="M0.5 2L0 1.5L0.5 1L1 1.5Z"');
  });

  it("has names without markup", () => {
    expect(escapeXml(`<a href="x">&'\u0000\uD800\uFFFF\u{1F600}`)).toBe(
      "&#60;a href=&#34;x&#34;&#62;&#38;&#39;\u{1F600}",
    );
    expect(toSvg([object("</title><script>", "#")], SIZE)).not.toContain("<script");
  });
});

describe("names of files", () => {
  it.each([
    ["dog", "dog"],
    ["../../etc/passwd", "_.._etc_passwd"],
    ['a<b>:"c|d?*\\', "a_b___c_d___"],
    ["  .hidden. ", "hidden"],
    ["CON", "x"],
    ["com1.dog", "x"],
    ["constant", "constant"],
    ["", "x"],
    [" ... ", "x"],
    ["a\u202Egnp\u0000\n", "a_gnp__"],
    ["Überraschung \u{1F600}", "Überraschung \u{1F600}"],
    ["e\u0301", "\u00E9"],
    ["\uD800", "_"],
  ])("are safe: %j", (text, expected) => {
    expect(safeName(text, "x")).toBe(expected);
  });

  it("have at most 100 bytes, and whole characters", () => {
    expect(safeName("a".repeat(300), "x")).toBe("a".repeat(100));
    expect(safeName("\u{1F600}".repeat(300), "x")).toBe("\u{1F600}".repeat(25));
    expect(safeName(`a${"\u{1F600}".repeat(300)}`, "x")).toBe(`a${"\u{1F600}".repeat(24)}`);
  });

  it("have no folder and extension of the image", () => {
    expect(stemOf("C:\\photos\\sea.side.jpeg")).toBe("sea.side");
    expect(stemOf("photo")).toBe("photo");
  });

  it("are different where case is ignored", () => {
    expect(unique(["dog", "Dog", "dog (2)", "dog"])).toEqual([
      "dog",
      "Dog (2)",
      "dog (2) (2)",
      "dog (3)",
    ]);
  });
});

describe("exported files", () => {
  it("are one PNG, or an archive of several", async () => {
    const [one, two] = [await masksFile(TWO.slice(0, 1), "a.jpg"), await masksFile(TWO, "a.jpg")];
    expect([one.name, one.blob.type]).toEqual(["a-dog.png", "image/png"]);
    expect([two.name, two.blob.type]).toEqual(["a-masks.zip", "application/zip"]);
    const bytes = new Uint8Array(await two.blob.arrayBuffer());
    expect([...bytes.subarray(0, 4)]).toEqual([0x50, 0x4b, 3, 4]);
  });

  it("have types and names", () => {
    const [coco, svg] = [cocoFile(TWO, "sea/a.b.png", SIZE), svgFile(TWO, "", SIZE)];
    expect([coco.name, coco.blob.type]).toEqual(["a.b-coco.json", "application/json"]);
    expect([svg.name, svg.blob.type]).toEqual(["image-outlines.svg", "image/svg+xml"]);
  });

  it("have the checksum of ZIP and PNG", () => {
    expect(crc32(new TextEncoder().encode("123456789"))).toBe(0xcbf43926);
  });
});
