/** Names of files that every system accepts. */

/** Systems accept 255 for a whole name, which has two of these at most. */
const MAX_BYTES = 100;
/** Windows reserves these, with any extension. */
const RESERVED = /^(con|prn|aux|nul|com\d|lpt\d)$/i;

/** Return a name of a file from any text, without its extension. */
export function safeName(text: string, fallback: string): string {
  const cleaned = text
    .normalize("NFC")
    // Of paths and shells; control, format and private characters, such as those that change the
    // direction of text.
    .replace(/[<>:"/\\|?*'`$%&;\uFFFD\p{C}]/gu, "_")
    .replace(/\s+/gu, " ");
  // No dots and spaces at the ends: hidden files, and names that Windows changes.
  const trimmed = shortened(cleaned.replace(/^[. ]+/, "")).replace(/[. ]+$/, "");
  if (!trimmed || RESERVED.test(trimmed.split(".")[0] ?? "")) return fallback;
  return trimmed;
}

/** Return a file's name without folder and extension. */
export function stemOf(fileName: string): string {
  return fileName.replace(/^.*[/\\]/, "").replace(/\.[^.]{1,5}$/, "");
}

/** Return names, of which those that were used before get a number; case is ignored. */
export function unique(names: readonly string[]): string[] {
  const used = new Set<string>();
  return names.map((name) => {
    let candidate = name;
    for (let number = 2; used.has(candidate.toLowerCase()); number++) {
      candidate = `${name} (${number})`;
    }
    used.add(candidate.toLowerCase());
    return candidate;
  });
}

/** Return the beginning of a text that has at most `MAX_BYTES` in UTF-8. */
function shortened(text: string): string {
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(MAX_BYTES));
  return text.slice(0, read);
}
