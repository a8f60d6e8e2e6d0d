// Decodes run lengths: reads [[height, width, counts], ...] and writes an array of base64 or errors.

import { decodeRle } from "../../examples/shared/rle.js";

let text = "";
for await (const part of process.stdin.setEncoding("utf8")) text += part;
const decoded = JSON.parse(text).map(([height, width, counts]) => {
  try {
    return Buffer.from(decodeRle({ height, width }, counts)).toString("base64");
  } catch (error) {
    return { error: error.name };
  }
});
process.stdout.write(JSON.stringify(decoded));
