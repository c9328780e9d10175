/** Starts a server on free ports and waits until it is ready. */

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Failure } from "../failure.js";
import { ownFile } from "../paths.js";
import type { Launch } from "./command.js";
import { waitUntilReady } from "./probe.js";
import type { Progress } from "./progress.js";

const SUPERVISOR = ownFile("server/supervisor.js");
const LOG_LINES = 12;

/** A server that this process started. */
export interface Started {
  url: string;
  /** Stop the server and wait until its processes have ended. */
  stop(): Promise<void>;
}

/** Return two free ports of 127.0.0.1. Both are held until both are chosen, so that they differ. */
export async function freePorts(): Promise<[number, number]> {
  const listeners = await Promise.all([listener(), listener()]);
  const [first, second] = listeners.map((each) => (each.address() as AddressInfo).port);
  await Promise.all(listeners.map((each) => new Promise((resolve) => each.close(resolve))));
  return [first as number, second as number];
}

function listener(): Promise<ReturnType<typeof createServer>> {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => resolve(server));
  });
}

/**
 * Start a server.
 *
 * @param launch - How to start it.
 * @param milliseconds - Time until it has to be ready, without the installation.
 * @throws Failure - An installation failed, the server ended, or it was not ready in time.
 */
export async function start(launch: Launch, milliseconds: number, progress: Progress): Promise<Started> {
  const folder = mkdtempSync(join(tmpdir(), "tailrace-"));
  const log = join(folder, "server.log");
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  for (const step of launch.setup) {
    progress.stage(`Installing Tailrace: ${step.slice(1, 4).join(" ")}`);
    const code = await ended(supervise(step, {}, log));
    if (code !== 0) throw new Failure(`The installation of Tailrace failed (${step.join(" ")}):\n${tail(log)}`);
  }
  const [httpPort, grpcPort] = await freePorts();
  const { argv, env } = launch.command(httpPort, grpcPort);
  progress.stage(`Starting Tailrace (${launch.description})`);
  const child = supervise(argv, env, log, launch.cleanup);
  const url = `http://127.0.0.1:${httpPort}`;
  const stop = async (): Promise<void> => {
    child.ref();
    child.stdin?.end();
    await ended(child);
  };
  const aborted = new AbortController();
  const over = ended(child).then((code) => {
    aborted.abort();
    return code;
  });
  if (await waitUntilReady(url, milliseconds, aborted.signal)) return { url, stop };
  if (aborted.signal.aborted) throw new Failure(`The Tailrace server ended with code ${await over}:\n${tail(log)}`);
  await stop();
  throw new Failure(`The Tailrace server was not ready after ${Math.round(milliseconds / 1000)} s:\n${tail(log)}`);
}

/** Start the supervisor of a command. It does not keep this process alive. */
function supervise(argv: string[], env: Record<string, string>, log: string, cleanup?: string[]): ChildProcess {
  const output = openSync(log, "a");
  const { TAILRACE_URL: _url, TAILRACE_TOKEN: _token, TAILRACE_COMMAND: _command, TAILRACE_PYTHON_PACKAGE: _package, ...rest } = process.env;
  const child = spawn(process.execPath, [SUPERVISOR, JSON.stringify({ argv, cleanup })], {
    detached: true,
    env: { ...rest, ...env },
    stdio: ["pipe", output, output],
    windowsHide: true,
  });
  closeSync(output);
  child.unref();
  (child.stdin as unknown as { unref(): void }).unref();
  child.stdin?.on("error", () => undefined);
  return child;
}

function ended(child: ChildProcess): Promise<number> {
  if (child.exitCode !== null) return Promise.resolve(child.exitCode);
  if (child.signalCode !== null) return Promise.resolve(1);
  return new Promise((resolve) => child.once("exit", (code) => resolve(code ?? 1)));
}

function tail(log: string): string {
  return readFileSync(log, "utf8").trimEnd().split("\n").slice(-LOG_LINES).join("\n");
}
