// Bundles the sources into http_bridge/site/playground. With --check, it only compares.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const site = join(here, "..", "http_bridge", "site", "playground");
const LIBRARIES = ["preact", "marked", "sugar-high", "idb-keyval"];
const LIMIT = 150_000; // bytes of all files of the site together

/** Return a digest of everything that determines the bundle. tests/http_bridge/site/test_bundle.py computes the same. */
function digest() {
  const hash = createHash("sha256");
  const files = readdirSync(join(here, "src"), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name).slice(here.length + 1)).sort();
  for (const path of ["package.json", "build.mjs", ...paths]) hash.update(`${path}\n`).update(readFileSync(join(here, path)));
  return hash.digest("hex").slice(0, 16);
}

/** Leaves out marked's default instance, which would keep its parsers and writers of HTML. The page uses the lexer alone. */
const lexerAlone = {
  name: "lexer-alone",
  setup({ onLoad }) {
    onLoad({ filter: /marked\.esm\.js$/ }, ({ path }) => {
      const parts = /^(.*);var \w+=new \w+;function \w+\(.*;export\{.*?(\w+) as Lexer,.*?\};/s.exec(readFileSync(path, "utf8"));
      if (!parts) throw new Error(`${path} has another form: adapt this pattern.`);
      return { contents: `${parts[1]};export{${parts[2]} as Lexer};` };
    });
  },
};

const banner = { js: `// Bundled from playground/src by "make playground"; licences in licenses.txt. Sources ${digest()}` };
const result = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.jsx", "src/docs.js", "src/style.css"],
  bundle: true,
  minify: true,
  write: false,
  outdir: site,
  format: "esm",
  charset: "utf8",
  target: ["es2023"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  banner,
  plugins: [lexerAlone],
});
const licenses = LIBRARIES.map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  // A package without the text of its licence: licenses/ has that of its repository.
  const text = readFileSync(file ? join(folder, file) : join(here, "licenses", `${name}.txt`), "utf8");
  return `${name} ${version} (${license})\n\n${text.trim()}\n`;
});
const outputs = [
  ...result.outputFiles.map(({ path, contents }) => ({ path, contents: Buffer.from(contents) })),
  { path: join(site, "licenses.txt"), contents: Buffer.from(licenses.join(`\n${"-".repeat(80)}\n\n`)) },
];

if (process.argv.includes("--check")) {
  const stale = outputs.filter(({ path, contents }) => !contents.equals(readFileSync(path)));
  for (const { path } of stale) console.error(`${path} is out of date: run "make playground" and commit it.`);
  process.exit(stale.length ? 1 : 0);
}
for (const { path, contents } of outputs) writeFileSync(path, contents);
let total = 0;
for (const name of readdirSync(site).filter((file) => /\.(html|css|js)$/.test(file)).sort()) {
  const contents = readFileSync(join(site, name));
  total += contents.length;
  console.log(`${name.padEnd(12)} ${contents.length} bytes, ${gzipSync(contents, { level: 9 }).length} compressed`);
}
console.log(`together     ${total} bytes of ${LIMIT}`);
process.exit(total > LIMIT ? 1 : 0);
