// The current request as code: the same address, account and parameters.

/**
 * @typedef {object} Request
 * @property {string} origin
 * @property {string} account
 * @property {string} path Below the origin, without a leading slash.
 * @property {string} model
 * @property {Record<string, any>} body
 * @property {"run" | "chat"} api
 * @property {boolean} hasToken
 */

/** @param {string} text */
const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
/**
 * @param {unknown} value
 * @param {number} indent
 */
const json = (value, indent = 0) => JSON.stringify(value, null, 2).replaceAll("\n", `\n${" ".repeat(indent)}`);

/**
 * Return a value as Python writes it.
 * @param {any} value
 * @param {number} indent
 * @returns {string}
 */
export function python(value, indent = 0) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((each) => inner + python(each, indent + 4))
    : Object.entries(value).map(([key, each]) => `${inner}${JSON.stringify(key)}: ${python(each, indent + 4)}`);
  if (!parts.length) return isList ? "[]" : "{}";
  return `${isList ? "[" : "{"}\n${parts.join(",\n")},\n${" ".repeat(indent)}${isList ? "]" : "}"}`;
}

/** @param {boolean} hasToken */
const pythonToken = (hasToken) => (hasToken ? 'os.environ["TAILRACE_TOKEN"]' : '"any-token"');
/** @param {boolean} hasToken */
const nodeToken = (hasToken) => (hasToken ? "process.env.TAILRACE_TOKEN" : '"any-token"');

/** @param {Request} request */
const curl = ({ origin, path, body, hasToken }) =>
  [
    `curl --no-buffer --fail-with-body ${shellQuoted(`${origin}/${path}`)} \\`,
    `  -H "Authorization: Bearer ${hasToken ? "$TAILRACE_TOKEN" : "any-token"}" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d ${shellQuoted(json(body))}`,
  ].join("\n");

/** @param {Request} request */
const requests = ({ origin, path, body, api, hasToken }) => `import json
${hasToken ? "import os\n" : ""}
import requests

response = requests.post(
    "${origin}/${path}",
    headers={"Authorization": "Bearer " + ${pythonToken(hasToken)}},
    json=${python(body, 4)},
    stream=True,
    timeout=60,
)
if not response.ok:
    raise SystemExit(f"{response.status_code}: {response.text}")
for line in response.iter_lines():
    if not line.startswith(b"data: ") or line == b"data: [DONE]":
        continue
    event = json.loads(line[6:])
    if event.get("errors") or event.get("error"):
        raise SystemExit(event)
    ${api === "chat" ? 'text = event["choices"][0]["delta"].get("content") if event["choices"] else None' : 'text = event.get("response")'}
    print(text or "", end="", flush=True)`;

/** @param {Request} request */
const javascript = ({ origin, path, body, api, hasToken }) => `const response = await fetch("${origin}/${path}", {
  method: "POST",
  headers: { authorization: "Bearer " + ${nodeToken(hasToken)}, "content-type": "application/json" },
  body: JSON.stringify(${json(body, 2)}),
});
if (!response.ok) throw new Error(\`\${response.status}: \${await response.text()}\`);

let rest = "";
for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
  const parts = (rest + chunk).split("\\n\\n");
  rest = parts.pop();
  for (const part of parts) {
    if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
    const event = JSON.parse(part.slice(6));
    if (event.errors ?? event.error) throw new Error(JSON.stringify(event));
    process.stdout.write(${api === "chat" ? 'event.choices[0]?.delta.content ?? ""' : 'event.response ?? ""'});
  }
}`;

// Fields that OpenAI's SDK has no argument for.
const EXTRA = ["top_k", "min_p", "repetition_penalty", "lora", "continue_final_message"];

/** @param {Request} request */
function openai({ origin, account, model, body, hasToken }) {
  const { stream_options: options, response_format: format, model: named, ...fields } = body;
  const wrapped = format?.type === "json_schema" && !format.json_schema?.schema;
  const call = {
    model: named ?? model,
    ...fields,
    stream_options: options ?? { include_usage: true },
    ...(format && { response_format: wrapped ? { ...format, json_schema: { name: "reply", schema: format.json_schema } } : format }),
  };
  const extra = Object.fromEntries(Object.entries(call).filter(([name]) => EXTRA.includes(name)));
  const plain = Object.entries(call).filter(([name]) => !EXTRA.includes(name));
  const lines = plain.map(([name, value]) => `    ${name}=${python(value, 4)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${python(extra, 4)},`);
  return `${hasToken ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${origin}/client/v4/accounts/${encodeURIComponent(account)}/ai/v1", api_key=${pythonToken(hasToken)})
stream = client.chat.completions.create(
${lines.join("\n")}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`;
}

/** @param {Request} request */
function client({ origin, account, model, body, hasToken }) {
  const { model: _, stream: __, stream_options: ___, response_format: format, lora, ...fields } = body;
  const call = {
    ...fields,
    ...(lora && { adapter: lora }),
    ...(format?.type === "json_object" && { json_object: true }),
    ...(format?.type === "json_schema" && { json_schema: format.json_schema.schema ?? format.json_schema }),
  };
  const lines = Object.entries(call).map(([name, value]) => `        ${name}=${python(value, 8)},`);
  return `${hasToken ? "import os\n\n" : ""}import tailrace

with tailrace.Client("${origin}", token=${pythonToken(hasToken)}, account=${python(account)}, model=${python(model)}) as client:
    with client.stream(
${lines.join("\n")}
    ) as stream:
        for text in stream.texts():
            print(text, end="", flush=True)`;
}

/** @param {Request} request */
function worker({ model, body }) {
  const { model: _, stream_options: __, ...input } = body;
  return `export default {
  async fetch(request, env) {
    const stream = await env.AI.run(${JSON.stringify(model)}, ${json(input, 4)});
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
};`;
}

/** @type {{name: string, language: string, write: (request: Request) => string}[]} */
export const SNIPPETS = [
  { name: "curl", language: "bash", write: curl },
  { name: "Python", language: "python", write: requests },
  { name: "JavaScript", language: "javascript", write: javascript },
  { name: "OpenAI SDK", language: "python", write: openai },
  { name: "Tailrace client", language: "python", write: client },
  { name: "Worker", language: "javascript", write: worker },
];
