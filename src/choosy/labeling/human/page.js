// Show what the annotator judges, send what they press, and ask for news every 1.5 seconds.
"use strict";

const BOUNCE = 250; // milliseconds for which a new question takes no verdict, so that a double press judges nothing unread
const token = new URLSearchParams(location.search).get("token"); // in a header: a cookie would go to every port of this machine
const element = (id) => document.getElementById(id);
const buttons = new Map([...document.querySelectorAll("[data-action]")].map((button) => [button.dataset.action, button]));
const actions = new Map([...buttons].flatMap(([action, button]) => button.dataset.keys.split(" ").map((key) => [key, action])));

let annotator = localStorage.getItem("choosy-annotator") ?? "";
let question = "";
let appeared = 0; // when the question on the screen appeared
let requests = 0;
let acting = false;

async function ask(path, options = {}) {
  const number = ++requests;
  let response = null;
  try {
    const headers = { "X-Choosy-Token": token, ...options.headers };
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
  } catch {} // nothing listens any more
  element("gone").hidden = response !== null && response.status !== 401;
  if (number !== requests || !element("gone").hidden) return; // a later request has the newer answer
  if (response.ok) draw(await response.json());
  else element("note").textContent = `Not saved: the page answered with status ${response.status}.`;
}

function draw(screen) {
  annotator = screen.annotator;
  localStorage.setItem("choosy-annotator", annotator);
  element("who").hidden = true;
  element("work").hidden = false;
  element("rename").textContent = annotator;
  const asks = screen.question !== "";
  if (screen.question !== question) {
    if (screen.note === null) element("note").textContent = ""; // what was said is about an earlier question
    question = screen.question;
    for (const part of document.querySelectorAll("#question article")) {
      part.querySelector(".text").textContent = screen.texts[part.id] ?? "";
      part.scrollTop = 0;
    }
    scrollTo(0, 0);
    appeared = performance.now();
  }
  element("question").hidden = !asks;
  element("waiting").hidden = asks;
  element("waiting").textContent = screen.waiting;
  for (const [action, button] of buttons) button.disabled = !(action === "undo" ? screen.can_undo : asks);
  element("facts").textContent = screen.facts;
  if (screen.note !== null) element("note").textContent = screen.note;
  element("progress").max = screen.asked || 1;
  element("progress").value = screen.done;
}

async function act(action, pressed) {
  if (acting || buttons.get(action).disabled || pressed - appeared < BOUNCE) return;
  acting = true;
  const body = JSON.stringify({ annotator, question, action });
  await ask("act", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  acting = false;
}

function look() {
  if (annotator && !acting) ask(`screen?annotator=${encodeURIComponent(annotator)}`);
}

function askName() {
  element("work").hidden = true;
  element("who").hidden = false;
  element("name").value = annotator;
  element("name").focus();
}

for (const [action, button] of buttons) button.addEventListener("click", (event) => act(action, event.timeStamp));
addEventListener("keydown", (event) => {
  const action = actions.get(event.key.length === 1 ? event.key.toLowerCase() : event.key);
  if (!action || element("work").hidden || event.repeat || event.isComposing) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act(action, event.timeStamp);
});
element("rename").addEventListener("click", askName);
element("who").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = element("name").value.trim();
  look();
});
setInterval(() => element("who").hidden && look(), 1500);
annotator ? look() : askName();
