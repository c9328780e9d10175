// The panel beside the conversation: settings, the raw events, and the current request as code.

import { useEffect, useRef } from "preact/hooks";
import { bodyOf, pathOf } from "../logic/body.js";
import { SNIPPETS } from "../logic/snippets.js";
import { fields, state } from "../logic/store.js";
import { messagesOf, sentPath } from "../logic/tree.js";
import { CopyButton } from "./CopyButton.jsx";
import { Settings } from "./Settings.jsx";

const EXAMPLE = [{ role: "user", content: "where is new york?" }];
export const TABS = ["Settings", "Events", ...SNIPPETS.map(({ name }) => name)];

/** @param {{tab: string, onTab: (tab: string) => void}} props */
export function Panel({ tab, onTab }) {
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const focused = TABS.findIndex((name) => tabId(name) === document.activeElement?.id);
    const next = TABS[(focused + step + TABS.length) % TABS.length];
    onTab(next);
    document.getElementById(tabId(next))?.focus();
  };
  return (
    <>
      <div role="tablist" aria-label="View" onKeyDown={onKeyDown}>
        {TABS.map((name) => (
          <button type="button" role="tab" id={tabId(name)} aria-controls="view" aria-selected={name === tab} tabIndex={name === tab ? 0 : -1} onClick={() => onTab(name)}>
            {name}
          </button>
        ))}
      </div>
      <div id="view" role="tabpanel" aria-labelledby={tabId(tab)}>
        {tab === "Settings" ? <Settings /> : tab === "Events" ? <Events /> : <Code name={tab} />}
      </div>
    </>
  );
}

/** @param {string} name */
const tabId = (name) => `tab-${name.toLowerCase().replaceAll(" ", "-")}`;

function Events() {
  const box = useRef(/** @type {HTMLPreElement | null} */ (null));
  useEffect(() => {
    if (box.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const text = state.events.join("");
  return (
    <>
      <div class="head">
        <span class="hint">{text ? "As received, at most 400." : "The events of the next reply."}</span>
        <CopyButton text={text} what="events" />
      </div>
      <pre id="events" ref={box} tabIndex={0} role="region" aria-label="Events of the reply">{text}</pre>
    </>
  );
}

/** @param {{name: string}} props */
function Code({ name }) {
  const snippet = SNIPPETS.find((each) => each.name === name) ?? SNIPPETS[0];
  const { settings, account, access, draft, conversation } = state;
  const model = settings.model || "@cf/meta/llama-2-7b-chat-int8";
  // With an empty box: the latest request, or the example before the first one.
  const asked = [...messagesOf(sentPath(conversation)), { role: "user", content: draft.trim() }];
  const messages = draft.trim() ? asked : (state.sent ?? EXAMPLE);
  const base = new URL(".", location.href);
  const code = snippet.write({
    origin: base.href.replace(/\/$/, ""),
    account: account || "local",
    path: pathOf(settings.api, account || "local", model),
    model,
    body: bodyOf(messages, settings, fields(), model),
    api: settings.api,
    hasToken: access.token !== "",
  });
  return (
    <>
      <div class="head">
        <span class="hint">{draft.trim() ? "The text in the box" : state.sent ? "The latest request" : "An example"}, with these settings</span>
        <CopyButton text={code} what="program" />
      </div>
      <pre id="code" tabIndex={0} role="region" aria-label="Code for these settings">{code}</pre>
    </>
  );
}
