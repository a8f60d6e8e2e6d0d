import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";

import { useKeptFocus } from "./kept-focus";

interface PanelProps {
  /** Heading, and name of the region. */
  readonly title: string;
  /** Beside the heading. */
  readonly aside?: ComponentChildren;
  readonly children: ComponentChildren;
}

/** A section of the side panel. */
export function Panel({ title, aside, children }: PanelProps) {
  const id = `panel-${title.toLowerCase()}`;
  const section = useRef<HTMLElement>(null);
  useKeptFocus(section);
  return (
    <section ref={section} class="panel" aria-labelledby={id} tabIndex={-1}>
      <header class="panel-head">
        <h2 id={id}>{title}</h2>
        {aside}
      </header>
      {children}
    </section>
  );
}
