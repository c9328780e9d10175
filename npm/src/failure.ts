/** Defines the error whose message is all that a user reads. */

/** An expected failure. The command prints its message, one clear sentence, without a stack trace. */
export class Failure extends Error {
  override name = "Failure";

  constructor(message: string) {
    super(message);
    // Vite and vitest print the stack, whose frames would hide the sentence.
    this.stack = `Failure: ${message}`;
  }
}
