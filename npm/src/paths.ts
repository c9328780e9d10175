/** Holds the paths of this package's own files, which the build moves into other folders. */

import { existsSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of this package, without links. */
export const PACKAGE_FOLDER = packageFolder(realpathSync(fileURLToPath(import.meta.url)));

/** Return the path of a file of dist/. */
export function ownFile(name: string): string {
  return join(PACKAGE_FOLDER, "dist", name);
}

function packageFolder(file: string): string {
  for (let at = dirname(file); ; at = dirname(at)) {
    if (existsSync(join(at, "package.json")) || at === dirname(at)) return at;
  }
}
