// What the pages gain from a script: live parts, copying, the drawer, local times. Without it everything can still be read and done.
"use strict";

// Times come as UTC; people read them where they are.
function tellTimes(root) {
  for (const time of root.querySelectorAll("time[data-time]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    time.title = at.toLocaleString();
    if (time.dataset.time === "ago") time.textContent = ago(at);
    else if (time.dataset.time === "clock") time.textContent = clock(at);
    else time.textContent = at.toLocaleString();
  }
}

function clock(at) {
  const time = at.toLocaleTimeString([], { hour12: false });
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString([], { month: "short", day: "numeric" })} ${time}`;
}

function ago(at) {
  const passed = (Date.now() - at.getTime()) / 1000;
  const size = Math.abs(passed);
  let words = `${Math.floor(size)} s`;
  if (size >= 86400) words = `${Math.floor(size / 86400)} d`;
  else if (size >= 3600) words = `${Math.floor(size / 3600)} h`;
  else if (size >= 60) words = `${Math.floor(size / 60)} min`;
  if (size < 2) return "just now";
  return passed > 0 ? `${words} ago` : `in ${words}`;
}

// A part is replaced whole. What was open in it stays open, and the focus stays where it was.
function replacePart(part, html) {
  const open = [...part.querySelectorAll("details[data-key]")].map((item) => [item.dataset.key, item.open]);
  const twins = [...part.querySelectorAll("details.twin")].map((item) => item.open);
  const scrolled = [...part.querySelectorAll(".scroll")].map((item) => [item.scrollLeft, item.scrollTop]);
  const focused = part.contains(document.activeElement) ? focusMark(part) : null;
  part.innerHTML = html; // made and escaped by this server
  for (const [key, isOpen] of open) {
    const item = part.querySelector(`details[data-key="${CSS.escape(key)}"]`);
    if (item) item.open = isOpen;
  }
  part.querySelectorAll("details.twin").forEach((item, index) => { item.open = twins[index] || false; });
  part.querySelectorAll(".scroll").forEach((item, index) => { [item.scrollLeft, item.scrollTop] = scrolled[index] || [0, 0]; });
  if (focused) focused()?.focus({ preventScroll: true });
  prepare(part);
}

function focusMark(part) {
  const active = document.activeElement;
  if (active.dataset.key) return () => part.querySelector(`[data-key="${CSS.escape(active.dataset.key)}"]`);
  const kind = active.tagName;
  const index = [...part.querySelectorAll(kind)].indexOf(active);
  return () => part.querySelectorAll(kind)[index];
}

// One stream per page, closed while nobody can see it.
function goLive() {
  const page = document.body.dataset.page;
  if (!page) return;
  let source = null;
  const lost = document.querySelector("[data-lost]");
  const open = () => {
    const query = new URLSearchParams(location.search);
    query.set("page", page);
    if (document.body.dataset.item) query.set("item", document.body.dataset.item);
    source = new EventSource(`/dash/events?${query}`);
    source.onopen = () => { lost.hidden = true; };
    source.onerror = () => { lost.hidden = false; };
    source.addEventListener("gone", () => location.reload());
    for (const part of document.querySelectorAll("[data-panel]")) {
      source.addEventListener(part.dataset.panel, (event) => replacePart(part, event.data));
    }
  };
  const follow = () => {
    if (document.hidden && source) { source.close(); source = null; }
    if (!document.hidden && !source) open();
  };
  document.addEventListener("visibilitychange", follow);
  window.addEventListener("pagehide", () => { source?.close(); source = null; });
  window.addEventListener("pageshow", follow);
  follow();
}

async function copy(button) {
  const from = document.getElementById(button.dataset.copy);
  const words = button.querySelector("span");
  try {
    await navigator.clipboard.writeText(from.textContent);
    words.textContent = "Copied";
  } catch { // no clipboard without https: select it, so that a key press copies
    getSelection().selectAllChildren(from);
    words.textContent = "Selected";
  }
  setTimeout(() => { words.textContent = "Copy"; }, 2000);
}

async function openDrawer(link) {
  const drawer = document.getElementById("drawer");
  const reply = await fetch(link.href, { headers: { "x-fragment": "1" } });
  if (!reply.ok) { location.href = link.href; return; }
  drawer.innerHTML = await reply.text(); // made and escaped by this server
  const close = document.createElement("button");
  close.type = "button";
  close.className = "small close";
  close.textContent = "Close";
  close.addEventListener("click", () => drawer.close());
  drawer.prepend(close);
  const key = link.dataset.key;
  drawer.addEventListener("close", () => document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus(), { once: true });
  prepare(drawer);
  drawer.showModal();
}

function prepare(root) {
  tellTimes(root);
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
  const link = event.target.closest("a[data-drawer]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
    event.preventDefault();
    openDrawer(link).catch(() => { location.href = link.href; });
  }
  if (event.target.id === "drawer") event.target.close(); // beside the drawer, not in it
  for (const account of document.querySelectorAll(".account[open]")) {
    if (!account.contains(event.target)) account.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const account of document.querySelectorAll(".account[open]")) account.open = false;
});

document.addEventListener("change", (event) => {
  if (event.target.matches("form[data-auto] select")) event.target.form.requestSubmit();
});

prepare(document);
setInterval(() => tellTimes(document), 5000);
document.querySelector("nav [aria-current=page]")?.scrollIntoView({ block: "nearest", inline: "center" });
goLive();
