// Requests to the bridge, and the events of a reply. EventSource supports GET only, and reconnects after the end of a stream.

/** An error that the bridge answered. `code` is Cloudflare's number, OpenAI's name, or the HTTP status. */
export class Refused extends Error {
  /**
   * @param {number} status HTTP status; 0 for an error inside a stream.
   * @param {number | string} code
   * @param {string} message
   * @param {number} [retrySeconds] From Retry-After; 0 without one.
   */
  constructor(status, code, message, retrySeconds = 0) {
    super(message);
    this.status = status;
    this.code = code;
    this.retrySeconds = retrySeconds;
  }
}

/** @param {string} token */
const authorization = (token) => (token ? { authorization: `Bearer ${token}` } : undefined);

/**
 * Yield the data of each event as text.
 * @param {string} url
 * @param {{body: object, token: string, signal: AbortSignal}} request
 * @throws {Refused} If the answer is not a stream.
 */
export async function* events(url, { body, token, signal }) {
  const headers = { "content-type": "application/json", ...authorization(token) };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok || !response.body) throw await refusal(response);
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop() ?? "";
    for (const part of parts) {
      // A part without data is a comment, which the bridge sends while a stream is silent.
      const data = part.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice("data:".length).trimStart()).join("\n");
    }
  }
}

/**
 * Return the result of a GET from Cloudflare's envelope.
 * @param {string} url
 * @param {string} token
 * @param {AbortSignal} [signal]
 * @throws {Refused} For an error.
 */
export async function get(url, token, signal) {
  const response = await fetch(url, { headers: authorization(token), signal });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).result;
}

/** @param {Response} response */
async function refusal(response) {
  const text = await response.text();
  const retry = Number(response.headers.get("retry-after")) || 0;
  try {
    const { code, message } = errorOf(JSON.parse(text)) ?? {};
    return new Refused(response.status, code ?? response.status, message ?? response.statusText, retry);
  } catch {
    return new Refused(response.status, response.status, response.statusText || `HTTP status ${response.status}`, retry);
  }
}

/**
 * Return the error of a body or an event in any API's form.
 * @param {any} body
 * @returns {{code: number | string, message: string} | undefined}
 */
export const errorOf = (body) => body.errors?.[0] ?? body.error ?? body.response?.error ?? undefined;
