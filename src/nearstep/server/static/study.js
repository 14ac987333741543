// The voting page: two clips that start together and go round together, and a vote. docs/study.md says what it is for.

const at = (id) => document.getElementById(id);
const NAME = "nearstep-study-rater";
const SIDES = ["left", "right"];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };
const LARGEST = 512; // pixels that a small clip is enlarged to, by a whole number
const videos = Object.fromEntries(SIDES.map((side) => [side, at(side)]));
const fetched = new Map(); // name of a clip -> promise of an address in this page
let state = null, trial = null, since = 0, seen = false, busy = false, ended = new Set(), round = 0;

function tell(text, wrong = false) {
  at("told").textContent = text;
  at("told").classList.toggle("wrong", wrong);
}

function show(id) {
  for (const part of ["enter", "who", "trial", "finished"]) at(part).hidden = part !== id;
}

async function ask(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error.message), { status: answer.status });
  return content;
}

async function trying(what) {
  try { await what(); } catch (error) {
    if (error.status === 401) show("enter");
    tell(error.status ? error.message : `The server does not answer (${error.message}); nothing is lost. Try again.`, true);
  }
}

function clip(name) {
  if (!fetched.has(name)) {
    const content = (async () => {
      const answer = await fetch(`/api/clips/${name}`);
      if (!answer.ok) throw Object.assign(new Error("a clip could not be fetched"), { status: answer.status });
      return URL.createObjectURL(await answer.blob());
    })();
    content.catch(() => fetched.delete(name)); // the next try fetches it again
    fetched.set(name, content);
  }
  return fetched.get(name);
}

function forget(names) {
  for (const [name, content] of fetched) {
    if (!names.has(name)) { fetched.delete(name); content.then(URL.revokeObjectURL, () => {}); }
  }
}

const loaded = (video, source) => new Promise((resolve, reject) => {
  video.oncanplaythrough = () => resolve();
  video.onerror = () => reject(Object.assign(new Error("This browser cannot show a clip; tell whoever runs the study."), { status: 415 }));
  video.src = source;
  video.load();
});

function fit(video) {
  const room = Math.min(LARGEST, video.parentElement.clientWidth - 14), times = Math.floor(room / video.videoWidth);
  video.classList.toggle("small", times >= 2);
  if (times >= 2) video.width = times * video.videoWidth; else video.removeAttribute("width");
}

function ready(can) {
  seen = can;
  for (const button of at("choices").children) button.disabled = !can;
  at("hint").textContent = can ? "" : "You can vote once both have been shown to their end.";
}

async function start() { // both from the first frame, at once
  const mine = ++round;
  ended = new Set();
  for (const side of SIDES) { videos[side].pause(); videos[side].currentTime = 0; }
  await Promise.all(SIDES.map((side) => videos[side].play()));
  if (mine === round && !since) since = performance.now();
}

function over(side) { // the shorter waits for the longer
  ended.add(side);
  if (ended.size < SIDES.length) return;
  if (!seen) ready(true);
  start().catch(() => {});
}

async function next() {
  if (!state.trials.length) {
    trial = null;
    forget(new Set());
    show("finished");
    tell(`${state.done} of ${state.total}`);
    return;
  }
  [trial] = state.trials;
  show("trial");
  ready(false);
  at("question").textContent = state.question;
  at("prompt").hidden = trial.prompt === null;
  at("prompt").querySelector("q").textContent = trial.prompt ?? "";
  at("count").textContent = `${state.done} of ${state.total} done`;
  at("progress").max = state.total;
  at("progress").value = state.done;
  forget(new Set(state.trials.flatMap((each) => [each.left, each.right])));
  since = 0;
  const sources = await Promise.all(SIDES.map((side) => clip(trial[side])));
  await Promise.all(SIDES.map((side, number) => loaded(videos[side], sources[number])));
  for (const side of SIDES) fit(videos[side]);
  await start();
  if (state.trials[1]) for (const side of SIDES) clip(state.trials[1][side]).catch(() => {});
}

async function vote(choice) {
  if (busy || !trial || !seen) return;
  busy = true;
  const seconds = Math.min(86400, (performance.now() - since) / 1000);
  await trying(async () => {
    try {
      state = await ask("/api/vote", { rater: state.rater, trial: trial.id, choice, seconds });
    } catch (error) {
      if (error.status !== 409) throw error; // voted in another window: go on from there
      state = await ask("/api/begin", { rater: state.rater });
    }
    tell(`You said: ${{ left: "left", right: "right", tie: "about the same" }[choice]}.`);
    await next();
  });
  busy = false;
}

async function begin(name) {
  state = await ask("/api/begin", { rater: name });
  localStorage.setItem(NAME, state.rater);
  tell("");
  await next();
}

const again = () => { if (trial) start().catch(() => {}); };

for (const side of SIDES) videos[side].addEventListener("ended", () => over(side));
for (const button of at("choices").children) button.addEventListener("click", () => vote(button.dataset.choice));
at("again").addEventListener("click", again);
addEventListener("resize", () => { if (trial) for (const side of SIDES) fit(videos[side]); });
addEventListener("keydown", (event) => {
  if (at("trial").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in KEYS) { event.preventDefault(); vote(KEYS[event.key]); }
  if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); again(); }
});
at("who").addEventListener("submit", (event) => { event.preventDefault(); trying(() => begin(at("name").value)); });
at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => { await ask("/api/enter", { token: at("token").value }); tell(""); await open(); });
});

async function open() {
  const name = localStorage.getItem(NAME);
  if (name) await begin(name); else { show("who"); at("name").focus(); }
}

await trying(async () => {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) { history.replaceState(null, "", location.pathname); await ask("/api/enter", { token }); }
  await open();
});
