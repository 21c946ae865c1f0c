// The playground: one or two streams from /v1/chat/completions. The key lives in this closure and nowhere else.
"use strict";

(() => {
  document.querySelector("[data-without-script]").remove();
  const form = document.querySelector("[data-playground]");
  const csrf = document.querySelector("meta[name=csrf-token]").content;
  const send = form.querySelector("[data-send]");
  const stop = form.querySelector("[data-stop]");
  const said = form.querySelector("[data-said]");
  const sides = [...document.querySelectorAll("[data-side]")];
  let key = null;
  let keyEnds = 0;
  let running = null;

  async function freshKey() {
    if (key !== null && Date.now() < keyEnds) return key;
    const reply = await fetch("/playground/key", { method: "POST", headers: { "x-csrf-token": csrf }, body: new URLSearchParams() });
    if (!reply.ok) throw new Error(reply.status === 401 ? "You are signed out; load the page again." : "No key could be made; load the page again.");
    const made = await reply.json();
    key = made.key;
    keyEnds = Date.now() + (made.lifetime_s - 30) * 1000;
    return key;
  }

  function bodyOf(side) {
    const messages = [{ role: "user", content: form.querySelector("#prompt").value }];
    const system = form.querySelector("#system").value.trim();
    if (system) messages.unshift({ role: "system", content: system });
    const body = { messages, stream: true, stream_options: { include_usage: true } };
    for (const input of side.querySelectorAll("[data-set]")) {
      if (input.value === "") continue;
      if (input.dataset.set === "thinking") body.chat_template_kwargs = { enable_thinking: input.value === "on" };
      else body[input.dataset.set] = input.type === "number" ? Number(input.value) : input.value;
    }
    return body;
  }

  // Server-sent events of a reply, as objects.
  async function* chunksOf(reply) {
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
        else if (line.startsWith(": queued")) yield { queued: line.slice(2) };
      }
    }
  }

  function canvas(side) {
    const answer = side.querySelector("[data-answer]");
    answer.replaceChildren();
    const thinking = document.createElement("details");
    const summary = document.createElement("summary");
    const thought = document.createElement("pre");
    const text = document.createElement("pre");
    summary.textContent = "Thinking";
    thinking.append(summary, thought);
    thinking.hidden = true;
    answer.append(thinking, text);
    return { think(piece) { thinking.hidden = false; thought.append(piece); }, say(piece) { text.append(piece); } };
  }

  async function ask(side, signal) {
    const numbers = side.querySelector("[data-numbers]");
    const paper = canvas(side);
    const began = performance.now();
    let first = 0;
    numbers.textContent = "waiting …";
    const post = async () => fetch("/v1/chat/completions", {
      method: "POST", signal, body: JSON.stringify(bodyOf(side)),
      headers: { "content-type": "application/json", ...(await freshKey() ? { authorization: `Bearer ${key}` } : {}) },
    });
    let reply = await post();
    if (reply.status === 401 && key) { key = null; reply = await post(); } // another tab has a newer key
    if (!reply.ok) {
      const wrong = await reply.json().catch(() => null);
      throw new Error(wrong?.error?.message || `HTTP ${reply.status}`);
    }
    for await (const chunk of chunksOf(reply)) {
      if (chunk.queued) numbers.textContent = chunk.queued;
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices?.[0]?.delta;
      const thought = delta?.reasoning_content ?? delta?.reasoning;
      if ((thought || delta?.content) && !first) { first = performance.now(); numbers.textContent = "answering …"; }
      if (thought) paper.think(thought);
      if (delta?.content) paper.say(delta.content);
      if (chunk.usage) numbers.textContent = summary(chunk.usage, began, first || performance.now());
    }
  }

  function summary(usage, began, first) {
    const now = performance.now();
    const rate = usage.completion_tokens / Math.max((now - first) / 1000, 0.001);
    const speed = usage.completion_tokens > 1 ? `, ${rate.toFixed(1)} tokens/s` : "";
    return `${usage.prompt_tokens} prompt + ${usage.completion_tokens} completion tokens, first after ${Math.round(first - began)} ms, ${((now - began) / 1000).toFixed(2)} s in all${speed}`;
  }

  async function guarded(side, signal) {
    try {
      await ask(side, signal);
    } catch (error) {
      side.querySelector("[data-numbers]").textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    send.disabled = true;
    stop.hidden = false;
    said.textContent = "Answering.";
    try { await freshKey(); } catch { /* each side says it */ }
    await Promise.all(sides.filter((side) => !side.hidden).map((side) => guarded(side, running.signal)));
    running = null;
    send.disabled = false;
    stop.hidden = true;
    said.textContent = "Answer complete.";
  });
  stop.addEventListener("click", () => running?.abort());
  form.querySelector("[data-compare]").addEventListener("change", (event) => {
    sides[1].hidden = !event.target.checked;
    sides[0].querySelector("details.more").open = event.target.checked;
  });
  form.querySelector("#prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
})();
