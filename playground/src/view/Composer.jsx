// The box for the next question, the state of the server, problems with their remedies, and the meter of the window.

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { connect } from "../logic/access.js";
import { regenerate, send, stop, usedTokens } from "../logic/chat.js";
import { startNew, undoRemove } from "../logic/history.js";
import { model, setDraft, state, update } from "../logic/store.js";
import { isComposing } from "./keys.js";
import { dropOldest, roughTokens } from "../logic/tree.js";

/** @import { Remedy } from "../logic/explain.js" */

const MAX_FILE_BYTES = 200_000;
// The room that a short question and a short reply need.
const LITTLE_ROOM = 64;

/** @param {{onSettings: (id: string) => void}} props */
export function Composer({ onSettings }) {
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const { draft, run } = state;
  useLayoutEffect(() => {
    if (!box.current) return;
    // The box grows with its text up to the limit of the style sheet.
    box.current.style.height = "auto";
    box.current.style.height = `${box.current.scrollHeight + 2}px`;
  }, [draft]);
  const shown = useRef("");
  useEffect(() => {
    const { activeElement: focused } = document;
    // The end of a reply must not take the focus from another field, or from a text that is read.
    const isFree = !focused || focused === document.body || box.current?.form?.contains(focused);
    const isOther = shown.current !== state.conversation.id;
    shown.current = state.conversation.id;
    if (!run && (isFree || isOther) && matchMedia("(min-width: 44rem)").matches) box.current?.focus({ preventScroll: true });
  }, [!run, state.conversation.id]);
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    // Not `draft`: Enter may follow the text before the page is drawn again.
    if (send(state.draft.trim())) setDraft("");
  };
  return (
    <form
      class="composer"
      onSubmit={submit}
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        if (event.dataTransfer?.files.length) (event.preventDefault(), attach(event.dataTransfer.files));
      }}
      onPaste={(event) => {
        const { clipboardData: data } = event;
        // Spreadsheets and word processors copy a picture beside the text.
        if (data?.files.length && !data.types.includes("text/plain")) (event.preventDefault(), attach(data.files));
      }}
    >
      <Problem onSettings={onSettings} />
      <Room />
      <textarea
        id="prompt"
        ref={box}
        rows={1}
        dir="auto"
        aria-label="Your message"
        aria-describedby="keys"
        placeholder="Ask something"
        value={draft}
        onInput={(event) => setDraft(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) submit(event);
        }}
      />
      <div class="below">
        <p id="status" role="status">
          {state.status}
        </p>
        <Meter />
        <span class="buttons">
          <button type="button" onClick={() => document.getElementById("attach")?.click()}>
            Attach
          </button>
          <input id="attach" class="visually-hidden" type="file" multiple tabIndex={-1} aria-label="Text files to attach"
            onChange={async ({ currentTarget: input }) => {
              await attach(input.files);
              input.value = "";
            }} />
          <button type="button" class="stop" disabled={!run} onClick={stop} aria-keyshortcuts="Escape">
            Stop
          </button>
          <button type="submit" class="primary" disabled={!!run || !state.settings.model || !draft.trim()}>
            Send
          </button>
        </span>
      </div>
      <p id="keys" class="visually-hidden">
        Enter sends, Shift and Enter make a new line, Escape stops the reply.
      </p>
    </form>
  );
}

/**
 * Add text files to the box, as blocks of code.
 * @param {FileList | null | undefined} files
 */
async function attach(files) {
  for (const file of files ?? []) {
    const text = file.size <= MAX_FILE_BYTES ? await file.text() : "";
    // Other files than texts have bytes that are not UTF-8, or zeros.
    if (!text || /[\0\ufffd]/.test(text)) {
      update({ problem: { text: `${file.name} is not a text file of at most ${MAX_FILE_BYTES / 1000} kB.`, remedies: [] } });
      continue;
    }
    const fence = "`".repeat(1 + Math.max(2, ...Array.from(text.matchAll(/`+/g), ([run]) => run.length)));
    const block = `${file.name}\n${fence}\n${text.trimEnd()}\n${fence}`;
    setDraft(state.draft.trim() ? `${state.draft}\n\n${block}` : block);
  }
}

/** @param {{onSettings: (id: string) => void}} props */
function Problem({ onSettings }) {
  const { problem, storageProblem, removed } = state;
  /** @type {Record<Remedy, [string, () => void]>} */
  const buttons = {
    retry: ["Try again", retry],
    token: ["Enter the token", () => onSettings("token")],
    account: ["Enter the account", () => onSettings("account")],
    drop: ["Leave out the oldest turns", drop],
    new: ["New chat with this question", moveToNew],
  };
  return (
    <div role="alert">
      {problem && (
        <div class="problem">
          <p>{problem.text}</p>
          {problem.remedies.map((remedy) => (
            <button type="button" class="small" onClick={buttons[remedy][1]}>
              {buttons[remedy][0]}
            </button>
          ))}
          <button type="button" class="small" onClick={() => update({ problem: null })}>
            Close
          </button>
        </div>
      )}
      {storageProblem && <p class="problem">{storageProblem}</p>}
      {removed.length > 0 && (
        <div class="problem calm">
          <p>{removed.length === 1 ? `“${removed[0].title}” is deleted.` : `${removed.length} conversations are deleted.`}</p>
          <button type="button" class="small" onClick={undoRemove}>
            Undo
          </button>
          <button type="button" class="small" onClick={() => update({ removed: [] })}>
            Close
          </button>
        </div>
      )}
    </div>
  );
}

/** Ask again: the turn that failed, the refused question in the box, or the server for its models. */
function retry() {
  if (!state.hasModels) return connect();
  const turn = state.problem?.turn;
  if (turn) regenerate(turn);
  else if (send(state.draft.trim())) setDraft("");
}

function drop() {
  if (!dropOldest(state.conversation)) {
    return update({ problem: { text: "This question alone is too long for the model: shorten it.", remedies: [] } });
  }
  const isRefused = !state.problem?.turn;
  update({ problem: null });
  if (isRefused && state.draft.trim()) retry();
}

function moveToNew() {
  const { draft } = state;
  startNew();
  setDraft(draft);
}

/** A notice when little room is left. */
function Room() {
  const window = model()?.room ?? 0;
  const room = window - usedTokens() - roughTokens(state.draft);
  if (!window || room >= LITTLE_ROOM || state.problem || state.run || !state.conversation.leaf || state.conversation.from === "next") return null;
  return (
    <div class="problem calm">
      <p>The model's window is almost full.</p>
      <button type="button" class="small" onClick={() => (dropOldest(state.conversation), update())}>
        Leave out the oldest turns
      </button>
      <button type="button" class="small" onClick={moveToNew}>
        New chat
      </button>
    </div>
  );
}

/** How much of the window the conversation and the text in the box take. */
function Meter() {
  const window = model()?.room ?? 0;
  if (!window) return null;
  const used = state.conversation.from === "next" ? 0 : usedTokens();
  const all = used + (state.draft ? roughTokens(state.draft) : 0);
  const text = `${state.draft ? "about " : ""}${all.toLocaleString("en")} of ${window.toLocaleString("en")} tokens`;
  return (
    <span class="meter" title="Tokens of the conversation, of those that fit into the model's window">
      <meter min={0} max={window} high={window * 0.85} value={all} aria-label="Window" aria-valuetext={text} />{" "}
      {text}
    </span>
  );
}
