// Prints what GitHub's own parser of workflows reads in a file, as JSON, or its errors on stderr.
import { readFileSync } from "node:fs";
import { registerHooks } from "node:module";

// The package imports its schemas without the attribute that Node requires.
registerHooks({
  load: (url, context, next) =>
    next(url, url.endsWith(".json") ? { ...context, importAttributes: { type: "json" } } : context),
});
const { NoOperationTraceWriter, convertWorkflowTemplate, parseWorkflow } = await import("@actions/workflow-parser");

const [path] = process.argv.slice(2);
const { context, value } = parseWorkflow({ name: path, content: readFileSync(path, "utf8") }, new NoOperationTraceWriter());
const workflow = value && (await convertWorkflowTemplate(context, value));
for (const error of context.errors.getErrors()) {
  console.error(error.message);
  process.exitCode = 1;
}
if (!process.exitCode) console.log(JSON.stringify(workflow));
