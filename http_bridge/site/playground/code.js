// Writes the current request as code for curl, Python and a Worker.

const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** @param {{origin: string, path: string, model: string, body: object, hasToken: boolean}} request */
export const snippets = {
  curl({ origin, path, body, hasToken }) {
    const token = hasToken ? "$TAILRACE_TOKEN" : "any-token";
    return [
      `curl -N -X POST "${origin}${path}" \\`,
      `  -H "Authorization: Bearer ${token}" \\`,
      `  -H "Content-Type: application/json" \\`,
      `  -d ${shellQuoted(JSON.stringify(body, null, 2))}`,
    ].join("\n");
  },

  python({ origin, model, body, hasToken }) {
    const token = hasToken ? 'os.environ["TAILRACE_TOKEN"]' : '"any-token"';
    const { stream, ...fields } = body;
    return `import json
${hasToken ? "import os\n" : ""}
import requests

response = requests.post(
    "${origin}/client/v4/accounts/local/ai/run/${model}",
    headers={"Authorization": f"Bearer {${token.replaceAll('"', "'")}}"},
    json=json.loads(r"""${JSON.stringify({ ...fields, stream: true }, null, 2)}"""),
    stream=True,
)
for line in response.iter_lines():
    if line.startswith(b"data: ") and line != b"data: [DONE]":
        print(json.loads(line[6:])["response"], end="", flush=True)`;
  },

  worker({ model, body }) {
    return `export default {
  async fetch(request, env) {
    const stream = await env.AI.run(${JSON.stringify(model)}, ${indented(JSON.stringify(body, null, 2))});
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
};`;
  },
};

const indented = (text) => text.replaceAll("\n", "\n    ");
