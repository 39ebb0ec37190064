// Against a running bus: MESSAGE_BUS_URL=http://127.0.0.1:5001 node --test (Node 20: with --experimental-websocket).

import assert from "node:assert/strict";
import { describe, it as test } from "node:test";
import { Backoff, BusError, Client } from "../client.js";

const url = process.env.MESSAGE_BUS_URL ?? "http://127.0.0.1:5001";
const TRANSPORTS = ["websocket", "sse"];
let names = 0;
const name = (what) => `${what}-${process.pid}-${++names}`;

/** A connected client that is closed at the end of the test. */
async function client(t, what, options = {}) {
  const made = new Client(name(what), { url, ...options });
  t.after(() => made.close());
  await made.connect();
  return made;
}

/** The next `count` messages. */
function taken(bus, count) {
  const messages = [];
  return new Promise((resolve) => {
    const end = bus.on("message", (message) => {
      messages.push(message);
      if (messages.length === count) resolve((end(), messages));
    });
  });
}

const rest = async (path, body) => {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(url + path, body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body) });
  return answer.json();
};

describe("a client", { concurrency: 8 }, () => {
  for (const transport of TRANSPORTS) {
    test(`${transport}: a message arrives, and its receipt says so`, async (t) => {
      const [alice, bob] = [await client(t, "alice", { transport }), await client(t, "bob", { transport })];
      const next = taken(bob, 1);
      const receipt = await alice.send(bob.clientId, { text: "שלום", n: [1, null] }, { type: "command", thread_id: "t-1" });
      const [message] = await next;
      assert.deepEqual([message.from, message.type, message.payload, message.thread_id], [alice.clientId, "command", { text: "שלום", n: [1, null] }, "t-1"]);
      assert.deepEqual([message.id, message.seq], [receipt.message_id, receipt.seq]);
      assert.deepEqual(receipt.recipients, [{ client: bob.clientId, state: "delivered" }]);
      assert.equal(alice.transport, transport);
      assert.ok(bob.cursor.endsWith(`:${receipt.seq}`));
    });

    test(`${transport}: sends keep their order, before and after there is a connection`, async (t) => {
      const bob = await client(t, "bob", { transport });
      const alice = new Client(name("alice"), { url, transport });
      t.after(() => alice.close());
      const next = taken(bob, 300);
      const sent = Array.from({ length: 300 }, (_, n) => alice.send(bob.clientId, n));
      assert.equal(alice.unsent, 300);
      assert.deepEqual((await next).map((message) => message.payload), Array.from({ length: 300 }, (_, n) => n));
      await Promise.all(sent);
      assert.equal(alice.unsent, 0);
    });

    test(`${transport}: a refusal has its code, and the connection goes on`, async (t) => {
      const alice = await client(t, "alice", { transport });
      await assert.rejects(alice.send("no name", 1), (error) => error instanceof BusError && error.code === "bad_name" && error.field === "to");
      await assert.rejects(alice.send("bob", 1n), TypeError);
      assert.equal((await alice.send("bob", 1)).recipients.length, 1);
    });

    test(`${transport}: one idempotency key is one message`, async (t) => {
      const alice = await client(t, "alice", { transport });
      const options = { idempotency_key: name("key") };
      const one = await alice.send("bob", 1, options);
      const two = await alice.send("bob", 1, options);
      assert.deepEqual([two.message_id, two.duplicate], [one.message_id, true]);
    });

    test(`${transport}: what is acked is settled, what fails comes again, what is rejected is told to its sender`, async (t) => {
      const alice = await client(t, "alice", { transport });
      const bob = await client(t, "bob", { transport, autoAck: false });
      const failed = new Promise((resolve) => alice.on("failed", resolve));
      const got = taken(bob, 4);
      const said = [];
      bob.on("message", async (message) => {
        if (message.payload === "ack") said.push(await message.ack(), await message.ack());
        if (message.payload === "again") said.push(await (message.attempt === 1 ? message.nack({ delay: 0, reason: "busy" }) : message.ack()));
        if (message.payload === "never") said.push(await message.reject({ reason: "no such file" }));
      });
      for (const payload of ["ack", "again", "never"]) await alice.send(bob.clientId, payload, { require_ack: true });
      assert.deepEqual((await got).map((message) => `${message.payload} ${message.attempt}`).sort(), ["ack 1", "again 1", "again 2", "never 1"]);
      assert.equal((await failed).reason, "rejected");
      for (let turn = 0; turn < 200 && said.length < 5; turn++) await new Promise((resolve) => setTimeout(resolve, 20));
      assert.deepEqual(said.map((each) => each.status).sort(), ["acked", "acked", "acked", "nacked", "rejected"]);
    });

    test(`${transport}: handlers ack by returning, and nack by throwing`, async (t) => {
      const [alice, bob] = [await client(t, "alice", { transport }), await client(t, "bob", { transport })];
      const errors = [];
      bob.on("error", (error) => errors.push(error.message));
      bob.on("message", async (message) => {
        if (message.payload === "bad") throw new Error("I can't");
      });
      const [good, bad] = [await alice.send(bob.clientId, "good", { require_ack: true }), await alice.send(bob.clientId, "bad", { require_ack: true })];
      const stateOf = async (receipt) => (await rest(`/api/messages/${receipt.message_id}`)).recipients[0].state;
      for (let turn = 0; turn < 100 && ((await stateOf(good)) !== "acked" || errors.length === 0); turn++) await new Promise((resolve) => setTimeout(resolve, 20));
      assert.equal(await stateOf(good), "acked");
      assert.deepEqual(errors, ["I can't"]);
      assert.notEqual(await stateOf(bad), "acked");
    });

    test(`${transport}: a request brings its reply, once`, async (t) => {
      const [alice, bob] = [await client(t, "alice", { transport }), await client(t, "bob", { transport })];
      const came = [];
      alice.on("message", (message) => came.push(message.payload));
      bob.onRequest((message) => message.payload * 2, "double");
      const found = await alice.request(bob.clientId, 21, { type: "double", wait: 10 });
      assert.deepEqual([found.status, found.replies.map((reply) => reply.payload)], ["answered", [42]]);
      await bob.send(alice.clientId, "after");
      for (let turn = 0; turn < 100 && came.length === 0; turn++) await new Promise((resolve) => setTimeout(resolve, 20));
      assert.deepEqual(came, ["after"]);
      await assert.rejects(alice.request("nobody-there", 1, { require_online: true, wait: 1 }), { code: "recipient_offline" });
      assert.equal((await alice.request(bob.clientId, 1, { type: "unheard", wait: 0.1 })).status, "pending");
    });

    test(`${transport}: topics are heard, and no longer`, async (t) => {
      const alice = await client(t, "alice", { transport });
      const bob = await client(t, "bob", { transport, topics: ["builds.*"] });
      await bob.subscribe({ topics: ["logs.>"] });
      for (let turn = 0; turn < 100 && !bob.isConnected; turn++) await new Promise((resolve) => setTimeout(resolve, 20));
      const next = taken(bob, 2);
      for (const topic of ["builds.linux", "logs.a.b", "other"]) await alice.send(`topic:${topic}`, topic);
      assert.deepEqual((await next).map((message) => message.payload), ["builds.linux", "logs.a.b"]);
    });

    test(`${transport}: iteration hands out one after another, acks what is done, and ends`, async (t) => {
      const [alice, bob] = [await client(t, "alice", { transport }), await client(t, "bob", { transport })];
      const receipts = await Promise.all([1, 2, 3].map((n) => alice.send(bob.clientId, n, { require_ack: true })));
      const got = [];
      for await (const message of bob) {
        got.push(message.payload);
        if (got.length === 3) break;
      }
      assert.deepEqual(got, [1, 2, 3]);
      const stateOf = async (receipt) => (await rest(`/api/messages/${receipt.message_id}`)).recipients[0].state;
      for (let turn = 0; turn < 200 && (await stateOf(receipts[1])) !== "acked"; turn++) await new Promise((resolve) => setTimeout(resolve, 20));
      const states = await Promise.all(receipts.map(stateOf));
      assert.deepEqual(states, ["acked", "acked", "leased"]);
      const waiting = bob[Symbol.asyncIterator]().next();
      await bob.close();
      assert.deepEqual(await waiting, { done: true, value: undefined });
    });

    test(`${transport}: it begins where it is told to`, async (t) => {
      const alice = await client(t, "alice", { transport });
      const bob = name("bob");
      const receipts = [await alice.send(bob, 1), await alice.send(bob, 2), await alice.send(bob, 3)];
      const epoch = alice.cursor.split(":")[0];
      for (const [since, expected] of [["earliest", [1, 2, 3]], [`${epoch}:${receipts[0].seq}`, [2, 3]]]) {
        const reader = new Client(bob, { url, transport, since });
        const next = taken(reader, expected.length);
        await reader.connect();
        assert.deepEqual((await next).map((message) => message.payload), expected);
        await reader.close();
      }
      const late = new Client(bob, { url, transport, since: "latest" });
      t.after(() => late.close());
      const next = taken(late, 1);
      await late.connect();
      await alice.send(bob, 4);
      assert.deepEqual((await next).map((message) => message.payload), [4]);
    });

    test(`${transport}: who is too slow rests, and misses nothing`, async (t) => {
      const alice = await client(t, "alice", { transport });
      const bob = await client(t, "bob", { transport, maxReceived: 50 });
      let rests = 0;
      bob.on("close", ({ code }) => (rests += code === 4000 ? 1 : 0));
      await Promise.all(Array.from({ length: 400 }, (_, n) => alice.send(bob.clientId, n)));
      await new Promise((resolve) => setTimeout(resolve, 100));
      const got = [];
      for await (const message of bob) {
        got.push(message.payload);
        if (got.length === 400) break;
      }
      assert.deepEqual(got, Array.from({ length: 400 }, (_, n) => n));
      assert.ok(rests > 0);
    });
  }

  test("a queue's items are shared, and a gap of connection is told", async (t) => {
    const queue = name("queue");
    const [alice, one, two] = [await client(t, "alice"), await client(t, "one"), await client(t, "two")];
    const got = [];
    await Promise.all([one, two].map((taker) => taker.subscribe({ queues: [queue], maxInFlight: 1 })));
    for (const taker of [one, two]) taker.on("message", (message) => void got.push([taker, message.payload]));
    await Promise.all(Array.from({ length: 20 }, (_, n) => alice.send(`queue:${queue}`, n)));
    for (let turn = 0; turn < 200 && got.length < 20; turn++) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(got.map(([, n]) => n).sort((a, b) => a - b), Array.from({ length: 20 }, (_, n) => n));
    assert.equal(new Set(got.map(([taker]) => taker)).size, 2);
  });

  test("an ephemeral message reaches who is there, and nobody else", async (t) => {
    const [alice, bob] = [await client(t, "alice"), await client(t, "bob")];
    const next = taken(bob, 1);
    assert.equal((await alice.send(bob.clientId, "typing", { ephemeral: true })).message_id !== undefined, true);
    assert.equal((await next)[0].seq, null);
    const gone = new Client(name("gone"), { url });
    assert.deepEqual((await gone.send("bob", 1, { ephemeral: true })).recipients, [{ client: "bob", state: "dropped" }]);
  });

  test("a cursor from elsewhere is a gap, and is told", async (t) => {
    const bus = new Client(name("lost"), { url, since: "0123456789ab:7" });
    t.after(() => bus.close());
    const gap = new Promise((resolve) => bus.on("gap", resolve));
    await bus.connect();
    assert.equal((await gap).reason, "epoch_changed");
  });

  test("what can't be is refused at once, and for good", async () => {
    assert.throws(() => new Client("no name"), { code: "bad_name" });
    const bus = new Client(name("bad"), { url, since: "nonsense", transport: "sse" });
    await assert.rejects(bus.connect(), { name: "BusError", status: 400 });
    await assert.rejects(bus.send("bob", 1), { name: "BusError" });
    assert.throws(() => bus.on("mesage", () => {}), TypeError);
  });

  test("a closed client stays closed, and says what it gave up", async () => {
    const bus = new Client(name("gone"), { url: "http://127.0.0.1:9" });
    const sent = bus.send("bob", 1);
    assert.equal(await bus.close({ timeoutSeconds: 0 }), 1);
    await assert.rejects(sent, { code: "closed" });
    await assert.rejects(bus.send("bob", 2), { code: "closed" });
    await assert.rejects(bus.connect(), { code: "closed" });
  });

  test("offline is told where that is wanted, and the queue has an end", async (t) => {
    const raising = new Client(name("raising"), { url: "http://127.0.0.1:9", offline: "raise" });
    t.after(() => raising.close({ timeoutSeconds: 0 }));
    await assert.rejects(raising.send("bob", 1), { code: "offline" });
    const full = new Client(name("full"), { url: "http://127.0.0.1:9", maxQueued: 2 });
    t.after(() => full.close({ timeoutSeconds: 0 }));
    full.send("bob", 1).catch(() => {});
    full.send("bob", 2).catch(() => {});
    await assert.rejects(full.send("bob", 3), { code: "send_queue_full" });
  });

  test("pauses grow, are drawn by chance, and obey the server", () => {
    const most = new Backoff(() => 1);
    assert.deepEqual(Array.from({ length: 7 }, () => most.pause({ reason: "" })), [0.5, 1, 2, 4, 8, 16, 20]);
    assert.equal(most.pause({ reason: "", lastedSeconds: 11 }), 0.5);
    assert.equal(new Backoff(() => 0).pause({ reason: "" }), 0);
    assert.equal(new Backoff(() => 0.5).pause({ reason: "", code: 1013 }), 12.5);
    assert.equal(new Backoff(() => 1).pause({ reason: "", code: 1012 }), 3);
    assert.equal(new Backoff(() => 0).pause({ reason: "", code: 1012, afterSeconds: 1.7 }), 1.7);
    assert.equal(new Backoff(() => 1).pause({ reason: "", afterSeconds: 2 }), 5);
  });
});
