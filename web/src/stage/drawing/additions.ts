/** Return what follows *before* in *now*, or null if *now* does not begin with it. */
export function additions<T>(before: readonly T[], now: readonly T[]): readonly T[] | null {
  const isContinued = before.every((each, index) => each === now[index]);
  return isContinued ? now.slice(before.length) : null;
}
