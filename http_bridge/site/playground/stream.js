// Reads the events of a run from the body of a POST. EventSource supports GET only, and
// reconnects after the end of a stream.

/** An error from the bridge. `code` is Cloudflare's number, or the HTTP status. */
export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Yields the data of each event as text. Throws Refused if the answer is not a stream. */
export async function* events(url, { body, token, signal }) {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    // A part without data is a comment, which the bridge sends while a stream is silent.
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice("data: ".length);
  }
}

/** Returns the result of a GET from Cloudflare's envelope. Throws Refused for an error. */
export async function get(url, token) {
  const response = await fetch(url, { headers: token ? { authorization: `Bearer ${token}` } : {} });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).result;
}

async function refusal(response) {
  const text = await response.text();
  try {
    const { code, message } = JSON.parse(text).errors[0];
    return new Refused(code, message);
  } catch {
    return new Refused(response.status, text || response.statusText);
  }
}
