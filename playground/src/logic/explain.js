// Errors in sentences for people, with what can be done.

import { Refused } from "./wire.js";

/** @typedef {"retry" | "token" | "account" | "drop" | "new"} Remedy */
/** @typedef {{text: string, remedies: Remedy[]}} Explanation */

/**
 * Return the server's sentence without the marks of the wire: the class of the error and the request's id.
 * @param {string} message
 */
export const plain = (message) =>
  message
    .replace(/^(AiError:\s*)+/, "")
    .replace(/\s*\([0-9a-f]{8}-[0-9a-f-]{27}\)\s*$/, "")
    .trim();

/** @type {Record<string, [string, Remedy[]]>} */
const SENTENCES = {
  3000: ["The model failed. The server's log has the cause.", ["retry"]],
  3007: ["The reply took longer than the server allows.", ["retry"]],
  3021: ["This account has sent too many requests.", ["retry"]],
  3040: ["The server is busy.", ["retry"]],
  7009: ["The server is not ready yet.", ["retry"]],
  9106: ["The server requires an API token: enter it under Settings.", ["token"]],
  401: ["The API token is wrong: the server does not have it.", ["token"]],
  403: ["The API token belongs to another account: enter its account under Settings.", ["account"]],
  host: ["The server does not accept this host name. Open the page as localhost, or set TAILRACE_ALLOWED_HOSTS.", []],
};

/**
 * Explain an error of a request.
 * @param {unknown} error
 * @returns {Explanation}
 */
export function explained(error) {
  if (!(error instanceof Refused)) return { text: "The server does not answer. Is it still running?", remedies: ["retry"] };
  const message = plain(error.message);
  if (error.status === 403 && message.includes("TAILRACE_ALLOWED_HOSTS")) return sentence("host");
  if (error.code === 10000 || error.code === 1000 || error.code === "invalid_api_key") {
    return sentence(error.status === 403 ? "403" : "401");
  }
  if (isTooLong(error)) {
    return { text: `The conversation no longer fits into the model's window. ${numbersOf(message)}`.trim(), remedies: ["drop", "new"] };
  }
  if (String(error.code) in SENTENCES) {
    const [text, remedies] = SENTENCES[String(error.code)];
    const wait = error.retrySeconds ? ` Try again in ${error.retrySeconds} s.` : "";
    return { text: text + wait, remedies };
  }
  if (error.status === 401) return sentence("9106");
  const text = message ? message[0].toUpperCase() + message.slice(1) : `The server answered with status ${error.status}.`;
  return { text: /[.!?]$/.test(text) ? text : `${text}.`, remedies: error.status >= 500 || !error.status ? ["retry"] : [] };
}

/** @param {string} code */
const sentence = (code) => ({ text: SENTENCES[code][0], remedies: SENTENCES[code][1] });

/** @param {Refused} error */
const isTooLong = ({ code, status }) => code === 5021 || code === "context_length_exceeded" || (status === 413 && code !== 7003);

/**
 * Return the two numbers of a refusal by length as a sentence.
 * @param {string} message
 */
function numbersOf(message) {
  const numbers = message.match(/\d[\d,]*/g) ?? [];
  return numbers.length === 2 ? `It has ${numbers[0]} tokens, and the model takes ${numbers[1]}.` : "";
}

/**
 * Return whether the same request may succeed soon without a change.
 * @param {unknown} error
 */
export const isLoading = (error) => error instanceof Refused && error.code === 7009;
