// Builds dist/: bundles the two parsers into the code, so that the package has no dependencies, and writes the types.

import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

rmSync("dist", { recursive: true, force: true });
await build({
  entryPoints: ["index", "vite", "vitest", "platform", "server", "cli", "server/supervisor"].map(
    (name) => `src/${name}.ts`,
  ),
  outdir: "dist",
  outbase: "src",
  bundle: true,
  splitting: true,
  chunkNames: "shared/[hash]",
  format: "esm",
  platform: "node",
  target: "node20",
  external: ["wrangler", "miniflare"],
  mainFields: ["module", "main"],
  legalComments: "inline",
});
chmodSync("dist/cli.js", 0o755);
copyFileSync("../LICENSE", "LICENSE");
const bundled = { "jsonc-parser": "LICENSE.md", "smol-toml": "LICENSE", diff: "LICENSE" };
const licenses = Object.entries(bundled).map(
  ([name, file]) => `${name}\n\n${readFileSync(`node_modules/${name}/${file}`, "utf8")}`,
);
writeFileSync("dist/LICENSES.txt", licenses.join("\n\n"));
execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "--emitDeclarationOnly"], { stdio: "inherit" });
