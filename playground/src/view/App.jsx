// The page: the bar, the list of conversations, the conversation, and the panel.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";
import { stop } from "../logic/chat.js";
import { startNew } from "../logic/history.js";
import { state, subscribe } from "../logic/store.js";
import { Composer } from "./Composer.jsx";
import { Conversations } from "./Conversations.jsx";
import { Header } from "./Header.jsx";
import { isComposing } from "./keys.js";
import { Panel } from "./Panel.jsx";
import { Thread } from "./Thread.jsx";

// The same widths as in style.css: the list and the panel cover the conversation on narrower screens.
const isWide = (/** @type {string} */ width) => matchMedia(`(min-width: ${width})`).matches;
const LIST_WIDTH = "60rem";
const PANEL_WIDTH = "75rem";
/** @type {[string, string][]} */
const KEYS = [
  ["Enter", "Send"],
  ["Shift + Enter", "New line"],
  ["Escape", "Stop the reply, or close what is open"],
  ["Ctrl + Shift + O", "New chat"],
  ["Ctrl + K", "Search the conversations"],
  ["Ctrl + B", "Show or hide the conversations"],
  ["Shift + Escape", "Go to the box"],
  ["Ctrl + /", "This list"],
];

export function App() {
  const [, redraw] = useReducer((/** @type {number} */ count) => count + 1, 0);
  const [isListOpen, setList] = useState(isWide(LIST_WIDTH));
  const [isPanelOpen, setPanel] = useState(isWide(PANEL_WIDTH));
  const [tab, setTab] = useState("Settings");
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => subscribe(() => redraw(undefined)), []);
  useEffect(() => {
    document.documentElement.dataset.theme = state.settings.theme;
  }, [state.settings.theme]);
  const closeCovers = () => {
    if (!isWide(LIST_WIDTH)) setList(false);
    if (!isWide(PANEL_WIDTH)) setPanel(false);
  };
  const openSettings = (/** @type {string} */ id) => {
    setTab("Settings");
    setPanel(true);
    setTimeout(() => document.getElementById(id)?.focus(), 50);
  };
  useEffect(() => {
    const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
      const isControl = event.ctrlKey || event.metaKey;
      const key = event.key.toLowerCase();
      if (isComposing(event)) return;
      if (key === "escape" && !dialog.current?.open) {
        if (event.shiftKey) document.getElementById("prompt")?.focus();
        else if (state.run) stop();
        else closeCovers();
      } else if (isControl && event.shiftKey && key === "o") (event.preventDefault(), startNew());
      else if (isControl && key === "k") {
        event.preventDefault();
        setList(true);
        setTimeout(() => document.getElementById("search")?.focus(), 50);
      } else if (isControl && key === "b") (event.preventDefault(), setList((isOpen) => !isOpen));
      else if (isControl && key === "/") (event.preventDefault(), dialog.current?.showModal());
    };
    document.addEventListener("keydown", onKeyDown);
    return () => document.removeEventListener("keydown", onKeyDown);
  }, []);
  return (
    <>
      <a class="skip" href="#prompt" onClick={(event) => (event.preventDefault(), document.getElementById("prompt")?.focus())}>
        Skip to the message box
      </a>
      <Header
        isListOpen={isListOpen}
        isPanelOpen={isPanelOpen}
        onList={() => setList(!isListOpen)}
        onPanel={() => setPanel(!isPanelOpen)}
        onKeys={() => dialog.current?.showModal()}
      />
      <div class="page">
        <aside id="list" aria-label="Conversations" hidden={!isListOpen}>
          <CloseButton what="the list" onClose={() => setList(false)} />
          <Conversations onChoose={closeCovers} />
        </aside>
        <main>
          <Thread />
          <Composer onSettings={openSettings} />
        </main>
        <aside id="panel" aria-label="Settings, events and code" hidden={!isPanelOpen}>
          <CloseButton what="the panel" onClose={() => setPanel(false)} />
          <Panel tab={tab} onTab={setTab} />
        </aside>
      </div>
      <dialog ref={dialog} aria-labelledby="keys-title">
        <h2 id="keys-title">Keys</h2>
        <dl>
          {KEYS.map(([keys, effect]) => (
            <>
              <dt>
                <kbd>{keys}</kbd>
              </dt>
              <dd>{effect}</dd>
            </>
          ))}
        </dl>
        <form method="dialog">
          <button class="primary">Close</button>
        </form>
      </dialog>
    </>
  );
}

/** @param {{what: string, onClose: () => void}} props */
const CloseButton = ({ what, onClose }) => (
  <button type="button" class="close small" aria-label={`Close ${what}`} onClick={onClose}>
    ✕
  </button>
);
