import { render } from "preact";

import { App } from "./app";
import { start } from "./state/connection";
import "./styles/index.css";

const root = document.getElementById("app");
if (root) render(<App />, root);
// Another address of the server with a token, entered in this tab: the browser loads nothing.
window.addEventListener("hashchange", () => void start());
void start();
