import { Dialog } from "./dialog";

type Row = readonly [keys: readonly string[], meaning: string];

const GROUPS: readonly (readonly [title: string, rows: readonly Row[]])[] = [
  [
    "Mouse and touch",
    [
      [["Click"], "Point of the chosen tool, or keep a mask of everything"],
      [["Right click"], "Background point; so do Alt and Shift with a click"],
      [["Drag"], "Box, with the tool for boxes"],
      [["Wheel"], "Zoom at the pointer; two fingers zoom and pan"],
      [["Middle button"], "Pan; so does Space with a drag"],
    ],
  ],
  [
    "Tools",
    [
      [["F"], "Foreground"],
      [["B"], "Background"],
      [["R"], "Box"],
      [["H"], "Pan"],
    ],
  ],
  [
    "Objects",
    [
      [["1", "2", "3"], "Choose an answer"],
      [["N"], "New object"],
      [["Esc"], "Cancel a drag, discard the masks of everything, or clear the prompts"],
      [["Ctrl", "Z"], "Undo"],
      [["Ctrl", "Shift", "Z"], "Redo"],
    ],
  ],
  [
    "View",
    [
      [["+"], "Zoom in"],
      [["−"], "Zoom out"],
      [["0"], "Fit the image"],
    ],
  ],
  [
    "On the image, without a mouse",
    [
      [["←", "↑", "→", "↓"], "Move the crosshair; with Shift by 10 pixels"],
      [["Enter"], "Point at the crosshair, or a corner of a box; with Shift a background point"],
    ],
  ],
];

/** The dialog that lists mouse actions and keys. */
export function Shortcuts({ onClose }: { readonly onClose: () => void }) {
  return (
    <Dialog title="Keyboard shortcuts" onClose={onClose}>
      <div class="shortcuts">
        {GROUPS.map(([title, rows]) => (
          <section key={title}>
            <h3>{title}</h3>
            <dl>
              {rows.map(([keys, meaning]) => (
                <div key={meaning}>
                  <dt>
                    {keys.map((key) => (
                      <kbd key={key}>{key}</kbd>
                    ))}
                  </dt>
                  <dd>{meaning}</dd>
                </div>
              ))}
            </dl>
          </section>
        ))}
      </div>
    </Dialog>
  );
}
