"use strict";
// The operator's page: the broker's status once a second, drawn as tables and SVG. No text of a message becomes markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const KEPT = 120; // seconds of the plots
const AGAIN_MS = 3000; // until the stream of statuses is asked for again after a refusal
const GRANTED = ["submits", "submit_bytes"]; // credit of bridges: given out whole, and not in use for that
// Reasons of a server that tells no steps, as `bester trace` prints them.
const UNTOLD = {
  "not-allowed": "its operator does not allow it ([servers.NAME] trace = true there)", "unknown-op": "it speaks the native protocol, or is an older version",
  "unreachable": "there is no link to it", timeout: "it did not answer in time", "too-many-hops": "it is too far away", overloaded: "it is asked too often",
};
const token = new URLSearchParams(location.search).get("token") || "";
if (token) history.replaceState(null, "", location.pathname); // no secret in the address bar, or in a bookmark
const withToken = (path) => (token ? path + (path.includes("?") ? "&" : "?") + "token=" + encodeURIComponent(token) : path);
const history_ = [];
let before = null;
let latest = 0;
let trouble = "";
let mayAct = false; // the server says so, for the token or the certificate

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (kind) made.className = kind;
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A table: `columns` are [title, kind]; a row is {kind, cells}, a cell a text or an element.
function table(id, columns, rows, none) {
  const place = $(id);
  const head = element("tr");
  for (const [title, kind] of columns) {
    const cell = element("th", title, kind);
    cell.scope = "col";
    head.append(cell);
  }
  const made = rows.map(({ kind, cells }) => {
    const row = element("tr", null, kind);
    cells.forEach((each, at) => {
      const cell = element("td", each instanceof Node ? null : each, columns[at][1]);
      if (each instanceof Node) cell.append(each);
      row.append(cell);
    });
    return row;
  });
  if (!made.length) {
    const cell = element("td", none, "none");
    cell.colSpan = columns.length;
    const row = element("tr");
    row.append(cell);
    made.push(row);
  }
  const focused = document.activeElement && place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.replaceChildren(head, ...made);
  if (focused) for (const each of place.querySelectorAll("button")) if (each.dataset.key === focused) each.focus();
}

const bytes = (count) => (count == null ? "" : count < 1024 ? count + " B" : count < 1048576 ? (count / 1024).toFixed(1) + " KiB" : count < 1073741824 ? (count / 1048576).toFixed(1) + " MiB" : (count / 1073741824).toFixed(1) + " GiB");
const span = (s) => (s < 120 ? s.toFixed(0) + " s" : s < 7200 ? (s / 60).toFixed(0) + " min" : s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " d");
const many = (count, one) => count + " " + one + (count === 1 ? "" : "s");
const short = (text, most = 22) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
// The time below which 95 of 100 are, as far as the buckets tell; nothing where there is none.
function p95(counts, ends) {
  const all = counts.reduce((a, b) => a + b, 0);
  let seen = 0;
  for (let at = 0; all && at < counts.length; at++) {
    const before_ = seen;
    seen += counts[at];
    if (seen < 0.95 * all) continue;
    if (at >= ends.length) return "> " + time(ends[at - 1]);
    const low = at ? ends[at - 1] : 0;
    return time(low + (ends[at] - low) * ((0.95 * all - before_) / counts[at]));
  }
  return "";
}
const digits = (count) => (count < 99.5 ? count.toPrecision(2) : count.toFixed(0));
const time = (s) => (s < 1 ? digits(s * 1000) + " ms" : digits(s) + " s");
const sum = (types, key) => Object.values(types).reduce((all, row) => all + row[key], 0);

async function act(path, body) {
  const answer = await fetch(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...(token ? { Authorization: "Bearer " + token } : {}) } });
  const value = await answer.json().catch(() => ({ error: answer.statusText }));
  trouble = answer.ok ? "" : value.error;
  state();
  dead();
}

function button(title, key, path, body, sure) {
  const made = element("button", title);
  made.type = "button";
  made.dataset.key = key;
  made.disabled = !mayAct;
  if (!mayAct) made.title = "open the page with ?token=… to act";
  made.addEventListener("click", () => { if (!sure || confirm(sure)) act(path, body); });
  return made;
}

function state() {
  const place = $("state");
  const old = Date.now() - latest > 3500;
  const problems = latest && !old && before ? before.findings.map((each) => each.text) : [];
  if (problems.length > 3) problems.splice(3, problems.length, problems.length - 3 + " more");
  const failing = old || trouble || (problems.length && before.findings.some((each) => each.level === "error"));
  place.className = failing ? "bad" : problems.length ? "warm" : "good";
  place.textContent = trouble || (!latest ? "connecting …" : old ? "the server does not answer" : problems.length ? problems.join(" · ") : "all is well");
}

function facts(status) {
  const rows = [["up", span(status.up_s)], ["users", status.users], ["sessions", status.sessions], ["unreported", status.cases], ["queued", status.queued.messages], ["store", bytes(status.store.bytes)], ["room", bytes(status.store.room_bytes)], ["disk, 95 %", p95(status.store.sync, status.store.sync_buckets_s)], ["lockouts", status.lockouts || ""]];
  $("facts").replaceChildren(...rows.filter(([, value]) => value !== "").map(([name, value]) => { const row = element("div"); row.append(element("dt", name), element("dd", value)); return row; }));
}

const byName = ([a], [b]) => (a < b ? -1 : a > b ? 1 : 0);
// Whether messages of a type have passed since the status before: their line is then drawn as a live one.
const passed = (name, row) => Boolean(before && before.types[name] && row.answered !== before.types[name].answered);

// Columns from left to right: clients, bridges, the broker, types, handlers; the other servers stand below the bridges.
function way(status) {
  const served = Object.entries(status.types).filter(([name]) => name !== "(others)").sort(byName);
  const handlers = [...status.handlers].sort((a, b) => byName([a.name], [b.name]));
  const columns = [
    [{ title: many(status.users, "user"), note: many(status.sessions, "session"), kind: "good" }],
    [...status.bridges.map((each) => ({ title: short(each.name, 16), note: many(each.figures.connections || 0, "connection"), kind: "good" })), ...status.servers.map((each) => ({ title: short(each.name, 16), note: each.state + (each.held ? ", held" : "") + (each.queued ? ", " + each.queued + " queued" : ""), kind: each.state === "up" ? "good" : each.state === "down" ? "bad" : "" }))],
    [{ title: short(status.server, 16), note: status.cases + " unreported", kind: status.draining ? "warm" : "good" }],
    served.slice(0, 12).map(([name, row]) => ({ title: short(name, 16), note: row.waiting + " wait, " + row.inflight + " in flight", kind: row.workers ? (row.waiting > 100 ? "warm" : "good") : "bad", name, live: passed(name, row) })),
    handlers.slice(0, 12).map((each) => ({ title: short(each.name, 16), note: each.inflight + " of " + each.credit, kind: each.stuck ? "bad" : "good", types: each.types })),
  ];
  const rows = Math.max(1, ...columns.map((each) => each.length));
  const width = 800, step = 160, high = 52, height = Math.max(70, rows * high + 10);
  const place = $("way");
  place.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const at = columns.map((each, column) => each.map((_, row) => [column * step + 8, (height - each.length * high) / 2 + row * high + 6]));
  const parts = [];
  const line = ([x, y], [u, v], live) => parts.push(drawn("path", { class: live ? "way live" : "way", d: `M${x + 136} ${y + 20} C${x + 150} ${y + 20} ${u - 14} ${v + 20} ${u} ${v + 20}` }));
  columns[1].forEach((_, row) => { if (row < status.bridges.length) line(at[0][0], at[1][row]); line(at[1][row], at[2][0]); });
  columns[3].forEach((type, row) => { line(at[2][0], at[3][row], type.live); columns[4].forEach((each, other) => { if (each.types.includes(type.name)) line(at[3][row], at[4][other], type.live); }); });
  columns.forEach((each, column) => each.forEach(({ title, note, kind }, row) => {
    const [x, y] = at[column][row];
    parts.push(drawn("rect", { x, y, width: 136, height: 40, class: kind }), drawn("text", { x: x + 8, y: y + 17 }, title), drawn("text", { x: x + 8, y: y + 32, class: "dim" }, note));
  }));
  place.replaceChildren(...parts);
}

function plot(id, lines) {
  const place = $(id), width = 400, height = 110, most = Math.max(1e-9, ...lines.flatMap(({ values }) => values));
  place.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts = [drawn("text", { x: 2, y: 12, class: "dim" }, most < 10 ? most.toFixed(1) : most.toFixed(0)), drawn("path", { class: "way", d: `M0 ${height - 1} H${width}` })];
  for (const { values, kind } of lines) {
    const path = values.map((value, at) => `${at ? "L" : "M"}${(width - (values.length - 1 - at) * (width / (KEPT - 1))).toFixed(1)} ${(height - 2 - (value / most) * (height - 20)).toFixed(1)}`).join(" ");
    if (path) parts.push(drawn("path", { class: kind, d: path }));
  }
  place.replaceChildren(...parts);
}

function plots(status) {
  if (before && before.up_s < status.up_s) {
    const s = status.up_s - before.up_s, answered = sum(status.types, "answered") - sum(before.types, "answered");
    history_.push({ received: Math.max(0, sum(status.types, "received") - sum(before.types, "received")) / s, answered: Math.max(0, answered) / s, took: answered > 0 ? ((sum(status.types, "took_s") - sum(before.types, "took_s")) / answered) * 1000 : 0 });
    if (history_.length > KEPT) history_.shift();
  }
  plot("rate", [{ values: history_.map((each) => each.received), kind: "a" }, { values: history_.map((each) => each.answered), kind: "b" }]);
  plot("time", [{ values: history_.map((each) => each.took), kind: "a" }]);
}

// The findings of `bester check` that a status shows: the same checks, carried out at the server.
function findings(status) {
  table("findings", [["level"], ["check"], ["what, and its remedy", "words"]],
    status.findings.map((each) => {
      const what = element("div", each.text);
      what.append(element("div", each.remedy, "remedy"));
      return { kind: each.level === "error" ? "bad" : "warm", cells: [each.level, each.check, what] };
    }), "all is well");
}

function lists(status) {
  table("types", [["type"], ["handlers", "n"], ["wait", "n"], ["in flight", "n"], ["received", "n"], ["answered", "n"], ["again", "n"], ["dead", "n"], ["handler, 95 %", "n"], ["whole, 95 %", "n"], ["failed", "words"]],
    Object.entries(status.types).sort(byName).map(([name, row]) => ({ kind: row.workers || name === "(others)" ? (row.waiting > 100 ? "warm" : "") : "bad", cells: [name, row.workers, row.waiting, row.inflight, row.received, row.answered, row.again, row.dead, p95(row.took, status.buckets_s), p95(row.whole, status.buckets_s), Object.entries(row.failed).map(([code, count]) => code + " " + count).join(", ")] })), "no type is served");
  table("servers", [["server"], ["state"], ["since", "n"], ["queued", "n"], ["oldest", "n"], ["retries", "n"], ["next try", "n"], ["last error", "words"], [""]],
    status.servers.map((each) => {
      const acts = element("span");
      acts.append(button("retry", "r" + each.name, "api/peers/retry", { name: each.name }), " ", each.held ? button("release", "h" + each.name, "api/peers/release", { name: each.name }) : button("hold", "h" + each.name, "api/peers/hold", { name: each.name }));
      return { kind: each.state === "down" ? "bad" : each.held ? "warm" : "", cells: [each.name, each.held ? "held, " + each.state : each.state, span(each.since_s), each.queued, each.oldest_s == null ? "" : span(each.oldest_s), each.retries, each.next_try_s == null ? "" : span(each.next_try_s), each.error || "", acts] };
    }), "no other server is listed");
  $("cluster").hidden = !status.brokers.length && !status.adoptions.length;
  table("brokers", [["broker"], ["state"], ["since", "n"], ["messages that wait", "n"], ["process", "words"]],
    status.brokers.map((each) => ({ kind: each.state === "dead" ? "bad" : "", cells: [each.name, each.state, each.state === "dead" ? span(each.gone_s) : "", each.state === "lives" ? "" : each.waiting, each.process] })), "this one alone");
  table("adoptions", [["broker"], ["adopted by"], ["ago", "n"], ["messages", "n"], ["outcomes", "n"], ["dead letters", "n"]],
    status.adoptions.map((each) => ({ cells: [each.broker, each.adopter, span(each.ago_s), each.messages, each.outcomes, each.dead_letters] })), "none within a week");
  table("bounds", [["bound"], ["used", "n"], ["most", "n"], ["", "n"]],
    Object.entries(status.bounds).filter(([, [used]]) => used).sort(([n, [a, b]], [m, [c, d]]) => GRANTED.includes(n) - GRANTED.includes(m) || c / d - a / b).slice(0, 12).map(([name, [used, most]]) => ({ kind: !most || GRANTED.includes(name) ? "" : used > 0.9 * most ? "bad" : used > 0.7 * most ? "warm" : "", cells: [GRANTED.includes(name) ? name + " given out" : name, ...(name.endsWith("bytes") ? [bytes(used), bytes(most)] : [used, most]), most ? ((100 * used) / most).toFixed(1) + " %" : ""] })), "nothing is in use");
}

async function dead() {
  const answer = await fetch(withToken("api/dead?limit=50")).catch(() => null);
  if (!answer || !answer.ok) return;
  const rows = await answer.json();
  table("dead", [["when"], ["type"], ["reason"], ["message", "words"], [""]], rows.map((each) => {
    const acts = element("span"), show = element("button", "show");
    show.type = "button";
    show.dataset.key = "s" + each.id;
    show.addEventListener("click", async () => {
      const found = await (await fetch(withToken("api/dead/letter?id=" + encodeURIComponent(each.id)))).json();
      $("letter").hidden = false;
      $("letter").textContent = JSON.stringify(found, null, 2);
    });
    acts.append(show, " ", button("replay", "p" + each.id, "api/dead/replay", { id: each.id }), " ", button("drop", "d" + each.id, "api/dead/drop", { id: each.id }, "Drop this dead letter?"));
    return { cells: [each.at_ms ? new Date(each.at_ms).toISOString().slice(0, 19).replace("T", " ") : "", each.type, each.reason, each.id, acts] };
  }), "there is none");
}

// The spans of a message over all servers that tell, as bars on one clock.
async function trace(id) {
  const answer = await fetch(withToken("api/trace" + (id ? "?id=" + encodeURIComponent(id) : ""))).catch(() => null);
  const found = answer && answer.ok ? await answer.json() : { spans: [], servers: {} };
  const spans = found.spans;
  const first = spans.length ? spans[0].from_ms : 0;
  const last = Math.max(first + 0.001, ...spans.map((each) => (each.to_ms == null ? each.from_ms : each.to_ms)));
  const ms = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(0)) + " ms";
  table("trace", [["after", "n"], ["took", "n"], ["", "bar"], ["what"], ["where", "words"], ["outcome", "words"], ["message", "words"]], spans.map((each) => {
    const end = each.to_ms == null ? last : each.to_ms, share = 200 / (last - first);
    const bar = drawn("svg", { class: "bar", viewBox: "0 0 204 12", role: "img", "aria-label": `from ${ms(each.from_ms - first)} to ${each.to_ms == null ? "now" : ms(each.to_ms - first)}` });
    bar.append(drawn("rect", { class: each.kind, x: ((each.from_ms - first) * share).toFixed(2), y: 1, width: Math.max(2, (end - each.from_ms) * share).toFixed(2), height: 10 }));
    const bad = each.outcome && !["delivered", "sent", "queued"].includes(each.outcome);
    return { kind: bad ? "bad" : each.to_ms == null ? "warm" : "", cells: [ms(each.from_ms - first), each.to_ms == null ? "…" : ms(each.to_ms - each.from_ms), bar, each.kind, each.server + "/" + each.where, each.outcome || "", each.id] };
  }), "no step of it is remembered here");
  $("untold").textContent = Object.entries(found.servers).map(([name, why]) => name + " tells nothing: " + (UNTOLD[why] || why)).join(" · ");
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); trace($("message").value.trim()); });

function take(event) {
  const status = JSON.parse(event.data);
  latest = Date.now();
  trouble = "";
  document.title = status.server + " · Bester";
  $("server").textContent = status.server;
  facts(status);
  findings(status);
  way(status);
  plots(status);
  lists(status);
  before = status;
  state();
}

// The stream of statuses. A browser opens it again by itself after a lost connection, and not after a refusal.
function listen() {
  const live = new EventSource(withToken("api/live"));
  live.addEventListener("rights", (event) => { mayAct = JSON.parse(event.data).act; dead(); });
  live.addEventListener("message", take);
  live.addEventListener("error", async () => {
    if (live.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
    const answer = await fetch(withToken("api/status")).catch(() => null);
    if (answer && answer.status === 401) trouble = "open this page with ?token=…, the secret in [operator] token, or with a certificate of [operator] client_ca";
    state();
  });
}

listen();
setInterval(state, 1000);
setInterval(dead, 3000);
dead();
