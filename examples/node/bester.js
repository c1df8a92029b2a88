// bester.js: a Bester handler in JavaScript. Copy this file; it needs the packages zeromq and @msgpack/msgpack.
//
//     const { serve } = require("./bester");
//     serve({ hello: (message) => message.reply({ text: `hello, ${message.user}` }) });
//
// It speaks the fabric protocol (docs/fabric-protocol.md). Handlers may be async, and run side by side then.

"use strict";

const fs = require("node:fs");
const { decode, encode } = require("@msgpack/msgpack");
const zmq = require("zeromq");

const HELLO = 1, WELCOME = 2, HEARTBEAT = 3, GOODBYE = 4, ERROR = 5, REQUEST = 10, REPLY = 11;
const DONE = 0, FAILED = 1, REFUSED = 2;
const TEMPORARY = new Set(["overloaded", "try-later", "unreachable"]); // refusals that pass
const ATTACHED_ABOVE = 16384; // bytes of a body that go beside the batch
const INLINE_MOST = 32 << 20; // bytes of a reply's bodies within the batch: a frame above 64 MiB ends the link
const MOST_BYTES = 64 << 20, MOST_COMMANDS = 10000; // of one reply
const MOST_MESSAGES = 1024, BATCH_BYTES = 1 << 20; // of a batch
const NOTE_UNITS = 1000; // of UTF-16: the broker cuts a note to 500 characters, which are two units at most
const NO_REASON = "the handler refused the message";
const DRAIN_MS = 10000; // how long what is under way may take at SIGTERM; then it is given to another handler
const LINGER_MS = 1000; // how long the last replies may take to leave
const GOODBYE_MS = 200; // and a GOODBYE where there may be no broker: of half a second the zeromq package warns

/** Throw this to refuse a message: its sender gets the reason in the report. Any other error stays in the log. */
class Refusal extends Error {}

/** What a handler returned cannot be sent. */
class BadReply extends Error {}

/** One message. `data` is its payload, `user` who sent it (null where no user of this server did). */
class Message {
  constructor(type, raw, user, meta) {
    this.type = type;
    this.raw = raw; // the payload as it was written: JSON text, in a Buffer
    this.user = user;
    this.id = meta.id; // the same at every redelivery
    this.attempt = meta.attempt; // above 1: a handler before this one was lost over it
    this.meta = meta;
  }

  get data() {
    return JSON.parse(this.raw.toString("utf8"));
  }

  /** Answer the sender. */
  reply(data) {
    if (this.user === null) throw new Error("there is no user to answer: no client sent this");
    return sendClients([this.user], data);
  }
}

// What a handler returns: one of these, several in an array, or nothing.
const sendClients = (users, data) => command("sendClients", users, data);
const sendHandler = (type, data) => command("sendHandler", [type], data);
const sendServers = (servers, data, type) => command("sendServers", servers, data, type);

function command(name, targets, data, type) {
  if (Buffer.isBuffer(data)) return { name, targets, type, body: data }; // JSON text as it stands, such as message.raw
  const text = JSON.stringify(data);
  if (text === undefined) throw new TypeError(`${name}: this is no JSON: ${data}`);
  return { name, targets, type, body: Buffer.from(text) };
}

/** Commands as they are sent; long bodies are added to `attached`. */
function packed(result, attached) {
  const commands = result === undefined || result === null ? [] : Array.isArray(result) ? result : [result];
  let bytes = 0, inline = 0;
  for (const each of commands) {
    if (!each || !Buffer.isBuffer(each.body)) throw new BadReply(`a handler returns commands, not ${JSON.stringify(each)}`);
    bytes += each.body.length;
  }
  if (bytes > MOST_BYTES) throw new BadReply(`bodies of ${bytes} bytes; a reply has ${MOST_BYTES} at most`);
  if (commands.length > MOST_COMMANDS) throw new BadReply(`${commands.length} commands; a reply has ${MOST_COMMANDS} at most`);
  return commands.map(({ name, targets, body, type }) => {
    const apart = body.length > ATTACHED_ABOVE || inline + body.length > INLINE_MOST;
    const place = apart ? attached.push(body) : body;
    inline += apart ? 0 : body.length;
    return type === undefined ? [name, targets, place] : [name, targets, place, type];
  });
}

/** A note on what was thrown: of half a surrogate pair, as a cut leaves one, UTF-8 holds a mark of replacement. */
function noteOf(error) {
  let text = "";
  try {
    text = String(error?.message || (error instanceof Refusal ? NO_REASON : error));
  } catch { /* an object that is no text */ }
  return Buffer.from(text.slice(0, NOTE_UNITS)).toString() || "failed";
}

/** The messages of a batch; what cannot be read is passed over. */
function read(frame) {
  try {
    const batch = decode(frame);
    return Array.isArray(batch) ? batch.filter((message) => Array.isArray(message)) : [];
  } catch {
    return [];
  }
}

class Link {
  constructor(handlers, options) {
    this.handlers = handlers;
    this.options = options;
    this.heartbeat = 2000;
    this.quiet = 0; // looks in vain, of half a heartbeat each: a program that was not run for a while has looked once
    this.told = false; // that no broker answers
    this.welcome = false; // whether the broker has taken this handler: before that there is nothing to finish
    this.life = 0; // rises when the link is lost: what came before is not answered any more
    this.outstanding = 0;
    this.queue = []; // replies that leave in the next batch: [message, attachments]
    this.left = false; // GOODBYE was sent
    this.echoed = false; // and was echoed
    this.over = new Promise((resolve) => { this.end = resolve; });
  }

  open() {
    const { fabric, curve } = this.options;
    const unlimited = { sendHighWaterMark: 0, receiveHighWaterMark: 0 }; // the latter, as libzmq may abort: see the protocol
    this.socket = new zmq.Dealer({ linger: 0, ipv6: fabric.includes("["), ...unlimited, ...curve });
    this.socket.connect(fabric);
    this.quiet = 0;
    this.welcome = false;
    this.listen(this.socket).catch((error) => this.end(error));
    this.hello();
    this.timer = setTimeout(() => this.tick(), this.heartbeat / 2);
  }

  async listen(socket) {
    for await (const [frame, ...attached] of socket) {
      if (socket !== this.socket) return;
      this.quiet = 0;
      for (const message of read(frame)) this.receive(message, attached);
    }
  }

  receive([op, ...fields], attached) {
    if (op === REQUEST && Number.isSafeInteger(fields[0]) && fields.length >= 5) {
      this.request(fields, attached);
    } else if (op === WELCOME) {
      this.told = false;
      this.welcome = true;
      const heartbeat = fields[2]?.heartbeat_ms;
      if (Number.isInteger(heartbeat)) this.heartbeat = Math.min(Math.max(heartbeat, 10), 60000);
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.tick(), this.heartbeat / 2);
    } else if (op === GOODBYE && this.left) {
      this.echoed = true;
      this.finish();
    } else if (op === ERROR && fields[0] === "hello-first") {
      this.lose();
      if (this.left) this.end();
      else this.hello();
    } else if (op === ERROR && fields[2] === HELLO && !TEMPORARY.has(fields[0])) {
      this.end(new Error(`refused: ${fields[0]}: ${fields[1]}`)); // saying it again would not help
    } else if (op === ERROR) {
      console.error(`bester: refused: ${fields[0]}: ${fields[1]}`);
    }
  }

  async request([token, type, body, user, meta], attached) {
    const life = this.life;
    this.outstanding += 1;
    const bodies = [];
    let reply;
    try {
      const raw = typeof body === "number" ? attached[body - 1] : typeof body === "string" ? Buffer.from(body) : body;
      if (!raw) throw new Error("the body is not there");
      const handler = Object.hasOwn(this.handlers, type) ? this.handlers[type] : this.handlers.default;
      if (!handler) throw new Error(`this handler does not serve ${type}`);
      const result = await handler(new Message(type, Buffer.from(raw), user, meta ?? {}));
      reply = [REPLY, token, DONE, packed(result, bodies), null];
    } catch (error) {
      const refused = error instanceof Refusal;
      if (!refused) console.error(`bester: ${type} failed on message ${meta?.id}:`, error);
      reply = [REPLY, token, refused ? REFUSED : FAILED, [], noteOf(error), ...(error instanceof BadReply ? ["bad-reply"] : [])];
      bodies.length = 0;
    }
    if (life !== this.life) return; // another handler has it by now
    this.outstanding -= 1;
    this.say(reply, bodies);
    this.finish();
  }

  hello() {
    const { name, types, credit, lease_ms } = this.options;
    this.say([HELLO, 1, "handler", name, { types, credit, lease_ms, software: "bester.js" }]);
  }

  say(message, bodies = []) {
    this.queue.push([message, bodies]);
    this.flushing ??= this.flush(this.socket);
  }

  /** Send queued messages until none is left; one batch a turn of the loop. */
  async flush(socket) {
    await new Promise(setImmediate);
    while (this.queue.length > 0 && socket === this.socket) {
      const batch = [], attached = [];
      let bytes = 0;
      while (this.queue.length > 0 && batch.length < MOST_MESSAGES && bytes < BATCH_BYTES) {
        const [message, bodies] = this.queue.shift();
        if (message[0] === REPLY) message[3] = message[3].map(([name, targets, body, ...type]) => {
          bytes += body.length ?? 0;
          return [name, targets, typeof body === "number" ? body + attached.length : body, ...type];
        });
        batch.push(message);
        attached.push(...bodies);
      }
      try {
        await socket.send([encode(batch), ...attached]);
      } catch {
        break; // the socket was closed; its queued messages are void
      }
    }
    if (socket === this.socket) this.flushing = undefined;
  }

  /** Whatever came on the link will not be answered any more. */
  lose() {
    this.life += 1;
    this.outstanding = 0;
    this.queue = [];
  }

  tick() {
    if (++this.quiet > 6) { // three heartbeats of silence: begin anew
      if (!this.told && !this.left) console.error(`bester: no broker answers at ${this.options.fabric}; trying again`);
      this.told = true;
      this.lose();
      this.flushing = undefined;
      this.socket.close();
      if (this.left) this.end();
      else this.open();
      return;
    }
    if (this.queue.length === 0) this.say([HEARTBEAT]);
    this.timer = setTimeout(() => this.tick(), this.heartbeat / 2);
  }

  leave() {
    if (this.left) return;
    this.left = true;
    this.say([GOODBYE, "stopping"]);
    if (!this.welcome) this.end();
    this.draining = setTimeout(() => this.end(), DRAIN_MS);
  }

  finish() {
    if (this.echoed && this.outstanding === 0) this.end();
  }

  async close() {
    clearTimeout(this.timer);
    clearTimeout(this.draining);
    await this.flushing;
    if (!this.socket.closed) {
      this.socket.linger = this.welcome ? LINGER_MS : GOODBYE_MS;
      this.socket.close();
    }
  }
}

function curveOf(key, serverKey) {
  if (!key) return {};
  const line = (file) => fs.readFileSync(file, "utf8").trim();
  return { curveSecretKey: line(key), curvePublicKey: line(`${key}.pub`), curveServerKey: serverKey };
}

/**
 * Serve until SIGTERM or SIGINT: then no more is taken, what is under way is answered, and the promise is fulfilled.
 * It is rejected where the broker does not take this handler.
 *
 * `handlers` maps message types to functions; `default` serves all other types of BESTER_TYPES. `options`: `fabric`
 * (BESTER_FABRIC), `types` (an array; BESTER_TYPES, else the keys of `handlers`), `name` (BESTER_NAME), `credit` (64
 * messages at once), `lease_ms` (30000: how long a handler may keep the event loop to itself), and for CURVE `key` (a
 * file with the secret key, and FILE.pub beside it; BESTER_KEY) and `serverKey` (BESTER_SERVER_KEY).
 */
async function serve(handlers, options = {}) {
  const env = process.env;
  const fabric = options.fabric || env.BESTER_FABRIC;
  if (!fabric) throw new Error("where is the broker? set BESTER_FABRIC to its URL");
  const link = new Link(handlers, {
    fabric,
    types: options.types ?? (env.BESTER_TYPES ? env.BESTER_TYPES.split(",") : null) ?? Object.keys(handlers).filter((type) => type !== "default"),
    name: options.name || env.BESTER_NAME || `handler-${process.pid}`,
    credit: options.credit ?? 64,
    lease_ms: options.lease_ms ?? 30000,
    curve: curveOf(options.key ?? env.BESTER_KEY, options.serverKey ?? env.BESTER_SERVER_KEY),
  });
  const stop = () => link.leave();
  const hungUp = () => {}; // a closed terminal ends no handler, as it ends no server
  process.on("SIGTERM", stop).on("SIGINT", stop).on("SIGHUP", hungUp);
  try {
    link.open();
    const error = await link.over;
    if (error) throw error;
  } finally {
    await link.close();
    process.off("SIGTERM", stop).off("SIGINT", stop).off("SIGHUP", hungUp);
  }
}

module.exports = { Message, Refusal, sendClients, sendHandler, sendServers, serve };
