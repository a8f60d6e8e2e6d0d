// Writes the exported files of objects to a folder, with the modules of the page. Reads JSON from
// its input: the image's name and size, and objects with name, colour, counts and score.

import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { registerHooks } from "node:module";
import { text } from "node:stream/consumers";

// Vite finds modules without their extension, Node.js only with it.
registerHooks({
  resolve(specifier, context, next) {
    const source = new URL(`${specifier}.ts`, context.parentURL ?? import.meta.url);
    const isSource = specifier.startsWith(".") && existsSync(source);
    return next(isSource ? source.href : specifier, context);
  },
});

const folder = process.argv[2];
const masks = new URL("../../web/src/masks/", import.meta.url);
const { cocoFile, masksFile, svgFile } = await import(`${masks}files.ts`);
const { areaOf, boundsOf, decodeCounts } = await import(`${masks}run-lengths.ts`);
const { outline } = await import(`${masks}outline.ts`);

const { image, size, objects: described } = JSON.parse(await text(process.stdin));
const objects = described.map(({ name, colour, counts, score }) => {
  const runs = decodeCounts(counts, size);
  const scores = { predictedIou: score, stabilityScore: 1, token: 0 };
  const mask = { size, runs, area: areaOf(runs), bbox: boundsOf({ size, runs }), ...scores };
  return { name, colour, mask };
});

const files = {
  coco: cocoFile(objects, image, size),
  svg: svgFile(objects, image, size),
  masks: await masksFile(objects, image),
  mask: await masksFile(objects.slice(0, 1), image),
};
const names = {};
for (const [kind, { name, blob }] of Object.entries(files)) {
  names[kind] = name;
  await writeFile(`${folder}/${name}`, Buffer.from(await blob.arrayBuffer()));
}
console.log(JSON.stringify({ names, outlines: objects.map(({ mask }) => outline(mask, 0)) }));
