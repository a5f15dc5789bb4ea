// Keeps a page current by server-sent events, counts times, draws curves and copies commands. Pages work without it.
"use strict";

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

// As formats.span_text writes it.
function spanText(seconds) {
  if (seconds < 1) return seconds < 0.05 ? "0 s" : `${seconds.toFixed(1)} s`;
  for (let at = 0; at < UNITS.length; at++) {
    const [unit, name] = UNITS[at];
    if (seconds < unit) continue;
    const whole = Math.floor(seconds / unit);
    if (whole < 10 && at < UNITS.length - 2) {
      const [smaller, smallerName] = UNITS[at + 1];
      const rest = Math.floor((seconds % unit) / smaller);
      return rest ? `${whole} ${name} ${rest} ${smallerName}` : `${whole} ${name}`;
    }
    return `${whole} ${name}`;
  }
  return "";
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function countTimes() {
  const now = Date.now();
  for (const element of document.querySelectorAll("[data-ago]")) {
    const seconds = (now - Number(element.dataset.ago)) / 1000;
    setText(element, seconds < 1 ? "just now" : `${spanText(seconds)} ago`);
  }
  for (const element of document.querySelectorAll("[data-since]")) {
    setText(element, spanText(Math.max(0, Math.floor((now - Number(element.dataset.since)) / 1000))));
  }
}

// What the server sends is escaped there, as in the pages themselves.
function rowOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.querySelector("tr");
}

function keepingFocus(root, change) {
  const focused = root.contains(document.activeElement) ? document.activeElement : null;
  const address = focused && focused.getAttribute("href");
  change();
  if (address && !focused.isConnected) {
    const again = [...root.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === address);
    if (again) again.focus({ preventScroll: true });
  }
}

function applyTable(body, { order, rows }) {
  const present = new Map([...body.rows].filter((row) => row.dataset.key).map((row) => [row.dataset.key, row]));
  const isFirst = !body.dataset.isLive;
  body.dataset.isLive = "yes";
  let after = null;
  for (const key of order) {
    let row = present.get(key);
    if (rows[key] !== undefined) {
      const fresh = rowOf(rows[key]);
      if (!row && !isFirst) fresh.classList.add("is-new");
      if (row) row.replaceWith(fresh);
      row = fresh;
    }
    present.delete(key);
    const place = after ? after.nextSibling : body.firstChild;
    if (row && row !== place) body.insertBefore(row, place);
    after = row || after;
  }
  const isNewest = body.dataset.mode === "newest";
  const least = order.length ? Number(order[order.length - 1]) : 0;
  for (const [key, row] of present) if (!isNewest || Number(key) >= least) row.remove();
  if (isNewest) while (body.rows.length > Number(body.dataset.max)) body.lastElementChild.remove();
}

function showWhether(name, isAny) {
  for (const element of document.querySelectorAll(`[data-with="${name}"]`)) element.hidden = !isAny;
  for (const element of document.querySelectorAll(`[data-without="${name}"]`)) element.hidden = isAny;
}

// The page of a session that has ended, here or in another tab, says so.
let hasEnded = false;
function sayEnded() {
  if (hasEnded || !("session" in document.body.dataset)) return;
  hasEnded = true;
  const banner = document.createElement("p");
  banner.className = "banner";
  banner.setAttribute("role", "alert");
  const link = document.createElement("a");
  link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
  link.textContent = "Log in again";
  banner.append("You are logged out, so this page is not updated any more. ", link);
  document.querySelector("main").prepend(banner);
}

function follow(address) {
  const state = document.querySelector("[data-live-state]");
  const text = document.createElement("span");
  const button = document.createElement("button");
  button.className = "plain";
  state.append(text, button);
  state.hidden = false;
  let source = null;
  let isPaused = false;

  function show(isOn, words) {
    state.classList.toggle("is-on", isOn);
    setText(text, words);
    setText(button, isPaused ? "Resume" : "Pause");
  }

  function open() {
    if (source || isPaused || hasEnded || document.hidden) return;
    const query = "session" in document.body.dataset ? `${address.includes("?") ? "&" : "?"}session=yes` : "";
    source = new EventSource(address + query);
    source.addEventListener("ended", end);
    source.onopen = () => show(true, "Live");
    source.onerror = () => {
      show(false, "Reconnecting");
      if (source && source.readyState === EventSource.CLOSED) { // refused, so the browser does not try again by itself
        close();
        setTimeout(open, 5000);
      }
    };
    source.onmessage = (event) => {
      const news = JSON.parse(event.data);
      for (const [name, html] of Object.entries(news.parts)) {
        const part = document.querySelector(`[data-part="${name}"]`);
        if (part) keepingFocus(part, () => { part.innerHTML = html; });
      }
      for (const [name, table] of Object.entries(news.tables)) {
        const body = document.querySelector(`[data-table="${name}"]`);
        if (body) keepingFocus(body, () => applyTable(body, table));
        if (body) showWhether(name, body.rows.length > 0);
      }
      countTimes();
      document.documentElement.dataset.news = String(Number(document.documentElement.dataset.news || 0) + 1);
    };
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  function end() {
    close();
    sayEnded();
    button.remove();
    show(false, "Logged out");
  }

  sessions.addEventListener("message", () => { if ("session" in document.body.dataset) end(); });

  button.addEventListener("click", () => {
    isPaused = !isPaused;
    if (isPaused) { close(); show(false, "Paused"); } else { show(false, "Connecting"); open(); }
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  show(false, "Connecting");
  open();
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// As Python's format "g" writes it.
function general(value, digits) {
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = Number(exponent);
  const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (power >= -4 && power < digits) return trimmed(value.toFixed(digits - 1 - power));
  return `${trimmed(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

// As formats.metric_text writes it.
function metricText(value) {
  const size = Math.abs(value);
  if (value && (size >= 1e7 || size < 1e-4)) return general(value, 4);
  const whole = Math.round(value) + 0; // without the sign of -0
  return Math.abs(value - whole) <= 1e-9 * size ? String(whole) : general(value, 6);
}

// Very large and very small values are drawn as multiples of a power of ten: uPlot has no ticks for them, and the
// difference of two of them may be infinite. Returns the exponent of that power; 0 for values that can be drawn.
function exponentOf(values) {
  const greatest = values.reduce((found, value) => Math.max(found, Math.abs(value)), 0);
  const exponent = greatest ? Math.floor(Math.log10(greatest)) : 0;
  return exponent >= 6 || exponent < -4 ? exponent : 0;
}

// In two steps where that power is less than the least number.
function scaled(value, exponent) {
  return exponent < -300 ? (value * 1e300) / 10 ** (exponent + 300) : value / 10 ** exponent;
}

// The text of a tick that stands for `value` times a power of ten, which may be too large for a number.
function tickText(value, exponent) {
  if (!value) return "0";
  const [mantissa, power] = Number(value.toPrecision(6)).toExponential().split("e");
  return `${mantissa}e${Number(power) + exponent}`;
}

function drawCurve(box, name, versions, values, address) {
  const figure = document.createElement("figure");
  figure.className = "curve";
  const caption = document.createElement("figcaption");
  const title = document.createElement("b");
  title.textContent = name;
  const reading = document.createElement("span");
  caption.append(title, reading);
  figure.append(caption);
  box.append(figure);
  const last = values.findLastIndex((value) => value !== null);
  const best = values.reduce((found, value, at) => (value !== null && (found < 0 || value > values[found]) ? at : found), -1);
  const rest = [`highest ${metricText(values[best])} at `, `, last ${metricText(values[last])}`];
  const link = document.createElement("a");
  link.href = address + versions[best];
  link.textContent = versions[best];
  link.setAttribute("aria-label", `Version ${versions[best]}, with the highest ${name}`);
  const showRest = () => { if (!reading.contains(link)) reading.replaceChildren(rest[0], link, rest[1]); };
  showRest();
  const axis = { stroke: () => colour("--quiet"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const exponent = exponentOf(values);
  const drawn = exponent ? values.map((value) => (value === null ? null : scaled(value, exponent))) : values;
  const valueAxis = exponent ? { ...axis, size: 66, values: (_, at) => at.map((v) => tickText(v, exponent)) } : { ...axis, size: 52, values: (_, at) => at.map(metricText) };
  const chart = new uPlot({
    width: figure.clientWidth, height: 150, legend: { show: false }, cursor: { y: false, points: { size: 7 } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 24, values: (_, at) => at.map((v) => (Number.isInteger(v) ? String(v) : "")) }, valueAxis],
    series: [{}, { stroke: () => colour("--accent"), width: 1.5, spanGaps: true, points: { show: values.filter((value) => value !== null).length < 60, size: 4 } }],
    hooks: { setCursor: [(u) => {
      const at = u.cursor.idx;
      const has = at !== null && at !== undefined && values[at] !== null && values[at] !== undefined;
      if (has) setText(reading, `version ${versions[at]}: ${metricText(values[at])}`); else showRest();
    }] },
  }, [versions, drawn], figure);
  chart.over.addEventListener("click", () => {
    if (chart.cursor.idx !== null) location.assign(address + versions[chart.cursor.idx]);
  });
  new ResizeObserver(() => chart.setSize({ width: figure.clientWidth, height: 150 })).observe(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw());
}

async function drawCurves(box) {
  if (typeof uPlot === "undefined") return;
  const answer = await fetch(box.dataset.curves, { headers: { accept: "application/json" } });
  if (!answer.ok) return;
  const { versions, metrics, left_out: leftOut } = await answer.json();
  if (versions.length < 2) return;
  box.hidden = false;
  for (const [name, values] of Object.entries(metrics)) drawCurve(box, name, versions, values, box.dataset.versions);
  if (!leftOut) return;
  const note = document.createElement("p");
  note.className = "quiet";
  note.textContent = `Without curves, since there are too many metrics: ${leftOut}.`;
  box.after(note);
}

for (const block of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy, ${block.getAttribute("aria-label")}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.before(button);
}

const sessions = new BroadcastChannel("registry-session"); // pages without events hear of a logout by it
sessions.addEventListener("message", sayEnded);
if (document.querySelector("[data-session-ended]")) sessions.postMessage("ended");
const live = document.querySelector("[data-live]");
if (live) follow(live.dataset.live);
const curves = document.querySelector("[data-curves]");
if (curves) drawCurves(curves);
countTimes();
setInterval(countTimes, 1000);
