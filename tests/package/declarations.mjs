// Writes the declarations of the client module: `node declarations.mjs TSC FILE`.
//
// tsc leaves the comment of a `@typedef` where it stands in the module, apart from the type. Here it moves to
// the type, where editors look for it.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [tsc, file] = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), "declarations-"));
const options = ["--allowJs", "--declaration", "--emitDeclarationOnly", "--strict", "--target", "es2024",
  "--module", "esnext", "--lib", "es2024,dom,dom.iterable", "--outDir", folder];
execFileSync(tsc, [...options, join(import.meta.dirname, "../../static/anteroom.js")], { stdio: "inherit" });
let text = readFileSync(join(folder, "anteroom.d.ts"), "utf8");
rmSync(folder, { recursive: true });

const comments = new Map();
text = text.replace(/\/\*\*(?:(?!\*\/)[^])*?@typedef(?:(?!\*\/)[^])*\*\/\n/g, (comment) => {
  const name = /@typedef \{object\} (\w+)/.exec(comment) ?? /(\w+) \*\/\n$/.exec(comment);
  const description = comment.slice(3, comment.search(/@/)).replace(/[\s*]+$/, "");
  if (description) comments.set(name[1], `/**${description} */\n`);
  return "";
});
for (const [name, comment] of comments) {
  const type = new RegExp(`^export type ${name}\\b`, "m");
  if (!type.test(text)) throw new Error(`the declarations lack ${name}`);
  text = text.replace(type, (start) => comment + start);
}
// The first comment is for Deno, which needs it in the module only.
text = text.replace(/^\/\/ @ts-self-types.*\n/, "");
writeFileSync(file, `// Written by tests/package/declarations.mjs from the comments in anteroom.js.\n${text}`);
