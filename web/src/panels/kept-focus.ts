import type { RefObject } from "preact";
import { useEffect } from "preact/hooks";

/** What had the focus last; it may have left the page since. */
let last: { readonly element: Element; readonly region: Element | null } | null = null;

document.addEventListener("focusin", ({ target }) => {
  if (target instanceof Element) last = { element: target, region: target.closest("section") };
});
// The focus is given up by a press elsewhere, which may focus something else.
document.addEventListener("pointerdown", ({ target }) => {
  if (!(target instanceof Node && last?.element.contains(target))) last = null;
});

/**
 * Move the focus to a region if what had it there was removed, such as a button after its use.
 *
 * Otherwise keyboard users would begin at the top of the page again.
 */
export function useKeptFocus(region: RefObject<HTMLElement | null>): void {
  useEffect(() => {
    if (last?.region === region.current && isFocusLost())
      region.current?.focus({ preventScroll: true });
  });
}

/** Return whether what had the focus was removed, and nothing has it now. */
export function isFocusLost(): boolean {
  return last !== null && !last.element.isConnected && document.activeElement === document.body;
}
