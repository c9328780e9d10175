// Questions and answers: sending, stopping, repeating, continuing, and what happens to a question that is refused.

import { bodyOf, pathOf } from "./body.js";
import { apply, finishOf } from "./changes.js";
import { explained, isLoading } from "./explain.js";
import { pause } from "./models.js";
import { saveLater, saveNow } from "./history.js";
import { firstFault } from "./settings.js";
import { fields, setDraft, state, update } from "./store.js";
import { addTurn, messagesOf, newReply, path, removeTurn, sentPath, show } from "./tree.js";
import { events } from "./wire.js";

/** @import { Run } from "./store.js" */
/** @import { Reply, Turn } from "./types.js" */

const MAX_EVENTS = 400;
const LOADING_RETRY_MS = 2000;

/** Return the models that answer: one, or two side by side. */
export const answering = () => [...new Set([state.settings.model, state.settings.second].filter(Boolean))];

/**
 * Send a question below the shown branch, or as a new version of an earlier one.
 * @param {string} text
 * @param {string | null} [parent]
 * @returns {boolean} Whether it was sent.
 */
export function send(text, parent = state.conversation.leaf) {
  if (!text.trim() || !canSend()) return false;
  const before = state.conversation.leaf;
  const question = addTurn(state.conversation, parent, { role: "user", text });
  answer(question, before, () => returnQuestion(text));
  return true;
}

/** Return whether a request can start. Otherwise, show the fault of the settings. */
function canSend() {
  if (state.run || !state.settings.model) return false;
  const found = firstFault(state.settings, fields(), state.bad);
  if (found) update({ problem: { text: found.fault, remedies: [] } });
  return !found;
}

/**
 * Put a refused question back into the box, before what was typed meanwhile.
 * @param {string} text
 */
const returnQuestion = (text) => {
  const isTyped = state.draft.trim() && state.draft !== text;
  setDraft(isTyped ? `${text}\n\n${state.draft}` : text);
};

/**
 * Answer once more: the question of a reply, which stays as a version, or a turn that has no reply.
 * @param {Turn} turn
 */
export function regenerate(turn) {
  const asked = turn.role !== "assistant" ? turn : turn.parent ? state.conversation.turns[turn.parent] : undefined;
  if (asked && canSend()) answer(asked, state.conversation.leaf);
}

/**
 * Send the results of a reply's tool calls.
 * @param {Turn} turn The reply.
 * @param {string[]} results One for each call.
 */
export function sendResults(turn, results) {
  if (!canSend()) return;
  let last = turn;
  for (const [index, call] of (turn.replies?.[0].calls ?? []).entries()) {
    const result = { text: results[index], callId: call.id, name: call.name };
    last = addTurn(state.conversation, last.id, { role: "tool", ...result });
  }
  answer(last, last.id);
}

/**
 * Continue a reply that was cut.
 * @param {Turn} turn
 */
export async function continueReply(turn) {
  const reply = turn.replies?.[0];
  if (!reply || !canSend()) return;
  const { conversation } = state;
  const run = start(turn);
  const earlier = { finish: reply.finish, note: reply.note, usage: reply.usage, tokens: reply.tokens };
  Object.assign(reply, { finish: "waiting", note: undefined, usage: undefined, tokens: 0 });
  const problem = await stream(run, reply, sentPath(conversation, turn.id), 0, true);
  if (problem && reply.finish === "failed") Object.assign(reply, earlier);
  end(run, problem);
}

/** Stop the running reply, on the server too. What has arrived stays. */
export const stop = () => state.run?.controller.abort();

/**
 * Answer the last turn with each chosen model.
 * @param {Turn} question
 * @param {string | null} before The last shown turn, which is shown again if nothing arrives.
 * @param {() => void} [onRefused] Called if nothing arrived; the question is removed before.
 */
async function answer(question, before, onRefused) {
  const { conversation } = state;
  const turn = addTurn(conversation, question.id, { role: "assistant", replies: answering().map(newReply) });
  const run = start(turn);
  const turns = sentPath(conversation, question.id);
  const replies = turn.replies ?? [];
  const problems = await Promise.all(replies.map((reply, index) => stream(run, reply, turns, index)));
  const isEmpty = replies.every((reply) => !reply.text && !reply.thoughts && !reply.calls.length);
  const isStopped = replies.every((reply) => reply.finish === "stopped");
  const isCurrent = state.conversation === conversation;
  if (isEmpty && (isStopped || problems.some(Boolean))) {
    removeTurn(conversation, turn);
    if (onRefused) {
      removeTurn(conversation, question);
      if (isCurrent) onRefused();
    }
    if (before && conversation.turns[before]) conversation.leaf = before;
  }
  end(run, problems.find(Boolean) ?? null);
}

/**
 * @param {Turn} turn
 * @returns {Run}
 */
function start(turn) {
  const run = { conversation: state.conversation, turn, controller: new AbortController() };
  update({ run, numAnswers: state.numAnswers + 1, problem: null, events: [], status: "Waiting for the first token…" });
  saveNow(run.conversation);
  return run;
}

/**
 * @param {Run} run
 * @param {ReturnType<typeof explained> | null} problem
 */
function end(run, problem) {
  // Another tab may have asked something below this turn.
  if (run.conversation.turns[run.turn.id]) show(run.conversation, run.turn);
  saveNow(run.conversation);
  if (state.run !== run) return;
  const isStopped = run.controller.signal.aborted;
  const isCurrent = state.conversation === run.conversation;
  const status = isStopped ? "Stopped." : problem ? "The reply failed." : "Ready.";
  // What can be asked again: the reply that failed, or a turn that is left without one. A refused question is in the box.
  const { turns } = run.conversation;
  const turn = turns[run.turn.id] ?? turns[run.turn.parent ?? ""];
  update({ run: null, status: isCurrent ? status : "Ready.", problem: problem && isCurrent && !isStopped ? { ...problem, turn } : null });
}

/**
 * Read one model's reply.
 * @param {Run} run
 * @param {Reply} reply
 * @param {Turn[]} turns
 * @param {number} column
 * @param {boolean} [continues] The reply continues the last message.
 * @returns {Promise<ReturnType<typeof explained> | null>} The problem; null: none, or stopped.
 */
async function stream(run, reply, turns, column, continues = false) {
  const { settings, access, account } = state;
  const known = state.fields[reply.model] ?? {};
  const messages = messagesOf(turns, column);
  if (column === 0) state.sent = messages;
  const body = { ...bodyOf(messages, settings, known, reply.model), ...(continues && { continue_final_message: true }) };
  const request = { body, token: access.token, signal: run.controller.signal };
  const url = pathOf(settings.api, account, reply.model);
  try {
    await whenLoaded(run, reply, () => read(run, reply, events(url, request)));
    const found = state.models.find(({ name }) => name === reply.model);
    const limits = [Number(settings.numbers.max_tokens) || 0, found?.longest ?? 0].filter(Boolean);
    reply.finish = finishOf(reply, { limit: limits.length ? Math.min(...limits) : 0, window: found?.window ?? 0 });
    return null;
  } catch (error) {
    if (run.controller.signal.aborted) {
      reply.finish = "stopped";
      return null;
    }
    const hasBegun = reply.tokens > 0;
    const isLost = hasBegun && !(error instanceof Error && "code" in error);
    const problem = isLost ? LOST : explained(error);
    Object.assign(reply, { finish: isLost ? "lost" : "failed", note: problem.text });
    return problem;
  } finally {
    if (reply.usage) reply.tokens = reply.usage.completion_tokens;
    run.turn.changed = Date.now();
    update();
  }
}

/** @type {ReturnType<typeof explained>} */
const LOST = { text: "The connection was lost before the reply was complete.", remedies: ["retry"] };

class LostError extends Error {}

/**
 * Read the events of one reply.
 * @param {Run} run
 * @param {Reply} reply
 * @param {AsyncIterable<string>} stream
 */
async function read(run, reply, stream) {
  const started = performance.now();
  let first = 0;
  for await (const data of stream) {
    showEvent(run, reply, data);
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (!apply(reply, event)) {
      if (event.type === "response.completed" || event.type === "response.incomplete") return;
      continue;
    }
    const now = performance.now();
    if (!first) {
      first = now;
      reply.firstMs = Math.round(now - started);
      if (reply.finish === "waiting") reply.finish = "running";
    }
    reply.tokens += 1;
    run.turn.changed = Date.now();
    reply.seconds = (now - first) / 1000;
    saveLater(run.conversation);
    update(state.run === run ? { status: "Writing…" } : {});
  }
  throw reply.tokens ? new LostError() : new TypeError("no events");
}

/**
 * Try again while the server loads its models.
 * @param {Run} run
 * @param {Reply} reply
 * @param {() => Promise<void>} attempt
 */
async function whenLoaded(run, reply, attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!isLoading(error) || reply.tokens) throw error;
    }
    update({ status: "The server is still loading its models. Trying again…" });
    await pause(LOADING_RETRY_MS, run.controller.signal);
  }
}

/**
 * @param {Run} run
 * @param {Reply} reply
 * @param {string} data
 */
function showEvent(run, reply, data) {
  if (state.run !== run) return;
  const replies = run.turn.replies ?? [];
  const source = replies.length > 1 ? `: ${reply.model}\n` : "";
  state.events.push(`${source}data: ${data}\n\n`);
  if (state.events.length > MAX_EVENTS) state.events.shift();
}

/** Return the tokens of prompt and reply after the latest reply of the shown branch; 0 before the first one. */
export function usedTokens() {
  const replies = path(state.conversation).flatMap((turn) => turn.replies?.[0] ?? []);
  const latest = replies.findLast(({ usage }) => usage)?.usage;
  return latest ? latest.prompt_tokens + latest.completion_tokens : 0;
}
