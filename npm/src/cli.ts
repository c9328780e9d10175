#!/usr/bin/env node
/** The command `tailrace` of the npm package. */

import { dev } from "./cli/dev.js";
import { Failure } from "./failure.js";

const HELP = `Usage: tailrace dev [-- COMMAND …]   run COMMAND (default: wrangler dev) with a local AI binding
       tailrace init [--yes]         change this project's configuration, after showing the difference

tailrace dev uses the server at TAILRACE_URL, or one on port 8787, or starts one and stops it at the end.
`;

async function main(args: string[]): Promise<number> {
  const [command, ...rest] = args;
  if (command === "dev") return dev(rest);
  if (command === "--help" || command === "-h" || command === "help") {
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
