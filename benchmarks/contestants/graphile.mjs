// graphile-worker, on Node.
//
// A worker process runs 24 jobs at once out of a local queue of 1,000 and gathers completions for 5 ms: both are what
// its documentation advises for throughput and what its own performance test turns on; without them the rate is a twentieth.
// None was better among 10, 24 and 100 jobs at once, a queue of 500, 1,000 and 5,000, and a delay of 0, 5 and 50 ms.
// Finished jobs are deleted, so it has no history to measure.

import fs from "node:fs";

import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";

import * as kit from "./kit.mjs";

const CONCURRENT_JOBS = 24;
const LOCAL_QUEUE = 1000;
const COMPLETION_DELAY_MS = 5;
const BATCH = 10_000;

// The connection is named by PGHOST, PGPORT, PGUSER and PGDATABASE.
const warnings = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

async function withUtils(use) {
  const utils = await makeWorkerUtils({ logger: warnings });
  try {
    return await use(utils);
  } finally {
    await utils.release();
  }
}

const versionOf = (name) =>
  JSON.parse(fs.readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;

const setup = () =>
  withUtils(async (utils) => {
    await utils.migrate();
    return {
      versions: {
        "graphile-worker": versionOf("graphile-worker"),
        pg: versionOf("pg"),
        node: process.versions.node,
      },
      // Jobs are deleted when they are done.
      remaining_sql: "select count(*) from graphile_worker._private_jobs",
    };
  });

const enqueue = (request) => withUtils((utils) => kit.produce(() => utils.addJob("noop", {}), request));

const trickle = (request) =>
  withUtils(async (utils) => {
    await utils.withPgClient((client) => client.query("select 1"));
    return await kit.trickle((sent) => utils.addJob(request.task, { sent }), request);
  });

async function addMany(utils, identifier, count) {
  for (let done = 0; done < count; done += BATCH) {
    const size = Math.min(BATCH, count - done);
    await utils.addJobs(Array.from({ length: size }, () => ({ identifier, payload: {} })));
  }
}

const bulk = (request) =>
  withUtils(async (utils) => {
    await utils.withPgClient((client) => client.query("select 1"));
    await kit.waitForStart();
    const began = kit.now();
    await addMany(utils, "noop", request.count);
    return { began, ended: kit.now(), jobs: request.count };
  });

const fill = (request) => withUtils((utils) => addMany(utils, request.task, request.count));

async function deepen(request) {
  if (request.case === "history") return { unsupported: "it deletes finished jobs" };
  const client = new pg.Client();
  await client.connect();
  await client.query("insert into graphile_worker._private_tasks (identifier) values ('noop') on conflict do nothing");
  // Lower numbers go first.
  await client.query(
    `
    insert into graphile_worker._private_jobs (task_id, priority, run_at)
    select tasks.id, $1, now() + $2::interval
    from graphile_worker._private_tasks as tasks, generate_series(1, $3)
    where identifier = 'noop'
    `,
    [request.case === "urgent" ? -1 : 0, request.case === "due" ? "0" : "1 day", request.count],
  );
  await client.end();
}

async function work(request) {
  const concurrentJobs = request.slots ?? CONCURRENT_JOBS;
  const runner = await run({
    logger: warnings,
    noHandleSignals: true,
    preset: {
      worker: {
        concurrentJobs,
        maxPoolSize: concurrentJobs + 2,
        localQueue: { size: LOCAL_QUEUE },
        completeJobBatchDelay: COMPLETION_DELAY_MS,
      },
    },
    taskList: {
      noop: () => kit.noop(),
      sleep: () => kit.nap(),
      stamp: ({ sent }) => kit.stamp(sent),
    },
  });
  process.once("SIGTERM", () => runner.stop());
  await runner.promise;
}

await kit.main({ setup, enqueue, bulk, fill, deepen, work, trickle });
