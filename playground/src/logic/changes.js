// What one event adds to a reply, for each form of stream: Workers AI's, OpenAI's chat completions, and OpenAI's responses.

import { errorOf, Refused } from "./wire.js";

/** @import { Finish, Reply } from "./types.js" */

/** @type {Record<string, Finish>} */
const FINISHES = { stop: "stop", length: "length", tool_calls: "tools", max_output_tokens: "length" };

/**
 * Add one event to the reply.
 * @param {Reply} reply
 * @param {any} event The parsed JSON.
 * @returns {boolean} Whether the event had tokens.
 * @throws {Refused} If the event is an error.
 */
export function apply(reply, event) {
  if (event.errors || event.error || event.response?.error) {
    const { code, message } = errorOf(event) ?? { code: 3000, message: "" };
    throw new Refused(0, code, message);
  }
  if (typeof event.type === "string" && event.type.startsWith("response.")) return applyResponses(reply, event);
  const choice = event.choices?.[0];
  const delta = event.choices ? (choice?.delta ?? {}) : event;
  const text = (event.choices ? delta.content : delta.response) ?? "";
  const thoughts = delta.reasoning_content ?? delta.reasoning ?? "";
  reply.text += text;
  reply.thoughts += thoughts;
  for (const [index, call] of (delta.tool_calls ?? []).entries()) applyCall(reply, call, event.choices ? index : -1);
  if (choice?.finish_reason) reply.finish = FINISHES[choice.finish_reason] ?? "stop";
  if (event.usage) reply.usage = event.usage;
  return Boolean(text || thoughts || delta.tool_calls?.length);
}

/**
 * @param {Reply} reply
 * @param {any} call A whole call, or a part of OpenAI's with an index.
 * @param {number} index Position in the event; -1: the event has whole calls.
 */
function applyCall(reply, call, index) {
  const { name = "", arguments: given = "" } = call.function ?? call;
  const text = typeof given === "string" ? given : JSON.stringify(given);
  const earlier = index < 0 ? undefined : reply.calls[call.index ?? index];
  if (!earlier) reply.calls.push({ id: call.id ?? `call_${reply.calls.length + 1}`, name, arguments: text });
  else {
    earlier.name += name;
    earlier.arguments += text;
  }
}

/**
 * @param {Reply} reply
 * @param {any} event
 */
function applyResponses(reply, event) {
  const { type, delta = "", item, response } = event;
  if (type === "response.output_text.delta") reply.text += delta;
  else if (type.startsWith("response.reasoning") && type.endsWith(".delta")) reply.thoughts += delta;
  else if (type === "response.output_item.done" && item?.type === "function_call") {
    reply.calls.push({ id: item.call_id, name: item.name, arguments: item.arguments });
    return true;
  } else if (response?.usage) {
    const { input_tokens: prompt, output_tokens: completion } = response.usage;
    reply.usage = { prompt_tokens: prompt, completion_tokens: completion };
    reply.finish = FINISHES[response.incomplete_details?.reason] ?? (reply.calls.length ? "tools" : "stop");
    return false;
  }
  return type.endsWith(".delta") && Boolean(delta);
}

/**
 * Return why a complete reply ended. Workers AI's stream has no reason, so that the numbers decide.
 * @param {Reply} reply
 * @param {{limit: number, window: number}} bounds Tokens of the longest reply, and of prompt and reply; 0 if unknown.
 * @returns {Finish}
 */
export function finishOf(reply, { limit, window }) {
  const known = reply.finish !== "waiting" && reply.finish !== "running" ? reply.finish : undefined;
  if (reply.calls.length) return "tools";
  if (!reply.usage) return known ?? "stop";
  const { prompt_tokens: prompt, completion_tokens: completion } = reply.usage;
  const isCut = known ? known === "length" : (limit > 0 && completion >= limit) || (window > 0 && prompt + completion >= window);
  if (!isCut) return known ?? "stop";
  return window > 0 && prompt + completion >= window ? "window" : "length";
}
