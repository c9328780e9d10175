/** Shows the lines that differ between two texts. */

import { createTwoFilesPatch } from "diff";

const CONTEXT = 2;

/** Return a unified diff of two texts of a file. */
export function difference(path: string, before: string, after: string): string {
  const options = {
    context: CONTEXT,
    headerOptions: { includeIndex: false, includeUnderline: false, includeFileHeaders: true },
  };
  return createTwoFilesPatch(path, path, before, after, "", "", options).trimEnd();
}
