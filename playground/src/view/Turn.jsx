// A turn of the conversation with its buttons.

import { useEffect, useRef, useState } from "preact/hooks";
import { change } from "../logic/access.js";
import { continueReply, regenerate, send, sendResults } from "../logic/chat.js";
import { saveNow } from "../logic/history.js";
import { state, update } from "../logic/store.js";
import { show, versions } from "../logic/tree.js";
import { CopyButton } from "./CopyButton.jsx";
import { isComposing } from "./keys.js";
import { Reply, pretty } from "./Reply.jsx";

/** @import { Turn as TurnData } from "../logic/types.js" */

// A longer question is folded, so that its reply is in view.
const FOLD_LENGTH = 900;
const FOLD_LINES = 12;

/** @param {{turn: TurnData, isLast: boolean, isSent: boolean}} props */
export function Turn({ turn, isLast, isSent }) {
  if (turn.role === "assistant") return <Answer turn={turn} isLast={isLast} isSent={isSent} />;
  if (turn.role === "tool") return <ToolResult turn={turn} isSent={isSent} />;
  return <Question turn={turn} isSent={isSent} />;
}

/** @param {boolean} isSent */
const faded = (isSent) => (isSent ? "" : " left-out");

/** @param {{turn: TurnData, isSent: boolean}} props */
function Question({ turn, isSent }) {
  const [isEditing, setEditing] = useState(false);
  const [isOpen, setOpen] = useState(false);
  const text = turn.text ?? "";
  const isLong = text.length > FOLD_LENGTH || text.split("\n").length > FOLD_LINES;
  if (isEditing) {
    return (
      <li class="turn user">
        <Editor text={text} onSend={(edited) => send(edited, turn.parent)} onClose={() => setEditing(false)} />
      </li>
    );
  }
  return (
    <li class={`turn user${faded(isSent)}`} aria-label="You">
      <div class={isLong && !isOpen ? "text folded" : "text"} dir="auto">
        {text}
      </div>
      {isLong && (
        <button type="button" class="small" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          {isOpen ? "Show less" : "Show all"}
        </button>
      )}
      <div class="actions">
        <Versions turn={turn} />
        <CopyButton text={text} what="question" />
        <button type="button" class="small" disabled={!!state.run} onClick={() => setEditing(true)}>
          Edit
        </button>
      </div>
    </li>
  );
}

/** @param {{text: string, onSend: (text: string) => boolean, onClose: () => void}} props */
function Editor({ text, onSend, onClose }) {
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useEffect(() => box.current?.focus(), []);
  const submit = () => {
    if (onSend(box.current?.value ?? "")) onClose();
  };
  return (
    <form
      class="editor"
      onSubmit={(event) => (event.preventDefault(), submit())}
      onKeyDown={(event) => {
        if (isComposing(event)) return;
        if (event.key === "Escape") (event.stopPropagation(), onClose());
        if (event.key === "Enter" && !event.shiftKey) (event.preventDefault(), submit());
      }}
    >
      <textarea ref={box} aria-label="Edited question" dir="auto" rows={Math.min(12, text.split("\n").length + 1)}>
        {text}
      </textarea>
      <div class="actions">
        <button type="submit" class="primary">
          Send as a new version
        </button>
        <button type="button" onClick={onClose}>
          Cancel
        </button>
      </div>
    </form>
  );
}

/** @param {{turn: TurnData, isLast: boolean, isSent: boolean}} props */
function Answer({ turn, isLast, isSent }) {
  const replies = turn.replies ?? [];
  const isRunning = state.run?.turn.id === turn.id;
  const isAlone = replies.length === 1;
  const canContinue = isAlone && replies[0].text && ["length", "stopped", "lost", "closed", "failed"].includes(replies[0].finish);
  const keep = (/** @type {number} */ index) => {
    turn.replies = [replies[index]];
    turn.changed = Date.now();
    change({ model: replies[index].model, second: "" });
    saveNow(state.conversation);
  };
  return (
    <li class={`turn assistant${faded(isSent)}`} aria-label="Reply">
      <div class={isAlone ? "" : "columns"}>
        {replies.map((reply, index) => (
          <div>
            <Reply reply={reply} isAlone={isAlone} />
            {!isAlone && !isRunning && (
              <button type="button" class="small" onClick={() => keep(index)}>
                Continue with this reply
              </button>
            )}
          </div>
        ))}
      </div>
      {!isRunning && (
        <div class="actions">
          <Versions turn={turn} />
          {isAlone && replies[0].text && <CopyButton text={replies[0].text} what="reply" />}
          <button type="button" class="small" disabled={!!state.run} onClick={() => regenerate(turn)}>
            Regenerate
          </button>
          {isLast && canContinue && (
            <button type="button" class="small" disabled={!!state.run} onClick={() => continueReply(turn)}>
              Continue
            </button>
          )}
        </div>
      )}
      {isLast && isAlone && !isRunning && replies[0].calls.length > 0 && <Results turn={turn} />}
    </li>
  );
}

/** @param {{turn: TurnData}} props */
function Results({ turn }) {
  const calls = turn.replies?.[0].calls ?? [];
  const submit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const data = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    sendResults(turn, calls.map((_, index) => String(data.get(`result-${index}`) ?? "")));
  };
  return (
    <form class="results" onSubmit={submit}>
      {calls.map((call, index) => (
        <label>
          Result of <code>{call.name}</code>
          <textarea name={`result-${index}`} rows={2} dir="auto" placeholder='For example {"degrees": 21}' />
        </label>
      ))}
      <button type="submit" class="primary">
        Send the {calls.length === 1 ? "result" : "results"}
      </button>
    </form>
  );
}

/** @param {{turn: TurnData, isSent: boolean}} props */
const ToolResult = ({ turn, isSent }) => (
  <li class={`turn tool${faded(isSent)}`} aria-label="Result of a tool">
    <span class="hint">
      Result of <code>{turn.name}</code>
    </span>
    <pre tabIndex={0} dir="auto">{pretty(turn.text ?? "")}</pre>
  </li>
);

/** @param {{turn: TurnData}} props */
function Versions({ turn }) {
  const all = versions(state.conversation, turn);
  if (all.length < 2) return null;
  const index = all.findIndex(({ id }) => id === turn.id);
  const go = (/** @type {number} */ step) => {
    show(state.conversation, all[index + step]);
    saveNow(state.conversation);
    update();
  };
  return (
    <span class="versions">
      <button type="button" class="small" aria-label="Earlier version" disabled={!!state.run || index === 0} onClick={() => go(-1)}>
        ‹
      </button>
      <span aria-label={`Version ${index + 1} of ${all.length}`}>
        {index + 1}/{all.length}
      </span>
      <button type="button" class="small" aria-label="Later version" disabled={!!state.run || index === all.length - 1} onClick={() => go(1)}>
        ›
      </button>
    </span>
  );
}
