/** Notices that the command has to end: by a signal, or because the npx that ran it has ended. */

import { constants } from "node:os";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const PARENT_MILLISECONDS = 500;

/** The end of the command. Signals are held until `listen` takes them. */
export class Stop {
  /** Aborted at the first signal. */
  readonly signal: AbortSignal;
  readonly #controller = new AbortController();
  readonly #parent = process.ppid;
  readonly #timer: NodeJS.Timeout | undefined;
  #received: NodeJS.Signals = "SIGTERM";
  #listener: ((signal: NodeJS.Signals) => void) | undefined;

  constructor() {
    this.signal = this.#controller.signal;
    for (const signal of SIGNALS) process.on(signal, this.#receive);
    // npm and npx run a command through a shell. SIGTERM ends them, but does not reach the command.
    if (process.env.npm_command !== undefined)
      this.#timer = setInterval(this.#checkParent, PARENT_MILLISECONDS).unref();
  }

  /** The exit code of a command that the signal ended before it began. */
  get exitCode(): number {
    return 128 + constants.signals[this.#received];
  }

  /** Call a function for each signal from now on, and immediately if there was one. */
  listen(listener: (signal: NodeJS.Signals) => void): void {
    this.#listener = listener;
    if (this.signal.aborted) listener(this.#received);
  }

  /** Call no function from now on. */
  ignore(): void {
    this.#listener = undefined;
  }

  /** End the special treatment of signals. */
  close(): void {
    clearInterval(this.#timer);
    for (const signal of SIGNALS) process.off(signal, this.#receive);
  }

  readonly #receive = (signal: NodeJS.Signals): void => {
    this.#received = signal;
    this.#controller.abort();
    this.#listener?.(signal);
  };

  readonly #checkParent = (): void => {
    if (process.ppid === this.#parent) return;
    clearInterval(this.#timer);
    this.#receive("SIGTERM");
  };
}
