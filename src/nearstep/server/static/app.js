// The page: players (one, or two to compare), a timeline, and the forms that steer. docs/serve.md has the protocol.
// Whatever comes from outside is set as text, never as markup.

const HEAD = 16, BEHIND = 30, TIMELINE = 200, RETRY = [300, 600, 1200, 2500, 5000];
const FINAL = new Set([4400, 4404, 4408, 4410, 4429, 4001]);
const PLANS = ["1", "2", "4", "4,1x", "adaptive"];
const at = (id) => document.getElementById(id);
const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

let model, main, beside = null, chosen = null, upload = null;
const watching = location.pathname.startsWith("/watch/");

function tell(text, wrong = false) {
  at("told").textContent = text;
  at("told").classList.toggle("wrong", wrong);
}

async function ask(method, path, body, type = "application/json") {
  const sent = body === undefined ? {} : { body: body instanceof Blob ? body : JSON.stringify(body), headers: { "Content-Type": type } };
  const answer = await fetch(path, { method, ...sent });
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error?.message ?? answer.statusText), { status: answer.status });
  return content;
}

// --- one take that is watched ----------------------------------------------------------------------------------------

class Player {
  // path: "takes/ID", or "watch/ID" for who only watches.
  constructor(path) {
    this.path = path;
    this.root = at("player").content.firstElementChild.cloneNode(true);
    this.video = this.part("video");
    this.take = null; this.chunks = new Map(); this.epoch = 0;
    this.queue = []; this.shown = -1; this.newest = -1; this.asked = new Map(); this.turns = []; this.tries = 0; this.gone = false;
    this.frames = { time: performance.now(), count: 0 };
    this.part(".play").onclick = () => this.say(this.take?.state === "playing" ? "pause" : "play");
    this.part(".keep").onclick = () => keep();
    this.part(".away").onclick = () => putAway();
    if (watching) this.part(".play").hidden = true;
    at("stage").append(this.root);
    this.openSource();
    this.connect();
    this.clock = setInterval(() => this.tick(), 50);
  }

  part(name) { return this.root.querySelector(name); }

  openSource() {
    if (!Source) { this.over("This browser cannot play streams (it has no Media Source Extensions).", true); return; }
    this.source = new Source();
    this.video.src = URL.createObjectURL(this.source);
    this.source.addEventListener("sourceopen", () => this.feed(), { once: true });
  }

  connect() {
    const after = this.newest >= 0 ? `?after=${this.epoch}.${this.newest}` : "";
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/api/${this.path}/live${after}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => (typeof data === "string" ? this.heard(JSON.parse(data)) : this.got(data));
    this.socket.onclose = ({ code }) => this.closed(code);
  }

  closed(code) {
    if (this.gone) return;
    if (FINAL.has(code)) { this.over(this.why ?? "This take is over.", true); this.done(); return; }
    this.over("The connection is lost; trying again…");
    setTimeout(() => !this.gone && this.connect(), RETRY[Math.min(this.tries++, RETRY.length - 1)]);
  }

  say(type, fields = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  // A request with two receipts; what it became of comes as a promise.
  request(type, fields) {
    const ref = crypto.getRandomValues(new Uint32Array(2)).join("-");
    return new Promise((resolve, reject) => {
      this.asked.set(ref, { resolve, reject, time: performance.now(), type });
      this.say(type, { ref, ...fields });
    });
  }

  heard(event) {
    if (event.type === "hello") this.hello(event);
    else if (event.type === "chunk" || event.type === "skipped") this.chunk(event);
    else if (event.type === "state") this.state(event);
    else if (event.type === "rewound") this.rewound(event);
    else if (event.type === "accepted") tell("Understood: it comes with the next chunk.");
    else if (event.type === "applied") this.applied(event);
    else if (event.type === "refused") this.refused(event);
    else if (event.type === "error") { this.why = event.why; tell(event.why, true); }
  }

  hello(event) {
    this.tries = 0;
    this.over("");
    const fresh = this.take === null || event.epoch !== this.epoch || event.from > this.newest + 1;
    this.epoch = event.epoch;
    this.chunks = new Map(event.chunks.map((chunk) => [chunk.index, chunk]));
    this.state(event.take);
    if (fresh) this.jump = event.from;
    fit(this);
    if (this === main) drawTimeline();
  }

  chunk(event) {
    this.chunks.set(event.index, event);
    if (this.turns.push(event) > 8) this.turns.shift();
    if (this === main) { addToTimeline(event); links(); }
  }

  got(data) {
    const view = new DataView(data), epoch = view.getUint32(4), chunk = view.getUint32(8), length = view.getUint32(12);
    if (epoch !== this.epoch) return;
    this.newest = Math.max(this.newest, chunk);
    if (this.buffer === undefined && Source) {
      const init = new Uint8Array(data, HEAD, length);
      if (this.source.readyState === "open") this.begin(init); else { this.source.addEventListener("sourceopen", () => this.begin(init), { once: true }); this.buffer = null; }
    }
    this.queue.push(new Uint8Array(data, HEAD + length));
    this.feed();
  }

  begin(init) {
    let at = 4;
    while (String.fromCharCode(...init.subarray(at - 4, at)) !== "avcC") at += 1;
    const codec = "avc1." + [...init.subarray(at + 1, at + 4)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (!Source.isTypeSupported(`video/mp4; codecs="${codec}"`)) { this.over("This browser cannot play H.264.", true); return; }
    this.buffer = this.source.addSourceBuffer(`video/mp4; codecs="${codec}"`);
    this.buffer.onupdateend = () => this.feed();
    this.queue.unshift(init);
    this.feed();
  }

  // One thing at a time: what a rewind cuts off, the next part, or what is long past.
  feed() {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || this.source.readyState !== "open") return;
    if (this.cut !== undefined) {
      const from = this.cut;
      this.cut = undefined;
      if (buffer.buffered.length && buffer.buffered.end(buffer.buffered.length - 1) > from) { buffer.remove(from, Infinity); return; }
    }
    if (this.queue.length) { buffer.appendBuffer(this.queue.shift()); return; }
    const ranges = buffer.buffered;
    if (ranges.length && ranges.start(0) < this.video.currentTime - 2 * BEHIND) buffer.remove(0, this.video.currentTime - BEHIND);
  }

  start(chunk) { return (this.chunks.get(chunk)?.start ?? 0) / this.take.fps; }

  rewound(event) {
    const time = this.start(event.chunk);
    this.epoch = event.epoch; this.newest = event.chunk - 1; this.shown = Math.min(this.shown, event.chunk - 1);
    this.queue = this.queue.slice(0, this.buffer ? 0 : this.queue.length); this.cut = time;
    for (const index of [...this.chunks.keys()]) if (index >= event.chunk) this.chunks.delete(index);
    if (this.video.currentTime >= time - 0.05) this.back = time;
    this.feed();
    if (this === main) { chosen = null; drawTimeline(); }
  }

  applied(event) {
    const asked = this.asked.get(event.ref);
    if (asked?.type === "change") { this.awaited = { chunk: event.chunk, time: asked.time }; tell(`Changed from chunk ${event.chunk} on.`); }
    if (asked?.type === "rewind") tell(`Back at chunk ${event.chunk}.`);
    this.asked.delete(event.ref);
    asked?.resolve(event);
  }

  refused(event) {
    tell(event.why, true);
    this.asked.get(event.ref)?.reject(new Error(event.why));
    this.asked.delete(event.ref);
  }

  state(take) {
    this.take = { ...this.take, ...take };
    const playing = take.state === "playing";
    this.part(".play").textContent = playing ? "Pause" : "Play";
    this.part(".play").setAttribute("aria-pressed", String(!playing));
    this.part(".play").disabled = !["playing", "paused"].includes(take.state);
    this.part(".what").textContent = `${take.prompt} · plan ${take.plan} · seed ${take.seed}` + (playing ? "" : ` · ${take.state}`);
    if (take.why && take.state !== "playing") { this.why = `${take.state}: ${take.why}`; this.over(this.why, take.state === "failed"); }
    if (take.state === "paused") this.video.pause();
    if (this === main) { links(); if (!at("prompt").value) at("prompt").value = take.prompt; }
  }

  over(text, wrong = false) {
    const over = this.part(".over");
    over.textContent = text; over.hidden = !text; over.classList.toggle("wrong", wrong);
  }

  // Twenty times a second: keep playing, say what is shown, count.
  tick() {
    const video = this.video, ranges = video.buffered;
    if (!ranges.length || !this.take) return;
    if (this.jump !== undefined) { video.currentTime = Math.max(ranges.start(0), this.start(this.jump)); this.jump = undefined; }
    if (this.back !== undefined) { video.currentTime = Math.max(0, this.back - 1 / this.take.fps); this.back = undefined; }
    const now = video.currentTime;
    let inside = false, next = null;
    for (let i = 0; i < ranges.length; i += 1) {
      if (ranges.start(i) - 0.02 <= now && now < ranges.end(i)) inside = true;
      else if (ranges.start(i) > now && next === null) next = ranges.start(i);
    }
    if (!inside && next !== null) video.currentTime = next + 0.001;  // chunks that were skipped
    if (video.paused && this.take.state !== "paused") video.play().catch(() => this.over("Press Play to begin."));
    let shown = this.shown;
    for (const [index, chunk] of this.chunks) if (chunk.start / this.take.fps <= now + 0.02 && index > shown && index <= this.newest) shown = index;
    if (shown > this.shown) { this.shown = shown; this.say("ack", { epoch: this.epoch, chunk: shown }); if (this === main) mark(); }
    if (this.awaited && shown >= this.awaited.chunk && now >= this.start(this.awaited.chunk)) {
      this.part(".latency").textContent = `${((performance.now() - this.awaited.time) / 1000).toFixed(2)} s`;
      this.awaited = undefined;
    }
    this.numbers(ranges);
  }

  numbers(ranges) {
    const time = performance.now();
    if (time - this.frames.time < 1000) return;
    const count = this.video.getVideoPlaybackQuality().totalVideoFrames;
    this.part(".shown").textContent = `${((count - this.frames.count) * 1000 / (time - this.frames.time)).toFixed(1)} frames/s`;
    this.frames = { time, count };
    const ahead = ranges.end(ranges.length - 1) - this.video.currentTime, last = this.turns.at(-1);
    this.part(".buffer").textContent = `${Math.max(0, ahead).toFixed(1)} s`;
    if (!last) return;
    const sum = (name) => this.turns.reduce((total, turn) => total + turn[name], 0);
    this.part(".made").textContent = `${(sum("frames") / sum("seconds")).toFixed(0)} frames/s`;
    this.part(".steps").textContent = `${last.steps} (${(sum("steps") / this.turns.length).toFixed(1)} a chunk)`;
    this.part(".waiting").textContent = String(last.waiting);
  }

  done() { this.gone = true; clearInterval(this.clock); this.socket.close(); }

  remove() { this.done(); URL.revokeObjectURL(this.video.src); this.root.remove(); }
}

// Small worlds are enlarged by a whole number, so that each of their pixels is a square.
function fit(player) {
  const { width, height } = player.take ?? {};
  if (!width) return;
  const room = player.part(".screen").clientWidth, high = Math.max(192, Math.min(innerHeight * 0.62, 560));
  const times = Math.min(room / width, high / height), whole = Math.floor(times);
  player.video.classList.toggle("small", whole >= 2);
  player.video.style.width = `${width * (whole >= 2 ? whole : Math.max(times, 0.1))}px`;
  player.video.style.height = `${height * (whole >= 2 ? whole : Math.max(times, 0.1))}px`;
}
addEventListener("resize", () => [main, beside].forEach((player) => player && fit(player)));

// --- the timeline ----------------------------------------------------------------------------------------------------

function drawTimeline() {
  at("timeline").replaceChildren();
  [...main.chunks.values()].slice(-TIMELINE).forEach(addToTimeline);
  choose(null);
}

function addToTimeline(chunk) {
  const list = at("timeline"), item = document.createElement("li"), button = document.createElement("button"), image = new Image(96, 72);
  if (list.querySelector(`[data-chunk="${chunk.index}"]`)) return;
  const before = main.chunks.get(chunk.index - 1), turned = !before || before.prompt !== chunk.prompt || before.plan !== chunk.plan || before.seed !== chunk.seed;
  item.dataset.chunk = chunk.index;
  item.classList.toggle("turn", turned);
  button.type = "button";
  button.tabIndex = list.children.length ? -1 : 0;
  button.setAttribute("aria-label", `Chunk ${chunk.index}, ${chunk.steps} steps: ${chunk.prompt}`);
  button.title = `${chunk.prompt} · plan ${chunk.plan} · seed ${chunk.seed}`;
  image.loading = "lazy"; image.alt = "";
  image.src = `/api/${main.path}/chunks/${chunk.index}.jpg?e=${main.epoch}`;
  const first = document.createElement("span"), second = document.createElement("span");
  first.textContent = `${chunk.index} · ${chunk.steps} step${chunk.steps > 1 ? "s" : ""}`;
  second.textContent = turned ? chunk.prompt : "";
  button.append(image, first, second);
  button.onclick = () => choose(chunk.index);
  item.append(button);
  const end = list.scrollLeft + list.clientWidth >= list.scrollWidth - 160;
  list.append(item);
  while (list.children.length > TIMELINE) list.firstElementChild.remove();
  if (!list.querySelector('button[tabindex="0"]')) list.querySelector("button").tabIndex = 0;
  if (end && chosen === null) list.scrollLeft = list.scrollWidth;
}

function mark() {
  for (const item of at("timeline").children) item.classList.toggle("now", Number(item.dataset.chunk) === main.shown);
}

function choose(index) {
  chosen = index;
  for (const item of at("timeline").children) {
    const button = item.firstElementChild, here = Number(item.dataset.chunk) === index;
    button.setAttribute("aria-current", String(here));
    if (index !== null) button.tabIndex = here ? 0 : -1;
  }
  const chunk = index === null ? null : main.chunks.get(index);
  at("chosen").textContent = chunk ? `Chunk ${index}: ${chunk.prompt} · plan ${chunk.plan}, ${chunk.steps} steps · seed ${chunk.seed}` : "Choose a chunk to go back to it, or to fork there.";
  at("rewind").disabled = at("fork").disabled = chunk === null;
}

// Of many buttons one is a stop of the tab key; arrows lead to the others.
for (const group of [at("timeline"), at("words")]) group.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
  const buttons = [...group.querySelectorAll("button")], here = buttons.indexOf(document.activeElement);
  if (step === undefined || here < 0) return;
  event.preventDefault();
  const there = buttons[Math.max(0, Math.min(buttons.length - 1, here + step))];
  buttons[here].tabIndex = -1; there.tabIndex = 0; there.focus();
});

// --- takes -----------------------------------------------------------------------------------------------------------

function show(id) {
  main?.remove();
  main = new Player(watching ? `watch/${id}` : `takes/${id}`);
  at("stage").prepend(main.root);
  chosen = null;
  at("timeline").replaceChildren();
  if (!watching) history.replaceState(null, "", `#take=${id}`);
  return listTakes();
}

function showBeside(id) {
  putAway();
  if (!id || main.path === `takes/${id}`) return;
  beside = new Player(`takes/${id}`);
  beside.part(".beside-only").hidden = false;
  fit(main);
  return listTakes();
}

function putAway() {
  beside?.remove();
  beside = null;
  at("beside").value = "";
  if (main) fit(main);
}

function keep() {
  const id = beside.path.split("/")[1];
  putAway();
  at("prompt").value = "";
  return show(id);
}

function links() {
  if (watching || !main.take?.id) return;
  at("save").href = `/api/${main.path}/video.mp4`;
  at("record").href = `/api/${main.path}/recording.jsonl`;
  at("share").value = `${location.origin}/watch/${main.take.watch}`;
}

async function listTakes() {
  if (watching) return;
  const { takes } = await ask("GET", "/api/takes"), here = main?.path.split("/")[1], other = beside?.path.split("/")[1];
  at("takes").replaceChildren(...takes.slice(0, 50).map((take) => {
    const item = document.createElement("li"), words = document.createElement("span"), state = document.createElement("span");
    words.className = "words"; words.textContent = take.prompt; state.className = "state"; state.textContent = take.id === here ? "shown" : take.state;
    item.append(words, state);
    if (take.state === "closed") {
      const video = document.createElement("a"), again = document.createElement("button");
      video.href = `/api/takes/${take.id}/video.mp4`; video.textContent = "Video"; video.className = "button";
      again.type = "button"; again.textContent = "Reopen"; again.onclick = () => begin({ again: take.id });
      item.append(video, again);
    } else if (take.id !== here) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = "Show"; button.onclick = () => show(take.id);
      item.append(button);
    }
    return item;
  }));
  const options = [new Option("nothing", ""), ...takes.filter((take) => take.state !== "closed" && take.id !== here).map((take) => new Option(take.prompt.slice(0, 60), take.id))];
  at("beside").replaceChildren(...options);
  at("beside").value = other ?? "";
}

async function trying(action) {
  try { return await action(); } catch (error) { if (error.status === 401) at("enter").hidden = false; tell(error.message, true); return null; }
}

const begin = (opening) => trying(async () => { const take = await ask("POST", "/api/takes", opening); await show(take.id); return take; });

// --- the forms -------------------------------------------------------------------------------------------------------

function direction() {
  const plan = at("plan-own").value.trim() || document.querySelector("#plans input:checked")?.value, seed = at("seed").value;
  return { prompt: at("prompt").value.trim(), ...(plan ? { plan } : {}), ...(seed === "" ? {} : { seed: Number(seed) }) };
}

function change(atOnce) {
  const wanted = direction(), take = main.take;
  for (const name of ["prompt", "plan", "seed"]) if (wanted[name] === take[name]) delete wanted[name];
  if (!Object.keys(wanted).length) { tell("That is what it shows already."); return; }
  if (atOnce && main.newest > main.shown) main.request("rewind", { chunk: main.shown + 1 }).catch(() => {});
  main.request("change", wanted).catch(() => {});
}

at("direction").onsubmit = (event) => { event.preventDefault(); change(false); };
at("now").onclick = () => at("direction").reportValidity() && change(true);
at("fresh").onclick = async () => {
  if (!at("direction").reportValidity()) return;
  const take = await begin({ ...direction(), ...(upload ? { upload } : {}) });
  if (take) { upload = null; tell("A new take."); }
};
at("upload").onchange = ({ target }) => trying(async () => {
  const [file] = target.files;
  target.value = "";
  if (!file) return;
  upload = (await ask("POST", "/api/uploads", file, "application/octet-stream")).id;
  tell(`${file.name} is there: New take begins with it.`);
});
at("load").onchange = ({ target }) => trying(async () => {
  const [file] = target.files;
  target.value = "";
  if (!file) return;
  const take = await ask("POST", "/api/recordings", file, "application/jsonl");
  at("prompt").value = "";
  await show(take.id);
});
at("rewind").onclick = () => main.request("rewind", { chunk: chosen }).catch(() => {});
at("fork").onclick = () => main.request("fork", { chunk: chosen }).then(async (event) => { await showBeside(event.take); tell(`Forked at chunk ${event.chunk}: the fork is beside.`); }).catch(() => {});
at("final").onclick = () => trying(async () => {
  const take = await ask("POST", "/api/takes", { again: main.take.id, plan: "4" });
  await showBeside(take.id);
  tell("The same noise, at 4 steps, beside.");
});
at("beside").onchange = ({ target }) => showBeside(target.value);
at("end").onclick = () => trying(async () => { await ask("DELETE", `/api/takes/${main.take.id}`); await listTakes(); });
at("copy").onclick = async () => {
  at("share").select();
  try { await navigator.clipboard.writeText(at("share").value); tell("Copied."); } catch { tell("Selected: copy it with your keyboard."); }
};
at("enter").onsubmit = (event) => {
  event.preventDefault();
  trying(async () => { await ask("POST", "/api/enter", { token: at("token").value }); at("enter").hidden = true; tell(""); await open(); });
};
at("prompt").oninput = () => suggest();
addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target !== document.body || watching) return;
  event.preventDefault();
  main?.part(".play").click();
});

// Words that go on from what is typed, or all of them.
function suggest() {
  const box = at("prompt"), start = box.value.slice(0, box.selectionStart).split(/\s+/).at(-1);
  const fits = model.words.filter((word) => start && word.startsWith(start) && word !== start);
  at("words").replaceChildren(...(fits.length ? fits : model.words).map((word, place) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = word; button.tabIndex = place ? -1 : 0;
    button.onclick = () => {
      const from = fits.length ? box.selectionStart - start.length : box.selectionStart, before = box.value.slice(0, from);
      box.setRangeText(`${before && !before.endsWith(" ") ? " " : ""}${word} `, from, box.selectionStart, "end");
      box.focus(); suggest();
    };
    return button;
  }));
}

function forms() {
  at("model").textContent = `${model.name} · ${model.width} × ${model.height}, ${model.fps} frames a second`;
  at("words-hint").textContent = model.words.length ? "This world knows these words:" : "";
  at("prompt").value ||= model.prompts[0] ?? "";
  at("plans").append(...[...PLANS, `fps:${model.fps}`].map((plan) => {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    input.type = "radio"; input.name = "plan"; input.value = plan; input.checked = plan === "4,1x"; text.textContent = plan;
    label.append(input, text);
    return label;
  }));
  suggest();
}

async function open() {
  const hash = new URLSearchParams(location.hash.slice(1)), token = hash.get("token");
  if (token) { history.replaceState(null, "", location.pathname); await trying(() => ask("POST", "/api/enter", { token })); }
  if (watching) {
    document.body.classList.add("watching");
    at("studio").hidden = false;
    await show(location.pathname.split("/")[2]);
    return;
  }
  model = await trying(() => ask("GET", "/api/model"));
  if (!model) return;
  at("studio").hidden = false;
  if (!at("plans").querySelector("input")) forms();
  const id = hash.get("take");
  const known = id && await ask("GET", `/api/takes/${encodeURIComponent(id)}`).catch(() => null);
  if (known && known.state !== "closed") { at("prompt").value = ""; await show(id); }
  else if (at("prompt").value) await begin(direction());
  else at("prompt").focus();
}
await open();
