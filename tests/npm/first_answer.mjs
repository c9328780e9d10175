// Makes a wrangler project in an empty folder and streams a reply through `npx tailrace dev`, without a network.
// node first_answer.mjs FOLDER PACKAGE: prints one JSON object. npm's cache has the packages, PATH or a variable the server.

import { execFileSync, spawn } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";

const [folder, packageFile] = process.argv.slice(2);
const began = Date.now();
const seconds = () => Number(((Date.now() - began) / 1000).toFixed(1));

for (const name of ["package-lock.json", "node_modules"]) rmSync(`${folder}/${name}`, { recursive: true, force: true });
writeFileSync(`${folder}/package.json`, '{ "name": "first", "private": true, "type": "module" }');
const config = { name: "first", main: "worker.js", compatibility_date: "2026-04-01", ai: { binding: "AI" } };
writeFileSync(`${folder}/wrangler.jsonc`, JSON.stringify(config));
writeFileSync(
  `${folder}/worker.js`,
  `export default {
  async fetch(request, env) {
    const inputs = { prompt: "where is new york?", stream: true, max_tokens: 20 };
    const stream = await env.AI.run("@cf/meta/llama-2-7b-chat-int8", inputs);
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
};
`,
);
const npm = ["install", "--offline", "--no-audit", "--no-fund", "--loglevel=error"];
execFileSync("npm", [...npm, "--save-dev", "wrangler@4.164.0", packageFile], { cwd: folder, stdio: "inherit" });
const installed = seconds();

const port = await new Promise((resolve) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});
const dev = spawn("npx", ["--offline", "tailrace", "dev", "--port", `${port}`], { cwd: folder, stdio: ["ignore", 2, 2] });
let chunks = 0;
let first;
for (let response; response === undefined; ) {
  response = await fetch(`http://127.0.0.1:${port}/`).catch(() => undefined);
  if (dev.exitCode !== null) throw new Error(`tailrace dev ended with ${dev.exitCode}`);
  if (response === undefined) await new Promise((resolve) => setTimeout(resolve, 100));
  else if (!response.ok) throw new Error(await response.text());
  else for await (const _ of response.body) if (chunks++ === 0) first = seconds();
}
dev.kill("SIGTERM");
await new Promise((resolve) => dev.once("exit", resolve));
console.log(JSON.stringify({ installed, first, chunks }));
