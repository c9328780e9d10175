/** Runs a program in this terminal, passes signals to it and returns its exit code. */

import { spawn } from "node:child_process";
import { constants } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { Failure } from "../failure.js";
import { isRunning } from "../processes.js";
import { descendants, signalAll } from "./descendants.js";
import { quoted } from "./quoted.js";
import type { Stop } from "./stop.js";

/** Time until a program that ignores a signal is killed. */
const GRACE_MILLISECONDS = 10_000;
/** Time for a program to end by the SIGINT of its terminal. Then it gets another one. */
const TERMINAL_MILLISECONDS = 3000;
const POLL_MILLISECONDS = 50;

/**
 * Run a program with the project's own programs first in PATH.
 *
 * @param argv - Program and arguments.
 * @param variables - Variables for it, beside those of this process.
 * @param stop - Source of the signals.
 * @returns The program's exit code, or 128 + n if signal n ended it.
 * @throws Failure - The program does not exist.
 */
export async function run(argv: string[], variables: Record<string, string>, stop: Stop): Promise<number> {
  const [program, ...args] = argv as [string, ...string[]];
  const PATH = [...binFolders(), process.env.PATH ?? ""].join(delimiter);
  const isWindows = process.platform === "win32";
  // On Windows, npm's programs are batch files, which only a shell runs. Node joins the words without quotation marks.
  const child = spawn(isWindows ? quoted(program) : program, isWindows ? args.map(quoted) : args, {
    stdio: "inherit",
    env: { ...process.env, ...variables, PATH },
    shell: isWindows,
  });
  const timers: NodeJS.Timeout[] = [];
  const ended = new Promise<number>((resolve, reject) => {
    child.on("error", (error: NodeJS.ErrnoException) =>
      reject(error.code === "ENOENT" ? new Failure(notFound(program)) : error),
    );
    child.on("exit", (code, signal) => resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)));
  });
  const below = new Set<number>();
  stop.listen((signal) => {
    if (child.pid === undefined) return;
    for (const pid of descendants(child.pid)) below.add(pid);
    // Ctrl-C reaches the whole foreground group of a terminal. A second SIGINT would end wrangler before it cleans up.
    const isFromTerminal = signal === "SIGINT" && process.stdin.isTTY;
    timers.push(setTimeout(() => child.kill(signal), isFromTerminal ? TERMINAL_MILLISECONDS : 0));
    timers.push(setTimeout(() => signalAll([child.pid as number, ...below], "SIGKILL"), GRACE_MILLISECONDS));
  });
  try {
    const code = await ended;
    await endAll([...below]);
    return code;
  } finally {
    // A signal while the server stops has nothing to end: its timers would only delay the exit.
    stop.ignore();
    for (const timer of timers) clearTimeout(timer);
  }
}

/** End the processes that a package manager left behind. */
async function endAll(pids: number[]): Promise<void> {
  const deadline = Date.now() + GRACE_MILLISECONDS;
  signalAll(pids.filter(isRunning), "SIGTERM");
  while (pids.some(isRunning) && Date.now() < deadline)
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
  signalAll(pids.filter(isRunning), "SIGKILL");
}

function notFound(program: string): string {
  const advice = program === "wrangler" ? "Install it: npm install --save-dev wrangler." : "Is it installed?";
  return `There is no command ${program} in this project or in PATH. ${advice}`;
}

function binFolders(): string[] {
  const found: string[] = [];
  for (let at = process.cwd(); ; at = dirname(at)) {
    found.push(join(at, "node_modules", ".bin"));
    if (dirname(at) === at) return found;
  }
}
