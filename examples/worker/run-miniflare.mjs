// Runs miniflare 4 with its remote bindings directed to the bridge: node run-miniflare.mjs [WORKER].

import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Miniflare } from "miniflare";

const [host, port] = (process.env.LISTEN ?? "127.0.0.1:8788").split(":");
const bridge = new URL(process.env.BRIDGE ?? "http://127.0.0.1:8787");
if (process.env.TAILRACE_TOKEN) {
  console.error("miniflare sends no token: point BRIDGE at the listener of TAILRACE_BINDING_ADDRESS.");
}
const miniflare = new Miniflare({
  host,
  port: Number(port),
  modules: true,
  script: readFileSync(resolve(process.argv[2] ?? join(import.meta.dirname, "modern.js")), "utf8"),
  compatibilityDate: "2026-04-01",
  ai: { binding: "AI", remoteProxyConnectionString: bridge },
});
console.log(String(await miniflare.ready));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => miniflare.dispose().then(() => process.exit(0)));
