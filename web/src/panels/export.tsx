import { maskOf, objects } from "../state/document";
import { exportCoco, exportCutOuts, exported, exportMasks, exportSvg } from "../state/exports";
import { count } from "./format";
import { DownloadIcon } from "./icons";
import { Panel } from "./section";

const FORMATS = [
  {
    name: "Cut-outs (PNG)",
    content: "cropped, transparent",
    save: exportCutOuts,
  },
  { name: "Masks (PNG)", content: "white on black", save: exportMasks },
  { name: "COCO JSON", content: "run lengths and boxes", save: exportCoco },
  { name: "SVG", content: "outlines in the colours", save: exportSvg },
] as const;

/** The files that the objects can be saved as. */
export function Export() {
  const number = exported.value.length;
  const hidden = objects.value.filter((each) => !each.visible && maskOf(each)).length;
  return (
    <Panel
      title="Export"
      aside={
        number > 0 && (
          <span class="aside">
            {count(number, "object")}
            {hidden > 0 && `, ${hidden} of them hidden`}
          </span>
        )
      }
    >
      <ul class="exports">
        {FORMATS.map(({ name, content, save }, index) => (
          <li key={name} class="export">
            <DownloadIcon />
            <button
              type="button"
              aria-describedby={`export-${index}`}
              disabled={number === 0}
              onClick={() => void save()}
            >
              {name}
            </button>
            <span id={`export-${index}`}>{content}</span>
          </li>
        ))}
      </ul>
    </Panel>
  );
}
