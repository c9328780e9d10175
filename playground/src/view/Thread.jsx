// The conversation. The view follows the reply unless the reader has scrolled up.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { send } from "../logic/chat.js";
import { state } from "../logic/store.js";
import { path, sentPath } from "../logic/tree.js";
import { Turn } from "./Turn.jsx";

const AT_END_PIXELS = 48;
const EXAMPLES = [
  "Where is New York?",
  "Explain what a Worker binding is, in three sentences.",
  "Write a Python function that reverses a list, with a test.",
  "Compare HTTP polling and server-sent events in a table.",
];

/** A scroller's distance from its end, in pixels. @param {HTMLElement} box */
const below = (box) => box.scrollHeight - box.scrollTop - box.clientHeight;

export function Thread() {
  const box = useRef(/** @type {HTMLDivElement | null} */ (null));
  const isPinned = useRef(true);
  const lastTop = useRef(0);
  const [isAway, setAway] = useState(false);
  const turns = path(state.conversation);
  const sent = new Set(sentPath(state.conversation).map(({ id }) => id));
  const follow = () => {
    isPinned.current = true;
    if (box.current) box.current.scrollTop = box.current.scrollHeight;
  };
  // A new turn is always shown, wherever the reader was. The end of a reply moves nothing.
  useEffect(follow, [state.conversation.id]);
  // A short reply can end before it is drawn for the first time, so the effect depends on the number of answers.
  useLayoutEffect(() => {
    if (state.numAnswers) follow();
  }, [state.numAnswers]);
  useLayoutEffect(() => {
    if (box.current && isPinned.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const onScroll = () => {
    if (!box.current) return;
    const { scrollTop: top } = box.current;
    // A finger or a key moves up by a few pixels at a time. A shorter content moves up too, and leaves nothing below.
    isPinned.current = below(box.current) < (top < lastTop.current ? 1 : AT_END_PIXELS);
    lastTop.current = top;
    setAway(!isPinned.current);
  };
  // Scrolling up with the wheel ends the following at once, even while new text moves the end.
  const onWheel = (/** @type {WheelEvent} */ event) => {
    if (event.deltaY < 0) isPinned.current = false;
  };
  return (
    <div class="thread">
      <div class="scroller" id="thread" ref={box} onScroll={onScroll} onWheel={onWheel} tabIndex={0} role="region" aria-label="Conversation">
        {turns.length ? (
          <ol id="turns">
            {turns.map((turn, index) => (
              <Turn key={turn.id} turn={turn} isLast={index === turns.length - 1} isSent={sent.has(turn.id)} />
            ))}
          </ol>
        ) : (
          <Welcome />
        )}
      </div>
      {isAway && turns.length > 0 && (
        <button type="button" class="to-end" onClick={() => (follow(), setAway(false))}>
          ↓ To the end
        </button>
      )}
    </div>
  );
}

const Welcome = () => (
  <div class="welcome">
    <h2>Ask something</h2>
    <p class="hint">Questions go to this server only, and conversations are kept in this browser.</p>
    <ul class="examples" aria-label="Examples">
      {EXAMPLES.map((text) => (
        <li>
          <button type="button" disabled={!state.settings.model} onClick={() => send(text)}>
            {text}
          </button>
        </li>
      ))}
    </ul>
  </div>
);
