// Shared code of the contestants written for Node. kit.py is the same for Python; PROTOCOL.md describes both.
// The harness copies this file beside the contestant's program, where its node_modules are.

import fs from "node:fs";
import path from "node:path";

const folder = process.env.BENCH_MARKS;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Microseconds of CLOCK_MONOTONIC, which all processes of the machine share.
export const now = () => Number(process.hrtime.bigint() / 1000n);

// Run the verb that the command line names and print its answer as the last line.
export async function main(verbs) {
  const [name, text] = process.argv.slice(2);
  const answer = verbs[name] ? await verbs[name](JSON.parse(text)) : { unsupported: `has no ${name}` };
  console.log(JSON.stringify(answer ?? {}));
}

const started = () => fs.existsSync(path.join(folder, "go"));

// Signal that this process is ready, and return when the contest starts.
export async function waitForStart() {
  if (started()) return;
  fs.writeFileSync(path.join(folder, `${process.pid}.ready`), "");
  while (!started()) await pause(1);
}

let first = 0;
let last = 0;
let count = 0;
let file, notes, timer;

function write() {
  timer = undefined;
  const row = Buffer.alloc(24);
  [count, first, last].forEach((value, i) => row.writeBigInt64LE(BigInt(value), i * 8));
  fs.writeSync(file, row, 0, 24, 0);
}

// The body of the task `noop`.
export function noop() {
  if (file === undefined) {
    file = fs.openSync(path.join(folder, `${process.pid}.marks`), "w");
    notes = fs.openSync(path.join(folder, `${process.pid}.notes`), "a");
    first = now();
    write();
  }
  count += 1;
  last = now();
  // A write takes as long as several jobs, so at most one each 2 ms. The last one is never left out.
  timer ??= setTimeout(write, 2);
}

// The body of the task `sleep`.
export async function nap() {
  await pause(1);
  noop();
}

// The body of the task `stamp`.
export function stamp(sent) {
  const late = now() - sent;
  noop();
  fs.writeSync(notes, `${late}\n`);
}

// The producers.
export async function produce(send, request) {
  for (let i = 0; i < request.warm_up; i++) await send();
  await waitForStart();
  const began = now();
  for (let i = 0; i < request.count; i++) await send();
  return { began, ended: now(), jobs: request.count };
}

export async function trickle(send, request) {
  const began = now();
  for (let i = 0; i < request.count; i++) {
    await pause(Math.max(0, (began + i * request.every_seconds * 1e6 - now()) / 1000));
    await send(now());
  }
  return { jobs: request.count };
}
