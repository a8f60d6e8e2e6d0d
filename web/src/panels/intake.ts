import { signal } from "@preact/signals";

import { loadSample, type Sample } from "../samples";
import { connection } from "../state/connection";
import { open } from "../state/image";
import { notify, report } from "../state/notices";

/** Whether the dialog is shown that opens another image. */
export const isChoosing = signal(false);

/** Whether files are dragged over the page. */
export const isDragging = signal(false);

/** Open the first of the files that were chosen, dropped or pasted. */
export function openFirst(files: readonly File[]): void {
  const [file] = files;
  if (!file) return;
  if (connection.value.kind !== "ready") {
    notify("The image cannot be opened: the page is not connected to the server", "error");
    return;
  }
  isChoosing.value = false;
  void open(file, file.name || "pasted image");
  // After the notices about earlier images have gone.
  if (files.length > 1) notify(`Only the first of ${files.length} files is opened: ${file.name}`);
}

/** Open a sample. */
export async function openSample(sample: Sample): Promise<void> {
  try {
    openFirst([await loadSample(sample)]);
  } catch (error) {
    report("The sample cannot be loaded", error);
  }
}

/** Accept files that are dropped anywhere on the page, or pasted; returns how to stop that. */
export function acceptFiles(): () => void {
  const stop = new AbortController();
  const options = { signal: stop.signal };
  // Enter and leave events of the elements of the page come in pairs.
  let depth = 0;
  const drag = (change: number) => (event: DragEvent) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    isDragging.value = depth > 0;
  };
  window.addEventListener("dragenter", drag(1), options);
  window.addEventListener("dragleave", drag(-1), options);
  window.addEventListener("dragover", (event) => event.preventDefault(), options);
  window.addEventListener(
    "drop",
    (event) => {
      event.preventDefault();
      depth = 0;
      isDragging.value = false;
      dropped(event.dataTransfer);
    },
    options,
  );
  window.addEventListener("paste", pasted, options);
  return () => stop.abort();
}

function dropped(data: DataTransfer | null): void {
  const files = [...(data?.files ?? [])];
  if (files.length > 0) openFirst(files);
  else notify("Nothing was opened: drop an image file, links are not followed", "error");
}

function pasted(event: ClipboardEvent): void {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length > 0) {
    event.preventDefault();
    openFirst(files);
  } else if (!isEditable(event.target)) {
    notify("Nothing was opened: the clipboard has no image");
  }
}

const NOT_TYPED = ["button", "checkbox", "color", "file", "radio", "range", "submit"];

/** Return whether keys and the clipboard belong to an element, as it edits text. */
export function isEditable(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLTextAreaElement ||
    target instanceof HTMLSelectElement ||
    (target instanceof HTMLInputElement && !NOT_TYPED.includes(target.type))
  );
}
