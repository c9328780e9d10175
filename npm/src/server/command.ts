/** Finds the command that starts a server: an installed `tailrace`, a Python package, or a local Docker image. */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { accessSync, constants, existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { basename, delimiter, dirname, join, resolve, sep } from "node:path";
import { Failure } from "../failure.js";
import { PACKAGE_FOLDER } from "../paths.js";
import { fromDocker } from "./docker.js";

/** A way to start a server. */
export interface Launch {
  /** What a user reads about it. */
  description: string;
  /** Commands to run first, for example an installation. Each is a program and its arguments. */
  setup: string[][];
  /** Return the program and its arguments, and variables for it, for a server on two free ports of 127.0.0.1. */
  command(httpPort: number, grpcPort: number): { argv: string[]; env: Record<string, string> };
  /** The command that stops the server if ending its process does not, as with a container. */
  cleanup?: string[];
}

const BIN = process.platform === "win32" ? "Scripts" : "bin";

/**
 * Return the way to start a server on this machine.
 *
 * @param folder - The project's folder.
 * @param token - The API token for a server that needs one.
 * @throws Failure - There is none. The sentence lists what was looked for.
 */
export function findLaunch(folder: string, token: string): Launch {
  const launch = fromCommand() ?? fromInstalled(folder) ?? fromPythonPackage() ?? fromImage(token);
  if (launch !== undefined) return launch;
  throw new Failure(
    "No Tailrace server runs, and none can be started: there is no `tailrace` of Python in PATH, in an active or a local " +
      "virtual environment, and no Docker image `tailrace`. Start one yourself (make run, in a clone of Tailrace) or set " +
      "TAILRACE_PYTHON_PACKAGE to a clone or a wheel, TAILRACE_COMMAND to a command, or TAILRACE_URL to a running server.",
  );
}

function serve(argv: string[], description: string, setup: string[][] = []): Launch {
  const command = (httpPort: number, grpcPort: number): ReturnType<Launch["command"]> => ({
    argv: [...argv, "serve"],
    env: { TAILRACE_HTTP_ADDRESS: `127.0.0.1:${httpPort}`, TAILRACE_GRPC_ADDRESS: `127.0.0.1:${grpcPort}` },
  });
  return { description, setup, command };
}

function fromCommand(): Launch | undefined {
  const text = process.env.TAILRACE_COMMAND?.trim();
  if (!text) return undefined;
  // A path may contain spaces. Only a text that is no file is divided into words.
  return serve(existsSync(text) ? [text] : text.split(/\s+/), `TAILRACE_COMMAND (${text})`);
}

/** Return an installed command: in PATH, in an active or local virtual environment, or in the clone of this package. */
function fromInstalled(folder: string): Launch | undefined {
  const parents = ancestors(folder);
  const environments = [process.env.VIRTUAL_ENV, ...parents.flatMap((at) => [join(at, ".venv"), join(at, "venv")])];
  const clones = [dirname(PACKAGE_FOLDER), ...parents.map(cloneOf)];
  for (const clone of clones) if (clone !== undefined && isClone(clone)) environments.push(join(clone, ".venv"));
  const folders = [...environments.filter((each) => each !== undefined).map((each) => join(each, BIN))];
  const found = inFolders("tailrace", [...(process.env.PATH ?? "").split(delimiter), ...folders]);
  return found === undefined ? undefined : serve([found], found);
}

/** Return the first program of a name in folders. The command of this npm package, which has the same name, is skipped. */
function inFolders(name: string, folders: string[]): string | undefined {
  const names = process.platform === "win32" ? [`${name}.exe`, name] : [name];
  for (const path of folders.filter(Boolean).flatMap((folder) => names.map((each) => join(folder, each)))) {
    try {
      accessSync(path, constants.X_OK);
      if (statSync(path).isFile() && !isOfNode(path)) return path;
    } catch {
      // absent or not executable
    }
  }
  return undefined;
}

function isOfNode(path: string): boolean {
  const real = realpathSync(path);
  return real.endsWith(".js") || path.split(sep).includes("node_modules") || basename(dirname(path)) === ".bin";
}

function ancestors(folder: string): string[] {
  const found = [resolve(folder)];
  for (let at = dirname(resolve(folder)); at !== found.at(-1); at = dirname(at)) found.push(at);
  return found;
}

/** Return the folder that may be the clone: the parent of the folder that has the package in a project's package.json. */
function cloneOf(project: string): string | undefined {
  try {
    const { dependencies, devDependencies } = JSON.parse(readFileSync(join(project, "package.json"), "utf8"));
    const source: unknown = { ...dependencies, ...devDependencies }.tailrace;
    if (typeof source !== "string" || !source.startsWith("file:")) return undefined;
    const path = resolve(project, source.slice("file:".length));
    // The file is in build/ of the clone. The installed folder is npm/, which is also beside build/.
    return path.endsWith(".tgz") ? dirname(dirname(path)) : dirname(path);
  } catch {
    return undefined; // There is no package.json, or npm will report that it is invalid.
  }
}

function isClone(folder: string): boolean {
  return existsSync(join(folder, "tailrace_cli")) && existsSync(join(folder, "pyproject.toml"));
}

/** Return a launch from TAILRACE_PYTHON_PACKAGE: through uvx or pipx, or from an environment in the cache folder. */
function fromPythonPackage(): Launch | undefined {
  const text = process.env.TAILRACE_PYTHON_PACKAGE?.trim();
  if (!text) return undefined;
  const path = resolve(text);
  if (!existsSync(path))
    throw new Failure(`TAILRACE_PYTHON_PACKAGE is ${text}, which does not exist: give a wheel or a clone.`);
  const package_ = `${path}[all]`;
  const PATH = (process.env.PATH ?? "").split(delimiter);
  const uvx = inFolders("uvx", PATH);
  // The first run installs packages, which takes minutes. A run that only prints the help separates that from the start.
  const launch = (argv: string[], name: string): Launch => serve(argv, `${name}, from ${path}`, [[...argv, "--help"]]);
  if (uvx) return launch([uvx, "--from", package_, "tailrace"], "uvx");
  const pipx = inFolders("pipx", PATH);
  if (pipx) return launch([pipx, "run", "--spec", package_, "tailrace"], "pipx");
  const python = ["python3.13", "python3.12", "python3.11", "python3", "python"]
    .map((name) => inFolders(name, PATH))
    .find(isRecent);
  if (!python) throw new Failure("TAILRACE_PYTHON_PACKAGE needs Python 3.11 or newer in PATH, or uvx or pipx.");
  return fromVenv(python, path, package_);
}

function isRecent(python: string | undefined): boolean {
  if (python === undefined) return false;
  try {
    execFileSync(python, ["-c", "import sys; sys.exit(sys.version_info < (3, 11))"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** Return a launch from an environment of its own, which is made once for each version of the package. */
function fromVenv(python: string, path: string, package_: string): Launch {
  const cache = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  const digest = createHash("sha256")
    .update(`${path} ${statSync(path).mtimeMs}`)
    .digest("hex")
    .slice(0, 12);
  const folder = join(cache, "tailrace", `venv-${digest}`);
  const done = join(folder, ".installed");
  const inVenv = (name: string): string => join(folder, BIN, name);
  const touch = `open(${JSON.stringify(done)}, "w").close()`;
  const setup = [
    [python, "-m", "venv", "--clear", folder],
    [inVenv("python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", package_],
    [inVenv("python"), "-c", touch],
  ];
  return serve([inVenv("tailrace")], `a virtual environment in ${folder}`, existsSync(done) ? [] : setup);
}

function fromImage(token: string): Launch | undefined {
  const docker = inFolders("docker", (process.env.PATH ?? "").split(delimiter));
  return docker === undefined ? undefined : fromDocker(docker, token);
}
