import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { CloseIcon } from "./icons";

interface DialogProps {
  readonly title: string;
  /** Without it the dialog cannot be closed by the user. */
  readonly onClose?: () => void;
  readonly children: ComponentChildren;
}

/** A modal dialog, shown as long as it is rendered. The browser keeps the focus inside. */
export function Dialog({ title, onClose, children }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  const id = `dialog-${title.toLowerCase().replaceAll(" ", "-")}`;
  useEffect(() => {
    const dialog = element.current;
    const opener = document.activeElement;
    dialog?.showModal();
    return () => {
      dialog?.close();
      // The browser does that only for a dialog that stays in the document.
      if (opener instanceof HTMLElement) opener.focus();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class="dialog"
      aria-labelledby={id}
      onCancel={(event) => {
        // The owner of the dialog removes it.
        event.preventDefault();
        onClose?.();
      }}
      onClose={() => {
        // Browsers close it by a second Escape, whatever the page says.
        if (onClose) onClose();
        else element.current?.showModal();
      }}
      onPointerDown={(event) => {
        if (event.target === element.current) onClose?.();
      }}
    >
      <div class="dialog-body">
        <div class="dialog-head">
          <h2 id={id}>{title}</h2>
          {onClose && (
            <button type="button" class="icon-button" aria-label="Close" onClick={onClose}>
              <CloseIcon />
            </button>
          )}
        </div>
        {children}
      </div>
    </dialog>
  );
}
