// Conversations as trees of turns. No function here uses the page or the network.

/** @import { Conversation, Reply, Turn } from "./types.js" */

const MAX_TITLE = 60;
// In `from` of a conversation: the next question is the first turn that is sent.
const NEXT = "next";

/** Return a short unique id. `crypto.randomUUID` exists in secure contexts only, and a LAN address is none. */
export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @returns {Conversation} */
export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, turns: {}, leaf: null, from: null };
}

/**
 * @param {string} model
 * @returns {Reply}
 */
export const newReply = (model) => ({ model, text: "", thoughts: "", calls: [], finish: "waiting", tokens: 0 });

/**
 * Add a turn below `parent` and show its branch.
 * @param {Conversation} conversation
 * @param {string | null} parent
 * @param {Pick<Turn, "role"> & Partial<Turn>} content
 * @returns {Turn}
 */
export function addTurn(conversation, parent, content) {
  const turn = { ...content, id: newId(), parent, at: Date.now() };
  conversation.turns[turn.id] = turn;
  conversation.leaf = turn.id;
  conversation.updated = turn.at;
  if (turn.role === "user" && !conversation.title) conversation.title = titleOf(turn.text ?? "");
  if (turn.role === "user" && conversation.from === NEXT) conversation.from = turn.id;
  return turn;
}

/** @param {string} text */
const titleOf = (text) => {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > MAX_TITLE ? `${line.slice(0, MAX_TITLE - 1)}…` : line;
};

/**
 * Remove a turn without descendants, and show its parent.
 * @param {Conversation} conversation
 * @param {Turn} turn
 */
export function removeTurn(conversation, turn) {
  delete conversation.turns[turn.id];
  (conversation.removed ??= []).push(turn.id);
  if (conversation.leaf === turn.id) conversation.leaf = turn.parent;
  if (conversation.from === turn.id) conversation.from = NEXT;
}

/**
 * Return the shown turns, from the first to the last.
 * @param {Conversation} conversation
 * @param {string | null} [leaf]
 */
export function path(conversation, leaf = conversation.leaf) {
  const turns = [];
  for (let id = leaf; id && conversation.turns[id]; id = conversation.turns[id].parent) turns.push(conversation.turns[id]);
  return turns.reverse();
}

/**
 * Return the shown turns that are sent: the oldest ones may have been left out.
 * @param {Conversation} conversation
 * @param {string | null} [leaf]
 */
export function sentPath(conversation, leaf = conversation.leaf) {
  const turns = path(conversation, leaf);
  if (conversation.from === NEXT) return [];
  const first = turns.findIndex((turn) => turn.id === conversation.from);
  return first > 0 ? turns.slice(first) : turns;
}

/**
 * @param {Conversation} conversation
 * @param {string | null} parent
 */
const children = (conversation, parent) =>
  Object.values(conversation.turns)
    .filter((turn) => turn.parent === parent)
    .sort((one, other) => one.at - other.at);

/**
 * Return the versions of a turn, itself included, from the oldest to the newest.
 * @param {Conversation} conversation
 * @param {Turn} turn
 */
export const versions = (conversation, turn) => children(conversation, turn.parent);

/**
 * Show the newest branch below a turn.
 * @param {Conversation} conversation
 * @param {Turn} turn
 */
export function show(conversation, turn) {
  let shown = turn;
  for (let below = children(conversation, shown.id); below.length; below = children(conversation, shown.id)) {
    shown = below[below.length - 1];
  }
  conversation.leaf = shown.id;
}

/**
 * Return the messages of the sent turns as the API takes them.
 * @param {Turn[]} turns
 * @param {number} column Index of the model among those side by side.
 * @returns {Record<string, unknown>[]}
 */
export const messagesOf = (turns, column = 0) =>
  turns.flatMap((turn) => {
    if (turn.role === "user") return [{ role: "user", content: turn.text }];
    if (turn.role === "tool") return [{ role: "tool", tool_call_id: turn.callId, content: turn.text }];
    const reply = turn.replies?.[column] ?? turn.replies?.[0];
    if (!reply || (!reply.text && !reply.calls.length)) return [];
    const calls = reply.calls.map(({ id, name, arguments: given }) => ({
      id,
      type: "function",
      function: { name, arguments: given },
    }));
    return [{ role: "assistant", content: reply.text, ...(calls.length && { tool_calls: calls }) }];
  });

/**
 * Return about how many tokens a text has: exact counts come from the server only.
 * @param {string} text
 */
export const roughTokens = (text) => Math.ceil(new TextEncoder().encode(text).length / 4);

/**
 * Leave out the oldest turns until at most half of the text is left, or all turns before the next question.
 * @param {Conversation} conversation
 * @returns {boolean} Whether a turn was left out.
 */
export function dropOldest(conversation) {
  const turns = sentPath(conversation);
  const sizes = turns.map((turn) => JSON.stringify(messagesOf([turn])).length);
  const half = sizes.reduce((sum, size) => sum + size, 0) / 2;
  let rest = 2 * half;
  let first = "";
  for (const [index, turn] of turns.entries()) {
    if (!first && turn.role === "user" && rest <= half) first = turn.id;
    rest -= sizes[index];
  }
  if (turns.length) conversation.from = first || NEXT;
  return turns.length > 0;
}

/**
 * Return two tabs' copies of a conversation as one: all turns of both, each as it was changed last.
 * @param {Conversation | undefined} stored
 * @param {Conversation} own
 * @returns {Conversation}
 */
export function merged(stored, own) {
  if (!stored) return own;
  const removed = [...new Set([...(stored.removed ?? []), ...(own.removed ?? [])])];
  const turns = { ...stored.turns, ...own.turns };
  for (const [id, turn] of Object.entries(stored.turns)) if (changedAt(turn) > changedAt(turns[id])) turns[id] = turn;
  for (const id of removed) delete turns[id];
  return { ...own, turns, removed };
}

/** @param {Turn} turn */
const changedAt = (turn) => turn.changed ?? turn.at;
