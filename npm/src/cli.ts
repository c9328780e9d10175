#!/usr/bin/env node
/** The command `tailrace` of the npm package. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { dev } from "./cli/dev.js";
import { init } from "./cli/init.js";
import { Failure } from "./failure.js";
import { PACKAGE_FOLDER } from "./paths.js";

const HELP = `Usage: tailrace dev [OPTIONS] [-- COMMAND …]   run COMMAND with a local AI binding
       tailrace init [--yes]                   change this project's scripts and plugins, after showing the difference
       tailrace --version

tailrace dev runs "wrangler dev" with the given OPTIONS, or the COMMAND, for example "npm run dev" or "vite". It uses the
Tailrace server at TAILRACE_URL, or one on port 8787. Otherwise it starts one on a free port, and stops it at the end:
TAILRACE_COMMAND, an installed tailrace command, TAILRACE_PYTHON_PACKAGE (a clone or a wheel), or the Docker image tailrace.
`;

const HELP_WORDS = ["--help", "-h", "help"];

function version(): string {
  return (JSON.parse(readFileSync(join(PACKAGE_FOLDER, "package.json"), "utf8")) as { version: string }).version;
}

async function main(args: string[]): Promise<number> {
  const [command, ...rest] = args;
  const wantsHelp = rest
    .slice(0, rest.includes("--") ? rest.indexOf("--") : rest.length)
    .some((word) => HELP_WORDS.includes(word));
  if ((command === "dev" || command === "init") && !wantsHelp) return command === "dev" ? dev(rest) : init(rest);
  if (command === "--version") {
    process.stdout.write(`${version()}\n`);
    return 0;
  }
  if (wantsHelp || HELP_WORDS.includes(command ?? "")) {
    process.stdout.write(HELP);
    return 0;
  }
  process.stderr.write(command === undefined ? HELP : `tailrace: there is no command ${command}.\n${HELP}`);
  return 2;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  process.stderr.write(`tailrace: ${error.message}\n`);
  process.exitCode = 1;
}
