import type { ComponentChildren } from "preact";

import { activeObject, canRedo, canUndo, isEmpty } from "../state/document";
import { clearPrompts, newObject, redoPrompt, tool, undoPrompt } from "../state/prompting";
import type { Tool } from "../types";
import { Action } from "./action";
import {
  BackgroundIcon,
  BoxIcon,
  ClearIcon,
  ForegroundIcon,
  PanIcon,
  PlusIcon,
  RedoIcon,
  UndoIcon,
} from "./icons";
import { ZoomButtons } from "./zoom-buttons";

const TOOLS = [
  { tool: "foreground", name: "Foreground", key: "F", icon: <ForegroundIcon /> },
  { tool: "background", name: "Background", key: "B", icon: <BackgroundIcon /> },
  { tool: "box", name: "Box", key: "R", icon: <BoxIcon /> },
  { tool: "pan", name: "Pan", key: "H", icon: <PanIcon /> },
] as const satisfies readonly { tool: Tool; name: string; key: string; icon: ComponentChildren }[];

/** The tools, over the image. */
export function Toolbar() {
  const active = activeObject.value;
  return (
    <div class="toolbar">
      <div class="tools" role="radiogroup" aria-label="Tool">
        {TOOLS.map(({ tool: each, name, key, icon }) => (
          <label key={each} class={`tool tool-${each}`} title={`${name} (${key})`}>
            <input
              type="radio"
              name="tool"
              aria-label={name}
              checked={tool.value === each}
              onChange={() => {
                tool.value = each;
              }}
            />
            {icon}
            <span class="tool-name">{name}</span>
          </label>
        ))}
      </div>
      <div class="button-row">
        <Action name="Undo" keys="Ctrl+Z" onClick={undoPrompt} disabled={!canUndo.value}>
          <UndoIcon />
        </Action>
        <Action name="Redo" keys="Ctrl+Shift+Z" onClick={redoPrompt} disabled={!canRedo.value}>
          <RedoIcon />
        </Action>
      </div>
      <div class="button-row">
        <Action name="New object" keys="N" onClick={newObject} disabled={!active} hasText>
          <PlusIcon />
        </Action>
        <Action
          name="Clear prompts"
          keys="Esc"
          onClick={clearPrompts}
          disabled={!active || isEmpty(active.prompt)}
          hasText
        >
          <ClearIcon />
        </Action>
      </div>
      <ZoomButtons />
    </div>
  );
}
