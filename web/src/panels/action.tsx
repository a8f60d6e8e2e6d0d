import type { ComponentChildren } from "preact";

interface ActionProps {
  readonly name: string;
  readonly keys: string;
  readonly disabled?: boolean;
  /** Whether the name is shown where there is space. */
  readonly hasText?: boolean;
  readonly onClick: () => void;
  readonly children: ComponentChildren;
}

/** A button of a toolbar. */
export function Action({ name, keys, disabled, hasText, onClick, children }: ActionProps) {
  return (
    <button
      type="button"
      class="icon-button"
      aria-label={name}
      title={`${name} (${keys})`}
      disabled={disabled ?? false}
      onClick={onClick}
    >
      {children}
      {hasText && <span class="tool-name">{name}</span>}
    </button>
  );
}
