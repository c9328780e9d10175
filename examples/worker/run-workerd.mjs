// Runs plain workerd: node run-workerd.mjs WORKER. The runtime's own AI class is bound to an external service.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import workerd from "workerd";

const bridge = new URL(process.env.BRIDGE ?? "http://127.0.0.1:8787");
const token = process.env.TAILRACE_TOKEN ?? "any-token";
const listen = process.env.LISTEN ?? "127.0.0.1:8788";

const folder = mkdtempSync(join(tmpdir(), "worker-"));
writeFileSync(join(folder, "worker.js"), readFileSync(resolve(process.argv[2])));
writeFileSync(join(folder, "config.capnp"), `
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .app),
    (name = "bridge", external = (
      address = "${bridge.host}",
      http = (injectRequestHeaders = [(name = "Authorization", value = "Bearer ${token}")]))),
  ],
  sockets = [(name = "http", address = "${listen}", http = (), service = "main")]);
const app :Workerd.Worker = (
  modules = [(name = "worker", esModule = embed "worker.js")],
  compatibilityDate = "2023-11-14",
  bindings = [(name = "AI", wrapped = (
    moduleName = "cloudflare-internal:ai-api",
    innerBindings = [(name = "fetcher", service = "bridge")]))]);
`);
const child = spawn(workerd.default ?? workerd, ["serve", join(folder, "config.capnp")], { stdio: "inherit" });
console.log(`http://${listen}/`);
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => child.kill(signal));
child.on("exit", (code) => {
  rmSync(folder, { recursive: true });
  process.exit(code ?? 0);
});
