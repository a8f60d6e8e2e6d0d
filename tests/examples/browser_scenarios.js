// What a page of the tests loads: scenarios with the browser's client.

import { Client } from "../../examples/browser/client.js";
import { scenarios } from "./scenarios.js";

window.runScenario = ({ name, target, options, args }) => scenarios[name](new Client(target, options), args);
