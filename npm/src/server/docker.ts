/** Starts a server from a local Docker image, with the settings of this environment. */

import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { resolve } from "node:path";
import { Failure } from "../failure.js";
import type { Launch } from "./command.js";

const IMAGE = "tailrace";
const INSPECT_MILLISECONDS = 5000;

/** Variables of this package, and of files that a container does not have. */
const OWN =
  /^TAILRACE_(URL|TOKEN|COMMAND|PYTHON_PACKAGE|START_SECONDS|WRANGLER_CONFIG|CACHE_DIR|API_TOKENS|API_TOKENS_FILE)$/;
/** Variables of addresses and of gRPC's certificates. A container has its own addresses. */
const ADDRESS = /^TAILRACE_(GRPC_\w+|\w+_ADDRESS|\w+_PORT)$/;

/**
 * Return a launch from the local image, or undefined if there is none.
 *
 * @param docker - The program `docker`.
 * @param token - The API token for the server.
 */
export function fromDocker(docker: string, token: string): Launch | undefined {
  try {
    execFileSync(docker, ["image", "inspect", IMAGE], { stdio: "ignore", timeout: INSPECT_MILLISECONDS });
  } catch {
    return undefined;
  }
  const name = `tailrace-${process.pid}-${Date.now()}`;
  // In a container the bridge listens on all addresses, and therefore needs a token.
  const run = [docker, "run", "--rm", "--init", "--name", name, "--env", "TAILRACE_API_TOKENS"];
  return {
    description: `the Docker image ${IMAGE}`,
    setup: [],
    command: (httpPort) => ({
      argv: [...run, ...settings(), "--publish", `127.0.0.1:${httpPort}:8787`, IMAGE],
      env: { TAILRACE_API_TOKENS: token },
    }),
    cleanup: [docker, "rm", "--force", name],
  };
}

/** Return the options that pass this environment's settings on. The catalog and the recordings keep their paths. */
function settings(): string[] {
  const names = Object.keys(process.env).filter((name) => name.startsWith("TAILRACE_") && process.env[name]);
  const passed = names.filter((name) => !OWN.test(name) && !ADDRESS.test(name));
  const paths = ["TAILRACE_CATALOG", "TAILRACE_RECORDINGS"].filter((name) => passed.includes(name));
  return [
    ...passed.filter((name) => !paths.includes(name)).flatMap((name) => ["--env", name]),
    ...paths.flatMap((name) => shared(name, resolve(process.env[name] as string))),
    ...(paths.length > 0 ? user() : []),
  ];
}

/** Return the options that give the container a path of this machine. */
function shared(name: string, path: string): string[] {
  if (name === "TAILRACE_RECORDINGS") {
    try {
      // Docker itself would create the folder for root.
      mkdirSync(path, { recursive: true });
    } catch (error) {
      throw new Failure(`${name} is ${path}, which is no folder: ${(error as Error).message}.`);
    }
  }
  const inside = process.platform === "win32" ? `/${name}` : path;
  return ["--env", `${name}=${inside}`, "--mount", `type=bind,source=${path},target=${inside}`];
}

/** Return the option with which files that the container writes belong to this user. */
function user(): string[] {
  return process.getuid === undefined ? [] : ["--user", `${process.getuid()}:${process.getgid?.() ?? 0}`];
}
