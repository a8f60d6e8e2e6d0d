// COCO compressed run lengths, as in `pycocotools`: runs of background and foreground in turn, column
// by column. A character holds five bits of a number and whether the number continues; from the
// fourth number on, each is the difference from the one two before it.

/**
 * Return the pixels of a mask, row by row: 1 inside, 0 outside.
 *
 * @param {{height: number, width: number}} size
 * @param {string} counts
 * @returns {Uint8Array}
 */
export function decodeRle({ height, width }, counts) {
  const pixels = new Uint8Array(height * width);
  let position = 0; // column by column
  readRuns(counts).forEach((run, index) => {
    const end = position + run;
    if (run < 0 || end > pixels.length) throw new RangeError("the runs do not fit the size");
    if (index % 2 === 1) fill(pixels, height, width, position, end);
    position = end;
  });
  if (position !== pixels.length) throw new RangeError("the runs do not fit the size");
  return pixels;
}

/** @param {string} counts */
function readRuns(counts) {
  /** @type {number[]} */
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let scale = 1; // multiplied, not shifted: a shift has 32 bits
    let bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      if (!(bits >= 0 && bits < 64)) throw new RangeError("counts has an invalid character");
      value += (bits & 31) * scale;
      scale *= 32;
    } while (bits & 32);
    if (bits & 16) value -= scale; // negative
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/**
 * Set the pixels from *start* to *end*, counted column by column.
 *
 * @param {Uint8Array} pixels
 * @param {number} height
 * @param {number} width
 * @param {number} start
 * @param {number} end
 */
function fill(pixels, height, width, start, end) {
  let y = start % height;
  let x = (start - y) / height;
  for (let position = start; position < end; position++) {
    pixels[y * width + x] = 1;
    if (++y === height) {
      y = 0;
      x++;
    }
  }
}
