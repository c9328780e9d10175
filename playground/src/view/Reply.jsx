// One model's reply: thoughts, text, tool calls, and the figures.

import { CopyButton } from "./CopyButton.jsx";
import { Markdown } from "./Markdown.jsx";

/** @import { Finish, Reply as ReplyData } from "../logic/types.js" */

const SHORTEST_SECONDS = 0.01;
/** @type {Record<Finish, string>} */
const ENDS = {
  waiting: "",
  running: "",
  stop: "Complete",
  length: "Cut at the limit of the reply",
  window: "Cut: the model's window is full",
  tools: "Calls tools",
  stopped: "Stopped",
  lost: "Connection lost",
  closed: "The page was closed during the reply",
  failed: "Failed",
};

/** @param {{reply: ReplyData, isAlone: boolean}} props */
export function Reply({ reply, isAlone }) {
  const isWriting = reply.finish === "running" || reply.finish === "waiting";
  return (
    <div class={isWriting ? "reply running" : "reply"} aria-busy={isWriting}>
      {!isAlone && <h3 class="name">{reply.model}</h3>}
      {reply.thoughts && (
        <details class="thoughts">
          <summary>{isWriting && !reply.text ? "Thinking…" : "Thoughts"}</summary>
          <Markdown text={reply.thoughts} />
        </details>
      )}
      {reply.text ? <Markdown text={reply.text} /> : isWriting && <p class="hint">…</p>}
      {reply.calls.map((call) => (
        <details class="call" open>
          <summary>
            Calls <code>{call.name}</code>
          </summary>
          <pre tabIndex={0}>{pretty(call.arguments)}</pre>
        </details>
      ))}
      {reply.note && <p class="note">{reply.note}</p>}
      {!isWriting && <Figures reply={reply} isAlone={isAlone} />}
    </div>
  );
}

/** @param {{reply: ReplyData, isAlone: boolean}} props */
function Figures({ reply, isAlone }) {
  const { usage, tokens, firstMs, seconds } = reply;
  // A tool call arrives as a whole, so that it has no rate.
  const rate = tokens > 1 && seconds && seconds > SHORTEST_SECONDS ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  const parts = [
    isAlone ? reply.model : "",
    usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens` : tokens ? `${tokens} tokens` : "",
    firstMs === undefined ? "" : `first token after ${firstMs} ms`,
    rate,
  ];
  const isCut = reply.finish !== "stop" && reply.finish !== "tools";
  return (
    <p class="figures">
      <span class={isCut ? "end cut" : "end"}>{ENDS[reply.finish]}</span>
      {parts.filter(Boolean).map((part) => (
        <span>{part}</span>
      ))}
      {reply.text && !isAlone && <CopyButton text={reply.text} what={`reply of ${reply.model}`} />}
    </p>
  );
}

/** @param {string} text */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

