// The playground: a chat with the models of this server, and a view of the requests and events.

import { render } from "preact";
import { connect } from "./logic/access.js";
import { restore } from "./logic/history.js";
import { App } from "./view/App.jsx";

render(<App />, /** @type {HTMLElement} */ (document.getElementById("app")));
restore();
connect();
