/** Lists the processes below a process. Package managers do not pass every signal to the programs that they run. */

import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { statFields } from "../processes.js";

/** Return the ids of all processes below a process, or none where they cannot be listed. */
export function descendants(pid: number): number[] {
  const parents = process.platform === "linux" ? fromProc() : fromPs();
  const found: number[] = [];
  for (let level = [pid]; level.length > 0; ) {
    level = parents.filter(([, parent]) => level.includes(parent)).map(([child]) => child);
    found.push(...level);
  }
  return found;
}

/** Send a signal to processes. Those that have ended are skipped. */
export function signalAll(pids: number[], signal: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // It has ended.
    }
  }
}

/** Return pairs of a process id and its parent's. */
function fromProc(): [number, number][] {
  const pids = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
  return pids.map((pid) => [pid, Number(statFields(pid)[1])]);
}

function fromPs(): [number, number][] {
  if (process.platform === "win32") return [];
  const lines = execFileSync("ps", ["-A", "-o", "pid=,ppid="], { encoding: "utf8" }).trim().split("\n");
  return lines.map((line) => line.trim().split(/\s+/).map(Number) as [number, number]);
}
