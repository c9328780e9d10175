/** Looks at other processes. */

import { readFileSync } from "node:fs";

/** Return whether a process of this id runs. One that has ended, but is still listed, does not. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
  return process.platform !== "linux" || statFields(pid)[0] !== "Z";
}

/** Return the fields of /proc/PID/stat after the program's name: the state, the parent's id and others. Empty without. */
export function statFields(pid: number): string[] {
  try {
    // The name, in parentheses, may contain spaces and parentheses.
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(")").at(-1)?.trim().split(" ") ?? [];
  } catch {
    return [];
  }
}
