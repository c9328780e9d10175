/**
 * Runs a server for another process, and stops it when that process ends, whatever the reason.
 *
 * The other process holds the writing end of this one's standard input. The system closes it even after `kill -9`.
 * Arguments: one JSON object with `argv` and `cleanup`.
 */

import { spawn, spawnSync } from "node:child_process";

const { argv, cleanup } = JSON.parse(process.argv[2] ?? "{}") as {
  argv: [string, ...string[]];
  cleanup?: [string, ...string[]];
};
/** Time for running replies to end. */
const GRACE_MILLISECONDS = 10_000;

const [program, ...args] = argv;
const server = spawn(program, args, { stdio: ["ignore", "inherit", "inherit"] });
let isStopping = false;

server.on("error", (error) => {
  console.error(error.message);
  process.exit(127);
});
server.on("exit", (code, signal) => {
  removeContainer();
  process.exit(code ?? (signal ? 1 : 0));
});

function removeContainer(): void {
  if (cleanup) spawnSync(cleanup[0], cleanup.slice(1), { stdio: "ignore", timeout: GRACE_MILLISECONDS });
}

function stop(): void {
  if (isStopping) return;
  isStopping = true;
  server.kill("SIGTERM");
  setTimeout(() => {
    removeContainer();
    // This process leads a group of its own: the server's processes and itself.
    if (process.platform === "win32") server.kill("SIGKILL");
    else process.kill(-process.pid, "SIGKILL");
  }, GRACE_MILLISECONDS).unref();
}

process.stdin.resume();
process.stdin.on("end", stop);
process.stdin.on("error", stop);
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, stop);
