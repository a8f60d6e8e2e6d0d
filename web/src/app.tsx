import { useEffect } from "preact/hooks";

import { Answers } from "./panels/answers";
import { Chooser } from "./panels/chooser";
import { ConnectionState, SignIn } from "./panels/connection";
import { Dialog } from "./panels/dialog";
import { Everything } from "./panels/everything";
import { Export } from "./panels/export";
import { Header } from "./panels/header";
import { acceptFiles, isChoosing, isDragging } from "./panels/intake";
import { isFocusLost } from "./panels/kept-focus";
import { Notices } from "./panels/notices";
import { Objects } from "./panels/objects";
import { Times } from "./panels/times";
import { Toolbar } from "./panels/toolbar";
import { Stage } from "./stage/stage";
import { connection, modelName } from "./state/connection";
import { image, progress } from "./state/image";

/** The page: the image with its tools, and the panels beside it. */
export function App() {
  useEffect(acceptFiles, []);
  return (
    <div class={`page${image.value ? " has-image" : ""}`}>
      <Header />
      <main class="workspace">
        <Workspace />
        <Progress />
        <Notices />
      </main>
      {image.value && <SidePanel />}
      {isDragging.value && (
        <p class="drop-target">
          <span>Drop the image to open it</span>
        </p>
      )}
      {isChoosing.value && (
        <Dialog
          title="Open an image"
          onClose={() => {
            isChoosing.value = false;
          }}
        >
          <Chooser label="Choose another image" />
        </Dialog>
      )}
      <SignIn />
    </div>
  );
}

function Workspace() {
  const hasImage = image.value !== null;
  useEffect(() => {
    // The button that opened it is gone: the keys are for the image next.
    if (hasImage && isFocusLost())
      document.querySelector<HTMLElement>(".stage-input")?.focus({ preventScroll: true });
  }, [hasImage]);
  if (image.value)
    return (
      <>
        <Toolbar />
        <Stage />
      </>
    );
  if (connection.value.kind === "ready")
    return (
      <div class="empty">
        <p class="claim">Click on an object, get its mask.</p>
        <Chooser label="Choose an image" />
      </div>
    );
  return <ConnectionState />;
}

function SidePanel() {
  return (
    <aside class="side" aria-label="Results">
      <Answers />
      <Objects />
      <Everything />
      <Export />
      <Times />
    </aside>
  );
}

function Progress() {
  const text = {
    "": "",
    opening: "Opening the image…",
    encoding: `Encoding the image with ${modelName.value}…`,
  }[progress.value];
  return (
    <div class="progress" role="status">
      {text && (
        <p class="progress-chip">
          <span class="spinner" />
          {text}
        </p>
      )}
    </div>
  );
}
