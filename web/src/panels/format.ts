import type { Rgb } from "../types";

/** Return a duration with at least two digits, such as `8.4 ms`, `120 ms` or `1.25 s`. */
export function formatMs(ms: number): string {
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  return ms < 9995 ? `${(ms / 1000).toFixed(2)} s` : `${(ms / 1000).toFixed(1)} s`;
}

/** Return a score, 0 to 1, with two digits. */
export function formatScore(score: number): string {
  return score.toFixed(2);
}

/** Return a part of the image, 0 to 1, in percent: `12 %`, `0.5 %`, `0.03 %`. */
export function formatPart(part: number): string {
  const percent = part * 100;
  if (percent === 0 || percent >= 10) return `${Math.round(percent)} %`;
  return `${percent.toFixed(percent >= 1 ? 1 : 2)} %`;
}

/** Return a number with its noun: `1 point`, `2 points`. */
export function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Return a colour as `#rrggbb`. */
export function toHex(colour: Rgb): string {
  return `#${colour.map((channel) => channel.toString(16).padStart(2, "0")).join("")}`;
}

/** Read `#rrggbb`. */
export function fromHex(hex: string): Rgb {
  const number = Number.parseInt(hex.slice(1), 16);
  return [(number >> 16) & 255, (number >> 8) & 255, number & 255];
}
