// What a page does beyond its links: keys, live updates, and charts that answer to the pointer. All of it is optional.
"use strict";

const rows = () => [...document.querySelectorAll("[data-row]")];
const typing = (target) => target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]") !== null;

// --- keys ---------------------------------------------------------------------------------------------------------

function move(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.classList.contains("here"));
  const next = Math.min(Math.max(at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step, 0), all.length - 1);
  all.forEach((row, place) => row.classList.toggle("here", place === next));
  all[next].scrollIntoView({ block: "nearest" });
  const link = all[next].querySelector("a[href]");
  if (link) link.focus({ preventScroll: true });
}

function follow(selector) {
  const link = document.querySelector(selector);
  if (link) link.click();
  return Boolean(link);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape" && typing(event.target)) return event.target.blur();
  // Enter in a box of a form that writes would press its first button, which nobody has chosen.
  if (event.key === "Enter" && event.target.matches("[data-once] input")) return event.preventDefault();
  if (typing(event.target) || document.querySelector("dialog[open]")) return;
  // A page's own keys stand in its markup, as data-key on what they press.
  const own = document.querySelector(`[data-key~="${CSS.escape(event.key)}"]`);
  const keys = {
    j: () => move(1),
    k: () => move(-1),
    "[": () => follow("a[rel=prev]"),
    "]": () => follow("a[rel=next]"),
    "/": () => document.querySelector("input[type=search]")?.focus(),
    "?": () => document.getElementById("keys")?.showModal(),
  };
  // A key that is held down must not answer the questions that nobody has seen yet.
  if (own?.matches("textarea")) own.focus();
  else if (own) { if (!event.repeat) own.click(); }
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
}

// A form that writes is sent once: a second key, or click, that comes before the next page is there, is for nothing.
function onSubmit(event) {
  if (!event.target.matches("[data-once]")) return;
  if ("sent" in event.target.dataset) event.preventDefault();
  event.target.dataset.sent = "";
}

// --- live updates ---------------------------------------------------------------------------------------------------

const AGAIN = 5000; // milliseconds after which a page that could not be had is asked for again
let newest = document.body.dataset.state; // what the page shows, which may have changed before the first event
let behind = false;
let source = null;

// A page that is being written in stays as it is until that is done; then it is renewed.
const busy = () =>
  document.querySelector("dialog[open], main :focus-visible:is(input, textarea, select), main [data-hold]") !== null;

// Empty if the server has no such page any more; what else goes wrong may pass.
async function fetched() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (answer.status >= 500) throw new Error(answer.statusText);
  return answer.ok ? answer.text() : "";
}

async function renew() {
  behind = true;
  if (busy() || document.hidden) return;
  behind = false;
  const text = await fetched().catch(() => null);
  if (text === "") return;
  if (text === null || busy()) {
    behind = true;
    setTimeout(catchUp, AGAIN);
    return;
  }
  const made = new DOMParser().parseFromString(text, "text/html").getElementById("main");
  const here = rows().findIndex((row) => row.classList.contains("here"));
  const open = [...document.querySelectorAll("main details")].map((part) => part.open);
  document.getElementById("main").replaceChildren(...made.childNodes);
  if (here >= 0) rows()[here]?.classList.add("here");
  [...document.querySelectorAll("main details")].forEach((part, place) => { part.open = open[place] ?? part.open; });
  document.body.dataset.renewed = String(Number(document.body.dataset.renewed ?? 0) + 1);
}

function catchUp() {
  if (behind) renew();
}

// A browser has six connections to a server for all of its tabs: one that nobody sees gives its own back.
function listen() {
  const address = document.body.dataset.events;
  if (!address || document.hidden) return unlisten();
  if (source) return;
  source = new EventSource(address);
  source.onmessage = (event) => {
    if (newest === event.data) return;
    newest = event.data;
    renew();
  };
}

function unlisten() {
  source?.close();
  source = null;
}

// --- charts ---------------------------------------------------------------------------------------------------------

let library = null;

function charts() {
  library ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = document.body.dataset.charts;
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
  return library;
}

async function enliven(event) {
  const chart = event.target.closest?.(".chart:not([data-alive])");
  const definition = chart?.querySelector(".definition");
  if (!definition) return;
  chart.dataset.alive = "";
  await charts();
  const drawing = document.createElement("div");
  const spec = JSON.parse(definition.textContent);
  const options = {
    actions: false, ast: true, renderer: "svg", defaultStyle: false, config: window.rondoTheme,
    tooltip: { disableDefaultStyle: true },
  };
  await window.vegaEmbed(drawing, spec, options);
  if (drawing.querySelector("svg")) chart.querySelector("picture, svg").replaceWith(drawing);
}

// --- start ----------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", onKey);
document.addEventListener("submit", onSubmit);
addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent));
document.addEventListener("pointerover", enliven);
document.addEventListener("focusin", enliven); // its points are links, which keys reach too
const keys = document.querySelector("[data-keys]");
if (keys) {
  keys.hidden = false;
  keys.addEventListener("click", () => document.getElementById("keys").showModal());
}
document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) catchUp(); });
// At the event itself the box still has the focus, and the next one does not have it yet.
document.addEventListener("focusout", () => setTimeout(catchUp));
document.addEventListener("close", catchUp, true); // of a dialog
addEventListener("pagehide", unlisten);
addEventListener("pageshow", listen);
listen();
document.documentElement.dataset.ready = "";
