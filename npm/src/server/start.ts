/** Starts a server on free ports and waits until it is ready. */

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
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
  /** Time until it was ready. */
  seconds: number;
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
 * @param signal - Ends the start.
 * @throws Failure - An installation failed, the server ended, it was not ready in time, or the signal was aborted.
 */
export async function start(
  launch: Launch,
  milliseconds: number,
  progress: Progress,
  signal?: AbortSignal,
): Promise<Started> {
  const folder = mkdtempSync(join(tmpdir(), "tailrace-"));
  const log = join(folder, "server.log");
  const removeLog = (): void => rmSync(folder, { recursive: true, force: true });
  process.once("exit", removeLog);
  for (const step of launch.setup) await install(step, log, progress, signal);
  const ports = await freePorts();
  const { argv, env } = launch.command(...ports);
  progress.stage(`Starting Tailrace (${launch.description})`);
  const began = Date.now();
  const child = supervise(argv, env, log, launch.cleanup);
  const stop = async (): Promise<void> => {
    await end(child);
    process.off("exit", removeLog);
    removeLog();
  };
  const over = new AbortController();
  const code = ended(child).finally(() => over.abort());
  const url = `http://127.0.0.1:${ports[0]}`;
  const isReady = await waitUntilReady(
    url,
    milliseconds,
    AbortSignal.any(signal ? [over.signal, signal] : [over.signal]),
  );
  if (isReady && !signal?.aborted) {
    letGo(child);
    reportEnd(child, code, log);
    return { url, stop, seconds: (Date.now() - began) / 1000 };
  }
  if (over.signal.aborted) throw new Failure(`The Tailrace server ended with code ${await code}:\n${tail(log)}`);
  await end(child);
  if (signal?.aborted) throw new Failure("The start of Tailrace was interrupted.");
  throw new Failure(`The Tailrace server was not ready after ${Math.round(milliseconds / 1000)} s:\n${tail(log)}`);
}

async function install(
  step: string[],
  log: string,
  progress: Progress,
  signal: AbortSignal | undefined,
): Promise<void> {
  progress.stage(`Installing Tailrace: ${[basename(step[0] ?? ""), ...step.slice(1)].join(" ")}`);
  const child = supervise(step, {}, log);
  const interrupt = (): void => void end(child);
  signal?.addEventListener("abort", interrupt);
  const code = await ended(child);
  signal?.removeEventListener("abort", interrupt);
  if (signal?.aborted) throw new Failure("The installation of Tailrace was interrupted.");
  if (code !== 0) throw new Failure(`The installation of Tailrace failed (${step.join(" ")}):\n${tail(log)}`);
}

/** End a supervisor, which ends its command, and wait for both. */
async function end(child: ChildProcess): Promise<void> {
  child.ref();
  child.stdin?.end();
  await ended(child);
}

/** Start the supervisor of a command. */
function supervise(argv: string[], env: Record<string, string>, log: string, cleanup?: string[]): ChildProcess {
  const output = openSync(log, "a");
  const child = spawn(process.execPath, [SUPERVISOR, JSON.stringify({ argv, cleanup })], {
    detached: true,
    env: { ...process.env, ...env },
    stdio: ["pipe", output, output],
    windowsHide: true,
  });
  closeSync(output);
  child.stdin?.on("error", () => undefined);
  return child;
}

/** Let this process end while the supervisor runs. Then the supervisor's standard input closes, and it stops the server. */
function letGo(child: ChildProcess): void {
  child.unref();
  (child.stdin as unknown as { unref(): void }).unref();
}

/** Report the end of a server that was not stopped by this process. */
function reportEnd(child: ChildProcess, code: Promise<number>, log: string): void {
  void code.then((number) => {
    if (child.stdin?.writableEnded) return;
    process.stderr.write(`[tailrace] The Tailrace server ended with code ${number}:\n${tail(log)}\n`);
  });
}

function ended(child: ChildProcess): Promise<number> {
  if (child.exitCode !== null) return Promise.resolve(child.exitCode);
  if (child.signalCode !== null) return Promise.resolve(1);
  return new Promise((resolve) => child.once("exit", (code) => resolve(code ?? 1)));
}

function tail(log: string): string {
  return readFileSync(log, "utf8").trimEnd().split("\n").slice(-LOG_LINES).join("\n");
}
