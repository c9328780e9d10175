/** Prints what a start does and how long it takes, on standard error. */

import { isatty } from "node:tty";

const TERMINAL_MILLISECONDS = 250;
const LOG_MILLISECONDS = 5000;

/** Reports the stages of a start. */
export interface Progress {
  /** Begin a stage. */
  stage(text: string): void;
  /** End the report with one line. */
  done(text: string): void;
  /** End the report without a line. */
  end(): void;
}

/** Report nothing. */
export const SILENT: Progress = { stage() {}, done() {}, end() {} };

/** Report on standard error: in place in a terminal, otherwise one line for each stage and each 5 s. */
export function onStandardError(): Progress {
  const terminal = isatty(2) && process.env.TERM !== "dumb";
  let began = Date.now();
  let current = "";
  let timer: NodeJS.Timeout | undefined;
  const clear = (): void => void (terminal && current && process.stderr.write("\r\x1b[K"));
  const show = (): void => {
    const seconds = Math.round((Date.now() - began) / 1000);
    const text = `[tailrace] ${current} … ${seconds} s`;
    process.stderr.write(terminal ? `\r\x1b[K${text.slice(0, (process.stderr.columns ?? 80) - 1)}` : `${text}\n`);
  };
  const end = (): void => {
    clearInterval(timer);
    clear();
    current = "";
  };
  return {
    stage(text) {
      clear();
      clearInterval(timer);
      began = Date.now();
      current = text;
      show();
      timer = setInterval(show, terminal ? TERMINAL_MILLISECONDS : LOG_MILLISECONDS);
    },
    done(text) {
      end();
      process.stderr.write(`[tailrace] ${text}\n`);
    },
    end,
  };
}
