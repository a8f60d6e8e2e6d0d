import { fit, isFitted, viewport, zoomIn, zoomOut } from "../stage/viewport-state";
import { Action } from "./action";
import { FitIcon, MinusIcon, PlusIcon } from "./icons";

/** The buttons that zoom. */
export function ZoomButtons() {
  const scale = viewport.value?.scale;
  return (
    <div class="button-row zoom">
      <Action name="Zoom out" keys="−" onClick={zoomOut} disabled={isFitted.value}>
        <MinusIcon />
      </Action>
      <span class="zoom-scale">{scale ? `${Math.round(scale * 100)} %` : ""}</span>
      <Action name="Zoom in" keys="+" onClick={zoomIn}>
        <PlusIcon />
      </Action>
      <Action name="Fit" keys="0" onClick={fit} disabled={isFitted.value}>
        <FitIcon />
      </Action>
    </div>
  );
}
