// Runs stock wrangler 3, directed to the bridge only by environment variables.

import { spawn } from "node:child_process";

const bridge = process.env.BRIDGE ?? "http://127.0.0.1:8787";
const [host, port] = (process.env.LISTEN ?? "127.0.0.1:8788").split(":");
const child = spawn("node", ["node_modules/wrangler-3/bin/wrangler.js", "dev", "--ip", host, "--port", port], {
  stdio: "inherit",
  env: {
    ...process.env,
    CLOUDFLARE_API_BASE_URL: `${bridge}/client/v4`,
    CLOUDFLARE_API_TOKEN: process.env.TAILRACE_TOKEN ?? "any-token",
    CLOUDFLARE_ACCOUNT_ID: "0".repeat(32),
    WRANGLER_SEND_METRICS: "false",
  },
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => child.kill(signal));
child.on("exit", (code) => process.exit(code ?? 0));
