/** ZIP archives of files that are compressed already. Source: PKWARE APPNOTE 6.3.10, 4.3. */

import { crc32 } from "./crc32";
import type { NamedFile } from "./interfaces";

const VERSION = 20;
/** Names are UTF-8. */
const FLAGS = 0x800;
/** Without the extension for larger archives. */
const MAX_BYTES = 2 ** 32 - 1;
const MAX_FILES = 2 ** 16 - 1;

/** Return an archive of files, stored without compression. Throws `RangeError` over 4 GiB. */
export async function zip(files: readonly NamedFile[], modified: Date): Promise<Blob> {
  if (files.length > MAX_FILES) throw new RangeError("too many files for one archive");
  const parts: BlobPart[] = [];
  const directory: BlobPart[] = [];
  let offset = 0;
  let directoryBytes = 0;
  for (const { name, blob } of files) {
    const encoded = new TextEncoder().encode(name);
    // One file at a time in memory; the archive refers to the blobs.
    const checksum = crc32(new Uint8Array(await blob.arrayBuffer()));
    const common = describe(checksum, blob.size, encoded.length, modified);
    parts.push(fields([0x04034b50, 4], [VERSION, 2], ...common), encoded, blob);
    directory.push(
      fields([0x02014b50, 4], [VERSION, 2], [VERSION, 2], ...common, ...UNUSED, [offset, 4]),
      encoded,
    );
    offset += 30 + encoded.length + blob.size;
    directoryBytes += 46 + encoded.length;
    if (offset + directoryBytes > MAX_BYTES) throw new RangeError("more than 4 GiB of files");
  }
  const count = files.length;
  const end = fields(
    ...([
      [0x06054b50, 4],
      [0, 2],
      [0, 2],
      [count, 2],
      [count, 2],
    ] as const),
    ...([
      [directoryBytes, 4],
      [offset, 4],
      [0, 2],
    ] as const),
  );
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** A number and its bytes, the lowest first. */
type Field = readonly [value: number, bytes: 2 | 4];

/** Comment, disk, and attributes of a file. */
const UNUSED: readonly Field[] = [
  [0, 2],
  [0, 2],
  [0, 2],
  [0, 4],
];

/** Return the fields that a file's header and its entry in the directory share. */
function describe(checksum: number, size: number, nameLength: number, modified: Date): Field[] {
  const time =
    (modified.getHours() << 11) | (modified.getMinutes() << 5) | (modified.getSeconds() >> 1);
  const year = Math.min(127, Math.max(0, modified.getFullYear() - 1980));
  const date = (year << 9) | ((modified.getMonth() + 1) << 5) | modified.getDate();
  return [
    [FLAGS, 2],
    [0, 2],
    [time, 2],
    [date, 2],
    [checksum, 4],
    [size, 4],
    [size, 4],
    [nameLength, 2],
    [0, 2],
  ];
}

function fields(...values: Field[]): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(values.reduce((sum, [, bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [value, bytes] of values) {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += bytes;
  }
  return new Uint8Array(view.buffer);
}
